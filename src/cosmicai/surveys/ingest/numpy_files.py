"""NumPy files: .npz archives of arrays, .npy structured arrays, and sets of .npy files with one field each.

An archive may have a structured array beside the cutouts, as `sdss.npz` of Pasquet et al. (2019): its columns are
called `labels[z]`.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError, StorageError
from ..bands import BAND_NAMES, BANDS, band_letter, parse_bands
from ..hdf5 import PIXEL_SCALE_NAMES, plain_value, to_number
from ..mask_arrays import fits_image, is_mask
from ..units import ZERO_POINT_NAMES, FluxUnit
from .kept import find_problem, select_columns
from .names import find_fields, last_part, require_fields
from .numpy_rows import Entry, archive_entries, as_one_row, file_entries
from .source import (
    READ_ERRORS,
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    from_rows,
    stack_columns,
)

_FLUX_UNIT_NAMES = ("bunit", "flux_unit", "flux_units", "image_unit", "image_units", "unit", "units")
_VALUES = (_FLUX_UNIT_NAMES, ZERO_POINT_NAMES, PIXEL_SCALE_NAMES)
_PIECE_BYTES = 16 * 2**20


@contextmanager
def open_npz(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open an .npz archive of arrays, compressed or not. Raises InputError if it is not a whole one."""
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        if isinstance(error, PermissionError):
            raise InputError(f"{source} cannot be read: permission denied; change its permissions") from None
        raise InputError(f"{source} is not a whole .npz file; copy it again") from None
    with archive:
        yield _select(source, archive_entries(source, archive), options)


@contextmanager
def open_npy(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open a .npy file of either kind, and raise InputError if it is neither.

    It is a structured array with our fields; or it holds the cutouts and is named `...image...`, with the magnitudes
    and other fields in files of the same folder whose names have `magnitude`, `redshift`, `objid` in that place. Where
    a catalogue has these, it is named at will, and may be the one cutout (5, H, W) or (H, W, 5) of a galaxy.
    """
    path = Path(source)
    entries = file_entries(path)
    if "" not in entries:
        yield _select(source, entries, options)
        return
    if options.image_only:
        image = entries[""]
        one_galaxy = len(image.shape) == 3 and len(BANDS) in (image.shape[0], image.shape[-1])
        yield _select(source, {"image": as_one_row(image) if one_galaxy else image}, options)
        return
    if "image" not in path.name:
        raise InputError(
            f"{source} is a single array; expected a structured one, or a name with `image` in it and the other "
            "fields in files of the same folder"
        )
    entries = {"image": entries[""], **_siblings(path)}
    options = replace(options, names={"image": "image", **options.names})
    if "magnitude" in options.required and not find_fields(source, entries, options.names, ["magnitude"]):
        raise InputError(
            f"{source} has no magnitudes; expected them in {path.with_name(path.name.replace('image', 'magnitude', 1))}"
        )
    yield _select(source, entries, options)


def _siblings(path: Path) -> dict[str, Entry]:
    """Return the arrays of the files beside one whose names have something else in the place of `image`."""
    before, after = path.name.split("image", 1)
    entries: dict[str, Entry] = {}
    for file in sorted(path.parent.iterdir()):
        name = file.name.removeprefix(before).removesuffix(after)
        if file.is_file() and file.name == f"{before}{name}{after}" and name != "image":
            try:
                entries |= file_entries(file, name)
            except InputError as error:  # it matters only if it is needed
                problem = "is not a whole .npy file of numbers; write it again"
                if isinstance(error, StorageError):
                    problem = f"cannot be read: {str(error).partition(f'{file}: ')[2]}"
                entries[name] = Entry((), np.dtype(np.void), None, problem=f"({file}) {problem}")
    return entries


def _select(source: str, entries: Mapping[str, Entry], options: IngestOptions) -> Source:
    """Return what arrays hold of our fields, the columns to keep, and what they state."""
    found = find_fields(source, entries, options.names, options.wanted)
    require_fields(source, found, entries, options.required)
    fields = {}
    for field, names in found.items():
        arrays = [_open(source, name, entries[name]) for name in names]
        for array in arrays:
            check_dtype(source, field, array.dtype)
        fields[field] = stack_columns(arrays)
    image, used = entries[found["image"][0]], {name for names in found.values() for name in names}
    beside = {name: entry for name, entry in entries.items() if name not in used}
    masks = {
        name: entry
        for name, entry in beside.items()
        if is_mask(last_part(name)) and fits_image(entry.shape, image.shape) and entry.dtype.kind in "biuf"
    }
    told = {
        name: entry
        for name, entry in beside.items()
        if last_part(name).lower() in BAND_NAMES
        or (last_part(name).lower() in sum(_VALUES, ()) and entry.container == image.container)
    }
    count = image.shape[0] if image.shape else 0
    problems = {
        name: entry.problem.partition(";")[0] or find_problem(entry.shape, entry.dtype, count)
        for name, entry in entries.items()
    }
    kept, notices = select_columns(source, problems, {*used, *masks, *told}, options)
    texts = [(last_part(name).lower(), _open(source, name, entry)) for name, entry in told.items()]
    unit, zero_point, scale = (_read_value(source, texts, names) for names in _VALUES)
    return Source(
        fields,
        bands=_stated_bands(source, texts),
        magnitude_bands=tuple(BANDS) if len(found.get("magnitude", ())) > 1 else (),
        flux_unit=FluxUnit("" if unit is None else str(unit), to_number(zero_point)),
        pixel_scale=to_number(scale),
        masks={name: _open(source, name, entry) for name, entry in masks.items()},
        columns={short: _open(source, name, entries[name]) for short, name in kept.items()},
        others=tuple(name for name in beside if name not in kept.values()),
        notices=notices,
    )


def _open(source: str, name: str, entry: Entry) -> SourceArray:
    if entry.open_rows is None or entry.problem:
        raise InputError(f"{source}: {name} {entry.problem}")
    return from_rows(entry.shape, entry.dtype, entry.open_rows())


def _stated_bands(source: str, texts: Iterable[tuple[str, SourceArray]]) -> tuple[str, ...]:
    orders = [order for name, array in texts if name in BAND_NAMES and (order := _read_bands(source, name, array))]
    if len({tuple(map(band_letter, order)) for order in orders}) > 1:
        raise InputError(f"{source}: it states several orders of bands; expected one, leave the others out")
    return orders[0] if orders else ()


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


def _read_value(source: str, arrays: Iterable[tuple[str, SourceArray]], names: Iterable[str]) -> Any | None:
    """Return the one value of the first array with one of these names, None if there is none or it is empty.

    Raises InputError if it has several values, since none of them would be right for all galaxies.
    """
    by_name = dict(arrays)
    for name in names:
        if (array := by_name.get(name)) is None or not math.prod(array.shape):
            continue
        length = array.shape[0] if array.shape else 1
        rows = max(1, _PIECE_BYTES // max(1, math.prod(array.shape[1:]) * array.dtype.itemsize))
        try:
            pieces = [plain_value(array.read_next(min(rows, length - start))) for start in range(0, length, rows)]
        except READ_ERRORS as error:
            raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
        if isinstance(pieces[0], np.ndarray) or any(piece != pieces[0] for piece in pieces[1:]):
            raise InputError(
                f"{source}: {name} states several values; expected one for all galaxies, split the file by it or "
                "leave it out"
            )
        return pieces[0]
    return None
