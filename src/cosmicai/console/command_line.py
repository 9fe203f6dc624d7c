"""Run a command line; every failure that a user can correct ends with one sentence and an exit code."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ..errors import InputError, describe_os_error
from . import printable, printable_line
from .streams import secure_standard_streams

COMPLETE, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130
# The group of optional dependencies (pyproject.toml) that installs each module.
GROUPS = {
    "torch": "torch",
    "torchvision": "train",
    "mpi4py": "mpi",
    "submitit": "slurm",
    "boto3": "aws",
    "botocore": "aws",
    "astropy": "fits",
    "cdshealpix": "hats",
    "pandas": "analysis",
    "jinja2": "analysis",
    "msgpack": "fmi",
    "prometheus_client": "fmi",
    "nncf": "int8",
}
# How commands that are not installed as programs are called.
CALLS = {"launch": "python -m launch", "analysis": "python -m analysis", "deploy": "python aws/deploy.py"}
# The page below docs/ that explains each command; a command that is not here shares the page of its group.
PAGES = {
    "cosmicai": "index.md",
    "cosmicai infer": "quickstart.md",
    "cosmicai plan": "platforms/mpi.md",
    "cosmicai work": "platforms/mpi.md",
    "cosmicai summarize": "run-folder.md",
    "cosmicai catalogue": "run-folder.md",
    "cosmicai demo": "quickstart.md",
    "cosmicai selftest": "engines.md",
    "cosmicai ingest": "ingest.md",
    "cosmicai split": "data.md",
    "cosmicai synthetic": "data.md",
    "cosmicai survey": "data.md",
    "cosmicai bench": "performance.md",
    "cosmicai bench sweep": "analysis.md",
    "cosmicai cost": "platforms/aws.md",
    "cosmicai train": "training.md",
    "cosmicai calibrate": "uncertainties.md",
    "cosmicai weights": "engines.md",
    "cosmicai weights import": "reproduce.md",
    "cosmicai weights fetch": "reproduce.md",
    "cosmicai weights export": "engines.md",
    "cosmicai reproduce": "reproduce.md",
    "launch": "platforms/laptop.md",
    "launch status": "monitoring.md",
    "analysis": "analysis.md",
    "deploy": "platforms/aws.md",
}


def run_command(command: click.Command, name: str, context: object = None) -> None:
    """Run a click command and exit with its code.

    Failures end as `exit_with_sentence` says. Commands find `context` as click's `obj`.
    """
    secure_standard_streams()
    add_page(command, name)
    with exit_with_sentence(name):
        code = command.main(prog_name=CALLS.get(name, name), standalone_mode=False, obj=context)
        sys.stdout.flush()  # here an error, such as of a full disk, is still a sentence
        sys.exit(code)


def add_page(command: click.Command, name: str) -> None:
    """Let the help of a command, and of the commands below it, end with the page that explains it."""
    command.epilog = f"Documentation: docs/{find_page(name)}"
    if isinstance(command, click.Group):
        for word, subcommand in command.commands.items():
            add_page(subcommand, f"{name} {word}")


def find_page(name: str) -> str:
    """Return the page below docs/ that explains a command, such as `cosmicai survey info`. Raises KeyError."""
    return PAGES[name] if name in PAGES or " " not in name else find_page(name.rpartition(" ")[0])


@contextmanager
def exit_with_sentence(name: str) -> Iterator[None]:
    """Turn failures that a user can correct into one sentence of the program `name` on standard error, and exit.

    InputError, OSError, click's own exceptions and a missing optional package end with exit code 2, an interruption
    with 130; none of them shows a traceback.
    """
    try:
        yield
        return
    except InputError as error:
        click.echo(printable_line(f"{name}: {error}"), err=True)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in GROUPS:
            raise
        click.echo(
            f"{name}: this needs the package {package}, which is not installed; install it with "
            f"pip install 'cosmicai[{GROUPS[package]}]'",
            err=True,
        )
    except OSError as error:
        where, reason = error.filename or "input or output", describe_os_error(error, "use")
        click.echo(printable_line(f"{name}: {where}: {reason}"), err=True)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        # The lines of the usage above the message are our own.
        message = error.format_message()
        text = shown.getvalue().replace(message, printable_line(message))
        click.echo(printable(text), err=True, nl=False)
    except (click.Abort, KeyboardInterrupt):
        remedy = "a run keeps what is finished and continues with --resume, an ingest with the same command"
        click.echo(f"{name}: interrupted; {remedy}", err=True)
        # Exit without the interpreter's cleanup, which would wait for threads and engines that the interrupt may have
        # left in any state. Files are always written atomically.
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    sys.exit(BAD_INPUT)
