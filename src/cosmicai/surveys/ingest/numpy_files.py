"""NumPy files: .npz archives of arrays, .npy structured arrays, and sets of .npy files with one field each."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, describe_os_errors
from ..bands import BAND_NAMES, band_letter, parse_bands
from ..hdf5 import PIXEL_SCALE_NAMES, plain_value, to_number
from ..mask_arrays import MASK_WORDS, fits_image, is_mask
from ..units import ZERO_POINT_NAMES, FluxUnit
from .names import Found, find_fields, require_fields
from .source import (
    NUMPY_ERRORS,
    READ_ERRORS,
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    from_sliceable,
    stack_columns,
)

_FLUX_UNIT_NAMES = ("bunit", "flux_unit", "flux_units", "image_unit", "image_units", "unit", "units")
_PIECE_BYTES = 16 * 2**20
_LARGEST_STATEMENT = 2**16  # elements


@contextmanager
def open_npz(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open an .npz archive of one array per field, compressed or not. Raises InputError if it is not a whole one."""
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise InputError(f"{source} is not a whole .npz file; copy it again") from None
    with archive:
        available = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        found = find_fields(source, available, options.names, options.wanted)
        require_fields(source, found, available, options.required)
        fields = {}
        for field, names in found.items():
            arrays = [_npz_array(source, archive, name) for name in names]
            for array in arrays:
                check_dtype(source, field, array.dtype)
            fields[field] = stack_columns(arrays)
        beside = {name: _npz_array(source, archive, name) for name in available if _is_told(name, found)}
        used = {name for names in found.values() for name in names}
        others = tuple(name for name in available if name not in used)
        yield replace(_describe(source, fields, beside), others=others)


def _is_told(name: str, found: Found) -> bool:
    """Return whether an array that is no field of ours tells something about them by its name."""
    names = (*BAND_NAMES, *_FLUX_UNIT_NAMES, *ZERO_POINT_NAMES, *PIXEL_SCALE_NAMES)
    return all(name not in used for used in found.values()) and (name.lower() in names or is_mask(name))


def _describe(source: str, fields: dict[str, SourceArray], beside: dict[str, SourceArray]) -> Source:
    """Return a source with what arrays beside its fields state: bands, unit, zero point, pixel scale, masks."""
    lower = {name.lower(): array for name, array in beside.items()}
    texts = {name: array for name, array in lower.items() if not is_mask(name)}
    orders = [
        order for name, array in texts.items() if name in BAND_NAMES and (order := _read_bands(source, name, array))
    ]
    if len({tuple(map(band_letter, order)) for order in orders}) > 1:
        raise InputError(f"{source}: it states several orders of bands; expected one, leave the others out")
    unit = _read_value(source, texts, _FLUX_UNIT_NAMES)
    masks = {name: array for name, array in beside.items() if is_mask(name) and array.dtype.kind in "biuf"}
    return Source(
        fields,
        bands=orders[0] if orders else (),
        flux_unit=FluxUnit("" if unit is None else str(unit), to_number(_read_value(source, texts, ZERO_POINT_NAMES))),
        pixel_scale=to_number(_read_value(source, texts, PIXEL_SCALE_NAMES)),
        masks={name: array for name, array in masks.items() if fits_image(array.shape, fields["image"].shape)},
    )


def _read_bands(source: str, name: str, array: SourceArray) -> tuple[str, ...]:
    """Return the one order of bands that an array states, for all galaxies or for each."""
    rows = max(1, _PIECE_BYTES // max(1, math.prod(array.shape[1:]) * array.dtype.itemsize))
    length = array.shape[0] if array.shape else 1
    try:
        found = {parse_bands(array.read_next(min(rows, length - start))) for start in range(0, length, rows)} - {()}
        if len(found) > 1:
            raise ValueError(f"{len(found)} different orders of bands")
    except READ_ERRORS as error:
        raise InputError(f"{source}: {name} does not state one order of bands ({error})") from None
    return found.pop() if found else ()


def _read_value(source: str, arrays: dict[str, SourceArray], names: Iterable[str]) -> Any | None:
    """Return the first small array with one of these names as a plain value, None if there is none."""
    for name in names:
        if (array := arrays.get(name)) is not None and math.prod(array.shape) <= _LARGEST_STATEMENT:
            try:
                return plain_value(array.read_next(array.shape[0] if array.shape else 1))
            except READ_ERRORS as error:
                raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
    return None


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

    if any(length < 0 for length in shape):
        raise InputError(f"{source}: {name} is damaged (its shape is {shape}); write the file again")

    def read_next(count: int) -> NDArray[Any]:
        row_bytes = max(1, math.prod(shape[1:]) * dtype.itemsize)
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
        found = find_fields(source, array.dtype.names, options.names, options.wanted)
        require_fields(source, found, array.dtype.names, options.required)
        beside = {name: _NpyRows(path, name) for name in array.dtype.names if _is_told(name, found)}
        columns = {field: [_NpyRows(path, name) for name in names] for field, names in found.items()}
        used = {name for names in found.values() for name in names}
        others = tuple(name for name in array.dtype.names if name not in used)
        yield replace(_numbers(source, columns, beside), others=others)
        return
    if "image" not in path.name:
        raise InputError(
            f"{source} is a single array; expected a structured one, or a name with `image` in it and the other "
            "fields in files of the same folder"
        )
    siblings = {field: path.with_name(path.name.replace("image", field)) for field in options.wanted}
    if "magnitude" in siblings and not siblings["magnitude"].is_file():
        raise InputError(f"{source} has no magnitudes; expected them in {siblings['magnitude']}")
    names = (*BAND_NAMES, *_FLUX_UNIT_NAMES, *ZERO_POINT_NAMES, *PIXEL_SCALE_NAMES, *MASK_WORDS)
    told = {name: path.with_name(path.name.replace("image", name)) for name in names if "image" not in name}
    yield _numbers(
        source,
        {field: [_NpyRows(file)] for field, file in siblings.items() if file.is_file()},
        {name: _NpyRows(file) for name, file in told.items() if file.is_file()},
    )


def _numbers(source: str, rows: dict[str, list[_NpyRows]], beside: dict[str, _NpyRows]) -> Source:
    for field, arrays in rows.items():
        for array in arrays:
            check_dtype(source, field, array.dtype)
    fields = {field: stack_columns([from_sliceable(array) for array in arrays]) for field, arrays in rows.items()}
    return _describe(source, fields, {name: from_sliceable(array) for name, array in beside.items()})


class _NpyRows:
    """A .npy array or one field of it, read by rows: the pages of a memory map would count as our memory."""

    def __init__(self, path: Path, field: str = "") -> None:
        try:
            with describe_os_errors(str(path), "read"):
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
        if not self._field:
            return self._read(row, rows.start, rows.stop)
        step = max(1, _PIECE_BYTES // max(1, row.itemsize))  # other fields may be far larger than this one
        starts = range(rows.start, rows.stop, step)
        pieces = [self._read(row, first, min(first + step, rows.stop))[self._field] for first in starts]
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.ascontiguousarray(piece) for piece in pieces])

    def _read(self, row: np.dtype[Any], first: int, last: int) -> NDArray[Any]:
        return np.fromfile(self._path, row, last - first, offset=self._offset + first * row.itemsize)
