"""serve, health, doctor: the commands of `python -m fmi`."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import signal
import sys
from contextlib import closing
from dataclasses import fields
from http import HTTPStatus

import click

from . import SECRET
from .control import PORT
from .monitor import JsonLines
from .registry import Limits
from .rendezvous import Settings, running


class BadInput(click.ClickException):
    """What the user must do otherwise; exit code 2."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def fmi() -> None:
    """Let processes on machines behind NATs talk to each other.

    Exit codes: 0 done, 1 something is not as it should be, 2 bad input.
    """


def _limits(command: click.decorators.FC) -> click.decorators.FC:
    for field in reversed(fields(Limits)):
        kind = click.IntRange(1) if isinstance(field.default, int) else click.FloatRange(0, min_open=True)
        name, meaning = f"--max-{field.name.replace('_', '-')}", field.metadata["help"]
        option = click.option(name, field.name, type=kind, default=field.default, show_default=True, help=meaning)
        command = option(command)
    return command


@fmi.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=PORT, show_default=True, type=click.IntRange(0, 2**16 - 2), help="0 is any free one.")
@click.option(
    "--health-port", type=click.IntRange(0, 2**16 - 1), help="For /health, /metrics, /address; default PORT + 1."
)
@_limits
def serve(host: str, port: int, health_port: int | None, **limits: float) -> None:
    """Serve as a rendezvous until SIGTERM. All who know the secret in FMI_SECRET may join.

    Without a secret only this machine can reach it.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    secret = os.environ.get(SECRET, "").encode()
    if health_port is None:
        health_port = port + 1 if port else 0
    settings = Settings(host, port, health_port, secret, Limits(**limits))  # type: ignore[arg-type]
    try:
        asyncio.run(_until_told(settings))
    except ValueError as error:
        raise BadInput(f"{error}; set {SECRET}") from None
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


async def _until_told(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(settings):
        await stop.wait()


@fmi.command()
@click.option("--port", default=PORT + 1, show_default=True, type=click.IntRange(1, 2**16 - 1))
def health(port: int) -> None:
    """Say how the server on this machine is; exit code 1 if it does not answer."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise click.ClickException(f"no rendezvous server answers on port {port} ({error})") from None
    if answer.status != HTTPStatus.OK:
        raise click.ClickException(f"what answers on port {port} is no rendezvous server (status {answer.status})")
    click.echo(said)


@fmi.command()
@click.argument("endpoint")
@click.option("--health-port", type=click.IntRange(1, 2**16 - 1), help="Of the server; default its port + 1.")
def doctor(endpoint: str, health_port: int | None) -> None:
    """Say what talking through the server at ENDPOINT (HOST:PORT) is like from here.

    Exit code 1 if something would fail.
    """
    from .control import Endpoint
    from .doctor import checks

    try:
        where = Endpoint.parse(endpoint)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ENDPOINT") from None
    found = checks(where, os.environ.get(SECRET, "").encode(), health_port)
    for check in found:
        mark = {True: "ok", False: "FAILED", None: "?"}[check.passed]
        click.echo(f"{check.name:<15}{mark:<8}{check.said}")
    sys.exit(any(check.passed is False for check in found))


def main() -> None:
    """Entry point of `python -m fmi`."""
    fmi(prog_name="fmi")
