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
from ..bands import BAND_NAMES, BANDS
from ..hdf5 import (
    explain_hdf5_error,
    find_unknown_filter,
    read_attribute,
    stated_bands,
    stated_flux_unit,
    stated_magnitude_unit,
    stated_pixel_scale,
    to_number,
)
from ..hdf5_absence import RawRows, files_of, find_absence, find_external
from ..mask_arrays import fits_image, is_mask
from ..shard import HDF5_ERRORS
from .hdf5_members import Member, list_members, select_members
from .names import ALIASES
from .source import (
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    from_sliceable,
    stack_columns,
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
            found = select_members(source, members, dangling, options)
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
    source: str, file: Any, members: list[Member], found: dict[str, list[Member]], options: IngestOptions
) -> Source:
    for field, columns in found.items():
        for member in columns:
            _check(f"{source}: {field} ({member.full_name})", member, options)
    image, used = found["image"][0], [member for columns in found.values() for member in columns]
    shape = _Column(image).shape
    beside = [member for member in members if member.group == image.group and member not in used]
    masks = {
        member.full_name: _Column(member)
        for member in beside
        if is_mask(member.name) and fits_image(_Column(member).shape, shape) and _Column(member).dtype.kind in "biuf"
    }
    groups = _groups_of(image.dataset, file)
    scopes, notices = [image.dataset.attrs, *(group.attrs for group in groups)], []
    for name in masks:
        _check(
            f"{source}: {name}", next(member for member in beside if member.full_name == name), options, is_mask=True
        )
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
        {
            field: stack_columns([_array(source, field, member) for member in columns])
            for field, columns in found.items()
        },
        bands=stated_bands(source, scopes, _band_datasets(source, image, groups)),
        magnitude_bands=_magnitude_bands(source, found.get("magnitude", []), image),
        flux_unit=stated_flux_unit(scopes),
        magnitude_unit=next(filter(None, map(_magnitude_unit, found.get("magnitude", []))), ""),
        pixel_scale=stated_pixel_scale(scopes),
        masks={name: from_sliceable(column) for name, column in masks.items()},
        others=tuple(member.full_name for member in beside),
        notices=tuple(notices),
    )


def _magnitude_bands(source: str, columns: list[Member], image: Member) -> tuple[str, ...]:
    """Return the bands of the magnitudes where the file states them, or the names of five columns do."""
    if len(columns) > 1:
        return tuple(BANDS)
    own = [member.dataset.attrs for member in columns if member.dataset != image.dataset]
    return stated_bands(f"{source}: magnitude", own, {}) if own else ()


def _magnitude_unit(member: Member) -> str:
    return stated_magnitude_unit(member.dataset.attrs)


def _check(where: str, member: Member, options: IngestOptions, *, is_mask: bool = False) -> None:
    """Raise InputError unless all values of a dataset are there and can be decoded."""
    problem = (
        find_unknown_filter(member.dataset)
        or find_external(member.dataset, member.external, options.allow_external)
        or _find_huge_chunk(member.dataset)
        or find_absence(member.dataset, may_be_blank=is_mask)
    )
    if problem:
        raise InputError(f"{where} {problem}")


def _groups_of(dataset: Any, file: Any) -> list[Any]:
    """Return the groups that hold a dataset, from the innermost to the root, and the root of the opened file."""
    groups = [dataset.parent]
    while groups[-1].name not in (None, "/"):
        groups.append(groups[-1].parent)
    return groups if groups[-1] == file["/"] else [*groups, file]


def _band_datasets(source: str, image: Member, groups: list[Any]) -> dict[str, Any]:
    """Return what states bands by its name: datasets in the innermost group that has any, or fields of a compound."""
    if image.column:
        names = [name for name in image.dataset.dtype.names if name.lower() in BAND_NAMES]
        if names:
            return {name: _Texts(image.dataset, name) for name in names}
    for group in groups:
        found = {name: group.get(name) for name in group if name.lower() in BAND_NAMES}
        found = {name: item for name, item in found.items() if isinstance(item, h5py.Dataset) and not item.dtype.names}
        for name, item in found.items():
            if problem := _find_elsewhere(group, name, item) or find_unknown_filter(item):
                raise InputError(f"{source}: {name} {problem}")
        if found:
            return found
    return {}


def _find_elsewhere(group: Any, name: str, dataset: Any) -> str | None:
    is_elsewhere = isinstance(group.get(name, getlink=True), h5py.ExternalLink) or files_of(dataset)
    return "lies in other files; write the bands into this one" if is_elsewhere else None


class _Texts:
    """A field of a compound dataset of texts by rows."""

    def __init__(self, dataset: Any, column: str) -> None:
        self._rows, self.shape = dataset.fields(column), dataset.shape

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: slice) -> Any:
        return self._rows[rows]


def _find_huge_chunk(dataset: Any) -> str | None:
    if not dataset.chunks or (size := math.prod(dataset.chunks) * dataset.dtype.itemsize) <= _LARGEST_CHUNK:
        return None
    return (
        f"is in chunks of {size / 2**20:,.0f} MB; expected at most {_LARGEST_CHUNK / 2**20:.0f} MB, rewrite it with "
        "h5repack -l CHUNK=..."
    )


class _Column:
    """A dataset or a field of a compound one by rows, unpacked as the netCDF conventions' attributes say."""

    def __init__(self, member: Member) -> None:
        dataset, attributes = member.dataset, member.dataset.attrs
        if dataset.external:
            self._rows = RawRows(dataset)
        else:
            self._rows = dataset.fields(member.column) if member.column else dataset
        self._column = member.column if dataset.external else ""
        dtype = dataset.dtype[member.column] if member.column else dataset.dtype
        base, inner = dtype.subdtype if dtype.subdtype else (dtype, ())
        self.shape = (*dataset.shape, *inner)
        self._scale, self._offset = _factor(dataset, "scale_factor", 1), _factor(dataset, "add_offset", 0)
        self._fills = _fill_values(attributes)
        self._unsigned = base.kind == "i" and str(read_attribute([attributes], ("_unsigned",))).lower() == "true"
        self.packed = (self._scale, self._offset) != (1, 0) or bool(self._fills) or self._unsigned
        self.dtype = np.dtype(np.float64) if self.packed and base.kind in "iuf" else base

    def _read(self, rows: slice) -> NDArray[Any]:
        raw = np.asarray(self._rows[rows])
        return raw[self._column] if self._column else raw

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        raw = self._read(rows)
        if not self.packed or raw.dtype.kind not in "iuf":
            return raw
        raw = raw.view(raw.dtype.str.replace("i", "u")) if self._unsigned else raw
        missing = _find_missing(raw, self._fills)
        values = raw.astype(np.float64) * self._scale + self._offset
        values[missing] = np.nan
        return values


def _factor(dataset: Any, name: str, default: float) -> float:
    value = read_attribute([dataset.attrs], (name,))
    if value is None:
        return default
    if (number := to_number(value)) is None:
        raise InputError(f"{dataset.file.filename}: {dataset.name} states {name} = {value}; expected one number")
    return number


def _fill_values(attributes: Any) -> list[Any]:
    """Return the numbers other than NaN that stand for missing values."""
    stated = [attributes[name] for name in attributes if name.lower() in ("_fillvalue", "missing_value")]
    return [value for values in stated for value in np.ravel(values).tolist() if isinstance(value, int | float)]


def _find_missing(raw: NDArray[Any], fills: list[Any]) -> NDArray[np.bool_]:
    """Return where raw values are one of the fill values, stated in floating point or with another sign."""
    missing = np.zeros(raw.shape, np.bool_)
    for fill in fills:
        missing |= raw == (fill if raw.dtype.kind == "i" else np.asarray(fill).astype(raw.dtype))
    return missing


class _Ids(_Column):
    """The objid: integers stay integers, and fill values become no id."""

    def __init__(self, member: Member) -> None:
        super().__init__(member)
        self.dtype = member.dataset.dtype[member.column] if member.column else member.dataset.dtype
        if self._unsigned or (self._scale, self._offset) != (1, 0):
            raise InputError(
                f"{member.dataset.file.filename}: objid ({member.full_name}) is packed; expected ids as int64 or text"
            )

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        raw = self._read(rows)
        is_number = bool(self._fills) and raw.dtype.kind in "iuf"
        return np.ma.MaskedArray(raw, _find_missing(raw, self._fills)) if is_number else raw


def _array(source: str, field: str, member: Member) -> SourceArray:
    array = _Ids(member) if field == "objid" else _Column(member)
    check_dtype(source, field, array.dtype)
    return from_sliceable(array)
