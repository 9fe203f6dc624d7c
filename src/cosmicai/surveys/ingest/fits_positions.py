"""Where a single galaxy is on the sky: by cards of its header, else the centre of its cutout by the WCS."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from math import asin, atan2, cos, degrees, hypot, isfinite, radians, sin
from typing import Any

from .fits_hdus import Hdu
from .fits_headers import celestial_axes, wcs_matrix

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SEXAGESIMAL = re.compile(r"([+-]?)(\d{1,3})[\s:hd°]+(\d{1,2})[\s:m'′]+(\d{1,2}(?:\.\d*)?)\s*[s\"″]?")
_DISTORTED = re.compile(r"PV\d+_\d+|[AB]P?_ORDER|D[PQ]\d+|CPDIS\d+|CQDIS\d+|CROTA\d+")
_J2000 = 2000.0
_FIRST_FK5 = 1984.0  # an equinox before is one of FK4, where RADESYS is absent (FITS standard 4.0, 8.3)

Position = tuple[float, float]  # right ascension and declination in degrees ICRS


def parse_angle(value: Any, is_ra: bool) -> float | None:
    """Return degrees of a card: a number is one of degrees, text may be sexagesimal, hours in right ascension.

    None if it is neither, or if no such angle exists.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        text = value.strip()
        if _NUMBER.fullmatch(text):
            angle = float(text)
        elif (match := _SEXAGESIMAL.fullmatch(text)) and float(match[3]) < 60 and float(match[4]) < 60:
            if is_ra and "d" in text.lower():
                return None  # degrees, minutes and seconds, which are unusual in right ascension
            angle = (int(match[2]) + int(match[3]) / 60 + float(match[4]) / 3600) * (15 if is_ra else 1)
            angle = -angle if match[1] == "-" else angle
        else:
            return None
    else:
        angle = float(value)
    low, high = (0, 360) if is_ra else (-90, 90)
    return angle if low <= angle <= high else None


def find_wcs_centre(image: Hdu) -> tuple[Position | None, float]:
    """Return the position of the centre of an image, the middle pixel of an odd side, and half its diagonal in degrees.

    The position is None if the header has no celestial WCS, or one that cannot be evaluated.
    """
    cards = image.cards
    axes = celestial_axes(cards)
    types = [str(cards.get(f"CTYPE{axis}", "")).strip().upper() for axis in axes] if axes else []
    matrix = wcs_matrix(cards, axes) if axes else None
    if axes is None or matrix is None or not all(len(name) >= 8 and "-" in name for name in types):
        return None, 0.0
    sides = [int(cards[f"NAXIS{axis}"]) for axis in axes]
    pixel = [(side + 1) / 2 for side in sides]
    radius = sum(hypot(*(row[i] for row in matrix)) * sides[i] for i in range(2)) / 2
    values = [cards.get(f"CRVAL{axis}", 0) for axis in axes]
    if not all(isinstance(value, int | float) and abs(value) <= 360 for value in values):
        return None, radius
    if _is_plain_tangent(cards, axes, types):
        return _tangent(cards, axes, types, matrix, pixel), radius
    return _by_astropy(image, pixel), radius


def to_icrs(cards: Mapping[str, Any], position: Position) -> Position | None:
    """Return an equatorial position of a header in ICRS; ICRS and FK5 of 2000 are taken as they are.

    They differ by less than 0.03 arcsec. None if the header names a frame that is neither of these nor FK4.
    """
    system = str(cards.get("RADESYS") or cards.get("RADECSYS") or "").strip().upper()
    stated = cards.get("EQUINOX")
    if stated is None and not system:
        stated = cards.get("EPOCH")  # the old name of EQUINOX, and today often the date of the observation
        if stated not in (None, 1950, 2000):
            return None
    try:
        equinox = None if stated is None else float(str(stated).strip().upper().lstrip("JB"))
    except ValueError:
        return None
    if not system:
        system = "ICRS" if equinox is None else "FK4" if equinox < _FIRST_FK5 else "FK5"
    if system == "ICRS" or (system == "FK5" and equinox in (None, _J2000)):
        return position
    if system not in ("FK4", "FK5"):
        return None
    from astropy.coordinates import FK4, FK5, SkyCoord

    frame = FK4(equinox=f"B{equinox or 1950}") if system == "FK4" else FK5(equinox=f"J{equinox}")
    there = SkyCoord(*position, unit="deg", frame=frame).icrs
    return float(there.ra.deg), float(there.dec.deg)


def separation(first: Position, second: Position) -> float:
    """Return the angle between two positions in degrees."""
    (a, b), (c, d) = ((radians(x), radians(y)) for x, y in (first, second))
    haversine = sin((d - b) / 2) ** 2 + cos(b) * cos(d) * sin((c - a) / 2) ** 2
    return degrees(2 * asin(min(1.0, haversine**0.5)))


def _is_plain_tangent(cards: Mapping[str, Any], axes: tuple[int, int], types: list[str]) -> bool:
    dec = cards.get(f"CRVAL{axes[types.index('DEC--TAN')]}") if "DEC--TAN" in types else None
    units = {str(cards.get(f"CUNIT{axis}") or "deg").strip().lower() for axis in axes}
    return (
        sorted(types) == ["DEC--TAN", "RA---TAN"]
        and units <= {"deg", "degree", "degrees"}
        and cards.get("LONPOLE", 180) == 180
        and dec != 90  # at the pole LONPOLE is 0 where it is absent
        and not any(_DISTORTED.fullmatch(name) for name in cards)
        and all(isinstance(cards.get(f"{name}{axis}"), int | float) for name in ("CRPIX", "CRVAL") for axis in axes)
    )


def _tangent(
    cards: Mapping[str, Any], axes: tuple[int, int], types: list[str], matrix: list[list[float]], pixel: list[float]
) -> Position | None:
    """Return the position of a pixel in the plain gnomonic projection, without the 10 ms of astropy's WCS."""
    offsets = [at - float(cards[f"CRPIX{axis}"]) for at, axis in zip(pixel, axes, strict=True)]
    plane = [radians(sum(a * b for a, b in zip(row, offsets, strict=True))) for row in matrix]
    values = [radians(float(cards[f"CRVAL{axis}"])) for axis in axes]
    first = 0 if types[0].startswith("RA") else 1
    x, y, ra, dec = plane[first], plane[1 - first], values[first], values[1 - first]
    down = cos(dec) - y * sin(dec)
    found = degrees(ra + atan2(x, down)) % 360, degrees(atan2(sin(dec) + y * cos(dec), hypot(x, down)))
    return to_icrs(cards, found) if all(map(isfinite, found)) else None


def _by_astropy(image: Hdu, pixel: list[float]) -> Position | None:
    """Return the position by astropy, of any projection, distortion and frame that it knows."""
    from astropy.io import fits
    from astropy.wcs import WCS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of cards that wcslib mends, for each of many files
            there = WCS(fits.Header.fromstring(image.text)).celestial.pixel_to_world(pixel[0] - 1, pixel[1] - 1).icrs
        found = float(there.ra.deg), float(there.dec.deg)
    except Exception:  # of any kind, by wcslib or astropy: a position that cannot be computed is not known
        return None
    return found if all(map(isfinite, found)) else None
