"""Tables of the analysis as text for people: on a terminal, in HTML, and as JSON or CSV for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click
import pandas as pd

from cosmicai import storage

PLAIN_WIDTH = 180  # characters of a table that goes to no terminal
FORMATS: Mapping[str, str] = {
    "partition_mb": ",.4g",
    "data_gb": ",.4g",
    "dollars": ",.4f",
    "mae": ".6f",
    "mse": ".6f",
    "bias": "+.6f",
    "nmad": ".6f",
    "r2": ".6f",
    "outliers": ".2%",
}  # of all other numbers: four digits, whole numbers in full


def cell(name: str, value: Any) -> str:
    """A value as people read it; nothing where it is missing."""
    if pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if not isinstance(value, int | float):
        return str(value)
    if name in FORMATS:
        return format(value, FORMATS[name])
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every value as people read it."""
    return pd.DataFrame(
        {name: [cell(str(name), value) for value in table[name].astype(object)] for name in table}, dtype="str"
    )


def print_table(table: pd.DataFrame, title: str, headings: Mapping[str, str]) -> None:
    """Prints a table; columns that are empty throughout are left out."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    filled = [name for name in table if table[name].notna().any()]
    for name in filled:
        number = pd.api.types.is_numeric_dtype(table[name])
        shown.add_column(headings.get(str(name), str(name)), justify="right" if number else "left", overflow="fold")
    for row in texts(table[filled]).itertuples(index=False):
        shown.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    console.print(shown)


def print_json(values: Mapping[str, Any]) -> None:
    """Prints JSON; tables are lists of rows, a missing value is null."""
    click.echo(json.dumps({name: plain(value) for name, value in values.items()}, indent=1, allow_nan=False))


def plain(value: Any) -> Any:
    """A table as rows that JSON can hold; anything else as it is."""
    return json.loads(value.to_json(orient="records", date_format="iso")) if isinstance(value, pd.DataFrame) else value


def csv(table: pd.DataFrame) -> bytes:
    """The table as CSV."""
    import pyarrow
    from pyarrow.csv import write_csv

    buffer = pyarrow.BufferOutputStream()  # of 100,000 rows pandas' own CSV takes ten times as long
    write_csv(pyarrow.Table.from_pandas(table, preserve_index=False), buffer)
    return bytes(buffer.getvalue())


def write_csv(uri: str, table: pd.DataFrame) -> None:
    """Writes the table as CSV, whole or not at all, local or on S3."""
    storage.write_bytes(uri, csv(table))


def write_text(uri: str, text: str) -> None:
    """Writes a text, whole or not at all, local or on S3."""
    storage.write_bytes(uri, text.encode())
