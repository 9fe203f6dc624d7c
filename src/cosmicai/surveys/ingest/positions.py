"""How far two places on the sky are from each other."""

from __future__ import annotations

from math import asin, cos, degrees, radians, sin, sqrt

# arcsec; half of the 32 pixels that are kept: the galaxy would lie outside of them
LARGEST_SEPARATION = 16 * 0.396


def separation(ra: float, dec: float, other_ra: float, other_dec: float) -> float:
    """Return the angle in arcsec between two places in degrees (haversine formula); NaN if one is unknown."""
    north, other_north = radians(dec), radians(other_dec)
    half = sin((north - other_north) / 2) ** 2
    half += cos(north) * cos(other_north) * sin(radians(ra - other_ra) / 2) ** 2
    return degrees(2 * asin(sqrt(min(1.0, half)))) * 3600 if half == half else half
