"""The same galaxies as FITS files of every shape, and what the openers make of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from cosmicai.surveys.ingest.fits_band_files import open_band_files
from cosmicai.surveys.ingest.fits_files import open_fits
from cosmicai.surveys.ingest.source import IngestOptions, Source
from support.gate import GOOD, ROWS

BANDS = "ugriz"
DEGREES = 0.396 / 3600
WCS = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 16.5, "CRPIX2": 16.5, "CRVAL1": 150.1, "CRVAL2": 2.2,
    "CD1_1": -DEGREES, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": DEGREES,
}  # fmt: skip
CARDS = {f"MAG_{band.upper()}": GOOD.magnitude[3, number] for number, band in enumerate(BANDS)} | {
    "REDSHIFT": GOOD.redshift[3], "OBJID": int(GOOD.objid[3]), "BUNIT": "nanomaggy",
}  # fmt: skip
NUMBERS = {"f8": "D", "f4": "E", "i8": "K", "i4": "J", "i2": "I", "u1": "B"}


def header(cards: dict[str, Any]) -> fits.Header:
    """Return a header of values, or of values with comments."""
    return fits.Header([(name, *value) if isinstance(value, tuple) else (name, value) for name, value in cards.items()])


def read(opened: AbstractContextManager[Source]) -> tuple[dict[str, np.ndarray], Source]:
    """Return all fields, kept columns and masks of a source as arrays, and the source."""
    with opened as source:
        arrays = {**source.fields, **source.columns, **source.masks}
        return {name: array.read_next(array.shape[0]) for name, array in arrays.items()}, source


def open_one(path: Path, **options: Any) -> tuple[dict[str, np.ndarray], Source]:
    return read(open_fits(str(path), IngestOptions(**options)))


def open_five(paths: list[Path], **options: Any) -> tuple[dict[str, np.ndarray], Source]:
    return read(open_band_files([str(path) for path in paths], IngestOptions(**options)))


def write_planes(
    path: Path, order: str = "ugriz", name: str = "{band}", by_card: bool = False, compressed: bool = False, **more: Any
) -> Path:
    """Write galaxy 3 as one extension per band; `more` are changed images by band."""
    kind = fits.CompImageHDU if compressed else fits.ImageHDU
    extra = {"compression_type": "GZIP_2", "quantize_level": 0} if compressed else {}
    hdus = [fits.PrimaryHDU(header=header(CARDS))]
    for band in order:
        cards = {"BUNIT": "nanomaggy", **({"FILTER": f"SDSS {band}"} if by_card else {}), **WCS}
        image = more.get(band, GOOD.image[3, BANDS.index(band)])
        hdus.append(kind(image, header(cards), name="" if by_card else name.format(band=band), **extra))
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def write_cube(path: Path, **cards: Any) -> Path:
    fits.PrimaryHDU(GOOD.image[3], header(CARDS | WCS | cards)).writeto(path, overwrite=True)
    return path


def write_band_files(
    folder: Path, pattern: str = "3_{band}.fits", rows: Any = 3, cards: Callable[[str], dict[str, Any]] | None = None
) -> list[Path]:
    """Write one file per band of one galaxy or, with a slice of rows, of several with a table in the first."""
    paths = []
    for number, band in enumerate(BANDS):
        own = {"FILTER": band, **(CARDS | WCS if rows == 3 else {"BUNIT": "nanomaggy"})}
        own |= cards(band) if cards else {}
        hdus: list[Any] = [fits.PrimaryHDU(GOOD.image[rows, number], header(own))]
        if rows != 3 and band == "u":
            hdus.append(image_table(rows, {}))
        paths.append(folder / pattern.format(band=band))
        fits.HDUList(hdus).writeto(paths[-1], overwrite=True)
    return paths


def image_table(rows: slice, images: dict[str, np.ndarray], dims: dict[str, str] | None = None) -> fits.BinTableHDU:
    """Return a table of the galaxies' values and of flattened images by column, with TDIM where it is given."""
    values = {"id": GOOD.objid[rows], "mag": GOOD.magnitude[rows], "z_spec": GOOD.redshift[rows]}
    values |= {name: image.reshape(len(image), -1) for name, image in images.items()}
    values |= {"ra": np.arange(ROWS)[rows] * 1.5, "dec": np.arange(ROWS)[rows] - 5.25}
    return fits.BinTableHDU.from_columns(
        [
            fits.Column(
                name,
                f"{value.shape[1] if value.ndim > 1 else ''}{NUMBERS[value.dtype.str[1:]]}",
                array=value,
                dim=(dims or {}).get(name),
            )
            for name, value in values.items()
        ]
    )
