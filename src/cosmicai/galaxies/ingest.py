"""Brings galaxies from other formats into a survey: NumPy (.npy, .npz), HDF5 of any layout, FITS cubes, `.pt`.

Every source is read once, front to back, a few hundred galaxies at a time. Cutouts may have the bands first
(N, 5, H, W) or last (N, H, W, 5), any float or integer dtype, and H = W of 32 or more (even): the centre is kept.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .shard import BANDS, IMAGE_SHAPE, Galaxies, Shard, open_shard
from .survey import Survey, write_survey

BATCH = 256  # galaxies in memory at once
# What the fields are called elsewhere, in order of preference; letter case does not matter.
ALIASES = {
    "image": ("image", "images", "img", "cutout", "cutouts", "cube"),
    "magnitude": ("magnitude", "magnitudes", "mag", "mags"),
    "redshift": ("redshift", "redshifts", "redshift_spec", "z_spec", "specz", "z"),
    "objid": ("objid", "object_id", "id"),
}


@dataclass(frozen=True)
class Column:
    """One array of a source: its shape, and a function that gives the next so many rows."""

    shape: tuple[int, ...]
    take: Callable[[int], NDArray[Any]]


def from_array(array: Any) -> Column:
    """A column of anything that can be sliced."""
    position = 0

    def take(count: int) -> NDArray[Any]:
        nonlocal position
        position += count
        return np.asarray(array[position - count : position])

    return Column(tuple(array.shape), take)


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
                for batch in _read(columns, row):
                    row += len(batch)
                    yield batch

    fields = ("image", "magnitude", *["redshift"] * has_redshift, "objid")
    return write_survey(out, batches(), sum(counts), galaxies_per_shard, fields)


def _read(columns: Columns, first_row: int) -> Iterator[Galaxies]:
    galaxies = columns["image"].shape[0]
    for start in range(0, galaxies, BATCH):
        count = min(BATCH, galaxies - start)
        rows = np.arange(first_row + start, first_row + start + count)
        yield Galaxies(
            _cutouts(columns["image"].take(count)),
            columns["magnitude"].take(count).astype(np.float64, copy=False),
            columns["redshift"].take(count).astype(np.float64) if "redshift" in columns else np.full(count, np.nan),
            columns["objid"].take(count).astype(np.int64) if "objid" in columns else rows,
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


def _refuse_objects(source: str, name: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject or dtype.kind not in "fiu":
        raise InputError(f"{source}: {name} is of dtype {dtype}; expected numbers (pickled objects are never loaded)")


@contextmanager
def _open_npz(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise InputError(f"{source} is not a whole .npz file; copy it again") from None
    with archive:
        there = [name.removesuffix(".npy") for name in archive.namelist()]
        yield {field: _npz_column(source, archive, name) for field, name in _find(source, there, names).items()}


def _npz_column(source: str, archive: zipfile.ZipFile, name: str) -> Column:
    """Streams an entry, compressed or not, since np.load would hold it whole."""
    stream = archive.open(f"{name}.npy")
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream)
    except (ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
    _refuse_objects(source, name, dtype)
    if fortran and len(shape) > 1:
        raise InputError(f"{source}: {name} is in Fortran order; expected C order (np.ascontiguousarray)")

    def take(count: int) -> NDArray[Any]:
        wanted = count * int(np.prod(shape[1:])) * dtype.itemsize
        try:
            data = stream.read(wanted)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
        if len(data) != wanted:
            raise InputError(f"{source}: {name} ends early; write the file again")
        return np.frombuffer(data, dtype).reshape(count, *shape[1:])

    return Column(shape, take)


@contextmanager
def _open_npy(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    """A structured array with our fields; or cutouts in a file named `...image...`, with magnitudes and the rest in
    files beside it whose names have `magnitude`, `redshift`, `objid` in that place."""

    def load(path: Path) -> NDArray[Any]:
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{path} is not a whole .npy file of numbers ({error}); write it again") from None
        return array

    path, array = Path(source), load(Path(source))
    if array.dtype.names:
        found = _find(source, list(array.dtype.names), names)
        yield {field: from_array(array[name]) for field, name in found.items()}
        return
    if "image" not in path.name:
        raise InputError(f"{source} is one array; expected fields, or a name with `image` in it and others beside it")
    beside = {field: path.with_name(path.name.replace("image", field)) for field in ALIASES}
    if not beside["magnitude"].exists():
        raise InputError(f"{source} has no magnitudes; expected them in {beside['magnitude']}")
    columns = {}
    for field, file in beside.items():
        if file.exists():
            values = load(file)
            _refuse_objects(str(file), field, values.dtype)
            columns[field] = from_array(values)
    yield columns


@contextmanager
def _open_hdf5(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        what = "is truncated" if "truncated" in str(error) else "is not an HDF5 file or is damaged"
        raise InputError(f"{source} {what}; copy it again") from None
    with file:
        there: list[str] = []
        file.visititems(lambda name, item: there.append(name) if isinstance(item, h5py.Dataset) else None)
        found = _find(source, there, names)
        for name in found.values():
            _refuse_objects(source, name, file[name].dtype)
        yield {field: from_array(file[name]) for field, name in found.items()}


@contextmanager
def _open_partition(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    with open_shard(source) as shard:
        yield {field: from_array(_ShardField(shard, field)) for field in shard.fields}


class _ShardField:
    """One field of a shard as something that can be sliced."""

    def __init__(self, shard: Shard, field: str) -> None:
        self.shape, self._shard, self._field = shard.fields[field].shape, shard, field

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        values: NDArray[Any] = self._shard.read_field(self._field, rows.start, rows.stop)
        return values


@contextmanager
def _open_fits(source: str, names: Mapping[str, str]) -> Iterator[Columns]:
    """Either a 4-D cube (N, 5, H, W) with a table of N rows: MAGNITUDE (5-vector) or MAG_U ... MAG_Z, and if known
    REDSHIFT and OBJID; or one galaxy: a 3-D cube (5, H, W) with MAG_U ... MAG_Z, REDSHIFT, OBJID in its header."""
    from astropy.io import fits

    try:
        file = fits.open(source, memmap=True)
    except OSError as error:
        raise InputError(f"{source} is not a FITS file or is damaged ({error}); copy it again") from None
    with file:
        cube = next((hdu for hdu in file if hdu.is_image and len(hdu.shape) in (3, 4)), None)
        if cube is None:
            raise InputError(f"{source} has no image; expected a cube (N, 5, H, W), or (5, H, W) for one galaxy")
        if len(cube.shape) == 3:
            header = cube.header
            columns = {"image": from_array(cube.data[None])}
            values: dict[str, Any] = {name: header[name] for name in header if name}
        else:
            columns = {"image": _FitsCube(cube).column}
            table = next((hdu for hdu in file if not hdu.is_image), None)
            values = {} if table is None else {name.upper(): table.data[name] for name in table.columns.names}
        yield columns | _fits_values(source, values, names, one=len(cube.shape) == 3)


class _FitsCube:
    """Reads rows of a cube through its section, so that the file is not loaded whole."""

    def __init__(self, hdu: Any) -> None:
        self.shape, self._hdu = hdu.shape, hdu
        self.column = from_array(self)

    def __getitem__(self, rows: slice) -> Any:
        return self._hdu.section[rows]


def _fits_values(source: str, values: dict[str, Any], names: Mapping[str, str], one: bool) -> Columns:
    bands = [f"MAG_{band.upper()}" for band in BANDS]
    if all(band in values for band in bands):
        values["MAGNITUDE"] = np.stack([np.asarray(values[band]) for band in bands], axis=-1)
    found = _find(source, ["image", *values], {"image": "image", **names})
    columns = {}
    for field, name in found.items():
        if field != "image":
            array = np.asarray(values[name])
            columns[field] = from_array(array[None] if one else array)
    return columns
