"""Units and scales of pixels and magnitudes as files state them, and what makes nanomaggies of the pixels.

A nanomaggy is the flux of magnitude 22.5; magnitude 0 is 3631 Jy (AB), so that a nanomaggy is 3.631e-6 Jy (SDSS,
"Flux units: maggies and nanomaggies"). The zero points of SDSS's u and z bands, which differ from AB by 0.04 and 0.02
magnitudes, are not corrected.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError

SDSS_PIXEL_SCALE = 0.396  # arcsec, of the cutouts that the network was trained on
_PIXEL_SCALE_TOLERANCE = 0.05
_NANOMAGGIES_PER_JANSKY = 1e6 / 3.631
_EXACT_CASE = {"Jy": 1.0, "mJy": 1e-3, "uJy": 1e-6, "nJy": 1e-9}  # MJy is no mJy
_JANSKY = {"jansky": 1.0, "millijansky": 1e-3, "microjansky": 1e-6, "nanojansky": 1e-9}
_MAGGIES = {
    **dict.fromkeys(("maggy", "maggies", "mgy"), 1e9),
    **dict.fromkeys(("nanomaggy", "nanomaggies", "nanomaggys", "nanomgy", "nmgy", "nmaggy", "nmaggies"), 1.0),
}
_COUNTS = {"count", "counts", "ct", "adu", "dn", "electron", "electrons", "e-", "e", "photon", "photons"}
_MAGNITUDES = {"abmag", "abmags", "asinh mag", "luptitude", "luptitudes"}  # and what begins with "mag"
_UNSTATED = {"", "none", "unknown", "1"}
# Header cards and attributes of the magnitude of one count; letter case does not matter.
ZERO_POINT_NAMES = (
    "magzero", "magzpt", "zeropoint", "photzp", "magzp", "magzerop", "zeropnt", "zero_point", "zpt", "zp",
)  # fmt: skip


@dataclass(frozen=True)
class FluxUnit:
    """What a file says of its pixels: the unit as written there, and the zero point of counts in magnitudes."""

    text: str
    zero_point: float | None = None


NO_UNIT = FluxUnit("")


def nanomaggies_per_unit(where: str, unit: FluxUnit) -> float | None:
    """Return by what pixels are multiplied to be nanomaggies: 1 if they are, None if the file states no unit.

    A zero point without a unit is that of counts; beside a unit of flux it says nothing more.

    Raises InputError naming `where` for units that cannot be converted exactly.
    """
    text = re.sub(r"\s*(/|\bper\b)\s*(pix|pixel|pixels)$|\s*(pix|pixel)\^?-1$", "", unit.text.strip(), flags=re.I)
    scale = 1.0
    if match := re.match(r"^(?:10\*\*|10\^|1e)([+-]?\d+)\s*\*?\s*(\S.*)$", text, flags=re.I):
        scale, text = 10.0 ** int(match[1]), match[2]
    lower = text.lower()
    if lower in _UNSTATED and scale == 1:
        return None if unit.zero_point is None else _nanomaggies_per_count(unit.zero_point)
    jansky = _EXACT_CASE.get(text.replace("μ", "u").replace("µ", "u"), _JANSKY.get(lower))
    if jansky is not None:
        return scale * jansky * _NANOMAGGIES_PER_JANSKY
    if lower in _MAGGIES:
        return scale * _MAGGIES[lower]
    if lower in _COUNTS and unit.zero_point is not None:
        return scale * _nanomaggies_per_count(unit.zero_point)
    names = ", ".join(name.upper() for name in ZERO_POINT_NAMES[:4])
    remedy = f"state the zero point of the counts (as {names}), or " if lower in _COUNTS else ""
    raise InputError(
        f"{where}: pixels are in {unit.text!r}; expected nanomaggies, maggies, Jy, mJy, uJy, nJy or counts with a zero "
        f"point; {remedy}convert the pixels to nanomaggies"
    )


def _nanomaggies_per_count(zero_point: float) -> float:
    return float(10 ** (0.4 * (22.5 - zero_point)))


def require_magnitudes(where: str, unit: str) -> None:
    """Raise InputError if a field that should hold magnitudes states another unit."""
    text = re.sub(r"\s+", " ", unit.strip()).lower()
    if text in _UNSTATED or text in _MAGNITUDES or text.startswith("mag"):
        return
    raise InputError(
        f"{where}: magnitudes are in {unit!r}; expected mag, as fluxes cannot be magnitudes exactly where they are "
        "negative; convert them as SDSS does (asinh magnitudes)"
    )


def require_degrees(where: str, unit: str) -> None:
    """Raise InputError if a coordinate states another unit than degrees."""
    if unit.strip().lower() not in ("", "deg", "degree", "degrees", "degrees_east", "degrees_north"):
        raise InputError(f"{where} is in {unit!r}; expected degrees, convert it")


def check_pixel_scale(where: str, pixel_scale: float | None, accept: bool, resample: bool) -> float | None:
    """Return the pixel scale in arcsec from which to resample, None to keep the pixels.

    Raises InputError if the scale is not that of SDSS and neither accepted nor to be resampled, or is unknown where it
    is to be resampled.
    """
    if pixel_scale is not None and not 1e-4 < pixel_scale < 1e4:
        raise InputError(f"{where}: it states pixels of {pixel_scale:g} arcsec; expected about {SDSS_PIXEL_SCALE}")
    if pixel_scale is None:
        if resample:
            raise InputError(f"{where}: its pixel scale is unknown, so that it cannot be resampled; add a WCS to it")
        return None
    if abs(pixel_scale / SDSS_PIXEL_SCALE - 1) <= _PIXEL_SCALE_TOLERANCE:
        return None
    if resample:
        return pixel_scale
    if accept:
        return None
    raise InputError(
        f"{where}: pixels are of {pixel_scale:.3f} arcsec, the network was trained on {SDSS_PIXEL_SCALE} arcsec; "
        "resample them with --resample, or use them as they are with --accept-pixel-scale"
    )
