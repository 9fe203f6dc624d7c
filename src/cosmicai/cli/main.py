"""`cosmicai ...`: every command, and what a user sees when one fails."""

from __future__ import annotations

import os
import sys

import click

from .. import __version__
from ..errors import InputError
from . import bench, cost, reproduce, runs, surveys, train, weights

COMPLETE, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Photometric redshifts for millions of galaxy cutouts.

    Exit codes: 0 done, 2 bad input, 3 a run that is not complete, 130 interrupted.
    """


_modules = (runs, surveys, bench, cost, train, weights, reproduce)
for command in (command for module in _modules for command in module.COMMANDS):
    cli.add_command(command)


def run_command(command: click.Command, name: str, told: object = None) -> None:
    """Runs a command line; a user's mistake is one sentence on standard error and exit code 2, never a traceback.

    What it is `told` commands find in their context's obj.
    """
    try:
        sys.exit(command.main(prog_name=name, standalone_mode=False, obj=told))
    except InputError as error:
        click.echo(f"{name}: {error}", err=True)
    except OSError as error:
        click.echo(f"{name}: {error.filename or 'input or output'}: {error.strerror or error}", err=True)
    except click.ClickException as error:
        error.show()
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: interrupted; a run keeps what is finished and goes on with --resume", err=True)
        # Not through the interpreter's end, which would wait for threads and engines that the interrupt may have left
        # in any state. What was written is whole.
        sys.stdout.flush()
        os._exit(INTERRUPTED)
    sys.exit(BAD_INPUT)


def main() -> None:
    """Entry point of `cosmicai` and `python -m cosmicai`."""
    run_command(cli, "cosmicai")
