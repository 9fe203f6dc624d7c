"""What every format gives the gate: the fields of a source, read once from front to back, and what it says of them."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..shard import HDF5_ERRORS
from ..units import NO_UNIT, FluxUnit
from .names import ALIASES, REQUIRED

# What numpy, and what any of the libraries raises at damaged files.
NUMPY_ERRORS = (ValueError, OverflowError, EOFError, SyntaxError, tokenize.TokenError)
READ_ERRORS = (*HDF5_ERRORS, *NUMPY_ERRORS, zipfile.BadZipFile, zlib.error)
# Arrays that lie beside an image and have its shape, but are not one.
_AUXILIARY = (
    "wht", "weight", "weights", "ivar", "invvar", "var", "variance", "err", "error", "sigma", "rms", "unc", "uncert",
    "mask", "dq", "flags", "badpix", "psf", "bkg", "background", "sky", "model", "resid", "residual", "exp", "nexp",
    "seg",
)  # fmt: skip


@dataclass(frozen=True)
class SourceArray:
    """One array of a source: shape, dtype, and a function that returns the next `count` rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read_next: Callable[[int], NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """A source: its fields by our names, and what it states about them.

    `fields` are image, magnitude and, where they are known, redshift, objid, ra and dec in degrees. `columns` are those
    that the user asked to keep, by their names, and `column_units` their units where the source states them;
    `position_units` are those of ra and dec where they were not yet checked. `bands` are those of the image as the
    file names them, in its order, and `magnitude_bands` those of the magnitudes where they are known by name; both are
    empty where nothing is stated. `pixel_scale` is in arcsec. `masks` are arrays
    beside the image that say which of its pixels are sound, by their names in the source, `others` are the names of
    what lies beside the fields, and `notices` are sentences that the user should read.
    """

    fields: dict[str, SourceArray]
    bands: tuple[str, ...] = ()
    magnitude_bands: tuple[str, ...] = ()
    flux_unit: FluxUnit = NO_UNIT
    magnitude_unit: str = ""
    pixel_scale: float | None = None
    masks: dict[str, SourceArray] = field(default_factory=dict)
    columns: dict[str, SourceArray] = field(default_factory=dict)
    column_units: dict[str, str] = field(default_factory=dict)
    position_units: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class IngestOptions:
    """How sources are read.

    `names` gives a source's own name of a field, where that is not one of `ALIASES`; `hdus` selects HDUs of FITS files
    by name or number. `mask` names the array whose bad pixels become NaN, with `=zero` or `=nonzero` behind it where it
    is to be said which values are bad. `magnitude_bands` is the order of the magnitudes where the file does not tell.
    `keep` names the columns that are carried into the survey, or is `("all",)`. With `image_only` everything but the
    image comes from a catalogue, and nothing else is looked for in the sources.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    hdus: tuple[str, ...] = ()
    mask: str | None = None
    magnitude_bands: str | None = None
    accept_pixel_scale: bool = False
    resample: bool = False
    allow_external: bool = False
    keep: tuple[str, ...] = ()
    image_only: bool = False

    @property
    def wanted(self) -> tuple[str, ...]:
        """The fields to look for in a source."""
        return ("image",) if self.image_only else tuple(ALIASES)

    @property
    def required(self) -> tuple[str, ...]:
        """The fields that a source must have."""
        return ("image",) if self.image_only else REQUIRED


def from_sliceable(array: Any) -> SourceArray:
    """Return a source array that reads consecutive slices of `array` (NumPy, HDF5, a FITS section, ...)."""
    return from_rows(tuple(array.shape), np.dtype(array.dtype), array)


def from_rows(shape: tuple[int, ...], dtype: np.dtype[Any], array: Any) -> SourceArray:
    """Return a source array of this shape and dtype that reads consecutive slices of `array`."""
    position = 0

    def read_next(count: int) -> NDArray[Any]:
        nonlocal position
        position += count
        return np.asanyarray(array[position - count : position])  # a masked array stays one

    return SourceArray(shape, dtype, read_next)


def stack_columns(columns: Sequence[SourceArray]) -> SourceArray:
    """Return the array (N, k) of k columns (N,): one itself, several in floating point with NaN for what is masked."""
    if len(columns) == 1:
        return columns[0]

    def read_next(count: int) -> NDArray[Any]:
        parts = [column.read_next(count) for column in columns]
        return np.stack([np.ma.filled(part.astype(np.float64), np.nan) for part in parts], axis=-1)

    return SourceArray((*columns[0].shape, len(columns)), np.dtype(np.float64), read_next)


def with_mask(values: SourceArray, mask: SourceArray) -> SourceArray:
    """Return an array of which the values are missing where another one, of the same shape, is true."""

    def read_next(count: int) -> NDArray[Any]:
        found = values.read_next(count)
        missing = np.ma.getmaskarray(found) | np.asarray(mask.read_next(count), np.bool_)
        return np.ma.MaskedArray(np.ma.getdata(found), missing)

    return replace(values, read_next=read_next)


def is_auxiliary(name: str) -> bool:
    """Return whether an array of this name lies beside an image: weights, masks, errors, PSFs."""
    words = name.lower().replace("-", "_").split("_")
    return any(word in _AUXILIARY for word in (name.lower(), *words))


def check_dtype(source: str, field_: str, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless a field of this dtype holds numbers; an objid may be text (`surveys.identity`)."""
    if field_ != "objid" and (dtype.hasobject or dtype.kind not in "fiu"):
        raise InputError(f"{source}: {field_} is of dtype {dtype}; expected numbers (pickled objects are never loaded)")
