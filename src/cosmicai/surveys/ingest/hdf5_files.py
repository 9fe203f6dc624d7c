"""HDF5 files of any layout: the datasets may lie in groups, be chunked, compressed, packed, or of another dtype."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..hdf5 import (
    explain_hdf5_error,
    find_absence,
    find_external,
    find_unknown_filter,
    read_attribute,
    stated_bands,
    stated_flux_unit,
    stated_magnitude_unit,
    stated_pixel_scale,
)
from ..shard import HDF5_ERRORS
from .hdf5_members import Member, list_members, select_members
from .source import (
    ALIASES,
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    from_sliceable,
    is_mask,
)

_CHUNK_CACHE = 64 * 2**20  # bytes per dataset: a chunk of many rows is decompressed once
_LARGEST_CHUNK = 128 * 2**20


@contextmanager
def open_hdf5(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open an HDF5 file, its fields known by the full paths of their datasets.

    Raises InputError if it is damaged, unfinished or locked, if a field could be several datasets, and if data lie in
    other files, unless that is allowed and all of them are there.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_open_file(source))
            members, dangling = list_members(file)
            found = select_members(source, members, dangling, options.names)
            opened = _describe(source, file, members, found, options)
        except HDF5_ERRORS as error:
            raise InputError(explain_hdf5_error(source, error)) from None
        yield opened


def _open_file(source: str) -> Any:
    try:
        return h5py.File(source, "r", rdcc_nbytes=_CHUNK_CACHE)
    except OSError as error:
        if error.errno != 37:  # ENOLCK: the file system has no locks, which protect nobody who only reads
            raise
        return h5py.File(source, "r", rdcc_nbytes=_CHUNK_CACHE, locking=False)


def _describe(
    source: str, file: Any, members: list[Member], found: dict[str, Member], options: IngestOptions
) -> Source:
    for field, member in found.items():
        where = f"{source}: {field} ({member.full_name})"
        if problem := find_external(member.dataset, member.external, options.allow_external):
            raise InputError(f"{where} {problem}")
        if problem := find_unknown_filter(member.dataset) or find_absence(member.dataset):
            raise InputError(f"{where} {problem}")
        _check_chunks(where, member.dataset)
    image, group = found["image"], file[found["image"].group or "/"] if not found["image"].column else file
    beside = [member for member in members if member.group == image.group and member not in found.values()]
    masks = {
        member.full_name: from_sliceable(member.dataset)
        for member in beside
        if is_mask(member.name) and not member.column and member.dataset.shape == image.dataset.shape
    }
    scopes, notices = [image.dataset.attrs, group.attrs, file.attrs], []
    unused = sorted(
        member.full_name
        for member in members
        for field in ("redshift", "objid")
        if field not in found and member.name.lower() in ALIASES[field][0] and member.group != image.group
    )
    if unused:
        notices.append(
            f"{source}: {', '.join(unused)} lie in another group than the image and are not used; name them with "
            "--field"
        )
    return Source(
        {field: _array(source, field, member) for field, member in found.items()},
        bands=stated_bands(source, scopes, {member.name: member.dataset for member in beside if not member.column}),
        flux_unit=stated_flux_unit(scopes),
        magnitude_unit=stated_magnitude_unit(found["magnitude"].dataset.attrs),
        pixel_scale=stated_pixel_scale(scopes),
        masks=masks,
        notices=tuple(notices),
    )


def _check_chunks(where: str, dataset: Any) -> None:
    if dataset.chunks and math.prod(dataset.chunks) * dataset.dtype.itemsize > _LARGEST_CHUNK:
        size = math.prod(dataset.chunks) * dataset.dtype.itemsize / 2**20
        raise InputError(
            f"{where} is in chunks of {size:,.0f} MB; expected at most {_LARGEST_CHUNK / 2**20:.0f} MB, rewrite it "
            "with h5repack -l CHUNK=..."
        )


class _Column:
    """A dataset or a field of a compound one by rows, unpacked as the netCDF conventions' attributes say."""

    def __init__(self, member: Member) -> None:
        dataset, attributes = member.dataset, member.dataset.attrs
        self._rows = dataset.fields(member.column) if member.column else dataset
        dtype = dataset.dtype[member.column] if member.column else dataset.dtype
        base, inner = dtype.subdtype if dtype.subdtype else (dtype, ())
        self.shape = (*dataset.shape, *inner)
        self._scale = read_attribute([attributes], ("scale_factor",))
        self._offset = read_attribute([attributes], ("add_offset",))
        fills = (read_attribute([attributes], (name,)) for name in ("_fillvalue", "missing_value"))
        self._fills = [fill for fill in fills if isinstance(fill, int | float) and fill == fill]
        self.packed = any(value is not None for value in (self._scale, self._offset)) or bool(self._fills)
        self.dtype = np.dtype(np.float64) if self.packed and base.kind in "iuf" else base

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        raw = np.asarray(self._rows[rows])
        if not self.packed or raw.dtype.kind not in "iuf":
            return raw
        missing = np.zeros(raw.shape, np.bool_)
        for fill in self._fills:
            missing |= raw == fill
        scale, offset = self._scale if self._scale is not None else 1, self._offset if self._offset is not None else 0
        return np.where(missing, np.nan, raw * float(scale) + float(offset))


class _Ids(_Column):
    """The objid: integers stay integers, and fill values become no id."""

    def __init__(self, member: Member) -> None:
        super().__init__(member)
        self.dtype = member.dataset.dtype[member.column] if member.column else member.dataset.dtype

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        raw = np.asarray(self._rows[rows])
        missing = [raw == fill for fill in self._fills] if raw.dtype.kind in "iuf" else []
        return np.ma.MaskedArray(raw, np.any(missing, axis=0)) if missing else raw


def _array(source: str, field: str, member: Member) -> SourceArray:
    array = _Ids(member) if field == "objid" else _Column(member)
    check_dtype(source, field, array.dtype)
    return from_sliceable(array)
