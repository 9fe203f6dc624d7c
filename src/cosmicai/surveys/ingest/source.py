"""What every format gives the gate: the fields of a source, as arrays that are read once from front to back."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..shard import HDF5_ERRORS

# What numpy, and what any of the libraries raises at damaged files.
NUMPY_ERRORS = (ValueError, OverflowError, EOFError, SyntaxError, tokenize.TokenError)
READ_ERRORS = (*HDF5_ERRORS, *NUMPY_ERRORS, zipfile.BadZipFile, zlib.error)
# Names of the fields in other surveys, in order of preference; letter case does not matter.
ALIASES = {
    "image": ("image", "images", "img", "cutout", "cutouts", "cube"),
    "magnitude": ("magnitude", "magnitudes", "mag", "mags"),
    "redshift": ("redshift", "redshifts", "redshift_spec", "z_spec", "specz", "z"),
    "objid": ("objid", "object_id", "id"),
}


@dataclass(frozen=True)
class SourceArray:
    """One array of a source: shape, dtype, and a function that returns the next `count` rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read_next: Callable[[int], NDArray[Any]]


SourceFields = dict[str, SourceArray]  # by our name of the field


def from_sliceable(array: Any) -> SourceArray:
    """Return a source array that reads consecutive slices of `array` (NumPy, HDF5, a FITS section, ...)."""
    position = 0

    def read_next(count: int) -> NDArray[Any]:
        nonlocal position
        position += count
        return np.asarray(array[position - count : position])

    return SourceArray(tuple(array.shape), np.dtype(array.dtype), read_next)


def find_fields(source: str, available: list[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the source's name of each of our fields, by the given `names` or else by `ALIASES`.

    Raises InputError if image, magnitude or a field in `names` is not among the `available` ones.
    """
    by_lower_case = {name.lower(): name for name in reversed(available)}
    found = {}
    for field, aliases in ALIASES.items():
        candidates = (names[field],) if field in names else aliases
        match = next((by_lower_case[name.lower()] for name in candidates if name.lower() in by_lower_case), None)
        if match is not None:
            found[field] = match
        elif field in names or field in ("image", "magnitude"):
            raise InputError(
                f"{source} has no {names.get(field, field)}, it holds {', '.join(available) or 'nothing'}; "
                f"name the field with --field {field}=NAME"
            )
    return found


def check_dtype(source: str, field: str, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless a field of this dtype holds numbers, and objid whole ones."""
    if dtype.hasobject or dtype.kind not in "fiu":
        raise InputError(f"{source}: {field} is of dtype {dtype}; expected numbers (pickled objects are never loaded)")
    if field == "objid" and dtype.kind == "f":
        raise InputError(f"{source}: objid is {dtype}, which cannot hold every 64-bit number; write it as int64")
