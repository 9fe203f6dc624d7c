"""How galaxies of one source are read: decided from what it says before a row is read, then the same for every batch.

A source is read once, front to back, as many galaxies at a time as fit into BATCH_BYTES. Cutouts may have the bands
first (N, 5, H, W) or last (N, H, W, 5), any float or integer dtype, and H = W of 32 or more: the centre is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BANDS, agreement, order_to_ugriz, parse_bands
from ..columns import DEGREES, FOLDER, POSITION, ColumnSpec, check_name, inspect_column, read_pieces
from ..field_names import find_likely
from ..identity import convert_objids, no_objids, objids, widest
from ..quality import known_redshifts
from ..shard import Galaxies
from ..units import check_pixel_scale, nanomaggies_per_unit, require_degrees, require_magnitudes
from .masks import Mask, apply_mask, select_mask
from .names import OPTIONS
from .pixels import PixelConversion, bands_first, smallest_side, to_cutouts
from .source import READ_ERRORS, IngestOptions, Source, SourceArray

MAX_BATCH = 256  # galaxies in memory at once
BATCH_BYTES = 32 * 2**20
_COLUMN_BYTES = 4 * 2**20
_LONGEST_ID = 1024  # bytes
_LARGEST_GALAXY = 32 * 2**20  # bytes of one galaxy's image in a source


@dataclass(frozen=True)
class Reading:
    """How a source is read: decided and checked before anything is written.

    `columns` are those for the survey, by their paths there, and `notices` what the user should read about the source.
    """

    galaxies: int
    has_redshift: bool
    objid: np.dtype[Any] | None
    columns: dict[str, ColumnSpec]
    conversion: PixelConversion
    magnitude_order: tuple[int, ...]
    mask: Mask | None
    notices: tuple[str, ...]


def decide(
    source: str, opened: Source, options: IngestOptions, reopen: Callable[[], AbstractContextManager[Source]]
) -> Reading:
    """Check what a source holds and says, and return how it is read.

    Ids and columns are read, the rest is not; `reopen` opens the source again, for a look at its pixels. Raises
    InputError naming the field that cannot be used.
    """
    notices = list(opened.notices)
    order = order_to_ugriz(source, opened.bands) if opened.bands else tuple(range(len(BANDS)))
    fields = opened.fields
    shape = fields["image"].shape
    if len(shape) != 4 or len(BANDS) not in (shape[1], shape[-1]):
        raise InputError(
            f"{source}: image has the shape {shape}; expected (N, 5, H, W) or (N, H, W, 5), bands u g r i z"
        )
    scale = check_pixel_scale(source, opened.pixel_scale, options.accept_pixel_scale, options.resample)
    height, width = shape[2:] if shape[1] == len(BANDS) else shape[1:3]
    smallest = smallest_side(scale, height % 2 == 1)
    if height != width or height < smallest:
        needed = "" if scale is None else f", {math.ceil(smallest)} or more to be resampled"
        raise InputError(f"{source}: cutouts are of {height}x{width} pixels; expected squares of 32 or more{needed}")
    if height % 2:
        notices.append(
            f"{source}: cutouts are of {height}x{width} pixels, an odd size: the galaxy's pixel "
            f"({height // 2}, {width // 2}), counted from 0, lands on (16, 16)"
        )
    if math.prod(shape[1:]) * fields["image"].dtype.itemsize > _LARGEST_GALAXY:
        raise InputError(f"{source}: cutouts of {height}x{width} pixels are too large; cut out their centres first")
    for name, array in fields.items():
        expected = (shape[0], 5) if name == "magnitude" else (shape[0],)
        if name != "image" and array.shape != expected:
            raise InputError(
                f"{source}: {name} has the shape {array.shape}, image is of {shape[0]} galaxies; expected {expected}"
            )
    require_magnitudes(source, opened.magnitude_unit)
    factor = nanomaggies_per_unit(source, opened.flux_unit)
    if factor is not None and factor != 1:
        notices.append(
            f"{source}: pixels are converted from {opened.flux_unit.text or 'counts'} to nanomaggies (times {factor:g})"
        )
    if opened.bands and order != tuple(range(len(BANDS))):
        notices.append(f"{source}: bands are reordered from {' '.join(opened.bands)} to {' '.join(BANDS)}")
    if scale is not None:
        notices.append(f"{source}: pixels are resampled from {scale:.3f} to 0.396 arcsec, flux conserved")
    conversion = PixelConversion(order, 1.0 if factor is None else factor, scale)
    mask = select_mask(source, opened.masks, options.mask)
    if opened.masks and mask is None:
        notices.append(
            f"{source}: {', '.join(opened.masks)} beside the image is not used; blank the pixels it marks with "
            "--mask NAME"
        )
    if mask is not None:
        notices.append(f"{source}: pixels are blanked where {mask.describe()}")
    for field in ("redshift", "objid"):
        if not options.image_only and field not in fields and (likely := find_likely(field, opened.others)):
            notices.append(
                f"{source}: it has no {field} by a known name, and {', '.join(likely)} is not used; name it with "
                f"{OPTIONS[field]} NAME if it is one"
            )
    return Reading(
        shape[0], "redshift" in fields, _objid_dtype(source, opened), _columns(source, opened, notices), conversion,
        _magnitude_order(source, opened, order, conversion, options, reopen, notices), mask, tuple(notices),
    )  # fmt: skip


def _columns(source: str, opened: Source, notices: list[str]) -> dict[str, ColumnSpec]:
    """Return how positions and kept columns are stored."""
    found = {}
    if all(name in opened.fields for name in POSITION):
        for name in POSITION:
            require_degrees(f"{source}: {name}", opened.position_units.get(name, ""))
            found[name] = DEGREES
    elif any(name in opened.fields for name in POSITION):
        notices.append(f"{source}: it has only one of ra and dec, so that its galaxies have no positions")
    for name, array in opened.columns.items():
        check_name(name, source)
        if array.shape != opened.fields["image"].shape[:1]:
            raise InputError(
                f"{source}: {name} has the shape {array.shape}; expected one value for each of "
                f"{opened.fields['image'].shape[0]} galaxies, leave it out of --keep"
            )
        rows = max(1, _COLUMN_BYTES // max(1, array.dtype.itemsize))
        pieces = read_pieces(partial(_read, source, name, array), array.shape[0], rows)
        unit = opened.column_units.get(name, "")
        found[f"{FOLDER}{name}"] = inspect_column(pieces, array.dtype, unit, f"{source}: {name}")
    return found


def _objid_dtype(source: str, opened: Source) -> np.dtype[Any] | None:
    """Return the dtype for all ids of a source, since the longest text among them decides how they are written."""
    if "objid" not in opened.fields:
        return None
    array, dtypes = opened.fields["objid"], set()
    rows = max(1, _COLUMN_BYTES // (array.dtype.itemsize or 1)) if not array.dtype.hasobject else MAX_BATCH
    for start in range(0, array.shape[0], rows):
        values = _read(source, "objid", array, min(rows, array.shape[0] - start))
        dtypes.add(objids(values, f"{source}: objid").dtype)
    found = widest(dtypes)
    if found.itemsize > _LONGEST_ID:
        raise InputError(f"{source}: objid holds ids of {found.itemsize} bytes; expected at most {_LONGEST_ID}")
    return found


def _magnitude_order(
    source: str,
    opened: Source,
    order: tuple[int, ...],
    conversion: PixelConversion,
    options: IngestOptions,
    reopen: Callable[[], AbstractContextManager[Source]],
    notices: list[str],
) -> tuple[int, ...]:
    """Return the order of the bands among the magnitudes of a source.

    A file that states an order of bands other than u g r i z beside a vector of magnitudes may mean both or the image
    alone: the totals of the cutouts tell. Raises InputError if they do not.
    """
    plain = tuple(range(len(BANDS)))
    if "magnitude" not in opened.fields:  # they are in a catalogue
        return plain
    requested = None
    if options.magnitude_bands is not None:
        requested = order_to_ugriz("--magnitude-bands", parse_bands(options.magnitude_bands))
    if opened.magnitude_bands:
        stated = order_to_ugriz(f"{source}: magnitude", opened.magnitude_bands)
        if requested not in (None, stated):
            raise InputError(
                f"{source}: its magnitudes are in the order {' '.join(opened.magnitude_bands)}, which contradicts "
                "--magnitude-bands; leave the option out"
            )
        return stated
    if requested is not None:
        return requested
    if order == plain:
        return plain
    with reopen() as again:
        count = min(MAX_BATCH, again.fields["image"].shape[0], _batch_rows(again.fields["image"]))
        image = to_cutouts(bands_first(_read(source, "image", again.fields["image"], count)), conversion)
        magnitude = _read(source, "magnitude", again.fields["magnitude"], count).astype(np.float64)
    as_image, as_sdss = agreement(image, magnitude[:, list(order)]), agreement(image, magnitude)
    if not min(as_image, as_sdss) * 2 < max(as_image, as_sdss):
        raise InputError(
            f"{source}: it states the bands {' '.join(opened.bands)}, and whether its magnitudes are in this order or "
            "in u g r i z cannot be seen from the pixels; say it with --magnitude-bands"
        )
    shown = " ".join(opened.bands if as_image < as_sdss else BANDS)
    notices.append(f"{source}: the magnitudes are taken in the order {shown}, in which they agree with the pixels")
    return order if as_image < as_sdss else plain


def _batch_rows(image: SourceArray) -> int:
    row_bytes = max(1, math.prod(image.shape[1:]) * max(image.dtype.itemsize, 4))
    return max(1, min(MAX_BATCH, BATCH_BYTES // row_bytes))


def _read(source: str, name: str, array: SourceArray, count: int) -> NDArray[Any]:
    try:
        values = array.read_next(count)
    except READ_ERRORS as error:
        raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
    if len(values) != count:
        raise InputError(f"{source}: {name} ends early; write the file again")
    return values


def read_batches(
    source: str,
    opened: Source,
    reading: Reading,
    first_row: int,
    objid_dtype: np.dtype[Any] | None,
    columns: Mapping[str, ColumnSpec],
) -> Iterator[Galaxies]:
    """Read a source's galaxies in order; without any objids they are numbered from `first_row`.

    `objid_dtype` and `columns` say how ids and columns are stored in the survey: both may be wider than the source's.
    """
    fields, rows = opened.fields, _batch_rows(opened.fields["image"])
    for start in range(0, reading.galaxies, rows):
        count = min(rows, reading.galaxies - start)
        image = read_cutouts(source, opened, reading, count)
        magnitude = _read(source, "magnitude", fields["magnitude"], count).astype(np.float64, copy=False)
        redshift = (
            _read(source, "redshift", fields["redshift"], count) if "redshift" in fields else np.full(count, np.nan)
        )
        if objid_dtype is None:
            ids: NDArray[Any] = np.arange(first_row + start, first_row + start + count, dtype=np.int64)
        elif "objid" in fields:
            ids = convert_objids(
                objids(_read(source, "objid", fields["objid"], count), f"{source}: objid"), objid_dtype
            )
        else:
            ids = no_objids(count, objid_dtype)
        yield Galaxies(
            image,
            np.ma.filled(magnitude[:, list(reading.magnitude_order)], np.nan),
            known_redshifts(np.ma.filled(np.ma.masked_array(redshift).astype(np.float64), np.nan)),
            ids,
            columns=_read_columns(source, opened, reading, count, columns),
        )


def read_cutouts(source: str, opened: Source, reading: Reading, count: int) -> NDArray[np.float32]:
    """Return the next `count` cutouts (count, 5, 32, 32) of a source, NaN where the chosen mask marks bad pixels."""
    image = bands_first(_read(source, "image", opened.fields["image"], count))
    if reading.mask is not None:
        mask = _read(source, reading.mask.name, opened.masks[reading.mask.name], count)
        image = apply_mask(image, mask, reading.mask)
    return to_cutouts(image, reading.conversion)


def _read_columns(
    source: str, opened: Source, reading: Reading, count: int, columns: Mapping[str, ColumnSpec]
) -> dict[str, NDArray[Any]]:
    """Return the next `count` rows of positions and kept columns, missing where the source has none."""
    found = {}
    for path, spec in columns.items():
        if path not in reading.columns:
            found[path] = spec.missing(count)
            continue
        name = path.removeprefix(FOLDER)
        array = opened.fields[name] if path in POSITION else opened.columns[name]
        found[path] = spec.store(_read(source, name, array, count), f"{source}: {name}")
    if all(name in found for name in POSITION):
        found["ra"], found["dec"] = usable_position(found["ra"], found["dec"])
    return found


def usable_position(
    ra: NDArray[np.float64], dec: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions in degrees, right ascension from 0 to 360, NaN where they are none: sentinels such as -999."""
    usable = (ra >= -180) & (ra <= 360) & (np.abs(dec) <= 90)
    return np.where(usable, ra % 360, np.nan), np.where(usable, dec, np.nan)
