"""FITS files: a cube of all cutouts with a table of magnitudes, or one file per galaxy with its values in the header.

What a file says is obeyed: bands, units, scaling, blank values, checksums, the pixel scale of its WCS. Astropy is
imported only when a FITS file is opened: it is optional and slow to import.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BANDS
from ..mask_arrays import fits_image, is_mask
from .fits_checksum import verify_checksums
from .fits_headers import stated_bands, stated_flux_unit, stated_pixel_scale
from .fits_tables import read_columns
from .names import ALIASES, Found, find_fields, require_fields
from .source import (
    READ_ERRORS,
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    from_sliceable,
    is_auxiliary,
)

_IMAGE_NAMES = ("image", "images", "sci", "science", "img", "cutout", "cutouts", "cube", "flux")
_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}  # by BITPIX


@contextmanager
def open_fits(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open a FITS file of either kind, and raise InputError if it is neither, damaged, or not clear.

    It holds a cube (N, 5, H, W) and a table of N rows with MAGNITUDE (5-vector) or MAG_U ... MAG_Z and, if known,
    REDSHIFT and OBJID; or one galaxy, a cube (5, H, W) with MAG_U ... MAG_Z, REDSHIFT, OBJID in its header.
    """
    from astropy.io import fits

    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "File may have been truncated")
                file = stack.enter_context(fits.open(source, memmap=False, do_not_scale_image_data=True))
                verify_checksums(source, file)
                found = _find_in_fits(source, file, options)
        except (*READ_ERRORS, UserWarning) as error:
            raise InputError(f"{source} is not a FITS file or is damaged ({error}); copy it again") from None
        yield found


def _find_in_fits(source: str, file: Any, options: IngestOptions) -> Source:
    for name in options.hdus:
        if not any(_is_called(file, hdu, name) for hdu in file):
            raise InputError(f"{source} has no HDU {name}; it has {_list_hdus(file, file)}")
    image = _select_image(source, file, options)
    headers = [image.header, *[file[0].header] * (image is not file[0])]
    single = len(image.shape) == 3
    table = None if single else _select_table(source, file, image.shape[0], options)
    if single:
        columns = {name.upper(): name for name in image.header if name}
        available = ["image", *(name for name in columns if _is_field_name(name))]
    else:
        columns = {} if table is None else {name.upper(): name for name in table.columns.names}
        available = ["image", *columns]
    found = _find_columns(source, available, options)
    wanted = {field: [columns[part] for part in parts] for field, parts in found.items()}
    if table is None:
        values = {name: np.array([_card(image.header, name)]) for parts in wanted.values() for name in parts}
    else:
        values = read_columns(source, table, dict.fromkeys(name for parts in wanted.values() for name in parts))
    fields, units = {"image": _image_array(image, single)}, set()
    for field, parts in wanted.items():
        arrays = [values[name] if field == "objid" else _floating(values[name]) for name in parts]
        array = np.stack(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
        check_dtype(source, field, array.dtype)
        fields[field] = from_sliceable(array)
        if table is not None and field == "magnitude":
            units |= {str(table.columns[name].unit or "") for name in parts}
    return Source(
        fields,
        bands=stated_bands(source, headers),
        magnitude_bands=tuple(BANDS) if len(found.get("magnitude", ())) > 1 else (),
        flux_unit=stated_flux_unit(headers),
        magnitude_unit=next((text for text in sorted(units, reverse=True) if text), ""),
        pixel_scale=stated_pixel_scale(source, headers),
        masks=_masks(file, image, single),
        others=tuple(name for name in columns if not any(name in parts for parts in found.values())),
        notices=_unused(source, file, table, found),
    )


def _find_columns(source: str, available: list[str], options: IngestOptions) -> Found:
    """Return the columns or cards of each field but the image: one, or one per band of the magnitudes."""
    names = {field: name for field, name in options.names.items() if field != "image"}
    found = find_fields(source, available, names, [field for field in options.wanted if field != "image"])
    require_fields(source, ["image", *found], available, options.required)
    return found


def _card(header: Any, name: str) -> Any:
    """Return the value of a header card, NaN if it has none."""
    from astropy.io import fits

    return np.nan if isinstance(header[name], fits.card.Undefined) else header[name]


def _floating(values: NDArray[Any]) -> NDArray[Any]:
    """Return integers with nulls as floating point with NaN; other values as they are."""
    if not isinstance(values, np.ma.MaskedArray) or values.dtype.kind == "b":  # which is no number: refused later
        return values
    return np.ma.filled(values.astype(np.float64), np.nan)


def _masks(file: Any, image: Any, single: bool) -> dict[str, SourceArray]:
    """Return the masks beside an image by their names, or by name and number where a name occurs twice."""
    masks = [hdu for hdu in file if _is_mask_of(hdu, image, single)]
    names = [hdu.name for hdu in masks]
    return {
        hdu.name if names.count(hdu.name) == 1 else f"{hdu.name}-{file.index_of(hdu)}": _image_array(hdu, single)
        for hdu in masks
    }


def _unused(source: str, file: Any, table: Any, found: Found) -> tuple[str, ...]:
    """Return a sentence about redshifts and ids in other tables than the one of the magnitudes."""
    unused = [
        f"{name} of {_list_hdus(file, [hdu])}"
        for hdu in file
        if table is not None and not hdu.is_image and hdu is not table
        for name in hdu.columns.names
        for field in ("redshift", "objid")
        if field not in found and name.lower() in ALIASES[field][0]
    ]
    text = f"{source}: {', '.join(unused)} is in another table than the magnitudes and not used; join the tables"
    return (text,) if unused else ()


def _is_field_name(name: str) -> bool:
    """Return whether a header card may be a field of ours, so that it is listed where one is missing."""
    return bool(re.match(r"(MAG|Z_|ZSPEC|SPECZ|REDSHIFT|OBJ|ID$)", name))


def _select_image(source: str, file: Any, options: IngestOptions) -> Any:
    """Return the HDU of the image: chosen by --hdu or --field image=, else by its name, else the only one there is."""
    cubes = [hdu for hdu in file if hdu.is_image and len(hdu.shape) in (3, 4)]
    chosen_names = [*options.hdus, *(name for field, name in options.names.items() if field == "image")]
    for name in chosen_names:
        if chosen := [hdu for hdu in file if _is_called(file, hdu, name) and hdu.is_image]:
            _require_one(source, file, name, chosen)
            if chosen[0] not in cubes:
                raise InputError(f"{source}: HDU {name} has the shape {chosen[0].shape}; expected a cube of cutouts")
            return chosen[0]
    if "image" in options.names:
        raise InputError(f"{source} has no HDU {options.names['image']}; it has {_list_hdus(file, file)}")
    stacks = [hdu for hdu in cubes if len(hdu.shape) == 4] or cubes
    if not stacks:
        raise InputError(f"{source} has no image; expected a cube (N, 5, H, W), or (5, H, W) for one galaxy")
    named = [hdu for hdu in stacks if hdu.name.lower() in _IMAGE_NAMES]
    candidates = named or [hdu for hdu in stacks if not is_auxiliary(hdu.name)]
    if len(candidates) != 1:
        raise InputError(
            f"{source} has several candidates for image: {_list_hdus(file, candidates or stacks)}; choose one with "
            "--hdu NAME or --hdu NUMBER"
        )
    return candidates[0]


def _select_table(source: str, file: Any, galaxies: int, options: IngestOptions) -> Any | None:
    """Return the table of the galaxies: chosen by --hdu, else the only one of their number that has magnitudes."""
    tables = [hdu for hdu in file if not hdu.is_image]
    for name in options.hdus:
        if chosen := [hdu for hdu in tables if _is_called(file, hdu, name)]:
            _require_one(source, file, name, chosen)
            return chosen[0]
    fitting = [hdu for hdu in tables if hdu.header["NAXIS2"] == galaxies] or tables
    with_magnitudes = [hdu for hdu in fitting if _has_magnitudes(source, hdu, options)]
    if len(with_magnitudes) > 1:
        raise InputError(
            f"{source} has several tables with magnitudes: {_list_hdus(file, with_magnitudes)}; choose one with "
            "--hdu NAME or --hdu NUMBER"
        )
    if not with_magnitudes and len(fitting) > 1:
        raise InputError(f"{source} has no table with magnitudes; it has {_list_hdus(file, fitting)}")
    return with_magnitudes[0] if with_magnitudes else (fitting[0] if fitting else None)


def _has_magnitudes(source: str, table: Any, options: IngestOptions) -> bool:
    names = [name.upper() for name in table.columns.names]
    given = {field: name for field, name in options.names.items() if field == "magnitude"}
    try:
        return "magnitude" in find_fields(source, names, given, ["magnitude"])
    except InputError:  # several candidates, said when the table is read; or the names that are given are elsewhere
        return not given


def _is_called(file: Any, hdu: Any, name: str) -> bool:
    return hdu.name.lower() == name.lower() or (name.isdecimal() and file.index_of(hdu) == int(name))


def _require_one(source: str, file: Any, name: str, chosen: list[Any]) -> None:
    if len(chosen) > 1:
        raise InputError(f"{source} has several HDUs {name}: {_list_hdus(file, chosen)}; choose one with --hdu NUMBER")


def _list_hdus(file: Any, hdus: Any) -> str:
    names = {id(hdu): f"{number} {hdu.name}".strip() for number, hdu in enumerate(file)}
    return ", ".join(names[id(hdu)] for hdu in hdus)


def _is_mask_of(hdu: Any, image: Any, single: bool) -> bool:
    if hdu is image or not hdu.is_image or not is_mask(hdu.name):
        return False
    galaxies = (1,) if single else ()
    return fits_image((*galaxies, *hdu.shape), (*galaxies, *image.shape))


class _ScaledRows:
    """The rows of an image HDU: physical values in floating point, NaN where the file says BLANK."""

    def __init__(self, hdu: Any, single: bool) -> None:
        header = hdu.header
        self._section, self._single = hdu.section, single
        self._scale, self._zero = float(header.get("BSCALE", 1)), float(header.get("BZERO", 0))
        self._blank = header.get("BLANK") if header["BITPIX"] > 0 else None
        self._scaled = self._blank is not None or (self._scale, self._zero) != (1, 0)
        self.shape = (1, *hdu.shape) if single else tuple(hdu.shape)
        self.dtype = np.dtype(np.float64) if self._scaled else np.dtype(_DTYPES[header["BITPIX"]])

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        raw = np.asarray(self._section[:][None][rows] if self._single else self._section[rows])
        if not self._scaled:
            return raw
        values = raw * self._scale + self._zero
        return np.asarray(values if self._blank is None else np.where(raw == self._blank, np.nan, values))


def _image_array(hdu: Any, single: bool) -> SourceArray:
    return from_sliceable(_ScaledRows(hdu, single))
