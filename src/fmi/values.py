"""How values become bytes: msgpack, and beside it the memory of the arrays in them, which is not copied. No pickle.

One value, in little-endian bytes, each part padded with zeros to a multiple of 16 so that every array is aligned:

    0    8 bytes   length of all of it, with this number and all padding
    8    8 bytes   length of the msgpack part without its padding
    16             the msgpack part
                   the elements of the arrays, in the order in which msgpack names them

In the msgpack part an array is the extension type 1, whose data is msgpack too: [type, shape, whether its elements
come in Fortran order, whether it is a scalar, where its elements begin behind the msgpack part]. A value says how
long it is, so values can follow one another.
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

ALIGNMENT = 16  # bytes: what the largest of numpy's types wants
ARRAY = 1  # msgpack's extension type of ours
LENGTHS = struct.Struct("<QQ")
SIMPLE = re.compile(r"[<>|][biufcmMSUV]\d+(\[\w+\])?")  # a type as numpy writes it, but no Python objects


def encode(value: Any) -> list[Buffer]:
    """The bytes of a value, to be sent one after the other; those of contiguous arrays are the arrays' own memory.

    A value is None, a bool, int of 64 bits, float, str, bytes, list or dict, one of numpy's scalars, or an array of
    any type without Python objects, however nested; a tuple arrives as a list.
    Raises TypeError, which names the type, for all else.
    """
    elements: list[Buffer] = []
    end = 0

    def special(item: Any) -> Any:
        nonlocal end
        if type(item) is tuple:
            return list(item)
        if not isinstance(item, np.ndarray | np.generic):
            raise TypeError(f"a {_name(item)} cannot be sent")
        scalar = isinstance(item, np.generic)
        array = plain(np.asarray(item) if scalar else item)
        fortran = array.flags.fnc
        head = msgpack.packb([_described(array.dtype), array.shape, fortran, scalar, end])
        own = bytes_of(array.T if fortran else array)
        elements.extend([own, padding(len(own))])
        end += len(own) + len(padding(len(own)))
        return msgpack.ExtType(ARRAY, head)

    try:
        packed = msgpack.packb(value, default=special, strict_types=True)
    except (OverflowError, ValueError) as error:
        raise TypeError(f"this {_name(value)} cannot be sent: {error}") from None
    try:  # what nobody can read must not leave: a dictionary with a tuple, now a list, as a key
        msgpack.unpackb(packed, ext_hook=_head_of_array, strict_map_key=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"this {_name(value)} could not be read when it arrives: {error}") from None
    behind = padding(len(packed))
    return [LENGTHS.pack(LENGTHS.size + len(packed) + len(behind) + end, len(packed)), packed, behind, *elements]


def decode(data: Buffer) -> Any:
    """The value that these bytes are. Its arrays are in the same memory, and can be written to if that can.

    Raises ValueError if they are not one value.
    """
    try:
        view = memoryview(data)
        length, packed = LENGTHS.unpack_from(view)
        start = LENGTHS.size + packed + len(padding(packed))
        if length != len(view) or start > length:
            raise ValueError("it is not of the length that it says")

        def array(code: int, data: bytes) -> Any:
            kind, shape, fortran, scalar, offset = _head_of_array(code, data)
            found = np.ndarray(shape, _dtype(kind), view, start + offset, order="F" if fortran else "C")
            return found[()] if scalar else found

        return msgpack.unpackb(view[LENGTHS.size : start][:packed], ext_hook=array, strict_map_key=False)
    except (ValueError, TypeError, KeyError, OverflowError, struct.error) as error:
        raise ValueError(f"this is not a value: {error}") from None


def split(data: Buffer) -> list[memoryview]:
    """The bytes of each of the values that follow one another. Raises ValueError if they are something else."""
    rest, values = memoryview(data), []
    while rest:
        length = LENGTHS.unpack_from(rest)[0] if len(rest) >= LENGTHS.size else 0
        if not LENGTHS.size <= length <= len(rest):
            raise ValueError("these are not values")
        values.append(rest[:length])
        rest = rest[length:]
    return values


def joined(buffers: Sequence[Buffer]) -> memoryview:
    """A copy of these bytes one after the other, which can be written to."""
    memory, start = new_memory(sum(map(len, buffers))), 0
    for buffer in buffers:
        memory[start : start + len(buffer)] = buffer
        start += len(buffer)
    return memory


def new_memory(length: int) -> memoryview:
    """So many bytes, aligned, with anything in them: to fill a bytearray with zeros takes time."""
    return np.empty(length, np.uint8).data


def plain(array: Any) -> NDArray[Any]:
    """An array that is its elements and nothing more. Raises TypeError, which names the type, for all else."""
    if type(array) not in (np.ndarray, np.memmap):  # a masked array would arrive without its mask
        raise TypeError(f"a {_name(array)} is not a plain numpy array")
    elements: NDArray[Any] = array.view(np.ndarray)
    return elements


def bytes_of(array: NDArray[Any]) -> memoryview:
    """The elements of an array in C order; a copy only where they are not together in that order."""
    # Not the array's own memoryview, which there is not of dates, and not of an empty array's bytes.
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data if array.nbytes else new_memory(0)


def padding(length: int) -> bytes:
    """The zeros that bring so many bytes to a multiple of ALIGNMENT."""
    return bytes(-length % ALIGNMENT)


def _head_of_array(code: int, data: bytes) -> list[Any]:
    if code != ARRAY:
        raise TypeError(f"there is no extension type {code}")
    head: list[Any] = msgpack.unpackb(data)
    return head


def _described(dtype: np.dtype[Any]) -> Any:
    """The type as msgpack holds it. Raises TypeError if it could not be made again, as with Python objects in it."""
    if dtype.hasobject or np.empty(0, _dtype(_description(dtype))).dtype != dtype:
        raise TypeError(f"an array of type {dtype} cannot be sent")
    return _description(dtype)


def _description(dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        return [_description(dtype.subdtype[0]), dtype.subdtype[1]]
    if dtype.names is None:
        return dtype.str
    fields = [dtype.fields[name] for name in dtype.names] if dtype.fields else []
    formats, offsets = [_description(field[0]) for field in fields], [field[1] for field in fields]
    return {"names": dtype.names, "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize}


def _dtype(kind: Any) -> np.dtype[Any]:
    if isinstance(kind, dict):
        kind = {**kind, "formats": [_dtype(field) for field in kind["formats"]]}
    elif isinstance(kind, list):
        kind = (_dtype(kind[0]), tuple(kind[1]))
    elif not SIMPLE.fullmatch(kind):  # numpy would take far more, such as lists of types
        raise ValueError(f"an array of type {kind} is never read")
    dtype: np.dtype[Any] = np.dtype(kind)
    return dtype


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
