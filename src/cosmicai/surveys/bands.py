"""The order of the bands that a file states, and how to bring them into the order u, g, r, i, z."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

BANDS = "ugriz"
_SHOWN = 10  # bands that a message lists
# Names under which files state their bands, as attributes, header cards or datasets; letter case does not matter.
BAND_NAMES = (
    "bands", "band", "filters", "filter", "image_bands", "image_band", "band_names", "band_order", "bandpasses",
    "passbands", "wavebands", "filter_names", "image_filters", "channels", "channel_names",
)  # fmt: skip


def parse_bands(value: Any) -> tuple[str, ...]:
    """Return the names of bands that a header card, an attribute or an array states, as they are written there.

    `value` is one text ("ugriz", "u,g,r,i,z", "DES-G DES-R") or a sequence of texts, str or bytes. An array with a row
    per galaxy, of one text (N,) or one per band (N, bands), counts as its row, if all are the same. Empty if it states
    nothing, as numbers in ascending order do, or a number of bands.
    Raises ValueError if rows differ, or for numbers in another order, as of wavelengths from red to blue.
    """
    if isinstance(value, str | bytes):
        text = _text(value)
        names = [name for name in re.split(r"[\s,;:|/]+", text) if name]
        return tuple(names[0] if len(names) == 1 and re.fullmatch(r"[a-zA-Z]{2,}", names[0]) else names)
    array = np.asarray(value)
    if array.dtype.kind in "iuf" and array.ndim:
        if array.shape[-1] == len(BANDS) and not (np.diff(array.astype(np.float64), axis=-1) > 0).all():
            raise ValueError("bands as numbers that do not ascend, which may be any order")
        return ()
    if array.dtype.kind not in "SUO" or not array.size:
        return ()
    if array.ndim == 0:
        return parse_bands(array.item()) if isinstance(array.item(), str | bytes) else ()
    rows = set(map(tuple, array.reshape(-1, array.shape[-1]).tolist())) if array.ndim > 1 else {tuple(array.tolist())}
    orders = set().union(*map(_parse_row, rows))
    if len(orders) > 1:
        raise ValueError(f"{len(orders)} different orders of bands")
    return orders.pop()


def _parse_row(row: tuple[Any, ...]) -> set[tuple[str, ...]]:
    """Return the orders that a row of texts states: the row is one, or every text of it is."""
    orders = {parse_bands(text) for text in set(map(_text, row))}
    several = len(row) == 1 or all(len(order) >= len(BANDS) for order in orders)
    return orders if several else {tuple(map(_text, row))}


def _text(value: Any) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()


def band_letter(name: str) -> str:
    """Return the band that a name such as `g`, `SDSS-g`, `DES_G` or `decam.z` means, in lower case; else the name."""
    parts = re.split(r"[^A-Za-z0-9]+", name)
    letters = {part.lower() for part in parts if len(part) == 1 and part.isalpha()}
    return letters.pop() if len(letters) == 1 else name


def order_to_ugriz(where: str, stated: Iterable[str]) -> tuple[int, ...]:
    """Return the position of u, g, r, i and z among the stated bands.

    Raises InputError naming `where` and the bands that are missing, unknown or there twice.
    """
    names = tuple(stated)
    letters = [band_letter(name) for name in names]
    missing = [band for band in BANDS if band not in letters]
    other = [name for name, letter in zip(names, letters, strict=True) if letter not in BANDS]
    if missing or other or len(letters) != len(BANDS):
        details = [f"{', '.join(missing)} missing"] * bool(missing) + [f"{', '.join(other)} not usable"] * bool(other)
        shown = f"{' '.join(names[:_SHOWN])}{' ...' * (len(names) > _SHOWN)}"
        raise InputError(
            f"{where}: its bands are {shown} ({'; '.join(details) or 'one of them twice'}); expected the "
            "five SDSS bands u g r i z in any order, the only ones that the network knows"
        )
    return tuple(letters.index(band) for band in BANDS)


def agreement(image: NDArray[Any], magnitude: NDArray[Any]) -> float:
    """Return how far the totals of cutouts (N, 5, H, W) are from magnitudes (N, 5), in magnitudes, up to an offset.

    It is the median over galaxies of the largest deviation among the bands of -2.5 log10(total) - magnitude from its
    median over the bands: tenths where bands belong together. NaN if fewer than three galaxies can be compared.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        totals = image.sum(axis=(2, 3), dtype=np.float64)
        deviation = -2.5 * np.log10(totals) - magnitude
        deviation = deviation[np.isfinite(deviation).all(axis=1)]
    if len(deviation) < 3:
        return float("nan")
    deviation = deviation - np.median(deviation, axis=0).mean()
    return float(np.median(np.abs(deviation - np.median(deviation, axis=1)[:, None]).max(axis=1)))
