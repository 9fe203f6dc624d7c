"""The gate between files of other formats and a survey, where every batch of galaxies is checked and written.

Every source is read once, front to back, as many galaxies at a time as fit into BATCH_BYTES. Cutouts may have the bands
first (N, 5, H, W) or last (N, H, W, 5), any float or integer dtype, and H = W of 32 or more: the centre is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BANDS, agreement, order_to_ugriz, parse_bands
from ..identity import INT64, combine_sources, convert_objids, no_objids, objids, widest
from ..quality import known_redshifts
from ..shard import Galaxies
from ..survey import write_survey
from ..units import check_pixel_scale, nanomaggies_per_unit, require_magnitudes
from .fits_files import open_fits
from .hdf5_files import open_hdf5
from .masks import Mask, apply_mask, select_mask
from .numpy_files import open_npy, open_npz
from .pixels import PixelConversion, bands_first, smallest_side, to_cutouts
from .pt_files import open_partition
from .report import IngestReport, Tally
from .source import READ_ERRORS, IngestOptions, Source, SourceArray

MAX_BATCH = 256  # galaxies in memory at once
BATCH_BYTES = 32 * 2**20
_ID_BYTES = 4 * 2**20
_LONGEST_ID = 1024  # bytes
_LARGEST_GALAXY = 32 * 2**20  # bytes of one galaxy's image in a source
OPENERS: dict[str, Callable[[str, IngestOptions], AbstractContextManager[Source]]] = {
    ".npz": open_npz, ".npy": open_npy, ".h5": open_hdf5, ".hdf5": open_hdf5, ".pt": open_partition,
    ".fits": open_fits, ".fit": open_fits, ".fz": open_fits,
}  # fmt: skip


@dataclass(frozen=True)
class _Reading:
    """How a source is read: decided and checked before anything is written."""

    galaxies: int
    has_redshift: bool
    objid: np.dtype[Any] | None
    conversion: PixelConversion
    magnitude_order: tuple[int, ...]
    mask: Mask | None


def ingest_files(
    sources: Sequence[str], out: str, galaxies_per_shard: int, options: IngestOptions | None = None
) -> IngestReport:
    """Write the galaxies of all sources, in order, as a survey; whole or not at all.

    The survey has redshifts if any source has. An objid is the source's own; where some sources have none their
    galaxies have none, and where no source has, it is the galaxy's number in the survey.
    Raises InputError naming the file and the field if a source cannot be used.
    """
    options, tally = options or IngestOptions(), Tally()
    readings = []
    for source in sources:  # everything is checked before anything is written
        with _open_source(source, options) as opened:
            readings.append(_decide(source, opened, options, tally))
    pairs = zip(sources, readings, strict=True)
    dtypes = {source: reading.objid for source, reading in pairs if reading.objid is not None}
    objid_dtype = combine_sources(dtypes) if dtypes else None

    def batches() -> Iterator[Galaxies]:
        row = 0
        for source, reading in zip(sources, readings, strict=True):
            with _open_source(source, options) as opened:
                for batch in _read_batches(source, opened, reading, row, objid_dtype):
                    row += len(batch)
                    tally.add(batch)
                    yield batch

    has_redshift = any(reading.has_redshift for reading in readings)
    columns = ("image", "magnitude", *["redshift"] * has_redshift, "objid")
    galaxies = sum(reading.galaxies for reading in readings)
    survey = write_survey(out, batches(), galaxies, galaxies_per_shard, columns, objid_dtype or INT64)
    return tally.report(survey, has_redshift)


@contextmanager
def _open_source(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open a source of any format and check its fields. Raises InputError if it cannot be used."""
    path = Path(source)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else suffixes[-1] if suffixes else ""
    if kind not in OPENERS or (suffixes[-1] == ".gz" and OPENERS[kind] is not open_fits):
        raise InputError(f"{source} is of an unknown kind; expected a file ending in {', '.join(OPENERS)}, .fits.gz")
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise InputError(f"{source} {problem}; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{source} is empty; expected galaxies, copy it again")
    with OPENERS[kind](source, options) as opened:
        yield opened


def _decide(source: str, opened: Source, options: IngestOptions, tally: Tally) -> _Reading:
    """Check what a source holds and says, and return how it is read."""
    tally.notices += opened.notices
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
        tally.notices.append(
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
        tally.notices.append(
            f"{source}: pixels are converted from {opened.flux_unit.text or 'counts'} to nanomaggies (times {factor:g})"
        )
    if opened.bands and order != tuple(range(len(BANDS))):
        tally.notices.append(f"{source}: bands are reordered from {' '.join(opened.bands)} to {' '.join(BANDS)}")
    if scale is not None:
        tally.notices.append(f"{source}: pixels are resampled from {scale:.3f} to 0.396 arcsec, flux conserved")
    conversion = PixelConversion(order, 1.0 if factor is None else factor, scale)
    mask = select_mask(source, opened.masks, options.mask)
    if opened.masks and mask is None:
        tally.notices.append(
            f"{source}: {', '.join(opened.masks)} beside the image is not used; blank the pixels it marks with "
            "--mask NAME"
        )
    if mask is not None:
        tally.notices.append(f"{source}: pixels are blanked where {mask.describe()}")
    return _Reading(
        shape[0], "redshift" in fields, _objid_dtype(source, opened), conversion,
        _magnitude_order(source, opened, order, conversion, options, tally), mask,
    )  # fmt: skip


def _objid_dtype(source: str, opened: Source) -> np.dtype[Any] | None:
    """Return the dtype for all ids of a source, since the longest text among them decides how they are written."""
    if "objid" not in opened.fields:
        return None
    array, dtypes = opened.fields["objid"], set()
    rows = max(1, _ID_BYTES // (array.dtype.itemsize or 1)) if not array.dtype.hasobject else MAX_BATCH
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
    tally: Tally,
) -> tuple[int, ...]:
    """Return the order of the bands among the magnitudes of a source.

    A file that states an order of bands other than u g r i z beside a vector of magnitudes may mean both or the image
    alone: the totals of the cutouts tell. Raises InputError if they do not.
    """
    plain = tuple(range(len(BANDS)))
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
    with _reopened(source, options) as again:
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
    tally.notices.append(
        f"{source}: the magnitudes are taken in the order {shown}, in which they agree with the pixels"
    )
    return order if as_image < as_sdss else plain


@contextmanager
def _reopened(source: str, options: IngestOptions) -> Iterator[Source]:
    with _open_source(source, options) as opened:
        yield opened


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


def _read_batches(
    source: str, opened: Source, reading: _Reading, first_row: int, objid_dtype: np.dtype[Any] | None
) -> Iterator[Galaxies]:
    """Read a source's galaxies in order; without any objids they are numbered from `first_row`."""
    fields, rows = opened.fields, _batch_rows(opened.fields["image"])
    mask = opened.masks[reading.mask.name] if reading.mask is not None else None
    for start in range(0, reading.galaxies, rows):
        count = min(rows, reading.galaxies - start)
        image = bands_first(_read(source, "image", fields["image"], count))
        if mask is not None and reading.mask is not None:
            image = apply_mask(image, bands_first(_read(source, reading.mask.name, mask, count)), reading.mask)
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
            to_cutouts(image, reading.conversion),
            np.ma.filled(magnitude[:, list(reading.magnitude_order)], np.nan),
            known_redshifts(np.ma.filled(np.ma.masked_array(redshift).astype(np.float64), np.nan)),
            ids,
        )
