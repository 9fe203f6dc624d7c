"""What every command prints with: notices, progress, and one rich console with one policy for width and markup."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

# Controls, invisible formats such as those that reverse text, lone surrogates, and separators of lines.
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")
PLAIN_WIDTH = 180  # characters per line of output that does not go to a terminal


def notify(notice: str, *details: str) -> None:
    """Print a notice for the user on standard error, and indented below it any details, a line each."""
    for line in (notice, *(f"  {detail}" for detail in details)):
        echo(line, err=True)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line on standard output, or on standard error, as `printable_line` shows it."""
    click.echo(printable_line(text), err=err)


def printable_line(text: str) -> str:
    """Return text as one line: as `printable` does, with line ends and tabs shown, too.

    A name with a line end in it could otherwise pass for a message of its own.
    """
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


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

    Names of files and hosts such as "[red]" are shown as they are, with control characters as `printable_line` shows
    them. Output that does not go to a terminal is PLAIN_WIDTH characters wide.
    """
    from .plain_console import PlainConsole  # most commands start without rich, which takes 30 ms to import

    console = PlainConsole(stderr=stderr)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console
