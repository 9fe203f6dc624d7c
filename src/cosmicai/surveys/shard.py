"""A shard: one file of galaxies, in which any range of rows takes one read per array.

The format (HDF5, `format = "cosmicai-shard/2"`, `bands = "ugriz"`), all datasets contiguous:

    image      (N, 5, 32, 32) float32   cutout in the survey's own flux units
    magnitude  (N, 5)         float64   one per band
    redshift   (N,)           float64   spectroscopic, optional, NaN where unknown
    objid      (N,)           int64     optional, -1 where the source gives none; or UTF-8 text of a fixed length,
                                        empty where the source gives none
    ra, dec    (N,)           float64   position in degrees (ICRS), optional
    columns/*  (N,)                     what the user kept of the source, see `surveys.columns`
    checksum   (B, F)         uint64    of blocks of 64 rows of each of these fields, see `surveys.checksums`

Rows are checked whenever they are read. Format 1 has no checksums. A published `.pt` partition has CRC-32 of whole
arrays: those of the magnitudes and redshifts are checked when they are read first, that of the images by those who read
all of them, in order (`Shard.check_images`).
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.torch_archive import TensorRef
from ..storage.ranges import LARGEST_PAGE, RangeReader, open_ranges
from ..storage.s3 import is_s3
from . import published_partition
from .bands import BANDS as BANDS
from .checksums import (
    DATASET,
    RowChecksums,
    content_digest,
    has_checksums,
    read_checksums,
)
from .columns import FOLDER, POSITION, ColumnSpec
from .hdf5 import KnownObjects, explain_hdf5_error, find_unknown_filter, find_unused, require_own_data, require_plain
from .hdf5_absence import find_absence
from .hdf5_heap import HeapCheckingFile
from .identity import ObjIds, is_text, join_objids, no_objids, objids
from .quality import known_redshifts

IMAGE_SHAPE = (5, 32, 32)
FORMAT = "cosmicai-shard/2"
WITHOUT_CHECKSUMS = "cosmicai-shard/1"
SUFFIXES = (".h5", ".hdf5", ".pt")
HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)  # raised by h5py for damaged files

# field: (shape of one galaxy, accepted dtypes, required); objid may also be text of any fixed length
FIELDS: dict[str, tuple[tuple[int, ...], tuple[str, ...], bool]] = {
    "image": (IMAGE_SHAPE, ("<f4",), True),
    "magnitude": ((5,), ("<f8", "<f4"), True),
    "redshift": ((), ("<f8", "<f4"), False),
    "objid": ((), ("<i8",), False),
}


@dataclass(frozen=True)
class Galaxies:
    """A batch of galaxies in memory.

    image (N, 5, 32, 32) float32; magnitude (N, 5) float64; redshift (N,) float64, NaN where there is no spectrum;
    objid (N,) int64, -1 where the source gives none, or UTF-8 text `S<n>`, empty where the source gives none. `columns`
    are positions and what else the survey carries (`surveys.columns`) by the paths of their datasets; they are read for
    the catalogue alone.
    """

    image: NDArray[np.float32]
    magnitude: NDArray[np.float64]
    redshift: NDArray[np.float64]
    objid: ObjIds
    columns: dict[str, NDArray[Any]] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: slice) -> Galaxies:
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Galaxies(self.image[rows], self.magnitude[rows], self.redshift[rows], self.objid[rows], columns=columns)

    @staticmethod
    def concatenate(parts: Iterable[Galaxies]) -> Galaxies:
        """Return the galaxies of all parts as one batch."""
        parts = list(parts)
        if len(parts) == 1:
            return parts[0]
        fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in FIELDS if name != "objid"}
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        objid = join_objids(part.objid for part in parts)
        return Galaxies(fields["image"], fields["magnitude"], fields["redshift"], objid, columns=columns)


@dataclass(frozen=True)
class Shard:
    """An open shard: where each field lies in the file, how its rows are checked, and how its columns are stored.

    `digest` stands for the content: it is that of the checksums in the file, and empty if the file has none. `unused`
    names what lies beside the fields and may be a "mask", a "redshift" or an "objid", which only ingest uses.
    """

    uri: str
    reader: RangeReader
    fields: dict[str, TensorRef]
    checksums: RowChecksums | None = None
    digest: str = ""
    columns: dict[str, ColumnSpec] = field(default_factory=dict)
    unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _fetched: dict[str, NDArray[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _fetching: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def galaxies(self) -> int:
        """Number of galaxies."""
        return self.fields["image"].shape[0]

    @property
    def objid_dtype(self) -> np.dtype[Any] | None:
        """The dtype of the ids, int64 or `S<n>`; None if the shard has none."""
        return np.dtype(self.fields["objid"].dtype) if "objid" in self.fields else None

    def read(self, start: int, stop: int) -> Galaxies:
        """Return all fields of rows start to stop, with NaN for unusable redshifts; raises as `read_field`."""
        fields = {name: self.read_field(name, start, stop) for name in FIELDS}
        fields["redshift"] = known_redshifts(fields["redshift"])
        return Galaxies(*fields.values())

    def read_field(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows start to stop of one field in the dtype of `Galaxies`; NaN or -1 if the shard does not have it.

        The array belongs to the caller: writing to it never changes the file, and it outlives the shard.
        Raises StorageError if the file ends before or cannot be read, InputError if rows differ from their checksums or
        text is not UTF-8, IndexError if the shard has no such rows.
        """
        self._check_rows(start, stop)
        shape, (dtype, *_), _ = FIELDS[name]
        if name not in self.fields:
            return no_objids(stop - start) if name == "objid" else np.full((stop - start, *shape), np.nan, dtype)
        if name != "image" and (is_s3(self.uri) or self.fields[name].crc32 is not None):
            rows = self._fetch_field(name)[start:stop].copy()
        else:
            raw = self._read_rows(name, start, stop)
            rows = np.ndarray((stop - start, *shape), self.fields[name].dtype, raw)
        if is_text(rows.dtype):  # which another program may have padded with spaces
            return objids(rows, f"{self.uri}: {name}").astype(rows.dtype)
        return np.require(rows, dtype, ["ALIGNED"])

    def read_column(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Return rows start to stop of one of `columns` as they are stored; raises as `read_field`."""
        self._check_rows(start, stop)
        if is_s3(self.uri):
            return self._fetch_field(name)[start:stop].copy()
        raw = self._read_rows(name, start, stop)
        return np.require(np.ndarray((stop - start,), self.columns[name].dtype, raw), None, ["ALIGNED"])

    def read_columns(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """Return rows start to stop of all columns."""
        return {name: self.read_column(name, start, stop) for name in self.columns}

    def _fetch_field(self, name: str) -> NDArray[Any]:
        """Return all rows of a field other than the image.

        These are few bytes: in one request, since requests to S3 are slow, and to compare them with a CRC of all.
        """
        with self._fetching:
            if name not in self._fetched:
                raw = self._read_rows(name, 0, self.galaxies)
                if self.fields[name].crc32 not in (None, zlib.crc32(raw)):
                    raise InputError(f"{self.uri} is damaged: the CRC-32 of its {name} is wrong; copy it again")
                self._fetched[name] = np.ndarray(self.fields[name].shape, self.fields[name].dtype, raw)
            return self._fetched[name]

    def _read_rows(self, name: str, start: int, stop: int) -> memoryview:
        """Return the bytes of these rows of a field. Raises InputError if they differ from their checksums."""
        if self.checksums is None or start == stop:
            return self.reader.read(*self._locate_rows(name, start, stop))
        first, end = self.checksums.widen(name, start, stop, self.galaxies)
        raw = self.reader.read(*self._locate_rows(name, first, end))
        self.checksums.verify(self.uri, name, first, end, self.galaxies, raw)
        row_bytes = len(raw) // (end - first)
        return raw[(start - first) * row_bytes : (stop - first) * row_bytes]

    def check_images(self) -> ImageCheck | None:
        """Return a check for those who read all rows in order, None if the images have no CRC-32 of their own."""
        crc = self.fields["image"].crc32
        return None if crc is None else ImageCheck(self.uri, self.galaxies, crc)

    def drop_cached(self, start: int, stop: int) -> None:
        """Drop rows start to stop from the system's page cache, so that a survey does not fill the memory.

        It expects rows to be read in order: a page that reaches beyond them, up to 2 MiB at the end, is dropped with
        the following rows, and the fields other than the image, 0.3% of a shard, with its last rows. Dropped rows can
        be read again, from the disk. Does nothing on S3. Raises IndexError if the shard has no such rows.
        """
        self._check_rows(start, stop)
        if start == stop:
            return
        first, length = self._locate_rows("image", start, stop)
        end = self.reader.size if stop == self.galaxies else first + length
        begin = max(0, first - LARGEST_PAGE)  # the page that reached beyond the previous rows
        self.reader.drop_cached(begin, end - begin)

    def _check_rows(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.galaxies:
            raise IndexError(f"{self.uri} has no rows {start} to {stop}, it holds {self.galaxies}")

    def _locate_rows(self, name: str, start: int, stop: int) -> tuple[int, int]:
        """Return offset and length in bytes of these rows of a field."""
        row_bytes = math.prod(self.fields[name].shape[1:]) * self.fields[name].itemsize
        return self.fields[name].offset + start * row_bytes, (stop - start) * row_bytes

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *_: object) -> None:
        self.reader.__exit__(None, None, None)


class ImageCheck:
    """Compares the images of a published partition with their CRC-32, which is one for all of them."""

    def __init__(self, uri: str, galaxies: int, expected: int) -> None:
        self._uri, self._galaxies, self._expected = uri, galaxies, expected
        self._row = self._crc = 0

    def add(self, image: NDArray[np.float32]) -> int:
        """Add the next images, as they were read, and return how many are known to be right: none before the last.

        Raises InputError with the last images if any of them is damaged.
        """
        self._crc = zlib.crc32(np.ascontiguousarray(image).data.cast("B") if len(image) else b"", self._crc)
        self._row += len(image)
        if self._row != self._galaxies:
            return 0
        if self._crc != self._expected:
            raise InputError(f"{self._uri} is damaged: the CRC-32 of its image is wrong; copy it again")
        return self._galaxies


def open_shard(uri: str) -> Shard:
    """Open an HDF5 shard or a published `.pt` partition, local or on S3.

    Raises InputError if the file is absent, empty or truncated, if a field is missing or has the wrong shape or dtype,
    or if its checksums are damaged, and UnsafePickleError if a `.pt` file names a global that is not allowed.
    """
    if not uri.endswith(SUFFIXES):
        raise InputError(f"{uri} is not a file of galaxies; expected {', '.join(SUFFIXES)}, or use `cosmicai ingest`")
    reader = open_ranges(uri)
    try:
        if reader.size == 0:
            raise InputError(f"{uri} is empty; expected galaxies, copy it again")
        return _open_pt(uri, reader) if uri.endswith(".pt") else _open_hdf5(uri, reader)
    except BaseException:
        reader.__exit__(None, None, None)
        raise


def _open_pt(uri: str, reader: RangeReader) -> Shard:
    fields = published_partition.locate_fields(uri, reader)
    _check_fields(uri, reader.size, fields)
    if any(ref.crc32 is None for ref in fields.values()):
        return Shard(uri, reader, fields)
    content = {name: [ref.dtype, ref.shape, ref.crc32] for name, ref in fields.items()}
    return Shard(uri, reader, fields, digest=content_digest(content))


def _open_hdf5(uri: str, reader: RangeReader) -> Shard:
    import h5py  # imported where it is used, here and below: a process that reads `.pt` starts faster without it

    try:
        with h5py.File(HeapCheckingFile(reader), "r") as opened:
            file = KnownObjects(opened)
            names = [name for name in FIELDS if name in file]
            require_own_data(uri, file, names)
            fields = {name: _locate_dataset(uri, name, file[name]) for name in names}
            _check_fields(uri, reader.size, fields)
            unused = find_unused(file, names, fields["image"].shape)
            found = file.attrs.get("format")
            if found == FORMAT or has_checksums(file):
                require_own_data(uri, file, [DATASET] if DATASET in file else [])
                columns = _locate_columns(uri, reader.size, file, fields)
                checksums = read_checksums(uri, file, [*names, *columns], fields["image"].shape[0])
                columns = {name: columns[name] for name in checksums.fields if name in columns}  # as they were written
                return Shard(uri, reader, fields, checksums, checksums.digest, columns, unused)
            if str(found).startswith(FORMAT.rpartition("/")[0]) and found != WITHOUT_CHECKSUMS:
                raise InputError(
                    f'{uri}: attribute format is "{found}", expected "{FORMAT}"; copy it again, or use the version of '
                    "the program that wrote it"
                )
            if found != WITHOUT_CHECKSUMS:
                require_plain(uri, file, names)
            return Shard(uri, reader, fields, unused=unused)
    except HDF5_ERRORS as error:
        raise InputError(explain_hdf5_error(uri, error)) from None


def _locate_columns(uri: str, size: int, file: Any, fields: dict[str, TensorRef]) -> dict[str, ColumnSpec]:
    """Return how the columns of a shard are stored, and add their places to `fields`."""
    group = file.get(FOLDER, {})
    names = [name for name in POSITION if name in file] + [f"{FOLDER}{name}" for name in group]
    require_own_data(uri, file, names)
    found = {}
    for name in names:
        ref = _locate_dataset(uri, name, file[name])
        dtype = np.dtype(ref.dtype)
        is_position = name in POSITION
        if ref.shape != fields["image"].shape[:1] or dtype.kind not in "iufbS" or (is_position and dtype != "<f8"):
            expected = "float64" if is_position else "numbers, booleans or text"
            raise InputError(f"{uri}: {name} is {dtype} of shape {ref.shape}; expected {expected} of shape (N,)")
        if ref.offset + ref.span > size:
            raise InputError(f"{uri} is truncated: {name} ends past the end of the file; copy it again")
        attributes = file[name].attrs
        null = attributes.get("null")
        found[name] = ColumnSpec(dtype, str(attributes.get("unit", "")), None if null is None else int(null))
        fields[name] = ref
    return found


def _locate_dataset(uri: str, name: str, dataset: Any) -> TensorRef:
    import h5py

    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        what = "a dataset without values" if isinstance(dataset, h5py.Dataset) else "a group"
        raise InputError(
            f"{uri}: {name} is {what}; expected a dataset of numbers, "
            f"convert the file with `cosmicai ingest {uri} --out SURVEY`"
        )
    offset = dataset.id.get_offset()
    if dataset.size and offset is None:
        if problem := find_unknown_filter(dataset) or (None if dataset.chunks else find_absence(dataset)):
            raise InputError(f"{uri}: {name} {problem}")
        raise InputError(
            f"{uri}: {name} is chunked or compressed; expected a contiguous dataset, "
            f"convert the file with `cosmicai ingest {uri} --out SURVEY`"
        )
    strides = tuple(math.prod(dataset.shape[axis + 1 :]) for axis in range(dataset.ndim))
    return TensorRef(offset or 0, dataset.dtype.str, dataset.shape, strides)


def _check_fields(uri: str, size: int, fields: dict[str, TensorRef]) -> None:
    for name, (shape, dtypes, required) in FIELDS.items():
        found = fields.get(name)
        expected = f"expected (N{''.join(f', {length}' for length in shape)}{',' * (not shape)}) {np.dtype(dtypes[0])}"
        expected += " or text of a fixed length" * (name == "objid")
        convert = f"convert the file with `cosmicai ingest {uri} --out SURVEY`"
        if found is None:
            if required:
                raise InputError(f"{uri} has no {name}; {expected}, {convert}")
            continue
        if len(found.shape) != len(shape) + 1 or found.shape[1:] != shape:
            raise InputError(f"{uri}: {name} has the shape {found.shape}; {expected}, {convert}")
        if found.dtype not in dtypes and not (name == "objid" and found.dtype.startswith("|S")):
            dtype = found.dtype if found.dtype == "bfloat16" else np.dtype(found.dtype)
            raise InputError(f"{uri}: {name} is {dtype}; {expected}, {convert}")
        if found.shape[0] != fields["image"].shape[0]:
            raise InputError(
                f"{uri}: {name} is of {found.shape[0]} galaxies, image of {fields['image'].shape[0]}; "
                "expected the same number, write the file again"
            )
        if not found.is_contiguous or found.negated:
            raise InputError(f"{uri}: {name} is {'negated' if found.negated else 'not contiguous'}; {convert}")
        if found.offset + found.span > size:
            raise InputError(f"{uri} is truncated: {name} ends past the end of the file; copy it again")
