"""What all commands print: notices, progress, tables."""

from __future__ import annotations

import click


def notify(notice: str) -> None:
    """Print a notice for the user on standard error."""
    click.echo(notice, err=True)
