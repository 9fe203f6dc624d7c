"""NumPy arrays as those of Arrow, made from their bytes.

pyarrow's own conversions would import pandas, if it is installed, to compare types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...surveys.columns import ColumnSpec
from ...surveys.identity import INT64, ObjIds, convert_objids, is_text


def number_array(values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> pa.Array:
    """Return numbers (N,) as an array, those that are `missing` (N,) as null."""
    kind = pa.from_numpy_dtype(values.dtype)
    own = np.packbits(values, bitorder="little") if pa.types.is_boolean(kind) else np.ascontiguousarray(values)
    valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(own)])


def column_array(values: NDArray[Any], spec: ColumnSpec) -> pa.Array:
    """Return the values (N,) of a column of a survey as an array, null in place of the value for a missing one."""
    if is_text(spec.dtype):
        return text_array(values)
    return number_array(values, None if spec.null is None else values == spec.null)


def objid_array(objid: ObjIds, dtype: np.dtype[Any]) -> pa.Array:
    """Return ids (N,) as an array of integers or, if the `dtype` is of text, of strings."""
    return text_array(convert_objids(objid, dtype)) if is_text(dtype) else number_array(objid.astype(INT64))


def text_array(text: NDArray[np.bytes_]) -> pa.Array:
    """Return texts (N,) in UTF-8 as an array of strings."""
    data = np.ascontiguousarray(text).view(np.uint8).reshape(len(text), -1)
    used = data != 0  # texts hold no NUL, which only pads them
    ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))]).astype(np.int32)
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(ends), pa.py_buffer(data[used]))


def repeated_text(text: str, count: int) -> pa.Array:
    """Return an array of `count` strings that are all this text."""
    data = text.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(data))
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(data * count))
