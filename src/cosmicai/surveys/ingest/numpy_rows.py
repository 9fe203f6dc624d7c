"""Arrays of .npy files and .npz archives by rows: neither a whole array nor a memory map is ever in memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, describe_os_errors
from .source import NUMPY_ERRORS, READ_ERRORS

_PIECE_BYTES = 40 * 2**20
_SKIPPED_BYTES = 2**20
_LONGEST_HEADER = 2**17  # characters: some thousand columns
# Zip files raise these for compressions and encryptions that Python does not know.
_ARCHIVE_ERRORS = (*READ_ERRORS, NotImplementedError)


class Rows(Protocol):
    """Something of which rows can be read."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Return consecutive rows, fewer where the file ends early."""


@dataclass(frozen=True)
class Entry:
    """An array, or one column of a structured array: what its header says, and what opens its rows.

    `container` is the same for all columns of one structured array. `problem` says why it cannot be read, if so.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open_rows: Callable[[], Rows] | None
    container: str = ""
    problem: str = ""


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def row(self) -> np.dtype[Any]:
        """The dtype of one row."""
        return np.dtype((self.dtype, self.shape[1:]))


def archive_entries(source: str, archive: zipfile.ZipFile) -> dict[str, Entry]:
    """Return the arrays of an .npz archive; the columns of a structured one are called `labels[z]`.

    Raises InputError if an entry is damaged at its beginning, since its name may be as well.
    """
    entries: dict[str, Entry] = {}
    for name in archive.namelist():
        short = name.removesuffix(".npy")
        try:
            with archive.open(name) as stream:
                header = _read_header(stream) if short != name else None
        except _ARCHIVE_ERRORS as error:
            raise InputError(f"{source}: {short} is damaged ({error}); write the file again") from None
        if header is not None:
            entries |= _expand(short, header, _archive_opener(archive, name, header))
    return entries


def file_entries(path: Path, name: str = "") -> dict[str, Entry]:
    """Return the array of a .npy file by the given name, or the columns of a structured one.

    Without a name the columns have their own. Raises InputError if it is not a whole .npy file.
    """
    try:
        with describe_os_errors(str(path), "read"), path.open("rb") as file:
            header = _read_header(file)
        if header.offset + math.prod(header.shape) * header.dtype.itemsize > path.stat().st_size:
            raise ValueError("it ends early")
    except NUMPY_ERRORS as error:
        raise InputError(f"{path} is not a whole .npy file of numbers ({error}); write it again") from None
    return _expand(name, header, lambda: _FileRows(path, header))


def as_one_row(entry: Entry) -> Entry:
    """Return an array as the only row of another one."""
    opener = entry.open_rows
    rows = None if opener is None else lambda: _OneRow(opener(), entry.shape[0])
    return replace(entry, shape=(1, *entry.shape), open_rows=rows)


def _read_header(stream: Any) -> _Header:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream, max_header_size=_LONGEST_HEADER)
    if any(length < 0 for length in shape):
        raise ValueError(f"its shape is {shape}")
    return _Header(shape, dtype, fortran and len(shape) > 1, stream.tell())


def _expand(name: str, header: _Header, open_rows: Callable[[], Rows]) -> dict[str, Entry]:
    """Return an array by its name, or the columns of a structured one by theirs."""
    problem = "is in Fortran order; expected C order (np.ascontiguousarray)" if header.fortran else ""
    if header.dtype.hasobject:
        problem = f"is of dtype {header.dtype}; expected numbers (pickled objects are never loaded)"
    members: Mapping[str, Any] = header.dtype.fields or {}
    if not members:
        return {name: Entry(header.shape, header.dtype, open_rows, problem=problem)}
    if header.dtype.hasobject:
        # numpy pickles such an array whole, with those of its columns that are numbers
        problem = "is in an array with Python objects; expected numbers (pickled objects are never loaded)"
    shared, entries = _SharedRows(open_rows, header.row), dict[str, Entry]()
    for member, (dtype, *_) in members.items():
        base, inner = dtype.subdtype or (dtype, ())
        shape = (*header.shape, *inner)
        entries[f"{name}[{member}]" if name else member] = Entry(
            shape, base, _column_opener(shared, member), name, problem
        )
    return entries


def _archive_opener(archive: zipfile.ZipFile, name: str, header: _Header) -> Callable[[], Rows]:
    return lambda: _ArchiveRows(archive, name, header)


def _column_opener(shared: _SharedRows, member: str) -> Callable[[], Rows]:
    return lambda: _ColumnRows(shared, member)


class _OneRow:
    def __init__(self, rows: Rows, length: int) -> None:
        self._rows, self._length = rows, length

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        whole = self._rows[0 : self._length]
        return whole[None][rows] if len(whole) == self._length else whole[None][:0]


class _FileRows:
    """The rows of a .npy file: the pages of a memory map would count as our memory."""

    def __init__(self, path: Path, header: _Header) -> None:
        self._path, self._row, self._offset = path, header.row, header.offset

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        offset = self._offset + rows.start * self._row.itemsize
        return np.fromfile(self._path, self._row, rows.stop - rows.start, offset=offset)


class _ArchiveRows:
    """The rows of an entry of an archive: a stream, which begins anew for a row that it has passed."""

    def __init__(self, archive: zipfile.ZipFile, name: str, header: _Header) -> None:
        self._archive, self._name, self._header = archive, name, header
        self._stream: Any = None
        self._position = 0  # bytes of data

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        header, row_bytes = self._header, max(1, self._header.row.itemsize)
        if self._stream is None or rows.start * row_bytes < self._position:
            self._stream, self._position = self._archive.open(self._name), 0
            self._stream.read(header.offset)
        while (gap := rows.start * row_bytes - self._position) > 0:
            if not self._take(min(gap, _SKIPPED_BYTES)):
                break
        data = self._take((rows.stop - rows.start) * row_bytes)
        whole = len(data) // row_bytes
        return np.frombuffer(data[: whole * row_bytes], header.dtype).reshape(whole, *header.shape[1:])

    def _take(self, count: int) -> bytes:
        data: bytes = self._stream.read(count)
        self._position += len(data)
        return data


class _SharedRows:
    """The rows of a structured array for all of its columns.

    Columns that are read in step cost one pass: the last two pieces are kept, since one of them may be the next one
    of a column that is behind.
    """

    def __init__(self, open_rows: Callable[[], Rows], row: np.dtype[Any]) -> None:
        self._open = open_rows
        self._rows: Rows | None = None
        self.row, self._step = row, max(1, _PIECE_BYTES // max(1, row.itemsize))
        self._recent: list[tuple[int, NDArray[Any]]] = []

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Return rows from `first` on: at most those up to `last`, none at the end."""
        for start, rows in self._recent:
            if start <= first < start + len(rows):
                return rows[first - start : last - start]
        self._rows = self._rows or self._open()
        self._recent = self._recent[-1:]  # the older one is freed before the next is read
        rows = self._rows[first : min(last, first + self._step)]
        self._recent.append((first, rows))
        return rows


class _ColumnRows:
    def __init__(self, shared: _SharedRows, member: str) -> None:
        self._shared, self._member = shared, member

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        pieces, first = [np.empty(0, self._shared.row)[self._member]], rows.start
        while first < rows.stop and len(piece := self._shared.read(first, rows.stop)):
            pieces.append(np.ascontiguousarray(piece[self._member]))
            first += len(piece)
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)
