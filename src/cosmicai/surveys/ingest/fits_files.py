"""FITS files: a cube of all cutouts with a table of magnitudes, or one file per galaxy with its values in the header.

What a file says is obeyed: bands, units, scaling, blank values, checksums, the pixel scale of its WCS. Astropy is
imported only when a FITS file is opened: it is optional and slow to import.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import hypot, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BAND_NAMES, BANDS, parse_bands
from ..units import ZERO_POINT_NAMES, FluxUnit
from .fits_checksum import verify_checksums
from .source import (
    READ_ERRORS,
    IngestOptions,
    Source,
    SourceArray,
    check_dtype,
    find_fields,
    from_sliceable,
    is_auxiliary,
    is_mask,
    require_fields,
)

_IMAGE_NAMES = ("image", "images", "sci", "science", "img", "cutout", "cutouts", "cube", "flux")
_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}  # by BITPIX
_BAND_COLUMNS = [f"MAG_{band.upper()}" for band in BANDS]


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
        except PermissionError:
            raise InputError(f"{source} cannot be read: permission denied; change its permissions") from None
        except (*READ_ERRORS, UserWarning) as error:
            raise InputError(f"{source} is not a FITS file or is damaged ({error}); copy it again") from None
        yield found


def _find_in_fits(source: str, file: Any, options: IngestOptions) -> Source:
    image = _select_image(source, file, options)
    headers = [image.header, file[0].header]
    single = len(image.shape) == 3
    if single:
        bands, unit, galaxies = _stated_bands(source, headers), _flux_unit(headers), 1
        columns = {name.upper(): value for name, value in image.header.items() if name}
        table, available = None, ["image", *(name for name in columns if _is_field_name(name))]
    else:
        bands, unit, galaxies = _stated_bands(source, headers), _flux_unit(headers), image.shape[0]
        table = _select_table(source, file, galaxies, options)
        columns = {} if table is None else {name.upper(): name for name in table.columns.names}
        available = ["image", *columns]
    has_columns = all(name in columns for name in _BAND_COLUMNS)
    names = {name: given for name, given in options.names.items() if name != "image"}
    found = find_fields(source, [*available, *["MAGNITUDE"] * (has_columns and "MAGNITUDE" not in columns)], names)
    require_fields(source, found, available)
    fields, units = {"image": _image_array(image, single)}, set()
    for field, name in found.items():
        if field == "image":
            continue
        parts = _BAND_COLUMNS if field == "magnitude" and has_columns and "magnitude" not in names else [name]
        if table is None:
            values = np.array([columns[part] for part in parts])[None]
        else:
            values = np.stack([_column(table, columns[part]) for part in parts], axis=-1)
            units |= {str(table.columns[columns[part]].unit or "") for part in parts if field == "magnitude"}
        values = values if len(parts) > 1 else values[..., 0]
        check_dtype(source, field, values.dtype)
        fields[field] = from_sliceable(values)
    return Source(
        fields,
        bands=bands,
        magnitude_bands=tuple(BANDS) if has_columns and "magnitude" not in names else (),
        flux_unit=unit,
        magnitude_unit=next((text for text in sorted(units, reverse=True) if text), ""),
        pixel_scale=_pixel_scale(image.header),
        masks={hdu.name: _image_array(hdu, single) for hdu in file if _is_mask_of(hdu, image)},
    )


def _is_field_name(name: str) -> bool:
    """Return whether a header card may be a field of ours, so that it is listed where one is missing."""
    return bool(re.match(r"(MAG|Z_|ZSPEC|SPECZ|REDSHIFT|OBJ|ID$)", name))


def _select_image(source: str, file: Any, options: IngestOptions) -> Any:
    """Return the HDU of the image: chosen by --hdu or --field image=, else by its name, else the only one there is."""
    cubes = [hdu for hdu in file if hdu.is_image and len(hdu.shape) in (3, 4)]
    chosen_names = [*options.hdus, *(name for field, name in options.names.items() if field == "image")]
    for name in chosen_names:
        if chosen := [hdu for hdu in file if _is_called(file, hdu, name) and hdu.is_image]:
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
            return chosen[0]
    if unknown := [name for name in options.hdus if not any(_is_called(file, hdu, name) for hdu in file)]:
        raise InputError(f"{source} has no HDU {unknown[0]}; it has {_list_hdus(file, file)}")
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
    if options.names.get("magnitude", "").upper() in names:
        return True
    try:
        return "magnitude" in find_fields(source, names, {}) or all(name in names for name in _BAND_COLUMNS)
    except InputError:  # several candidates: said when the table is read
        return True


def _is_called(file: Any, hdu: Any, name: str) -> bool:
    return hdu.name.lower() == name.lower() or (name.isdecimal() and file.index_of(hdu) == int(name))


def _list_hdus(file: Any, hdus: Any) -> str:
    names = {id(hdu): f"{number} {hdu.name}".strip() for number, hdu in enumerate(file)}
    return ", ".join(names[id(hdu)] for hdu in hdus)


def _is_mask_of(hdu: Any, image: Any) -> bool:
    return hdu is not image and hdu.is_image and hdu.shape == image.shape and is_mask(hdu.name)


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


def _column(table: Any, name: str) -> NDArray[Any]:
    """Return a column's values, masked where its stored integers are TNULL, which astropy compares after scaling."""
    column = table.columns[name]
    values = np.asarray(table.data[name])
    if column.null in (None, "") or not re.fullmatch(r"\d*[BIJK]", str(column.format)):
        return values
    raw = table.data.view(np.ndarray)[name]
    missing = raw == int(column.null)
    if values.dtype.kind == "f":
        return np.where(missing, np.nan, values)
    return np.ma.MaskedArray(values, missing)


def _stated_bands(source: str, headers: list[Any]) -> tuple[str, ...]:
    """Return the bands that the headers state, by BAND0, BAND1, ... or by BANDS, FILTERS and the like."""
    for header in headers:
        numbered = sorted((int(match[1]), name) for name in header if (match := re.fullmatch(r"BAND(\d+)", name)))
        if numbered:
            return tuple(str(header[name]).strip() for _, name in numbered)
        for name in BAND_NAMES:
            if len(name) <= 8 and name.upper() in header and (stated := parse_bands(str(header[name.upper()]))):
                return stated
    return ()


def _flux_unit(headers: list[Any]) -> FluxUnit:
    text = next((str(header["BUNIT"]) for header in headers if header.get("BUNIT")), "")
    zero_points = (header.get(name.upper()) for header in headers for name in ZERO_POINT_NAMES)
    zero_point = next((float(value) for value in zero_points if isinstance(value, int | float)), None)
    return FluxUnit(text, zero_point)


def _pixel_scale(header: Any) -> float | None:
    """Return the side of a pixel in arcsec from CD, or PC and CDELT, None if there is no WCS in degrees or arcsec."""
    units = {"deg": 3600.0, "degree": 3600.0, "degrees": 3600.0, "arcsec": 1.0, "": 3600.0}
    arcsec = units.get(str(header.get("CUNIT1", "")).strip().lower())
    if arcsec is None:
        return None
    if any(f"CD{i}_{j}" in header for i in (1, 2) for j in (1, 2)):
        (a, b), (c, d) = ([float(header.get(f"CD{i}_{j}", 0)) for j in (1, 2)] for i in (1, 2))
        determinant = abs(a * d - b * c)
        return sqrt(determinant) * arcsec if determinant else hypot(a, c) * arcsec or None
    if (
        "CDELT1" not in header
        or "CDELT2" not in header
        or not str(header.get("CTYPE1", "RA")).startswith(("RA", "DEC", "GLON"))
    ):
        return None
    pc = [[float(header.get(f"PC{i}_{j}", float(i == j))) for j in (1, 2)] for i in (1, 2)]
    determinant = abs(pc[0][0] * pc[1][1] - pc[0][1] * pc[1][0])
    return sqrt(abs(float(header["CDELT1"]) * float(header["CDELT2"])) * determinant) * arcsec or None
