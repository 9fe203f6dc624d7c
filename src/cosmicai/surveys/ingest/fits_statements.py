"""What five images of one galaxy, one for each band, state together: one unit or a factor for each, and one scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InputError
from ..bands import BANDS
from ..units import NO_UNIT, FluxUnit, nanomaggies_per_unit

_SCALE_TOLERANCE = 0.05


@dataclass(frozen=True)
class BandUnits:
    """The unit of all bands; `factors` make it of the pixels of each band, None if they are in it already."""

    unit: FluxUnit
    factors: tuple[float, ...] | None = None
    notices: tuple[str, ...] = ()


def combine_units(source: str, labels: Sequence[str], units: Sequence[FluxUnit], may_differ: bool) -> BandUnits:
    """Return the unit of five images, `labels` naming each: nanomaggies where they are in different ones.

    Zero points of counts may always differ from band to band, and units only if they `may_differ`. Raises InputError if
    a unit cannot be converted, or if only some of the images state one.
    """
    factors = [nanomaggies_per_unit(label, unit) for label, unit in zip(labels, units, strict=True)]
    known = [factor for factor in factors if factor is not None]
    if not known:
        return BandUnits(NO_UNIT)
    listed = ", ".join(f"{band} {unit.text or 'none'}" for band, unit in zip(BANDS, units, strict=True))
    if len(known) < len(factors):
        raise InputError(f"{source}: only some of the bands state a unit ({listed}); state it for all of them")
    if len(set(known)) == 1:
        return BandUnits(units[0])
    if not may_differ and len({unit.text.strip() for unit in units}) > 1:
        raise InputError(f"{source}: the bands are in different units ({listed}); convert them to one")
    shown = ", ".join(f"{band} {factor:g}" for band, factor in zip(BANDS, known, strict=True))
    return BandUnits(
        FluxUnit("nanomaggy"),
        tuple(known),
        (f"{source}: the bands are converted to nanomaggies each by its own factor ({shown})",),
    )


def combine_scales(source: str, scales: Sequence[float | None]) -> float | None:
    """Return the pixel scale in arcsec of five images; None if none states it. Raises InputError if they differ."""
    known = [scale for scale in scales if scale is not None]
    if not known:
        return None
    if min(known) > 0 and max(known) > min(known) * (1 + _SCALE_TOLERANCE):
        listed = ", ".join(
            f"{band} {scale:.3g}" for band, scale in zip(BANDS, scales, strict=True) if scale is not None
        )
        raise InputError(f"{source}: the bands have pixels of different sizes in arcsec ({listed}); expected one grid")
    return known[0]
