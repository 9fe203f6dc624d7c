"""NumPy files: .npz archives of arrays, .npy structured arrays, and sets of .npy files with one field each."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BAND_NAMES, parse_bands
from .source import (
    ALIASES,
    NUMPY_ERRORS,
    READ_ERRORS,
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    find_fields,
    from_sliceable,
    is_mask,
    require_fields,
)


@contextmanager
def open_npz(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open an .npz archive of one array per field, compressed or not. Raises InputError if it is not a whole one."""
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise InputError(f"{source} is not a whole .npz file; copy it again") from None
    with archive:
        available = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        found = find_fields(source, available, options.names)
        bands = _stated_bands(source, archive, available)
        require_fields(source, found, available)
        fields = {field: _npz_array(source, archive, name) for field, name in found.items()}
        for field, array in fields.items():
            check_dtype(source, field, array.dtype)
        masks = {name: _npz_array(source, archive, name) for name in available if is_mask(name)}
        shape = fields["image"].shape
        masks = {name: array for name, array in masks.items() if array.shape == shape}
        yield Source(fields, bands=bands, masks=masks)


def _stated_bands(source: str, archive: zipfile.ZipFile, available: Iterable[str]) -> tuple[str, ...]:
    for name in available:
        if name.lower() in BAND_NAMES:
            try:
                with archive.open(f"{name}.npy") as stream:
                    return parse_bands(np.lib.format.read_array(stream, allow_pickle=False))
            except READ_ERRORS as error:
                raise InputError(f"{source}: {name} does not state one order of bands ({error})") from None
    return ()


def _npz_array(source: str, archive: zipfile.ZipFile, name: str) -> SourceArray:
    """Return an entry of the archive as a stream, since np.load would hold it whole."""
    try:
        stream = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
    except READ_ERRORS as error:
        raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
    if dtype.hasobject:
        raise InputError(f"{source}: {name} is of dtype {dtype}; expected numbers (pickled objects are never loaded)")
    if fortran and len(shape) > 1:
        raise InputError(f"{source}: {name} is in Fortran order; expected C order (np.ascontiguousarray)")

    def read_next(count: int) -> NDArray[Any]:
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        data = stream.read(count * row_bytes)
        return np.frombuffer(data[: len(data) // row_bytes * row_bytes], dtype).reshape(-1, *shape[1:])

    return SourceArray(shape, dtype, read_next)


@contextmanager
def open_npy(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open a .npy file of either kind, and raise InputError if it is neither.

    It is a structured array with our fields; or it holds the cutouts and is named `...image...`, with the magnitudes
    and other fields in files of the same folder whose names have `magnitude`, `redshift`, `objid` in that place.
    """
    path, array = Path(source), _NpyRows(Path(source))
    if array.dtype.names:
        found = find_fields(source, array.dtype.names, options.names)
        require_fields(source, found, array.dtype.names)
        yield _numbers(source, {field: _NpyRows(path, name) for field, name in found.items()})
        return
    if "image" not in path.name:
        raise InputError(
            f"{source} is a single array; expected a structured one, or a name with `image` in it and the other "
            "fields in files of the same folder"
        )
    siblings = {field: path.with_name(path.name.replace("image", field)) for field in ALIASES}
    if not siblings["magnitude"].exists():
        raise InputError(f"{source} has no magnitudes; expected them in {siblings['magnitude']}")
    yield _numbers(source, {field: _NpyRows(file) for field, file in siblings.items() if file.exists()})


def _numbers(source: str, rows: dict[str, _NpyRows]) -> Source:
    for field, array in rows.items():
        check_dtype(source, field, array.dtype)
    return Source({field: from_sliceable(array) for field, array in rows.items()})


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
