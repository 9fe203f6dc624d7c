"""What every command prints with: notices, progress, and one rich console with one policy for width and markup."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

_CONTROLS = ("Cc", "Cf", "Cs")  # controls, invisible formats such as those that reverse text, and lone surrogates
PLAIN_WIDTH = 180  # characters per line of output that does not go to a terminal


def notify(notice: str) -> None:
    """Print a notice for the user on standard error."""
    echo(notice, err=True)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line on standard output, or on standard error, as `printable` shows it."""
    click.echo(printable(text), err=err)


def printable(text: str) -> str:
    """Return text in which control characters other than line ends and tabs are shown as Python writes them.

    Names of files and what files say can hold escape sequences, which a terminal would obey.
    """
    return "".join(
        letter if letter in "\n\t" or unicodedata.category(letter) not in _CONTROLS else _escape(letter)
        for letter in text
    )


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


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
