"""The commands of `python -m fmi`: serve, health, doctor."""

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

from . import SECRET_VARIABLE
from .control import PORT
from .limits import Limits
from .monitor import JsonFormatter
from .rendezvous import Settings, run_server

PAGE = "platforms/fmi.md"  # below docs/; it explains all of these commands


class InvalidSettings(click.ClickException):
    """The settings contradict each other; exit code 2."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def fmi() -> None:
    """Connect processes on machines behind NATs to each other.

    Exit codes: 0 success, 1 failure, 2 invalid input.
    """


def _limit_options(command: click.decorators.FC) -> click.decorators.FC:
    for field in reversed(fields(Limits)):
        kind = click.IntRange(1) if isinstance(field.default, int) else click.FloatRange(0, min_open=True)
        name, text = f"--max-{field.name.replace('_', '-')}", field.metadata["help"]
        option = click.option(name, field.name, type=kind, default=field.default, show_default=True, help=text)
        command = option(command)
    return command


@fmi.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=PORT, show_default=True, type=click.IntRange(0, 2**16 - 2), help="Port; 0 for any free one."
)
@click.option(
    "--health-port",
    type=click.IntRange(0, 2**16 - 1),
    help="Port for /health, /metrics and /address; default PORT + 1.",
)
@_limit_options
def serve(host: str, port: int, health_port: int | None, **limits: float) -> None:
    """Run a rendezvous server until SIGTERM.

    Every process that knows the secret in FMI_SECRET may join. Without a secret only processes on this machine can
    connect.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    secret = os.environ.get(SECRET_VARIABLE, "").encode()
    if health_port is None:
        health_port = port + 1 if port else 0
    settings = Settings(host, port, health_port, secret, Limits(**limits))  # type: ignore[arg-type]
    try:
        asyncio.run(_serve_until_signal(settings))
    except ValueError as error:
        raise InvalidSettings(f"{error}; set {SECRET_VARIABLE}") from None
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


async def _serve_until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with run_server(settings):
        await stop.wait()


@fmi.command()
@click.option(
    "--port",
    default=PORT + 1,
    show_default=True,
    type=click.IntRange(1, 2**16 - 1),
    help="Health port of the server.",
)
def health(port: int) -> None:
    """Print the state of the server on this machine; exit code 1 if it does not answer."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/health")
            response = connection.getresponse()
            body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise click.ClickException(f"no rendezvous server answers on port {port} ({error})") from None
    if response.status != HTTPStatus.OK:
        raise click.ClickException(f"the server on port {port} is not a rendezvous server (status {response.status})")
    click.echo(body)


@fmi.command()
@click.argument("endpoint")
@click.option("--health-port", type=click.IntRange(1, 2**16 - 1), help="Health port of the server; default PORT + 1.")
def doctor(endpoint: str, health_port: int | None) -> None:
    """Diagnose connections from this machine through the server at ENDPOINT (HOST:PORT).

    Exit code 1 if a check fails.
    """
    from .control import Endpoint
    from .doctor import run_diagnostics

    try:
        where = Endpoint.parse(endpoint)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ENDPOINT") from None
    diagnostics = run_diagnostics(where, os.environ.get(SECRET_VARIABLE, "").encode(), health_port)
    for diagnostic in diagnostics:
        mark = {True: "ok", False: "FAILED", None: "?"}[diagnostic.passed]
        click.echo(f"{diagnostic.name:<15}{mark:<8}{diagnostic.message}")
    sys.exit(any(diagnostic.passed is False for diagnostic in diagnostics))


def main() -> None:
    """Run `python -m fmi`."""
    for command in (fmi, *fmi.commands.values()):
        command.epilog = f"Documentation: docs/{PAGE}"
    fmi(prog_name="fmi")
