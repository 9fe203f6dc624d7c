"""The identity of galaxies: what an id is, where there is none, and which ids occur more than once.

Ids (objid) are int64, or UTF-8 text of a fixed length (`S<n>` in numpy); never a number that may have been rounded.
A galaxy without an id has NO_OBJID or NO_TEXT in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

NO_OBJID = -1
NO_TEXT = b""
EXAMPLES = 3  # duplicate ids that are named
EXPECTED = "expected ids as 64-bit integers or text"

ObjIds = NDArray[np.int64] | NDArray[np.bytes_]


def objids(values: Any, where: str) -> ObjIds:
    """Return the ids (N,) of a source as int64, or as UTF-8 text `S<n>` that is as long as the longest id.

    `values` (N,) is an array of whole numbers or text of any kind: integers, floats, numpy text, or Python objects as
    h5py returns them. What is masked, NaN, None or an empty text is no id: NO_OBJID or NO_TEXT. Spaces and NULs that
    pad text at its end are removed. `where` names the file and the field in messages.
    Raises InputError if a number is too large for int64, has a fraction, or is a float so large that it may have been
    rounded; if text is not UTF-8; or if the values are neither numbers nor text, or both.
    """
    missing = np.atleast_1d(np.ma.getmaskarray(values)) if isinstance(values, np.ma.MaskedArray) else None
    array = np.atleast_1d(np.asarray(np.ma.getdata(values)))
    if array.ndim != 1:
        raise InputError(f"{where} has the shape {array.shape}; expected one id per galaxy")
    if missing is None:
        missing = np.zeros(len(array), np.bool_)
    if array.dtype.kind == "O":
        array, missing = _unwrap_objects(array, missing, where)
    if array.dtype.kind in "iu":
        return _from_integers(array, missing, where)
    if array.dtype.kind == "f":
        return _from_floats(array, missing, where)
    if array.dtype.kind in "SU":
        return _from_text(array, missing, where)
    raise InputError(f"{where} is {array.dtype}; {EXPECTED}")


def is_text(dtype: np.dtype[Any]) -> bool:
    """Return whether ids of this dtype are text."""
    return dtype.kind == "S"


def has_objid(values: ObjIds) -> NDArray[np.bool_]:
    """Return which galaxies (N,) have an id."""
    return np.asarray(values != (NO_TEXT if is_text(values.dtype) else NO_OBJID))


def no_objids(count: int, dtype: np.dtype[Any] | str = "<i8") -> ObjIds:
    """Return the ids (count,) of galaxies that have none."""
    return np.full(count, NO_TEXT if is_text(np.dtype(dtype)) else NO_OBJID, dtype)


def combine_sources(dtypes: Mapping[str, np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype that holds the ids of all sources: int64, or text as long as the longest.

    `dtypes` are those of the ids by the name of the source, without the sources that have no ids. Raises InputError
    naming two sources if some ids are numbers and others text: whether "007" is 7 is for their owner to say.
    """
    text = next((source for source, dtype in dtypes.items() if is_text(dtype)), None)
    number = next((source for source, dtype in dtypes.items() if not is_text(dtype)), None)
    if text is not None and number is not None:
        raise InputError(
            f"the ids of {text} are text, those of {number} are numbers; expected one kind, convert the ids of one, or "
            "ingest them into two surveys"
        )
    return widest(dtypes.values())


def widest(dtypes: Iterable[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype to which ids of all these can be converted (`convert_objids`); int64 if there are none.

    It is int64 if all are numbers; else text, which also has room for the digits of an int64 where some are numbers.
    """
    found = list(dtypes)
    if not any(is_text(dtype) for dtype in found):
        return np.dtype("<i8")
    return np.dtype(f"S{max(dtype.itemsize if is_text(dtype) else _DIGITS for dtype in found)}")


def convert_objids(values: ObjIds, dtype: np.dtype[Any]) -> ObjIds:
    """Return ids as `dtype`, one that `widest` returned for them: numbers become their digits, no id stays no id."""
    if is_text(dtype) and not is_text(values.dtype):
        return np.where(values == NO_OBJID, NO_TEXT, values.astype(f"S{_DIGITS}")).astype(dtype)
    return values.astype(dtype, copy=False)


@dataclass(frozen=True)
class Duplicates:
    """How many ids occur more than once, how many galaxies have one of these, and the first EXAMPLES of these ids."""

    ids: int
    galaxies: int
    examples: tuple[int | str, ...]

    def describe(self) -> str:
        """Return "N ids occur more than once (M galaxies), as 17, 23"."""
        if not self.ids:
            return "every id occurs once"
        subject = "1 id occurs" if self.ids == 1 else f"{self.ids:,} ids occur"
        return f"{subject} more than once ({self.galaxies:,} galaxies), as {', '.join(map(str, self.examples))}"


def count_duplicates(read: Callable[[], Iterable[ObjIds]]) -> Duplicates:
    """Count the ids that more than one galaxy has; galaxies without an id do not count.

    `read` returns the ids in pieces, all of one kind; it is called again if there are duplicates among text. 16 bytes
    per galaxy are in memory at once. Text is compared by its 64-bit hash: among 10^7 different ids, a pair
    that is taken for the same has a chance of 3 in a million.
    """
    keys = [_keys(values[has_objid(values)]) for values in read()]
    ordered = np.concatenate([np.empty(0, np.int64), *keys])
    del keys
    ordered.sort()
    repeats = ordered[1:] == ordered[:-1]
    first_repeats = repeats.copy()
    first_repeats[1:] &= ~repeats[:-1]
    ids = int(np.count_nonzero(first_repeats))
    repeated = ordered[1:][first_repeats]  # the key of every duplicate id, in order
    return Duplicates(ids, int(np.count_nonzero(repeats)) + ids, _find_examples(read, repeated))


_DIGITS = 20  # of an int64, with its sign


def _keys(values: ObjIds) -> NDArray[np.int64]:
    return np.fromiter(map(hash, values.tolist()), np.int64, len(values)) if is_text(values.dtype) else values


def _find_examples(read: Callable[[], Iterable[ObjIds]], repeated: NDArray[np.int64]) -> tuple[int | str, ...]:
    """Return the first ids, in the order of the galaxies, whose keys are among `repeated`, which is sorted."""
    examples: dict[int | str, None] = {}
    for values in read() if len(repeated) else ():
        keys = _keys(values)
        at = np.searchsorted(repeated, keys).clip(max=len(repeated) - 1)
        for value in values[(repeated[at] == keys) & has_objid(values)].tolist():
            examples[value.decode() if isinstance(value, bytes) else value] = None
            if len(examples) == EXAMPLES:
                return tuple(examples)
    return tuple(examples)


def _unwrap_objects(
    array: NDArray[Any], missing: NDArray[np.bool_], where: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return Python objects as an array of integers, floats or text, and which of them are missing."""
    plain = (value.item() if isinstance(value, np.generic) else value for value in array.tolist())
    found = [None if gone or _is_null(value) else value for value, gone in zip(plain, missing, strict=True)]
    kinds = {type(value) for value in found if value is not None}
    missing = np.array([value is None for value in found], np.bool_)
    if not kinds:
        return np.zeros(len(found), np.int64), missing
    if kinds <= {str, bytes}:
        try:
            encoded = [b"" if value is None else value.encode() if isinstance(value, str) else value for value in found]
        except UnicodeEncodeError:
            raise _not_utf8(where) from None
        return np.array(encoded, np.bytes_), missing
    if kinds <= {int}:
        numbers = [0 if value is None else value for value in found]
        if any(not -(2**63) <= value < 2**63 for value in numbers):
            raise _too_large(where, next(value for value in numbers if not -(2**63) <= value < 2**63))
        return np.array(numbers, np.int64), missing
    if kinds <= {int, float} and float in kinds:
        return np.array([0 if value is None else value for value in found], np.float64), missing
    names = " and ".join(sorted(kind.__name__ for kind in kinds))
    raise InputError(f"{where} holds objects of type {names}; {EXPECTED}")


def _is_null(value: Any) -> bool:
    return value is None or value is np.ma.masked or (isinstance(value, float) and value != value)


def _from_integers(array: NDArray[Any], missing: NDArray[np.bool_], where: str) -> NDArray[np.int64]:
    if array.dtype == np.uint64 and (beyond := (array > np.uint64(2**63 - 1)) & ~missing).any():
        raise _too_large(where, int(array[beyond][0]))
    return np.where(missing, NO_OBJID, array.astype(np.int64))


def _from_floats(array: NDArray[Any], missing: NDArray[np.bool_], where: str) -> NDArray[np.int64]:
    numbers = np.where(missing | np.isnan(array), array.dtype.type(NO_OBJID), array)
    largest = 2 ** (np.finfo(array.dtype).nmant + 1)  # from here on neighbouring integers become the same float
    if (inexact := ~(np.abs(numbers) < min(largest, 2**53))).any():
        raise InputError(
            f"{where} is {array.dtype} and holds {numbers[inexact][0]!s}, which may have been rounded; write the ids "
            "as int64 or text"
        )
    if (broken := numbers != np.trunc(numbers)).any():
        raise InputError(f"{where} holds {numbers[broken][0]!s}, which is not a whole number; {EXPECTED}")
    return numbers.astype(np.int64)


def _from_text(array: NDArray[Any], missing: NDArray[np.bool_], where: str) -> NDArray[np.bytes_]:
    if array.dtype.kind == "U":
        try:
            array = np.char.encode(array, "utf-8")
        except UnicodeEncodeError:
            raise _not_utf8(where) from None
    text = np.where(missing, NO_TEXT, np.char.rstrip(array, b" \0"))
    joined = b"\n".join(text.tolist())
    try:
        joined.decode()
    except UnicodeDecodeError:
        raise _not_utf8(where) from None
    if b"\0" in joined:
        raise InputError(f"{where} holds ids with NUL characters inside; {EXPECTED}")
    return text.astype(f"S{max(1, int(np.char.str_len(text).max(initial=0)))}")


def _too_large(where: str, value: int) -> InputError:
    return InputError(f"{where} holds {value}, beyond the range of int64; write the ids as text")


def _not_utf8(where: str) -> InputError:
    return InputError(f"{where} holds text that is not UTF-8; {EXPECTED}")
