"""NumPy files: .npz archives of arrays, .npy structured arrays, and sets of .npy files with one field each."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .source import (
    ALIASES,
    NUMPY_ERRORS,
    READ_ERRORS,
    SourceArray,
    SourceFields,
    check_dtype,
    find_fields,
    from_sliceable,
)


@contextmanager
def open_npz(source: str, names: Mapping[str, str]) -> Iterator[SourceFields]:
    """Open an .npz archive of one array per field, compressed or not. Raises InputError if it is not a whole one."""
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise InputError(f"{source} is not a whole .npz file; copy it again") from None
    with archive:
        available = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        found = find_fields(source, available, names)
        yield {field: _npz_array(source, archive, name) for field, name in found.items()}


def _npz_array(source: str, archive: zipfile.ZipFile, name: str) -> SourceArray:
    """Return an entry of the archive as a stream, since np.load would hold it whole."""
    try:
        stream = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
    except READ_ERRORS as error:
        raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
    check_dtype(source, name, dtype)
    if fortran and len(shape) > 1:
        raise InputError(f"{source}: {name} is in Fortran order; expected C order (np.ascontiguousarray)")

    def read_next(count: int) -> NDArray[Any]:
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        data = stream.read(count * row_bytes)
        return np.frombuffer(data[: len(data) // row_bytes * row_bytes], dtype).reshape(-1, *shape[1:])

    return SourceArray(shape, dtype, read_next)


@contextmanager
def open_npy(source: str, names: Mapping[str, str]) -> Iterator[SourceFields]:
    """Open a .npy file of either kind, and raise InputError if it is neither.

    It is a structured array with our fields; or it holds the cutouts and is named `...image...`, with the magnitudes
    and other fields in files of the same folder whose names have `magnitude`, `redshift`, `objid` in that place.
    """
    path, array = Path(source), _NpyRows(Path(source))
    if array.dtype.names:
        found = find_fields(source, list(array.dtype.names), names)
        yield {field: from_sliceable(_NpyRows(path, name)) for field, name in found.items()}
        return
    if "image" not in path.name:
        raise InputError(
            f"{source} is a single array; expected a structured one, or a name with `image` in it and the other "
            "fields in files of the same folder"
        )
    siblings = {field: path.with_name(path.name.replace("image", field)) for field in ALIASES}
    if not siblings["magnitude"].exists():
        raise InputError(f"{source} has no magnitudes; expected them in {siblings['magnitude']}")
    yield {field: from_sliceable(_NpyRows(file)) for field, file in siblings.items() if file.exists()}


class _NpyRows:
    """A .npy array or one field of it, read by rows: the pages of a memory map would count as our memory."""

    def __init__(self, path: Path, field: str = "") -> None:
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except NUMPY_ERRORS as error:
            raise InputError(f"{path} is not a whole .npy file of numbers ({error}); write it again") from None
        if not array.flags.c_contiguous:
            raise InputError(f"{path} is in Fortran order; expected C order (np.ascontiguousarray)")
        selected = array[field] if field else array
        self.shape, self.dtype = selected.shape, selected.dtype
        self._path, self._field, self._row, self._offset = path, field, (array.dtype, array.shape[1:]), array.offset

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        row = np.dtype(self._row)
        whole = np.fromfile(self._path, row, rows.stop - rows.start, offset=self._offset + rows.start * row.itemsize)
        return whole[self._field] if self._field else whole
