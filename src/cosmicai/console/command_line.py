"""Run a command line and turn every failure that a user can mend into one sentence and an exit code."""

from __future__ import annotations

import os
import sys

import click

from ..errors import InputError

COMPLETE, BAD_INPUT, INCOMPLETE, INTERRUPTED = 0, 2, 3, 130


def run_command(command: click.Command, name: str, context: object = None) -> None:
    """Run a click command and exit with its code.

    A user's mistake (InputError, OSError, click's own exceptions) is one sentence on standard error and exit code 2,
    an interruption is exit code 130, and neither shows a traceback. Commands find `context` as click's `obj`.
    """
    try:
        sys.exit(command.main(prog_name=name, standalone_mode=False, obj=context))
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
