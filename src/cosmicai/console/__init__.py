"""What every command prints with: notices, progress, and one rich console with one policy for width and markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_WIDTH = 180  # characters per line of output that does not go to a terminal


def notify(notice: str) -> None:
    """Print a notice for the user on standard error."""
    click.echo(notice, err=True)


def make_console(*, stderr: bool = False) -> Console:
    """Return a rich console on standard output, or on standard error.

    Markup and highlighting are off, so that names of files and hosts such as "[red]" are shown as they are. Output that
    does not go to a terminal is PLAIN_WIDTH characters wide.
    """
    from rich.console import Console  # most commands start without rich, which takes 30 ms to import

    console = Console(stderr=stderr, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console
