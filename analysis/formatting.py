"""Write the tables of the analysis: as text for a terminal or HTML, and as JSON or CSV for programs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click
import pandas as pd

from cosmicai import storage
from cosmicai.console import make_console
from cosmicai.storage.spreadsheet import quote_formulas

FEW, MAX_DIGITS = 30, 3  # values in a sample, below which its statistics have one significant digit less
SMALL = 1e-4

FORMATS: Mapping[str, str] = {
    "partition_mb": ",.4g",
    "data_gb": ",.4g",
    "dollars": ",.4f",
    "mae": ".3g",
    "mse": ".3g",
    "bias": "+.3g",
    "nmad": ".3g",
    "r2": ".3g",
    "outliers": ".2%",
    "coverage_68": ".1%",
    "coverage_68_error": ".1%",
    "coverage_95": ".1%",
    "coverage_95_error": ".1%",
    "outside_coverage_68": ".1%",
    "outside_coverage_95": ".1%",
}
HASHES = ("git_commit", "image_digest", "weights", "weights_name", "calibrated_on")  # columns of text with digests
SHORT = 10  # digits of a digest that people see
# All other numbers: four significant digits, integers in full


def format_cell(name: str, value: Any) -> str:
    """Return a value of the column `name` as text; a missing value is empty."""
    if pd.isna(value):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S} UTC"
    if not isinstance(value, int | float):
        return shorten_hashes(str(value)) if name in HASHES else str(value)
    if name in FORMATS:
        return format(value, FORMATS[name])
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def format_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with every value as text."""
    return pd.DataFrame(
        {name: [format_cell(str(name), value) for value in table[name].astype(object)] for name in table}, dtype="str"
    )


def shorten_hashes(text: str) -> str:
    """Return a text with only the first SHORT digits of each digest in it."""
    return _DIGEST.sub(r"\1", text)


_DIGEST = re.compile(rf"\b([0-9a-f]{{{SHORT}}})[0-9a-f]{{3,}}\b")


def count_noun(number: int, noun: str) -> str:
    """Return a number with its noun in singular or plural, such as `1 run` or `1,000 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def join_texts(texts: Sequence[str], limit: int = 4) -> str:
    """Return the first texts, separated by semicolons, and the number of others."""
    more = [f"and {len(texts) - limit} more"] if len(texts) > limit else []
    return "; ".join([*texts[:limit], *more])


def count_digits(sample: int) -> int:
    """Return how many significant digits a statistic of this many values is written with, three at most."""
    return MAX_DIGITS if sample >= FEW else MAX_DIGITS - 1


def format_statistic(value: float, sample: int = FEW, sign: str = "") -> str:
    """Return a statistic of `sample` values with as many significant digits as these justify; `sign` is `+` or empty.

    Numbers below 0.0001 are written with a power of ten.
    """
    digits = count_digits(sample)
    if not math.isfinite(value):
        return format(value, sign)
    rounded = float(f"{value:.{digits - 1}e}")
    if 0 < abs(rounded) < SMALL:
        return f"{rounded:{sign}.{digits - 1}e}"
    exponent = math.floor(math.log10(abs(rounded))) if rounded else 0
    text = f"{rounded:{sign},.{max(0, digits - 1 - exponent)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_fraction(value: float, sample: int = FEW) -> str:
    """Return a fraction of `sample` values as a percentage, with the digits of `format_statistic`."""
    return f"{format_statistic(100 * value, sample)}%"


def print_table(table: pd.DataFrame, title: str, headings: Mapping[str, str], width: int | None = None) -> None:
    """Print a table without its empty columns; `headings` maps column names to their headings.

    It is at most `width` columns wide, by default as wide as the terminal.
    """
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    filled = [name for name in table if table[name].notna().any()]
    for name in filled:
        number = pd.api.types.is_numeric_dtype(table[name])
        shown.add_column(headings.get(str(name), str(name)), justify="right" if number else "left", overflow="fold")
    for row in format_table(table[filled]).itertuples(index=False):
        shown.add_row(*row)
    console = make_console()
    console.print(shown, width=None if width is None else min(width, console.width))


def print_json(values: Mapping[str, Any]) -> None:
    """Print values as JSON; tables are lists of rows, a missing value is null."""
    click.echo(json.dumps({name: to_rows(value) for name, value in values.items()}, indent=1, allow_nan=False))


def to_rows(value: Any) -> Any:
    """Return a table as a list of rows for JSON; any other value unchanged."""
    return json.loads(value.to_json(orient="records", date_format="iso")) if isinstance(value, pd.DataFrame) else value


def to_csv(table: pd.DataFrame) -> bytes:
    """Return the table as CSV, with text that a spreadsheet would compute as `quote_formulas` writes it."""
    import pyarrow
    from pyarrow.csv import write_csv

    buffer = pyarrow.BufferOutputStream()  # pandas' own CSV writer takes ten times as long for 100,000 rows
    write_csv(quote_formulas(pyarrow.Table.from_pandas(table, preserve_index=False)), buffer)
    return bytes(buffer.getvalue())


def write_csv(uri: str, table: pd.DataFrame) -> None:
    """Write the table as CSV to a local path or S3, in one atomic step."""
    storage.write_bytes(uri, to_csv(table))


def write_text(uri: str, text: str) -> None:
    """Write text to a local path or S3, in one atomic step."""
    storage.write_bytes(uri, text.encode())
