"""Columns of a survey that the network does not see: positions, and the columns that the user kept.

In a shard they are datasets of one value per galaxy: `ra` and `dec` (float64, degrees, ICRS), and `columns/NAME` of the
source's own dtype. Attributes of a dataset are its `unit`, if it is known, and `null`, the value of integers and
booleans that stands for a missing one, if any is missing. Of floating point NaN is missing, of text the empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .identity import is_text, objids

POSITION = ("ra", "dec")
FOLDER = "columns/"
_LONGEST_TEXT = 4096  # bytes
_FORBIDDEN = "/,"  # in names of columns: they separate paths and lists


@dataclass(frozen=True)
class ColumnSpec:
    """How a column is stored: its dtype (numbers, booleans or `S<n>`), unit, and the value of missing integers.

    Values that would be stored as the one for missing ones are refused.
    """

    dtype: np.dtype[Any]
    unit: str = ""
    null: int | None = None

    def missing(self, count: int) -> NDArray[Any]:
        """Return `count` missing values."""
        if self.dtype.kind == "f":
            return np.full(count, np.nan, self.dtype)
        return np.full(count, b"" if is_text(self.dtype) else self.null, self.dtype)

    def store(self, values: NDArray[Any], where: str) -> NDArray[Any]:
        """Return values (N,), which may be masked, as they are stored; `where` names file and column in messages."""
        if is_text(self.dtype):
            return to_text(values, where).astype(self.dtype)
        if self.dtype.kind == "f":
            return np.ma.filled(values.astype(self.dtype), np.nan)
        if self.null is not None and (np.ma.filled(values == self.null, False)).any():
            raise InputError(f"{where} holds {self.null}, which stands for a missing value here; leave it out")
        return np.ma.filled(values.astype(self.dtype), self.null)

    def convert(self, values: NDArray[Any], stored: ColumnSpec, where: str) -> NDArray[Any]:
        """Return values that are stored in one way in this way, with what is missing as it is missing here."""
        return self.store(values if stored.null is None else np.ma.masked_equal(values, stored.null), where)


DEGREES = ColumnSpec(np.dtype("<f8"), "deg")


def is_name(name: str) -> bool:
    """Return whether a column can have this name in a shard."""
    return bool(name.strip(". ")) and name.isprintable() and not any(character in name for character in _FORBIDDEN)


def check_name(name: str, source: str) -> None:
    """Raise InputError if a column cannot have this name in a shard."""
    if not is_name(name):
        raise InputError(f"{source}: a kept column cannot be named {name!r}; expected no slash and no comma, rename it")


def to_text(values: Any, where: str) -> NDArray[np.bytes_]:
    """Return text of any kind as UTF-8 `S<n>`, empty where it is missing. Raises InputError if it is not text."""
    text = objids(values, where)
    if not is_text(text.dtype):  # no value at all, else it would be text
        return np.full(len(text), b"", "S1")
    return text


def inspect_column(values: Iterable[NDArray[Any]], dtype: np.dtype[Any], unit: str, where: str) -> ColumnSpec:
    """Return how a column is stored, from all its values in pieces.

    Raises InputError if it is neither numbers, booleans nor text.
    """
    if dtype.kind in "SUO":
        width = max((to_text(piece, where).dtype.itemsize for piece in values), default=1)
        if width > _LONGEST_TEXT:
            raise InputError(f"{where} holds texts of {width} bytes; expected at most {_LONGEST_TEXT}, leave it out")
        return ColumnSpec(np.dtype(f"S{width}"), unit)
    stored = dtype.newbyteorder("<") if dtype.itemsize > 1 else dtype
    if dtype.kind == "f":
        return ColumnSpec(np.dtype("<f4") if dtype.itemsize < 4 else stored, unit)
    if dtype.kind not in "iub":
        raise InputError(f"{where} is of dtype {dtype}; expected numbers, booleans or text, leave it out")
    is_masked, found = False, [0, 0]
    for piece in values:
        is_masked |= bool(np.ma.getmaskarray(piece).any()) if isinstance(piece, np.ma.MaskedArray) else False
        present = np.ma.compressed(piece) if isinstance(piece, np.ma.MaskedArray) else piece
        if len(present):
            found = [min(found[0], int(present.min())), max(found[1], int(present.max()))]
    if not is_masked:
        return ColumnSpec(stored, unit)
    return _with_null(np.dtype("<i2") if dtype.kind == "b" else stored, found, unit, where)


def _with_null(dtype: np.dtype[Any], found: Sequence[int], unit: str, where: str) -> ColumnSpec:
    """Return how integers with missing values are stored: in a dtype that has an unused value for them."""
    for candidate in (dtype, *(np.dtype(name) for name in ("<i2", "<i4", "<i8", "<u8"))):
        limits = np.iinfo(candidate)
        null = int(limits.min if candidate.kind == "i" else limits.max)
        if limits.min <= found[0] and found[1] <= limits.max and null not in found:
            return ColumnSpec(candidate, unit, null)
    raise InputError(f"{where} uses every value of {dtype} and misses some; leave it out")


def join_specs(parts: Sequence[tuple[str, Mapping[str, ColumnSpec]]]) -> dict[str, ColumnSpec]:
    """Return how the columns of several sources are stored in one survey.

    `parts` are names of sources and their columns. Where a source lacks a column its galaxies have missing values.
    Raises InputError if a column is of different kinds in two sources, or in different units.
    """
    joined: dict[str, ColumnSpec] = {}
    origin: dict[str, str] = {}
    for source, specs in parts:
        for name, spec in specs.items():
            if name in joined:
                spec = _join(name, (origin[name], joined[name]), (source, spec))
            joined[name] = spec
            origin.setdefault(name, source)
    for name, spec in joined.items():
        if spec.null is None and spec.dtype.kind in "iub" and any(name not in specs for _, specs in parts):
            joined[name] = _spare(spec)
    return joined


def _join(name: str, first: tuple[str, ColumnSpec], second: tuple[str, ColumnSpec]) -> ColumnSpec:
    (one, a), (other, b) = first, second
    if a.unit and b.unit and a.unit != b.unit:
        raise InputError(
            f"{name} is in {a.unit} in {one}, in {b.unit} in {other}; expected one unit, convert one of them"
        )
    unit = a.unit or b.unit
    if is_text(a.dtype) != is_text(b.dtype):
        raise InputError(f"{name} is text in one of {one} and {other}, and numbers in the other; expected one kind")
    if is_text(a.dtype):
        return ColumnSpec(max(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize), unit)
    dtype = np.result_type(a.dtype, b.dtype)
    if dtype.kind == "f" and (a.dtype.kind, b.dtype.kind) != ("f", "f"):
        raise InputError(f"{name} is {a.dtype} in {one}, {b.dtype} in {other}; expected one dtype, convert one of them")
    wide = [replace(spec, dtype=dtype, unit=unit) for spec in (a, b)]
    if a.null is None and b.null is None:
        return wide[0]
    if a.null is None or b.null is None:
        number = 0 if b.null is None else 1
        null, plain = (a, b)[number], (b, a)[number]
        return wide[number] if null.dtype == dtype and not _holds(plain.dtype, null.null) else _spare(wide[number])
    return next((each for each, spec in zip(wide, (a, b), strict=True) if spec.dtype == dtype), _spare(wide[0]))


def _holds(dtype: np.dtype[Any], value: int | None) -> bool:
    """Return whether integers or booleans of this dtype may be this value."""
    return dtype.kind != "b" and value is not None and np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _spare(spec: ColumnSpec) -> ColumnSpec:
    """Return how integers or booleans with missing values are stored, where any value may occur.

    That is a wider dtype; of 64 bits, where there is none, the value that is least likely.
    """
    size = spec.dtype.itemsize
    wider = np.dtype(f"<i{min(8, 2 * size)}") if spec.dtype != np.dtype("<u8") else spec.dtype
    limits = np.iinfo(wider)
    return ColumnSpec(wider, spec.unit, int(limits.min if wider.kind == "i" else limits.max))


def read_pieces(read: Callable[[int], NDArray[Any]], rows: int, size: int) -> Iterator[NDArray[Any]]:
    """Yield all rows of an array that is read from front to back, `size` at a time."""
    for start in range(0, rows, size):
        yield read(min(size, rows - start))
