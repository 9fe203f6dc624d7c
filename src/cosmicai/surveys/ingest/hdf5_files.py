"""HDF5 files of any layout: the datasets may lie in groups, be chunked, compressed, packed, or of another dtype."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import h5py

from ...errors import InputError
from ...storage.local import retry_stale
from ...storage.ranges import open_ranges
from ..bands import BAND_NAMES, BANDS
from ..columns import POSITION
from ..hdf5 import (
    explain_hdf5_error,
    find_unknown_filter,
    stated_bands,
    stated_flux_unit,
    stated_magnitude_unit,
    stated_pixel_scale,
)
from ..hdf5_absence import files_of, find_absence, find_external
from ..hdf5_heap import has_endless_heap
from ..mask_arrays import fits_image, is_mask
from ..shard import HDF5_ERRORS
from ..units import require_degrees
from .hdf5_members import Member, Selection, list_members, select_members
from .hdf5_rows import MemberRows, UnscaledRows
from .kept import find_problem, select_columns
from .names import ALIASES, split_masks
from .source import (
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    from_sliceable,
    stack_columns,
    with_mask,
)

_CHUNK_CACHE = 64 * 2**20  # bytes per dataset: a chunk of many rows is decompressed once
_LARGEST_CHUNK = 128 * 2**20
_SEARCHED = 2**22  # bytes at both ends of a file, where attributes usually are; all of it would take too long


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
            members, hidden = _split_masks(members)
            selection = select_members(source, members, dangling, options)
            opened = _describe(source, file, members, selection, options, hidden)
        except HDF5_ERRORS as error:
            raise InputError(explain_hdf5_error(source, error)) from None
        yield opened


def _open_file(source: str) -> Any:
    with open_ranges(source) as reader:
        for start in {0, max(0, reader.size - _SEARCHED)}:
            if has_endless_heap(bytes(reader.read(start, min(_SEARCHED, reader.size)))):
                raise OSError("a global heap is damaged")
    try:
        return retry_stale(h5py.File, source, "r", rdcc_nbytes=_CHUNK_CACHE)
    except OSError as error:
        if error.errno != errno.ENOLCK:  # the file system has no locks, which protect nobody who only reads
            raise
        return h5py.File(source, "r", rdcc_nbytes=_CHUNK_CACHE, locking=False)


def _describe(
    source: str,
    file: Any,
    members: list[Member],
    selection: Selection,
    options: IngestOptions,
    hidden: dict[str, Member],
) -> Source:
    found = selection.found
    image, used = found["image"][0], {member.full_name for columns in found.values() for member in columns}
    shape = MemberRows(image).shape
    beside = {
        member.full_name: member
        for member in members
        if member.group == image.group and is_mask(member.name) and member.full_name not in used
    }
    masks = {name: MemberRows(member) for name, member in beside.items()}
    masks = {
        name: array for name, array in masks.items() if fits_image(array.shape, shape) and array.dtype.kind in "biuf"
    }
    elsewhere = {member.full_name: member for member in members if member.full_name in options.keep}
    available = {**selection.home, **elsewhere}
    problems = {name: _find_problem(member, image) for name, member in available.items()}
    kept, notices = select_columns(source, problems, {*used, *masks}, options)
    columns = {short: available[name] for short, name in kept.items()}
    checked = [(field, member) for field, parts in found.items() for member in parts]
    _check(source, checked + [("", member) for member in columns.values()], options)
    _check(source, [("", beside[name]) for name in masks], options, may_be_blank=True)
    groups = _groups_of(image.dataset, file)
    scopes = [image.dataset.attrs, *(group.attrs for group in groups)]
    return Source(
        {
            field: stack_columns(
                [_hide(_array(source, field, member), hidden.get(member.full_name)) for member in parts]
            )
            for field, parts in found.items()
        },
        bands=stated_bands(source, scopes, _band_datasets(source, image, groups)),
        magnitude_bands=_magnitude_bands(source, found.get("magnitude", []), image),
        flux_unit=stated_flux_unit(scopes),
        magnitude_unit=next(filter(None, map(_unit, found.get("magnitude", []))), ""),
        pixel_scale=stated_pixel_scale(scopes),
        masks={name: from_sliceable(array) for name, array in masks.items()},
        columns={short: _hide(_kept_array(member), hidden.get(member.full_name)) for short, member in columns.items()},
        column_units={
            short: unit for short, member in columns.items() if not member.column and (unit := _unit(member))
        },
        others=tuple(name for name in selection.home if name not in used and available[name] not in columns.values()),
        notices=(*notices, *_partner(source, selection, image), *_unused(source, members, selection, options)),
    )


def _partner(source: str, selection: Selection, image: Member) -> list[str]:
    """Return a sentence on the group of the magnitudes, where it was taken because nothing else could be meant."""
    if not selection.partner:
        return []
    return [f"{source}: magnitudes are those of {selection.partner}, which has as many rows as {image.full_name}"]


def _unused(source: str, members: list[Member], selection: Selection, options: IngestOptions) -> list[str]:
    """Return a sentence on redshifts and ids in other groups than those of the image and the magnitudes."""
    unused = sorted(
        member.full_name
        for member in members
        for field in ("redshift", "objid")
        if field in options.wanted
        and field not in selection.found
        and member.name.lower() in ALIASES[field][0]
        and member.full_name not in selection.home
        and not member.alias
    )
    said = "lie in another group than the image and are not used; name them with --field"
    return [f"{source}: {', '.join(unused)} {said}"] if unused else []


def _find_problem(member: Member, image: Member) -> str:
    """Return why a member cannot be kept as a column; variable-length text can."""
    dtype = member.dataset.dtype[member.column] if member.column else member.dataset.dtype
    base, inner = dtype.subdtype or (dtype, ())
    is_text = h5py.check_string_dtype(base) is not None
    return find_problem((*member.dataset.shape, *inner), base, image.dataset.shape[0], is_text)


def _split_masks(members: list[Member]) -> tuple[list[Member], dict[str, Member]]:
    """Return the members without the masks that astropy writes beside columns, and the mask of each, by its name."""
    rows = {member.full_name: member for member in members if len(member.dataset.shape or ()) == 1}
    _, masks = split_masks(rows)
    hidden = {name: rows[mask] for name, mask in masks.items()}
    return [member for member in members if member.full_name not in masks.values()], hidden


def _hide(array: SourceArray, mask: Member | None) -> SourceArray:
    return array if mask is None else with_mask(array, from_sliceable(MemberRows(mask)))


def _kept_array(member: Member) -> SourceArray:
    """Return a column to keep: integers and text stay what they are, missing ones masked; packed ones are unpacked."""
    column = MemberRows(member)
    return from_sliceable(column if column.scaled else UnscaledRows(member))


def _magnitude_bands(source: str, columns: list[Member], image: Member) -> tuple[str, ...]:
    """Return the bands of the magnitudes where the file states them, or the names of five columns do."""
    if len(columns) > 1:
        return tuple(BANDS)
    own = [member.dataset.attrs for member in columns if member.dataset != image.dataset]
    return stated_bands(f"{source}: magnitude", own, {}) if own else ()


def _unit(member: Member) -> str:
    return stated_magnitude_unit(member.dataset.attrs)


def _check(
    source: str, members: list[tuple[str, Member]], options: IngestOptions, *, may_be_blank: bool = False
) -> None:
    """Raise InputError unless all values of the datasets of fields, and of other members, are there and can be decoded.

    A compound dataset is checked once: to look for chunks that were never written takes long.
    """
    sound: set[str] = set()
    for field, member in members:
        if member.path in sound:
            continue
        problem = (
            find_unknown_filter(member.dataset)
            or find_external(member.dataset, member.external, options.allow_external)
            or _find_huge_chunk(member.dataset)
            or find_absence(member.dataset, may_be_blank=may_be_blank)
        )
        if problem:
            where = f"{field} ({member.full_name})" if field else member.full_name
            raise InputError(f"{source}: {where} {problem}")
        sound.add(member.path)


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


def _array(source: str, field: str, member: Member) -> SourceArray:
    array = UnscaledRows(member) if field == "objid" else MemberRows(member)
    check_dtype(source, field, array.dtype)
    if field in POSITION and not member.column:  # the attributes of a compound dataset are those of no column
        require_degrees(f"{source}: {field}", _unit(member))
    return from_sliceable(array)
