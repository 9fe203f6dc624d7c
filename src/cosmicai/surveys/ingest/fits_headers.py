"""What FITS headers state of an image: its bands, its unit, and the pixel scale of its WCS."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import hypot, sqrt
from typing import Any

from ...errors import InputError
from ..bands import BAND_NAMES, parse_bands
from ..hdf5 import to_number
from ..units import ZERO_POINT_NAMES, FluxUnit

_NUMBERED = re.compile(r"(BAND|FILTER|FILT|FILTNAM|BANDNAM|CHAN)_?(\d+)")
_PIXEL_SCALE_CARDS = ("PIXSCALE", "PIXELSCL", "PIXSCL", "PIXSCAL1", "SECPIX", "SECPIX1", "PIXSIZE")
_ARCSEC = {
    "deg": 3600.0, "degree": 3600.0, "degrees": 3600.0, "arcmin": 60.0, "arcsec": 1.0, "mas": 1e-3, "rad": 206264.80625,
}  # fmt: skip
_CELESTIAL = re.compile(r"(RA|DEC|[A-Z]LON|[A-Z]LAT|[A-Z]{2}LN|[A-Z]{2}LT)\b|(RA|DEC|[A-Z]LON|[A-Z]LAT)-")
_SQUARE = 0.05  # by how much the sides of a pixel may differ

Cards = Sequence[Mapping[str, Any]]  # headers by `fits_cards`, the first that states something counts


def stated_bands(source: str, headers: Cards) -> tuple[str, ...]:
    """Return the bands that the headers state, by BAND0, BAND1, ... or by BANDS, FILTER and the like.

    The first header that states any counts. Raises InputError for numbers of which the order is unclear.
    """
    for header in headers:
        numbered = [
            (match[1], int(match[2]), name) for name in header if name and (match := _NUMBERED.fullmatch(name.upper()))
        ]
        texts = [(stem, number, name) for stem, number, name in numbered if isinstance(header[name], str)]
        for stem in dict.fromkeys(stem for stem, _, _ in texts):
            names = [name for _, name in sorted((number, name) for other, number, name in texts if other == stem)]
            stated = tuple(parse_bands(header[name]) for name in names)
            if len(stated) > 1:
                return tuple(bands[0] if len(bands) == 1 else "_".join(bands) for bands in stated)
            return stated[0]
        for name in BAND_NAMES:
            value = header.get(name.upper()) if len(name) <= 8 else None
            if isinstance(value, str) and (found := parse_bands(value)):
                return found
    return ()


def stated_flux_unit(headers: Cards) -> FluxUnit:
    """Return the unit of pixels that the headers state."""
    text = next((str(header["BUNIT"]) for header in headers if header.get("BUNIT")), "")
    zero_points = (to_number(header.get(name.upper())) for header in headers for name in ZERO_POINT_NAMES)
    return FluxUnit(text, next((value for value in zero_points if value is not None), None))


def stated_pixel_scale(source: str, headers: Cards) -> float | None:
    """Return the side of a pixel in arcsec from CD, or PC and CDELT, else from a card; None if there is neither.

    Raises InputError if pixels are not square.
    """
    for header in headers:
        if (scale := _wcs_scale(source, header)) is not None:
            return scale
        for name in _PIXEL_SCALE_CARDS:
            if (scale := to_number(header.get(name))) is not None:
                return scale
    return None


def _wcs_scale(source: str, header: Mapping[str, Any]) -> float | None:
    axes = celestial_axes(header)
    arcsec = _ARCSEC.get(str(header.get(f"CUNIT{axes[0]}", "")).strip().lower() or "deg") if axes else None
    if axes is None or arcsec is None:
        return None
    matrix = wcs_matrix(header, axes)
    if matrix is None:
        return None
    (a, b), (c, d) = matrix
    determinant, first, second = abs(a * d - b * c), hypot(a, c), hypot(b, d)
    if not determinant:
        return max(first, second) * arcsec or None
    if abs(first / second - 1) > _SQUARE:
        raise InputError(
            f"{source}: pixels are of {first * arcsec:.3g} x {second * arcsec:.3g} arcsec; expected squares, resample "
            "the cutouts first"
        )
    return sqrt(determinant) * arcsec


def wcs_matrix(header: Mapping[str, Any], axes: tuple[int, int]) -> list[list[float]] | None:
    """Return what a step of one pixel along each of two axes is in the units of the WCS; None if it is not stated."""
    if any(f"CD{i}_{j}" in header for i in axes for j in axes):
        return [[float(header.get(f"CD{i}_{j}", 0)) for j in axes] for i in axes]
    if all(f"CDELT{i}" in header for i in axes):
        return [[float(header[f"CDELT{i}"]) * _pc(header, i, j) for j in axes] for i in axes]
    return None


def _pc(header: Mapping[str, Any], i: int, j: int) -> float:
    names = (f"PC{i}_{j}", f"PC{i:03d}{j:03d}")
    return next((float(header[name]) for name in names if name in header), float(i == j))


def celestial_axes(header: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the numbers of the two axes on the sky: by their types, else the first two if their unit is an angle."""
    types = {i: str(header.get(f"CTYPE{i}", "")).strip().upper() for i in range(1, 6)}
    found = [i for i, name in types.items() if _CELESTIAL.match(name)]
    if len(found) == 2:
        return found[0], found[1]
    stated = str(header.get("CUNIT1", "")).strip().lower()
    is_plain = abs(float(header.get("CD1_1", header.get("CDELT1", 0)) or 0)) == 1  # the pixels' own coordinates
    if stated in _ARCSEC or (not stated and "CTYPE1" not in header and not is_plain):
        return 1, 2
    return None
