"""Serialization of values: msgpack, followed by the memory of the arrays, which is not copied. Nothing is pickled.

One value, in little-endian bytes, each part padded with zeros to a multiple of 16 so that every array is aligned:

    0    8 bytes   total length, including this field and all padding
    8    8 bytes   length of the msgpack part without its padding
    16             the msgpack part
                   the elements of the arrays, in the order of the msgpack part

In the msgpack part an array is the extension type 1, with a msgpack array as its data: [dtype, shape, whether the
elements are in Fortran order, whether it is a scalar, offset of the elements behind the msgpack part]. As a value
states its length, values can follow one another.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

Buffer = bytes | bytearray | memoryview

ALIGNMENT = 16  # bytes: the largest alignment of numpy's types
ARRAY_EXTENSION = 1  # msgpack extension type
LENGTHS = struct.Struct("<QQ")
SIMPLE_DTYPE = re.compile(r"[<>|][biufcmMSUV]\d+(\[\w+\])?")  # as numpy writes it; excludes Python objects


def encode(value: Any) -> list[Buffer]:
    """Return the bytes of a value as buffers to be sent one after the other.

    A value is None, a bool, int of 64 bits, float, str, bytes, list or dict, a numpy scalar, or an array of any type
    without Python objects, nested at will; a tuple arrives as a list. The buffers of contiguous arrays are the arrays'
    own memory.
    Raises TypeError, which names the type, for any other value.
    """
    elements: list[Buffer] = []
    end = 0

    def encode_special(item: Any) -> Any:
        nonlocal end
        if type(item) is tuple:
            return list(item)
        if not isinstance(item, np.ndarray | np.generic):
            raise TypeError(f"a {_type_name(item)} cannot be sent")
        is_scalar = isinstance(item, np.generic)
        array = as_plain_array(np.asarray(item) if is_scalar else item)
        is_fortran = array.flags.fnc
        header = msgpack.packb([_checked_description(array.dtype), array.shape, is_fortran, is_scalar, end])
        data = array_bytes(array.T if is_fortran else array)
        elements.extend([data, padding(len(data))])
        end += len(data) + len(padding(len(data)))
        return msgpack.ExtType(ARRAY_EXTENSION, header)

    try:
        packed = msgpack.packb(value, default=encode_special, strict_types=True)
    except (OverflowError, ValueError) as error:
        raise TypeError(f"this {_type_name(value)} cannot be sent: {error}") from None
    try:  # refuse what the receiver could not decode: a dict with a tuple, which becomes a list, as a key
        msgpack.unpackb(packed, ext_hook=_unpack_array_header, strict_map_key=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"this {_type_name(value)} cannot be decoded by the receiver: {error}") from None
    packed_padding = padding(len(packed))
    total = LENGTHS.size + len(packed) + len(packed_padding) + end
    return [LENGTHS.pack(total, len(packed)), packed, packed_padding, *elements]


def decode(data: Buffer) -> Any:
    """Return the value of these bytes. Its arrays share this memory, and are writable if it is.

    Raises ValueError if the bytes are not one value.
    """
    try:
        view = memoryview(data)
        length, packed = LENGTHS.unpack_from(view)
        start = LENGTHS.size + packed + len(padding(packed))
        if length != len(view) or start > length:
            raise ValueError("its length differs from the length that it states")

        def decode_array(code: int, header: bytes) -> Any:
            description, shape, is_fortran, is_scalar, offset = _unpack_array_header(code, header)
            dtype = _restore_dtype(description)
            array = np.ndarray(shape, dtype, view, start + offset, order="F" if is_fortran else "C")
            return array[()] if is_scalar else array

        return msgpack.unpackb(view[LENGTHS.size : start][:packed], ext_hook=decode_array, strict_map_key=False)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        raise ValueError(f"this is not a value: {error}") from None


def split_values(data: Buffer) -> list[memoryview]:
    """Return the bytes of each of several values that follow one another.

    Raises ValueError if the bytes are not a sequence of values.
    """
    rest, values = memoryview(data), []
    while rest:
        length = LENGTHS.unpack_from(rest)[0] if len(rest) >= LENGTHS.size else 0
        if not LENGTHS.size <= length <= len(rest):
            raise ValueError("these bytes are not a sequence of values")
        values.append(rest[:length])
        rest = rest[length:]
    return values


def concatenate(buffers: Sequence[Buffer]) -> memoryview:
    """Return a writable copy of these buffers one after the other."""
    memory, start = allocate_buffer(sum(map(len, buffers))), 0
    for buffer in buffers:
        memory[start : start + len(buffer)] = buffer
        start += len(buffer)
    return memory


def allocate_buffer(length: int) -> memoryview:
    """Return `length` aligned, uninitialized bytes: filling a bytearray with zeros would take time."""
    return np.empty(length, np.uint8).data


def as_plain_array(array: Any) -> NDArray[Any]:
    """Return an array without the attributes of a subclass.

    Raises TypeError, which names the type, if the value is not an array or means more than its elements.
    """
    if type(array) not in (np.ndarray, np.memmap):  # a masked array would arrive without its mask
        raise TypeError(f"a {_type_name(array)} is not a plain numpy array")
    elements: NDArray[Any] = array.view(np.ndarray)
    return elements


def array_bytes(array: NDArray[Any]) -> memoryview:
    """Return the elements of an array in C order; they are copied only if they are not contiguous in that order."""
    # Not the array's own memoryview: dates do not have one, and the one of an empty array cannot be cast to bytes.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.nbytes else allocate_buffer(0)


def padding(length: int) -> bytes:
    """Return the zeros that extend `length` bytes to a multiple of ALIGNMENT."""
    return bytes(-length % ALIGNMENT)


def _unpack_array_header(code: int, data: bytes) -> list[Any]:
    if code != ARRAY_EXTENSION:
        raise TypeError(f"the extension type {code} is unknown")
    header: list[Any] = msgpack.unpackb(data)
    return header


def _checked_description(dtype: np.dtype[Any]) -> Any:
    """Return a dtype as msgpack stores it. Raises TypeError if the receiver could not restore it."""
    if dtype.hasobject or np.empty(0, _restore_dtype(_describe_dtype(dtype))).dtype != dtype:
        raise TypeError(f"an array of type {dtype} cannot be sent")
    return _describe_dtype(dtype)


def _describe_dtype(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        return [_describe_dtype(dtype.subdtype[0]), dtype.subdtype[1]]
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names] if dtype.fields else []
    formats, offsets = [_describe_dtype(field[0]) for field in fields], [field[1] for field in fields]
    return {"names": dtype.names, "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize}


def _restore_dtype(description: Any) -> np.dtype[Any]:
    if isinstance(description, dict):
        description = {**description, "formats": [_restore_dtype(field) for field in description["formats"]]}
    elif isinstance(description, list):
        description = (_restore_dtype(description[0]), tuple(description[1]))
    elif not SIMPLE_DTYPE.fullmatch(description):  # numpy would accept far more, such as lists of types
        raise ValueError(f"an array of type {description} is never decoded")
    dtype: np.dtype[Any] = np.dtype(description)
    return dtype


def _type_name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
