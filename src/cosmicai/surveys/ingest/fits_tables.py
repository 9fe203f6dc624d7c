"""Columns of FITS tables, read in pieces so that no wide table is held in memory, with NaN or a mask for nulls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .fits_hdus import Hdu
from .fits_open import explain_fits_errors
from .source import SourceArray

_PIECE = 16 * 2**20  # bytes
_LARGEST_TEXT_TABLE = 64 * 2**20
_WIDTHS = {"L": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_DTYPES = {"L": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
_UNSIGNED_64 = 2**63  # TZERO of a column of uint64
_FAR = 4096  # bytes between two columns that are skipped rather than read


@dataclass(frozen=True)
class TableColumn:
    """One column of a table: its number from 1, its format, where it lies in a row, and what TUNIT and TDIM say."""

    name: str
    number: int
    kind: str
    repeat: int
    offset: int
    unit: str
    dimensions: tuple[int, ...]

    @property
    def is_scalar(self) -> bool:
        """Return whether each row holds one number or text."""
        return (self.kind == "A" and self.repeat > 0) or (self.kind in _DTYPES and self.repeat == 1)

    @property
    def is_vector(self) -> bool:
        """Return whether each row holds several numbers, or an array of variable length."""
        return self.kind in "PQ" or (self.kind in _DTYPES and self.repeat > 1)


def list_columns(source: str, table: Hdu) -> list[TableColumn]:
    """Return the columns of a table in their order. Raises InputError for a format that FITS does not know."""
    cards, columns, offset = table.cards, [], 0
    is_text = str(cards["XTENSION"]).strip() == "TABLE"
    for number in range(1, int(cards["TFIELDS"]) + 1):
        form = str(cards[f"TFORM{number}"]).strip()
        match = re.match(r"()([AIFED])" if is_text else r"(\d*)([LXBIJKAEDCMPQ])", form)
        if match is None:
            raise InputError(f"{source}: column {number} has the format {form!r}, which is unknown")
        repeat = int(match[1] or 1)
        dimensions = tuple(int(length) for length in re.findall(r"\d+", str(cards.get(f"TDIM{number}") or "")))[::-1]
        name, unit = (str(cards.get(f"{key}{number}") or "").strip() for key in ("TTYPE", "TUNIT"))
        kind = {"F": "D"}.get(match[2], match[2]) if is_text else match[2]
        columns.append(TableColumn(name, number, kind, repeat, offset, unit, dimensions))
        offset += -(-repeat // 8) if match[2] == "X" else repeat * _WIDTHS.get(match[2], 1)
    return columns


def read_columns(source: str, table: Hdu, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return columns (N,) or (N, k) by name, with their stored integers compared to TNULL before they are scaled.

    Null values are masked in integers and NaN in floating point. Raises InputError for columns that are neither
    numbers nor text of a fixed length, and if the table ends early.
    """
    by_name = {column.name: column for column in list_columns(source, table)}
    columns = [by_name[name] for name in names]
    if not columns:
        return {}
    _require_plain(source, table)
    if str(table.cards["XTENSION"]).strip() == "TABLE":
        return {column.name: _text_column(source, table, column) for column in columns}
    for column in columns:
        _dtype(source, column)  # refuses what cannot be read, by its name
    with explain_fits_errors(source):
        raw = _read_raw(source, table, columns)
    return {column.name: _physical(source, table.cards, column, raw[column.name]) for column in columns}


def stream_columns(
    source: str, table: Hdu, columns: Sequence[TableColumn], shape: tuple[int, ...], factors: Sequence[float]
) -> SourceArray:
    """Return the rows (N, *shape) of a vector column, or (N, k, *shape) of several, read as they are asked for.

    Values are multiplied by the factors of their columns; nulls are NaN.
    """
    _require_plain(source, table)
    dtypes = [_dtype(source, column) for column in columns]
    rows = int(table.cards["NAXIS2"])
    scaled = [_scaled(source, table, column, np.zeros((0, *shape), _base(dtype)), factor)
              for column, dtype, factor in zip(columns, dtypes, factors, strict=True)]  # fmt: skip
    dtype = np.result_type(*(each.dtype.newbyteorder("=") for each in scaled))
    inner = shape if len(columns) == 1 else (len(columns), *shape)
    position = 0

    def read_next(count: int) -> NDArray[Any]:
        nonlocal position
        count = max(0, min(count, rows - position))
        out = np.empty((count, *inner), dtype)
        with explain_fits_errors(source):
            step = max(1, _PIECE // max(1, int(table.cards["NAXIS1"])))
            for first in range(0, count, step):
                piece = _read_rows(source, table, columns, position + first, min(step, count - first))
                for number, (column, factor) in enumerate(zip(columns, factors, strict=True)):
                    part = piece[column.name].reshape(-1, *shape)
                    target = out if len(columns) == 1 else out[:, number]
                    target[first : first + len(part)] = _scaled(source, table, column, part, factor)
        position += count
        return out

    return SourceArray((rows, *inner), dtype, read_next)


def _base(dtype: Any) -> Any:
    return dtype[0] if isinstance(dtype, tuple) else dtype


def _scaled(source: str, table: Hdu, column: TableColumn, raw: NDArray[Any], factor: float) -> NDArray[Any]:
    values = _physical(source, table.cards, column, raw)
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)
    return values if factor == 1 else values.astype(np.float64) * factor


def _require_plain(source: str, table: Hdu) -> None:
    if table.cards.get("ZTABLE"):
        raise InputError(f"{source}: the table {table.name} is compressed; uncompress it with funpack")


def _read_raw(source: str, table: Hdu, columns: Sequence[TableColumn]) -> dict[str, NDArray[Any]]:
    rows, width = int(table.cards["NAXIS2"]), int(table.cards["NAXIS1"])
    step = max(1, _PIECE // max(1, width))
    found: dict[str, NDArray[Any]] = {}
    for first in range(0, rows, step):
        piece = _read_rows(source, table, columns, first, min(step, rows - first))
        for column in columns:
            if first == 0:
                found[column.name] = np.empty((rows, *piece[column.name].shape[1:]), piece[column.name].dtype)
            found[column.name][first : first + len(piece)] = piece[column.name]
    if rows == 0:
        empty = np.zeros(0, _record(source, columns, [0] * len(columns), width))
        found = {column.name: empty[column.name] for column in columns}
    return found


def _read_rows(source: str, table: Hdu, columns: Sequence[TableColumn], first: int, count: int) -> NDArray[Any]:
    """Return columns of a range of rows as a structured array, without reading what lies far from them in a row."""
    width = int(table.cards["NAXIS1"])
    stream, begin = table.stream, table.begin + first * width
    spans = _spans(columns)
    if sum(last - start for start, last in spans) * 4 > width or getattr(stream, "compression", None):
        spans = [(0, width)]  # the whole of the rows, at once
    shifts, position = [], 0  # by how much each span moves to the left
    for start, last in spans:
        shifts.append((start, last, start - position))
        position += last - start
    offsets = [next(each.offset - by for start, last, by in shifts if start <= each.offset < last) for each in columns]
    dtype = _record(source, columns, offsets, position)
    if spans == [(0, width)]:
        stream.seek(begin)
        data = stream.read(count * width)
    else:
        parts = []
        for row in range(count):
            for start, last in spans:
                stream.seek(begin + row * width + start)
                parts.append(stream.read(last - start))
        data = b"".join(parts)
    if len(data) != count * position:
        raise InputError(f"{source}: the table {table.name} ends early; copy it again")
    return np.frombuffer(data, dtype)


def _spans(columns: Sequence[TableColumn]) -> list[tuple[int, int]]:
    """Return the parts of a row in which columns lie, those that are near each other as one."""
    spans: list[tuple[int, int]] = []
    for column in sorted(columns, key=lambda each: each.offset):
        last = column.offset + column.repeat * _WIDTHS[column.kind]
        if spans and column.offset - spans[-1][1] < _FAR:
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((column.offset, last))
    return spans


def _record(source: str, columns: Sequence[TableColumn], offsets: Sequence[int], width: int) -> np.dtype[Any]:
    return np.dtype(
        {
            "names": [column.name for column in columns],
            "formats": [_dtype(source, column) for column in columns],
            "offsets": list(offsets),
            "itemsize": width,
        }
    )


def _dtype(source: str, column: TableColumn) -> Any:
    if column.kind == "A" and column.repeat:
        return f"S{column.repeat}"
    if column.kind in "PQ":
        raise InputError(
            f"{source}: {column.name} holds arrays of variable length; expected arrays of one length, write "
            "the column anew"
        )
    if column.kind not in _DTYPES or not column.repeat:
        raise InputError(
            f"{source}: {column.name} has the format {column.repeat}{column.kind}; expected numbers, or text for ids"
        )
    return _DTYPES[column.kind] if column.repeat == 1 else (_DTYPES[column.kind], (column.repeat,))


def _physical(source: str, cards: Any, column: TableColumn, raw: NDArray[Any]) -> NDArray[Any]:
    """Return the values that stored ones stand for."""
    number = column.number
    if column.kind == "L":
        return _logical(source, number, raw)
    scale, zero = cards.get(f"TSCAL{number}", 1), cards.get(f"TZERO{number}", 0)
    if raw.dtype.kind not in "iuf":
        return raw
    null = cards.get(f"TNULL{number}") if raw.dtype.kind != "f" else None
    missing = None if null is None else raw == int(null)
    if (scale, zero) == (1, 0):
        values = raw
    elif raw.dtype.kind == "f" or scale != 1 or zero != int(zero):
        values = raw * float(scale) + float(zero)
    elif zero == _UNSIGNED_64:
        values = raw.astype("<i8").view("<u8") ^ np.uint64(_UNSIGNED_64)
    elif raw.dtype.itemsize < 8 and abs(zero) < 2**62:
        values = raw.astype(np.int64) + int(zero)
    else:
        raise InputError(f"{source}: column {number} has TZERO = {zero}; expected 2^63, as of unsigned integers")
    if missing is None:
        return values
    return np.where(missing, np.nan, values) if values.dtype.kind == "f" else np.ma.MaskedArray(values, missing)


def _logical(source: str, number: int, raw: NDArray[Any]) -> NDArray[Any]:
    """Return stored letters T and F as booleans, masked where a byte of zero says that the value is not known."""
    missing = raw == 0
    if not (missing | (raw == ord("T")) | (raw == ord("F"))).all():
        raise InputError(f"{source}: column {number} holds logical values other than T and F; write the table again")
    values = raw == ord("T")
    return np.ma.MaskedArray(values, missing) if missing.any() else values


def _text_column(source: str, table: Hdu, column: TableColumn) -> NDArray[Any]:
    """Return a column of an ASCII table, where astropy makes null values 0."""
    if table.cards["NAXIS1"] * table.cards["NAXIS2"] > _LARGEST_TEXT_TABLE:
        raise InputError(f"{source}: the ASCII table {table.name} is too large; write it as a binary table")
    with explain_fits_errors(source):
        data = table.raw.data
        values, null = np.asarray(data[column.name]), str(table.cards.get(f"TNULL{column.number}") or "").strip()
        if not null or values.dtype.kind not in "iuf":
            return values
        missing = np.char.strip(data.view(np.ndarray)[column.name]) == null.encode()
    return np.where(missing, np.nan, values) if values.dtype.kind == "f" else np.ma.MaskedArray(values, missing)
