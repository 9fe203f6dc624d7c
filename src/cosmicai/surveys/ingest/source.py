"""What every format gives the gate: the fields of a source, read once from front to back, and what it says of them."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..field_names import has_band_columns
from ..shard import HDF5_ERRORS
from ..units import NO_UNIT, FluxUnit

# What numpy, and what any of the libraries raises at damaged files.
NUMPY_ERRORS = (ValueError, OverflowError, EOFError, SyntaxError, tokenize.TokenError)
READ_ERRORS = (*HDF5_ERRORS, *NUMPY_ERRORS, zipfile.BadZipFile, zlib.error)
# Names of the fields in other surveys; letter case does not matter. A name of the second group counts only where there
# is none of the first: `z` and `id` may mean anything.
ALIASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "image": (("image", "images", "img", "cutout", "cutouts", "cube"), ("image_array", "flux")),
    "magnitude": (("magnitude", "magnitudes", "mag", "mags"), ()),
    "redshift": (("redshift", "redshifts", "redshift_spec", "z_spec", "zspec", "specz"), ("z",)),
    "objid": (("objid", "object_id"), ("id",)),
}
REQUIRED = ("image", "magnitude")
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

    `bands` are those of the image as the file names them, in its order, and `magnitude_bands` those of the magnitudes
    where they are known by name; both are empty where nothing is stated. `pixel_scale` is in arcsec. `masks` are arrays
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
    others: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class IngestOptions:
    """How sources are read.

    `names` gives a source's own name of a field, where that is not one of `ALIASES`; `hdus` selects HDUs of FITS files
    by name or number. `mask` names the array whose bad pixels become NaN, with `=zero` or `=nonzero` behind it where it
    is to be said which values are bad. `magnitude_bands` is the order of the magnitudes where the file does not tell.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    hdus: tuple[str, ...] = ()
    mask: str | None = None
    magnitude_bands: str | None = None
    accept_pixel_scale: bool = False
    resample: bool = False
    allow_external: bool = False


def from_sliceable(array: Any) -> SourceArray:
    """Return a source array that reads consecutive slices of `array` (NumPy, HDF5, a FITS section, ...)."""
    position = 0

    def read_next(count: int) -> NDArray[Any]:
        nonlocal position
        position += count
        return np.asanyarray(array[position - count : position])  # a masked array stays one

    return SourceArray(tuple(array.shape), np.dtype(array.dtype), read_next)


def find_fields(
    source: str, available: Iterable[str], names: Mapping[str, str], fields: Iterable[str] = tuple(ALIASES)
) -> dict[str, str]:
    """Return the source's name of each of these `fields` of ours, by the given `names` or else by `ALIASES`.

    Raises InputError if a field in `names` is not among the `available` ones, or if several names fit one field. An
    image or magnitude that is not found is left to `require_fields`.
    """
    available = list(available)
    found = {}
    for field_ in fields:
        aliases, weak = ALIASES[field_]
        if field_ in names:
            exact = [name for name in available if name == names[field_]]
            fitting = exact or [name for name in available if name.lower() == names[field_].lower()]
            if not fitting:
                raise missing_field(source, names[field_], available, field_)
        else:
            fitting = [name for name in available if name.lower() in aliases]
            if not fitting and not (field_ == "redshift" and has_band_columns(available)):
                fitting = [name for name in available if name.lower() in weak]
        if len(fitting) > 1:
            raise ambiguous(source, field_, fitting)
        if fitting:
            found[field_] = fitting[0]
    return found


def require_fields(source: str, found: Iterable[str], available: Iterable[str]) -> None:
    """Raise InputError unless image and magnitude are among the fields that were found."""
    found = set(found)
    for name in REQUIRED:
        if name not in found:
            raise missing_field(source, name, list(available), name)


def missing_field(source: str, name: str, available: list[str], field_: str) -> InputError:
    """Return the error for a field that is not among the names that a source has."""
    shape = (
        ", an array (N, 5) in the order u g r i z, or in FITS five columns as U,G,R,I,Z"
        if field_ == "magnitude"
        else ""
    )
    return InputError(
        f"{source} has no {name}, it holds {', '.join(available) or 'nothing'}; "
        f"name the field with --field {field_}=NAME{shape}"
    )


def ambiguous(source: str, field_: str, candidates: Iterable[str]) -> InputError:
    """Return the error for several arrays that could be one field."""
    return InputError(
        f"{source} has several candidates for {field_}: {', '.join(candidates)}; name the right one with "
        f"--field {field_}=NAME"
    )


def is_auxiliary(name: str) -> bool:
    """Return whether an array of this name lies beside an image: weights, masks, errors, PSFs."""
    words = name.lower().replace("-", "_").split("_")
    return any(word in _AUXILIARY for word in (name.lower(), *words))


def check_dtype(source: str, field_: str, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless a field of this dtype holds numbers; an objid may be text (`surveys.identity`)."""
    if field_ != "objid" and (dtype.hasobject or dtype.kind not in "fiu"):
        raise InputError(f"{source}: {field_} is of dtype {dtype}; expected numbers (pickled objects are never loaded)")
