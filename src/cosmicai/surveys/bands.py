"""The order of the bands that a file states, and how to bring them into the order u, g, r, i, z."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

BANDS = "ugriz"
# Names under which files state their bands, as attributes, header cards or datasets; letter case does not matter.
BAND_NAMES = ("bands", "band", "filters", "filter", "image_bands", "image_band", "band_names")


def parse_bands(value: Any) -> tuple[str, ...]:
    """Return the names of bands that a header card, an attribute or an array states, as they are written there.

    `value` is one text ("ugriz", "u,g,r,i,z", "DES-G DES-R") or a sequence of texts, str or bytes. An array (N, bands)
    with a row per galaxy counts as its row, if all are the same. Empty if it states nothing.
    Raises ValueError if rows differ.
    """
    if isinstance(value, str | bytes):
        text = _text(value)
        names = [name for name in re.split(r"[\s,;:|/]+", text) if name]
        return tuple(names[0] if len(names) == 1 and re.fullmatch(r"[a-zA-Z]{2,}", names[0]) else names)
    array = np.asarray(value)
    if array.ndim == 0:
        return parse_bands(array.item()) if array.dtype.kind in "SUO" else ()
    if array.dtype.kind not in "SUO":
        return ()
    if array.ndim == 2:
        rows = {tuple(map(_text, row)) for row in array.tolist()}
        if len(rows) != 1:
            raise ValueError(f"{len(rows)} different orders of bands in one file")
        return rows.pop()
    texts = tuple(map(_text, array.ravel().tolist()))
    return parse_bands(texts[0]) if len(texts) == 1 else texts


def _text(value: Any) -> str:
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()


def band_letter(name: str) -> str:
    """Return the band that a name such as `g`, `SDSS-g`, `DES_G` or `decam.z` means, in lower case; else the name."""
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", name) if part]
    letters = {part.lower() for part in parts if len(part) == 1}
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
        raise InputError(
            f"{where}: its bands are {' '.join(names)} ({'; '.join(details) or 'one of them twice'}); expected the "
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
