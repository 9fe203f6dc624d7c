"""A table of measurements under the machine they were made on, for people and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ..storage import write_bytes
from .machine import command_line

PLAIN_WIDTH = 180  # characters of a table that goes to no terminal


@dataclass(frozen=True)
class Column:
    """A key of the rows, its heading, and how its values are written (a format specification)."""

    key: str
    heading: str
    spec: str = ""


@dataclass(frozen=True)
class Report:
    """Rows of plain values by key, None where there is nothing to say; `machine` is that of
    `machine.machine()`, `facts` hold for all rows, `notes` are for
    people, above the table."""

    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    command: str = field(default_factory=command_line)

    def to_json(self) -> str:
        """`machine`, `command`, the facts, and `rows`; a NaN would be none and is a ValueError."""
        values = {"machine": self.machine, "command": self.command, **self.facts, "rows": self.rows}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"


def show(report: Report, as_json: bool, out: str | None) -> None:
    """Prints the table, or with `as_json` the JSON, the table then going to standard error; writes the JSON to `out`.

    Raises StorageError if `out` cannot be written.
    """
    if as_json:
        click.echo(report.to_json(), nl=False)
    console = Console(stderr=as_json, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    for name, value in {**report.machine, "command": report.command, **report.notes}.items():
        console.print(f"{name:<14}{value}", soft_wrap=True)
    table = Table(title=report.title, title_justify="left")
    for column in report.columns:
        table.add_column(column.heading, justify="right" if column.spec else "left")
    for row in report.rows:
        table.add_row(*(_text(row[column.key], column.spec) for column in report.columns))
    console.print(table)
    if out:  # last, so that a full disk costs nobody the figures
        write_bytes(out, report.to_json().encode())


def _text(value: object, spec: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, spec)
