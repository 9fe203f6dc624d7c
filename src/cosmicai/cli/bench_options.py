"""Options that several commands of `cosmicai bench` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

LARGEST_NUMBER = 2**20  # of ranks, galaxies in a batch, or MB of a partition
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output and the table on standard error."
)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the figures go."""
    out = click.option("--out", type=click.Path(), callback=_require_replaceable, help="File to write the JSON to.")
    return out(json_option(command))


def _require_replaceable(context: click.Context, option: click.Parameter, out: str | None) -> str | None:
    """Return the file to write, checked before anything is measured. Raises InputError if it may not be written."""
    if out:
        from ..storage.outputs import require_replaceable

        require_replaceable(out)
    return out


def numbers_option(name: str, kind: type[int] | type[float], default: str, text: str) -> Callable[..., Any]:
    """Return an option for numbers above 0 that are separated by commas."""

    def parse(context: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or not all(0 < value <= LARGEST_NUMBER for value in values):
            limits = f"above 0 and up to {LARGEST_NUMBER:,}"
            raise click.BadParameter(f"{text!r} is not a list of numbers {limits}, separated by commas")
        return values

    return click.option(name, default=default, show_default=True, callback=parse, metavar="NUMBER,...", help=text)


def weights_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that names the weights file."""
    return click.option(
        "--weights", default="demo", show_default=True, help="Weights file, or `demo` (a small network)."
    )(command)


def repeats_option(default: int) -> Callable[..., Any]:
    """Return the option that says how often each row is measured."""
    text = "Number of measurements of each row; figures are their medians."
    return click.option("--repeats", default=default, show_default=True, type=click.IntRange(1), help=text)


def engines_option(default: str) -> Callable[..., Any]:
    """Return the option that names engines and their precisions."""
    return click.option(
        "--engines", default=default, show_default=True, help="ENGINE or ENGINE:PRECISION, separated by commas."
    )
