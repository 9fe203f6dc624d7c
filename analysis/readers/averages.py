"""Compare averages in published tables with the rows that they are made from, as far as the digits of both go."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from statistics import fmean

_EMPTY = re.compile(r"-?|#.*")  # a cell in which a spreadsheet shows no value


@dataclass(frozen=True)
class Cell:
    """A number in a table, and half a unit of its last digit."""

    value: float
    error: float


def parse_cell(name: str, text: str) -> Cell | None:
    """Return the number in a cell; None for an empty one and for an error such as #DIV/0!.

    Raises ValueError, naming the column, for any other text.
    """
    if _EMPTY.fullmatch(text):
        return None
    try:
        number = Decimal(text.replace(",", ""))
        value = float(number)
    except (InvalidOperation, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"its `{name}` is {text[:80]!r}; expected a number that is not negative")
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return Cell(value, 0.5 * 10.0**exponent)


def average_cells(cells: Sequence[Cell]) -> Cell | None:
    """Return the mean of numbers with the mean of their errors; None without any."""
    return Cell(fmean(one.value for one in cells), fmean(one.error for one in cells)) if cells else None


def describe_disagreements(stated: Mapping[str, Cell], averages: Mapping[str, Cell | None]) -> Iterable[str]:
    """Yield a sentence for each stated average, by its name, that is not that of its rows within their digits."""
    for name, cell in stated.items():
        average = averages.get(name)
        if average and abs(cell.value - average.value) > cell.error + average.error + 1e-9 * average.value:
            yield f"the stated `{name}` of {cell.value:,.9g} is not that of its rows, which is {average.value:,.9g}"
