"""Tables of measurements with the machine that made them, for people and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import click

from ..console import make_console
from ..storage import write_bytes
from .machine import format_command


@dataclass(frozen=True)
class MeasurementColumn:
    """A key of the rows, its heading, and the format specification of its values."""

    key: str
    heading: str
    spec: str = ""


@dataclass(frozen=True)
class MeasurementTable:
    """Rows of plain values by key, None where there is no value.

    `machine` is what `describe_machine` returned. `facts` hold for all rows and are part of the JSON; `notes` are shown
    above the table.
    """

    title: str
    columns: tuple[MeasurementColumn, ...]
    rows: list[dict[str, Any]]
    machine: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    command: str = field(default_factory=format_command)

    def to_json(self) -> str:
        """Return machine, command, facts and rows as JSON. Raises ValueError if a value is NaN or infinite."""
        values = {"machine": self.machine, "command": self.command, **self.facts, "rows": self.rows}
        return json.dumps(values, indent=1, allow_nan=False) + "\n"


def print_measurements(measurements: MeasurementTable, as_json: bool, out: str | None) -> None:
    """Print the table, or with `as_json` the JSON and the table on standard error; write the JSON to `out`, if given.

    Raises StorageError if `out` cannot be written.
    """
    from rich.table import Table

    if as_json:
        click.echo(measurements.to_json(), nl=False)
    console = make_console(stderr=as_json)
    for name, value in {**measurements.machine, "command": measurements.command, **measurements.notes}.items():
        console.print(f"{name:<14}{value}", soft_wrap=True)
    table = Table(title=measurements.title, title_justify="left")
    for column in measurements.columns:
        table.add_column(column.heading, justify="right" if column.spec else "left")
    for row in measurements.rows:
        table.add_row(*(_format(row[column.key], column.spec) for column in measurements.columns))
    console.print(table)
    if out:  # last, so that the figures are shown even if the disk is full
        write_bytes(out, measurements.to_json().encode())


def _format(value: object, spec: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format(value, spec)
