"""Brings galaxies from other formats into a survey: NumPy (.npy, .npz), HDF5 of any layout, FITS cubes, `.pt`.

Every source is read once, front to back, a few hundred galaxies at a time. Cutouts may have the bands first
(N, 5, H, W) or last (N, H, W, 5), any float or integer dtype, and H = W of 32 or more (even): the centre is kept.
"""

from __future__ import annotations

import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.torch_archive import TensorRef
from ..storage.ranges import RangeReader, open_ranges
from . import published_partition
from .shard import BANDS, HDF5_ERRORS, IMAGE_SHAPE, Galaxies
from .survey import Survey, write_survey

BATCH = 256  # galaxies in memory at once
# What numpy, and what any of the libraries raises at damaged files.
_NUMPY_ERRORS = (ValueError, OverflowError, EOFError, SyntaxError, tokenize.TokenError)
_DAMAGE = (*HDF5_ERRORS, *_NUMPY_ERRORS, zipfile.BadZipFile, zlib.error)
# What the fields are called elsewhere, in order of preference; letter case does not matter.
ALIASES = {
    "image": ("image", "images", "img", "cutout", "cutouts", "cube"),
    "magnitude": ("magnitude", "magnitudes", "mag", "mags"),
    "redshift": ("redshift", "redshifts", "redshift_spec", "z_spec", "specz", "z"),
    "objid": ("objid", "object_id", "id"),
}


@dataclass(frozen=True)
class Column:
    """One array of a source: its shape and dtype, and a function that gives the next so many rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    take: Callable[[int], NDArray[Any]]


def from_array(array: Any) -> Column:
    """A column of anything that can be sliced."""
    position = 0

    def take(count: int) -> NDArray[Any]:
        nonlocal position
        position += count
        return np.asarray(array[position - count : position])

    return Column(tuple(array.shape), np.dtype(array.dtype), take)


Columns = dict[str, Column]


def ingest(sources: list[str], out: str, galaxies_per_shard: int, names: Mapping[str, str]) -> Survey:
    """Writes the galaxies of all sources, in order, as a survey; whole or not at all.

    `names` says what a source calls a field, where that is not one of `ALIASES`. The survey has redshifts if any
    source has; objid is the source's own, else the galaxy's number in the survey.
    Raises InputError naming the file and the field if a source cannot be used.
    """
    counts, has_redshift = [], False
    for source in sources:  # everything is looked at before anything is written
        with _open(source, names) as columns:
            counts.append(columns["image"].shape[0])
            has_redshift |= "redshift" in columns

    def batches() -> Iterator[Galaxies]:
        row = 0
        for source in sources:
            with _open(source, names) as columns:
                for batch in _read(source, columns, row):
                    row += len(batch)
                    yield batch

    fields = ("image", "magnitude", *["redshift"] * has_redshift, "objid")
    return write_survey(out, batches(), sum(counts), galaxies_per_shard, fields)


def _read(source: str, columns: Columns, first_row: int) -> Iterator[Galaxies]:
    def take(name: str, count: int) -> NDArray[Any]:
        try:
            values = columns[name].take(count)
        except _DAMAGE as error:
            raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
        if len(values) != count:
            raise InputError(f"{source}: {name} ends early; write the file again")
        return values

    galaxies = columns["image"].shape[0]
    for start in range(0, galaxies, BATCH):
        count = min(BATCH, galaxies - start)
        rows = np.arange(first_row + start, first_row + start + count)
        yield Galaxies(
            _cutouts(take("image", count)),
            take("magnitude", count).astype(np.float64, copy=False),
            take("redshift", count).astype(np.float64) if "redshift" in columns else np.full(count, np.nan),
            take("objid", count).astype(np.int64) if "objid" in columns else rows,
        )


def _cutouts(image: NDArray[Any]) -> NDArray[np.float32]:
    if image.shape[1] != len(BANDS):
        image = np.moveaxis(image, -1, 1)
    margin = (image.shape[-1] - IMAGE_SHAPE[-1]) // 2
    centre = slice(margin, margin + IMAGE_SHAPE[-1])
    return np.ascontiguousarray(image[..., centre, centre], dtype=np.float32)


@contextmanager
def _open(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    """The checked columns of a source."""
    readers: dict[str, Callable[[str, Mapping[str, str]], AbstractContextManager[Columns]]] = {
        ".npz": _open_npz, ".npy": _open_npy, ".h5": _open_hdf5, ".hdf5": _open_hdf5, ".pt": _open_partition,
        ".fits": _open_fits, ".fit": _open_fits, ".fz": _open_fits,
    }  # fmt: skip
    path = Path(source)
    if path.suffix not in readers:
        raise InputError(f"{source} is of an unknown kind; expected a file ending in {', '.join(readers)}")
    if not path.is_file():
        raise InputError(f"{source} does not exist; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{source} is empty; expected galaxies, copy it again")
    with readers[path.suffix](source, names) as columns:
        _check(source, columns)
        yield columns


def _check(source: str, columns: Columns) -> None:
    shape = columns["image"].shape
    if len(shape) != 4 or len(BANDS) not in (shape[1], shape[-1]):
        raise InputError(
            f"{source}: image has the shape {shape}; expected (N, 5, H, W) or (N, H, W, 5), bands u g r i z"
        )
    height, width = shape[2:] if shape[1] == len(BANDS) else shape[1:3]
    if height != width or height < IMAGE_SHAPE[-1] or height % 2:
        raise InputError(f"{source}: cutouts are of {height}x{width} pixels; expected squares of an even 32 or more")
    for name, column in columns.items():
        _check_dtype(source, name, column.dtype)
        wanted = (shape[0], 5) if name == "magnitude" else (shape[0],)
        if name != "image" and column.shape != wanted:
            raise InputError(
                f"{source}: {name} has the shape {column.shape}, image is of {shape[0]} galaxies; expected {wanted}"
            )


def _find(source: str, there: list[str], names: Mapping[str, str]) -> dict[str, str]:
    """What this source calls our fields. Raises InputError if image or magnitude is not found."""
    lower = {name.lower(): name for name in reversed(there)}
    found = {}
    for field, aliases in ALIASES.items():
        wanted = (names[field],) if field in names else aliases
        match = next((lower[alias.lower()] for alias in wanted if alias.lower() in lower), None)
        if match is not None:
            found[field] = match
        elif field in names or field in ("image", "magnitude"):
            raise InputError(
                f"{source} has no {names.get(field, field)}, it holds {', '.join(there) or 'nothing'}; "
                f"say which with --field {field}=NAME"
            )
    return found


def _check_dtype(source: str, name: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject or dtype.kind not in "fiu":
        raise InputError(f"{source}: {name} is of dtype {dtype}; expected numbers (pickled objects are never loaded)")
    if name == "objid" and dtype.kind == "f":
        raise InputError(f"{source}: objid is {dtype}, which cannot hold every 64-bit number; write it as int64")


@contextmanager
def _open_npz(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise InputError(f"{source} is not a whole .npz file; copy it again") from None
    with archive:
        there = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        yield {field: _npz_column(source, archive, name) for field, name in _find(source, there, names).items()}


def _npz_column(source: str, archive: zipfile.ZipFile, name: str) -> Column:
    """Streams an entry, compressed or not, since np.load would hold it whole."""
    try:
        stream = archive.open(f"{name}.npy")
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
    except _DAMAGE as error:
        raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
    _check_dtype(source, name, dtype)
    if fortran and len(shape) > 1:
        raise InputError(f"{source}: {name} is in Fortran order; expected C order (np.ascontiguousarray)")

    def take(count: int) -> NDArray[Any]:
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        data = stream.read(count * row_bytes)
        return np.frombuffer(data[: len(data) // row_bytes * row_bytes], dtype).reshape(-1, *shape[1:])

    return Column(shape, dtype, take)


@contextmanager
def _open_npy(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    """A structured array with our fields; or cutouts in a file named `...image...`, with magnitudes and the rest in
    files beside it whose names have `magnitude`, `redshift`, `objid` in that place."""

    path, array = Path(source), _NpyRows(Path(source))
    if array.dtype.names:
        found = _find(source, list(array.dtype.names), names)
        yield {field: from_array(_NpyRows(path, name)) for field, name in found.items()}
        return
    if "image" not in path.name:
        raise InputError(f"{source} is one array; expected fields, or a name with `image` in it and others beside it")
    beside = {field: path.with_name(path.name.replace("image", field)) for field in ALIASES}
    if not beside["magnitude"].exists():
        raise InputError(f"{source} has no magnitudes; expected them in {beside['magnitude']}")
    columns = {}
    for field, file in beside.items():
        if file.exists():
            columns[field] = from_array(_NpyRows(file))
    yield columns


class _NpyRows:
    """A .npy array or one field of it, read by rows: the pages of a memory map would count as our memory."""

    def __init__(self, path: Path, field: str = "") -> None:
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except _NUMPY_ERRORS as error:
            raise InputError(f"{path} is not a whole .npy file of numbers ({error}); write it again") from None
        if not array.flags.c_contiguous:
            raise InputError(f"{path} is in Fortran order; expected C order (np.ascontiguousarray)")
        column = array[field] if field else array
        self.shape, self.dtype = column.shape, column.dtype
        self._path, self._field, self._row, self._offset = path, field, (array.dtype, array.shape[1:]), array.offset

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        row = np.dtype(self._row)
        whole = np.fromfile(self._path, row, rows.stop - rows.start, offset=self._offset + rows.start * row.itemsize)
        return whole[self._field] if self._field else whole


@contextmanager
def _open_hdf5(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    there: list[str] = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            there.append(name)

    with ExitStack() as opened:
        try:
            file = opened.enter_context(h5py.File(source, "r"))
            file.visititems(note)
            found = _find(source, there, names)
            columns = {field: from_array(file[name]) for field, name in found.items()}
        except HDF5_ERRORS as error:
            what = "is truncated" if "truncated" in str(error) else "is not an HDF5 file or is damaged"
            raise InputError(f"{source} {what}; copy it again") from None
        yield columns


@contextmanager
def _open_partition(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    with open_ranges(source) as reader:
        yield {
            field: from_array(_Rows(tensor, reader))
            for field, tensor in published_partition.locate(source, reader).items()
        }


class _Rows:
    """A tensor of any dtype and strides as something that can be sliced."""

    def __init__(self, tensor: TensorRef, reader: RangeReader) -> None:
        self.shape, self.dtype = tensor.shape, "<f4" if tensor.dtype == "bfloat16" else tensor.dtype
        self._tensor, self._reader = tensor, reader

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        whole, stride = self._tensor, self._tensor.strides[0] * self._tensor.itemsize
        shape = (rows.stop - rows.start, *whole.shape[1:])
        return replace(whole, offset=whole.offset + rows.start * stride, shape=shape).read(self._reader)


@contextmanager
def _open_fits(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    """Either a 4-D cube (N, 5, H, W) with a table of N rows: MAGNITUDE (5-vector) or MAG_U ... MAG_Z, and if known
    REDSHIFT and OBJID; or one galaxy: a 3-D cube (5, H, W) with MAG_U ... MAG_Z, REDSHIFT, OBJID in its header."""
    from astropy.io import fits

    with ExitStack() as opened:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "File may have been truncated")
                columns = _fits_columns(source, opened.enter_context(fits.open(source, memmap=False)), names)
        except (*_DAMAGE, UserWarning) as error:
            raise InputError(f"{source} is not a FITS file or is damaged ({error}); copy it again") from None
        yield columns


def _fits_columns(source: str, file: Any, names: Mapping[str, str]) -> Columns:
    cube = next((hdu for hdu in file if hdu.is_image and len(hdu.shape) in (3, 4)), None)
    if cube is None:
        raise InputError(f"{source} has no image; expected a cube (N, 5, H, W), or (5, H, W) for one galaxy")
    if len(cube.shape) == 3:
        header = cube.header
        columns = {"image": from_array(cube.data[None])}
        values: dict[str, Any] = {name: header[name] for name in header if name}
    else:
        columns = {"image": from_array(cube.section)}  # a section reads rows, the file is not loaded whole
        table = next((hdu for hdu in file if not hdu.is_image), None)
        values = {} if table is None else {name.upper(): table.data[name] for name in table.columns.names}
    return columns | _fits_values(source, values, names, one=len(cube.shape) == 3)


def _fits_values(source: str, values: dict[str, Any], names: Mapping[str, str], one: bool) -> Columns:
    bands = [f"MAG_{band.upper()}" for band in BANDS]
    if all(band in values for band in bands):
        values["MAGNITUDE"] = np.stack([np.asarray(values[band]) for band in bands], axis=-1)
    found = _find(source, ["image", *values], {**names, "image": "image"})
    columns = {}
    for field, name in found.items():
        if field != "image":
            array = np.asarray(values[name])
            columns[field] = from_array(array[None] if one else array)
    return columns
