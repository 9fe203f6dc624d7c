"""From Arrow's nested arrays to those of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


class RaggedError(Exception):
    """A row whose list is not as long as expected."""

    def __init__(self, row: int, length: int, expected: int) -> None:
        super().__init__(f"a list of {length} where others have {expected}")
        self.row, self.length, self.expected = row, length, expected


def storage_type(type_: Any) -> Any:
    """Return the type in which values of an extension type are stored, any other as it is."""
    return type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_


def is_list(type_: Any) -> bool:
    """Return whether values of this type are lists or tensors."""
    type_ = storage_type(type_)
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_))


def is_text(type_: Any) -> bool:
    """Return whether values of this type are text."""
    kinds = pa.types
    return any(kind(type_) for kind in (kinds.is_string, kinds.is_large_string, kinds.is_binary, kinds.is_large_binary))


def leaf_type(type_: Any) -> Any:
    """Return the type of the values in nested lists."""
    type_ = storage_type(type_)
    while is_list(type_):
        type_ = storage_type(type_.value_type)
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def unwrap(array: Any, member: str) -> Any:
    """Return the values of an array without what surrounds them: extension types, structs, dictionaries."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if member and pa.types.is_struct(array.type):
        array = unwrap(pc.struct_field(array, [member]), "")
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def list_lengths(array: Any, member: str) -> tuple[int, ...]:
    """Return the lengths of nested lists at the first value that is not null, fewer where there is none."""
    lengths: list[int] = []
    while is_list((array := unwrap(array, member).drop_null()).type) and len(array):
        lengths.append(pc.list_value_length(array[:1])[0].as_py())
        array = array[:1].flatten()
    return tuple(lengths)


def to_dense(array: Any, levels: tuple[int, ...], member: str) -> NDArray[Any]:
    """Return nested lists (N, *levels) as one array, in floating point with NaN where something is null.

    Raises RaggedError with the first row in which a list is of another length.
    """
    array = unwrap(array, member)
    if not levels:
        return _leaves(array)
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), levels[0]).to_numpy(zero_copy_only=False))
    if (wrong := np.flatnonzero(valid & (lengths != levels[0]))).size:
        raise RaggedError(int(wrong[0]), int(lengths[wrong[0]]), levels[0])
    try:
        inner = to_dense(array.flatten(), levels[1:], member)
    except RaggedError as error:
        row = np.flatnonzero(valid)[error.row // levels[0]]
        raise RaggedError(int(row), error.length, error.expected) from None
    inner = inner.reshape(-1, *levels)
    if valid.all():
        return inner
    is_object = inner.dtype.kind == "O"
    dtype = inner.dtype if inner.dtype.kind in "fO" else np.dtype(np.float64)
    whole = np.full((len(array), *levels), None if is_object else np.nan, dtype)
    whole[valid] = inner
    return whole


def _leaves(array: Any) -> NDArray[Any]:
    """Return numbers with NaN for null ones, or texts as objects."""
    if is_text(array.type):
        return _objects(array)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return np.asarray(array.to_numpy(zero_copy_only=False))  # integers with nulls become floats


def to_scalars(array: Any) -> NDArray[Any]:
    """Return numbers or texts (N,): null integers are masked, since as floats they would be rounded."""
    if is_text(array.type):
        return _objects(array)
    if not array.null_count or pa.types.is_floating(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    filled = array.fill_null(False if pa.types.is_boolean(array.type) else 0).to_numpy(zero_copy_only=False)
    return np.ma.MaskedArray(filled, array.is_null().to_numpy(zero_copy_only=False))


def _objects(array: Any) -> NDArray[Any]:
    values = np.empty(len(array), object)
    values[:] = array.to_pylist()
    return values
