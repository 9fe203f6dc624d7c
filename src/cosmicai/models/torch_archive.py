"""Read the files that torch.save writes, without torch and without executing their content.

Such a file is a zip archive: `NAME/data.pkl`, a pickle that describes objects and tensors, and one stored
(uncompressed) entry `NAME/data/KEY` per storage. The pickle is checked as a whole (`pickle_scan`) and then loaded by an
unpickler that accepts an explicit list of globals, replaces every class by an inert stand-in and every tensor by a
`TensorRef`, and refuses any other global.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage import basename
from ..storage.ranges import RangeReader, as_file
from .pickle_scan import PickleLimits, check_pickle, damaged_pickle, unsafe_global

# bfloat16 has no numpy type: its two bytes are read as an integer and widened (`TensorRef.read`).
STORAGE_DTYPES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "|i1",
    "torch.ByteStorage": "|u1",
    "torch.BoolStorage": "|b1",
}
# Globals in the pickle of any tensor or parameter.
TENSOR_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        *STORAGE_DTYPES,
    }
)
_LOCAL_HEADER = struct.Struct("<26xHH")
_DIMENSIONS = 64  # of a tensor; torch allows no more
_ENCRYPTED = 0x1  # of a zip entry's flags


@dataclass(frozen=True)
class TensorRef:
    """Position of a tensor's values in a file: byte offset, dtype, shape, and strides in elements.

    A `negated` tensor has the opposite sign of the values in the file, as torch saves a lazily negated view. `crc32` is
    that of the values in the file if these are a whole entry of a zip archive, in order.
    """

    offset: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negated: bool = False
    crc32: int | None = field(default=None, compare=False)

    @property
    def itemsize(self) -> int:
        """Size of one element in bytes."""
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize

    @property
    def span(self) -> int:
        """Distance from the first element to the end of the last in bytes."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements are in C order without gaps."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True

    def read(self, reader: RangeReader) -> NDArray[Any]:
        """Read the tensor into a new array; bfloat16 becomes float32. Raises InputError if its CRC-32 is wrong."""
        raw = bytearray(self.span)
        reader.read_into(self.offset, memoryview(raw))
        if self.crc32 not in (None, zlib.crc32(raw)):
            raise InputError(f"{reader.uri} is damaged (the checksum of a tensor is wrong); copy it again")
        stored = "<u2" if self.dtype == "bfloat16" else self.dtype
        flat = np.frombuffer(raw, dtype=stored)
        strides = [stride * self.itemsize for stride in self.strides]
        array: NDArray[Any] = np.ascontiguousarray(
            np.lib.stride_tricks.as_strided(flat, self.shape, strides) if flat.size else flat.reshape(self.shape)
        ).reshape(self.shape)
        if self.dtype == "bfloat16":
            array = (array.astype("<u4") << 16).view("<f4")
        return -array if self.negated else array


class StandIn:
    """An inert object in place of one of the archive: it holds its arguments and its state, and does nothing."""

    qualified_name = ""

    arguments: tuple[object, ...]
    state: dict[str, Any]

    def __new__(cls, *arguments: object) -> StandIn:  # not __init__: a pickle may make an object without calling that
        stand_in = super().__new__(cls)
        stand_in.arguments, stand_in.state = arguments, {}
        return stand_in

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.state = state


@dataclass(frozen=True)
class TorchArchive:
    """The unpickled description of a torch.save file."""

    uri: str
    root: Any


def describe(value: object) -> str:
    """Return a plain value as Python writes it, and the kind of any other, of which the text may have no end."""
    return repr(value)[:80] if value is None or isinstance(value, bool | int | float | str) else type(value).__name__


def read_archive(uri: str, reader: RangeReader, allowed_classes: Iterable[str], limits: PickleLimits) -> TorchArchive:
    """Read the description of a torch.save file, with a `TensorRef` in place of every tensor.

    Raises UnsafePickleError if the pickle names a global that is neither in `allowed_classes` (replaced by an inert
    stand-in) nor in `TENSOR_GLOBALS`, InputError if the file is empty, truncated or of another format, or if its
    pickle is larger than the limits.
    """
    classes = frozenset(allowed_classes)
    if reader.size == 0:
        raise InputError(f"{uri} is empty; expected a file written by torch.save, copy it again")
    head = bytearray(min(4, reader.size))
    reader.read_into(0, memoryview(head))
    try:
        archive = zipfile.ZipFile(as_file(reader))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        problem = (
            "is truncated or damaged (the zip directory at its end is missing); copy it again"
            if head == b"PK\x03\x04"
            else "is not in the zip format of torch.save (torch 1.6 or newer); save it again with torch.save"
        )
        raise InputError(f"{uri} {problem}") from None
    with archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise InputError(f"{uri} holds no data.pkl; expected a file written by torch.save")
        if (size := entries[pickles[0]].file_size) > limits.size:
            raise InputError(
                f"{uri} is refused: its data.pkl has {size} bytes, which is larger than any model or partition needs "
                f"({limits.size}); save it again with torch.save"
            )
        prefix = pickles[0].removesuffix("data.pkl")
        byteorder = entries.get(f"{prefix}byteorder")
        if byteorder is not None and (byteorder.file_size > 8 or _read_entry(uri, archive, byteorder) != b"little"):
            raise InputError(f"{uri} was saved on a big-endian machine; expected little-endian, save it again")
        description = _read_entry(uri, archive, entries[pickles[0]])

    def storage_offset(key: str) -> tuple[int, int, int]:
        entry = entries.get(f"{prefix}data/{key}")
        if entry is None:
            raise InputError(f"{uri} is damaged: its storage {key} is missing; copy it again")
        _require_stored(uri, entry)
        header = bytearray(_LOCAL_HEADER.size)
        reader.read_into(entry.header_offset, memoryview(header))
        name_length, extra_length = _LOCAL_HEADER.unpack(header)
        offset = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if offset + entry.file_size > reader.size:
            raise InputError(f"{uri} is damaged: storage {key} ends past the end of the file; copy it again")
        return offset, entry.file_size, entry.CRC

    check_pickle(uri, description, TENSOR_GLOBALS | classes, limits)
    unpickler = _AllowListUnpickler(uri, description, classes, storage_offset)
    try:
        return TorchArchive(uri, unpickler.load())
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise almost anything
        raise damaged_pickle(uri, error) from None


def _require_stored(uri: str, entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & _ENCRYPTED:
        raise InputError(f"{uri} is compressed; expected stored entries as torch.save writes them, save it again")


def _read_entry(uri: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    _require_stored(uri, entry)
    try:
        return archive.read(entry)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error):
        name = basename(entry.filename)
        raise InputError(f"{uri} is damaged (the checksum of its {name} is wrong); copy it again") from None


def _describe_metadata(metadata: object) -> str:
    names = sorted(map(str, metadata)) if isinstance(metadata, dict) else []
    return f"metadata {', '.join(names)}"[:80] if names else f"metadata of the kind {describe(metadata)}"


def _make_set(items: object) -> set[str | int]:
    """Return a set of text and integers, whose hash takes no time."""
    if not isinstance(items, list) or not all(isinstance(item, str | int) for item in items):
        raise ValueError("a set of other things than text and integers")
    return set(items)


# Python's unpickler, not the one in C, which allocates 16 bytes for every number below the largest memo index of a
# pickle: 64 GiB for a pickle of eight bytes.
class _AllowListUnpickler(pickle._Unpickler):
    def __init__(
        self, uri: str, data: bytes, classes: frozenset[str], storage_offset: Callable[[str], tuple[int, int, int]]
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._uri, self._classes, self._storage_offset = uri, classes, storage_offset
        # Created for every file: a pickle can set attributes of every object that it receives.
        self._known: dict[str, Any] = {
            "collections.OrderedDict": lambda: OrderedDict(),  # which takes no items: their keys are not checked
            "torch._utils._rebuild_tensor_v2": self._rebuild_tensor,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
        }
        self._known |= {name: type("Storage", (StandIn,), {"qualified_name": name}) for name in STORAGE_DTYPES}

    def find_class(self, module: str, name: str) -> Any:
        qualified = f"{module}.{name}"
        if qualified not in self._known:
            if qualified in ("__builtin__.set", "builtins.set") and qualified in self._classes:
                self._known[qualified] = _make_set
            elif qualified in self._classes:
                self._known[qualified] = type("StandIn", (StandIn,), {"qualified_name": qualified})
            else:
                raise unsafe_global(self._uri, qualified)
        return self._known[qualified]

    def persistent_load(self, pid: Any) -> tuple[str, int, int, int]:
        kind, storage, key, _location, count = pid
        if kind != "storage":
            raise ValueError(f"unknown persistent id {describe(kind)}")
        if not (isinstance(storage, type) and issubclass(storage, StandIn)):
            raise ValueError(f"the type of a storage is {describe(storage)}")
        if not isinstance(key, str | int):
            raise InputError(
                f"{self._uri} is damaged: its storage of the name {describe(key)} is missing; copy it again"
            )
        if not isinstance(count, int):
            raise ValueError(f"the number of values in a storage is {describe(count)}")
        dtype = STORAGE_DTYPES[storage.qualified_name]
        offset, length, crc = self._storage_offset(str(key))
        if count * TensorRef(0, dtype, (), ()).itemsize > length:
            raise InputError(f"{self._uri} is damaged: storage {key} is shorter than it says; copy it again")
        return dtype, offset, length, crc

    def _rebuild_tensor(self, *arguments: Any) -> TensorRef:
        # (storage, offset, shape, strides, requires_grad, backward hooks), and behind them what torch calls metadata
        tensor, metadata = self._tensor(*arguments[:4]), arguments[6] if len(arguments) > 6 else None
        if not metadata:
            return tensor
        if not isinstance(metadata, dict) or not metadata.keys() <= {"neg", "conj"}:  # a real tensor is its conjugate
            raise InputError(
                f"{self._uri} holds a tensor with {_describe_metadata(metadata)}, which is unknown; save a copy of it"
            )
        return replace(tensor, negated=bool(metadata.get("neg")))

    def _tensor(self, storage: object, first: object, shape: object, strides: object) -> TensorRef:
        dtype, offset, length, crc = cast(tuple[str, int, int, int], storage)
        shape, strides = cast(tuple[object, ...], shape), cast(tuple[object, ...], strides)
        if max(len(shape), len(strides)) > _DIMENSIONS:
            raise ValueError(f"a tensor has more than {_DIMENSIONS} dimensions")
        numbers = [first, *shape, *strides]
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError("a tensor has a negative or non-integer size")
        tensor = TensorRef(offset, dtype, tuple(cast(Any, shape)), tuple(cast(Any, strides)))
        if math.prod(tensor.shape) * tensor.itemsize > length:
            raise InputError(f"{self._uri} is refused: a tensor has more elements than its storage; save a copy of it")
        skipped = cast(int, first) * tensor.itemsize
        if len(tensor.shape) != len(tensor.strides) or skipped + tensor.span > length:
            raise InputError(f"{self._uri} is damaged: a tensor reaches past its storage; copy it again")
        is_whole = tensor.span == length and tensor.is_contiguous
        return replace(tensor, offset=offset + skipped, crc32=crc if is_whole else None)
