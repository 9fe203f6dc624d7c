"""Columns of FITS tables, read in pieces so that no wide table is held in memory, with NaN or a mask for nulls."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

_PIECE = 16 * 2**20  # bytes
_LARGEST_TEXT_TABLE = 64 * 2**20
_WIDTHS = {"L": 1, "B": 1, "I": 2, "J": 4, "K": 8, "A": 1, "E": 4, "D": 8, "C": 8, "M": 16, "P": 8, "Q": 16}
_DTYPES = {"L": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}
_UNSIGNED_64 = 2**63  # TZERO of a column of uint64


def read_columns(source: str, table: Any, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Return columns (N,) or (N, k) by name, with their stored integers compared to TNULL before they are scaled.

    Null values are masked in integers and NaN in floating point. Raises InputError for columns that are neither
    numbers nor text of a fixed length, and if the table ends early.
    """
    numbers = {name: table.columns.names.index(name) + 1 for name in names}
    if table.header.get("ZTABLE"):
        raise InputError(f"{source}: the table {table.name} is compressed; uncompress it with funpack")
    if table.header["XTENSION"].strip() == "TABLE":
        return {name: _text_column(source, table, name, number) for name, number in numbers.items()}
    raw = _read_raw(source, table, numbers)
    return {name: _physical(source, table.header, number, raw[name]) for name, number in numbers.items()}


def _read_raw(source: str, table: Any, numbers: dict[str, int]) -> dict[str, NDArray[Any]]:
    header = table.header
    width, rows = int(header["NAXIS1"]), int(header["NAXIS2"])
    formats, offsets, offset = {}, {}, 0
    for number in range(1, int(header["TFIELDS"]) + 1):
        match = re.match(r"(\d*)([LXBIJKAEDCMPQ])", str(header[f"TFORM{number}"]).strip())
        if match is None:
            raise InputError(f"{source}: column {number} has the format {header[f'TFORM{number}']!r}, which is unknown")
        repeat = int(match[1] or 1)
        formats[number], offsets[number] = (match[2], repeat), offset
        offset += -(-repeat // 8) if match[2] == "X" else repeat * _WIDTHS[match[2]]
    dtype = np.dtype(
        {
            "names": list(numbers),
            "formats": [_dtype(source, name, *formats[number]) for name, number in numbers.items()],
            "offsets": [offsets[number] for number in numbers.values()],
            "itemsize": width,
        }
    )
    stream, start = table.fileinfo()["file"], table.fileinfo()["datLoc"]
    columns = {name: np.empty((rows, *dtype[name].shape), dtype[name].base) for name in numbers}
    step = max(1, _PIECE // max(1, width))
    stream.seek(start)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        data = stream.read(count * width)
        if len(data) != count * width:
            raise InputError(f"{source}: the table {table.name} ends early; copy it again")
        piece = np.frombuffer(data, dtype)
        for name, column in columns.items():
            column[first : first + count] = piece[name]
    return columns


def _dtype(source: str, name: str, kind: str, repeat: int) -> Any:
    if kind == "A" and repeat:
        return f"S{repeat}"
    if kind not in _DTYPES or not repeat:
        raise InputError(f"{source}: {name} has the format {repeat}{kind}; expected numbers, or text for ids")
    return _DTYPES[kind] if repeat == 1 else (_DTYPES[kind], (repeat,))


def _physical(source: str, header: Any, number: int, raw: NDArray[Any]) -> NDArray[Any]:
    """Return the values that stored ones stand for."""
    if re.match(r"\d*L", str(header[f"TFORM{number}"]).strip()):
        return _logical(source, number, raw)
    scale, zero = header.get(f"TSCAL{number}", 1), header.get(f"TZERO{number}", 0)
    if raw.dtype.kind not in "iuf":
        return raw
    null = header.get(f"TNULL{number}") if raw.dtype.kind != "f" else None
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


def _text_column(source: str, table: Any, name: str, number: int) -> NDArray[Any]:
    """Return a column of an ASCII table, where astropy makes null values 0."""
    if table.header["NAXIS1"] * table.header["NAXIS2"] > _LARGEST_TEXT_TABLE:
        raise InputError(f"{source}: the ASCII table {table.name} is too large; write it as a binary table")
    values, null = np.asarray(table.data[name]), str(table.header.get(f"TNULL{number}", "")).strip()
    if not null or values.dtype.kind not in "iuf":
        return values
    missing = np.char.strip(table.data.view(np.ndarray)[name]) == null.encode()
    return np.where(missing, np.nan, values) if values.dtype.kind == "f" else np.ma.MaskedArray(values, missing)
