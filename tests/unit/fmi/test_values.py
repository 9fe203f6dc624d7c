"""Serialization: supported values arrive unchanged, others are refused by name, and nothing is pickled."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import pickle
import warnings
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from fmi.values import ALIGNMENT, as_plain_array, concatenate, decode, encode, split_values

STRUCTURED = np.dtype([("id", ">i8"), ("größe", "<f4", (2, 3)), ("inner", [("name", "U3"), ("flag", "?")])])
PADDED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
OVERLAPPING = np.dtype({"names": ["all", "low"], "formats": ["<u4", "<u2"], "offsets": [0, 0], "itemsize": 16})
DTYPES: list[Any] = [
    "?", "i1", "<i2", ">i2", "i4", "i8", "u1", "u2", ">u4", "u8", "f2", ">f2", "f4", "f8", ">f8", "g", "F", ">D", "G",
    "M8[ns]", "M8[25s]", ">M8[D]", "M8", "m8[us]", "m8", "S5", "U4", ">U4", "V7", "V0", STRUCTURED, PADDED, OVERLAPPING,
    [],
]  # fmt: skip


def send_and_receive(value: Any) -> Any:
    return decode(concatenate(encode(value)))


def is_same(one: Any, other: Any) -> bool:
    """Return whether two values have the same types, shapes and bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    return repr(one) == repr(other)


def random_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array of random numbers, or of short texts."""
    dtype = np.dtype(dtype)
    array = np.zeros(shape, dtype)
    for part in [array] if dtype.names is None else [array[name] for name in dtype.names]:
        if part.dtype.kind in "SU":
            part[...] = np.random.default_rng(0).choice(["", "a", "xyz", "ü" if part.dtype.kind == "U" else "b"], shape)
        elif part.dtype.names is None and part.dtype.kind != "V":
            part[...] = np.random.default_rng(0).integers(0, 100, part.shape).astype(part.dtype)
    return array


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63, 2**64 - 1, -(2**63), 0.1, -0.0, float("inf"), float("nan"), "", "größer € 𝒳",
        b"", b"\0\xff" * 100, "x" * 100_000, [], {}, [None, [True, [1.5, {"a": [b"b"]}]]],
        {"a": 1, 2: "b", None: [], b"c": {}, True: 1.0}, list(range(1000)), [[[[]]]],
    ],
)  # fmt: skip
def test_msgpack_values_arrive_unchanged(value: Any) -> None:
    assert is_same(send_and_receive(value), value)


def test_tuples_arrive_as_lists_and_buffers_as_bytes() -> None:
    assert send_and_receive((1, (2, [3, ()]), {"a": (4,)})) == [1, [2, [3, []]], {"a": [4]}]
    assert send_and_receive([bytearray(b"a"), memoryview(b"b")]) == [b"a", b"b"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 4), (2, 0, 3), (2, 3, 4)], ids=str)
def test_arrays_of_every_type_and_shape_arrive_bit_identical(dtype: Any, shape: tuple[int, ...]) -> None:
    array = random_array(shape, dtype)
    received = send_and_receive(array)
    assert is_same(received, array)
    assert received.flags.writeable
    assert received.flags.aligned
    assert not np.may_share_memory(received, array)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T, lambda a: a[::2], lambda a: a[:, ::-1], lambda a: a[1:, 1:, 1:], lambda a: a.transpose(1, 0, 2),
        lambda a: np.broadcast_to(a[:1], a.shape), lambda a: a[0, 0, 0, ...], lambda a: np.asfortranarray(a),
        lambda a: a.reshape(-1)[1:].view("u1")[1:-3].view("<f4"),
    ],
)  # fmt: skip
def test_any_layout_arrives_and_fortran_order_is_kept(view: Any) -> None:
    array = view(np.arange(60, dtype="<f4").reshape(3, 4, 5))
    array.flags.writeable = False
    before = array.tobytes()
    received = send_and_receive(array)
    assert is_same(received, array)
    assert array.tobytes() == before
    assert received.flags.writeable
    assert received.flags.f_contiguous == (array.flags.f_contiguous or array.ndim < 2)


@pytest.mark.parametrize(
    "scalar",
    [
        np.float64(0.1), np.float32("nan"), np.float16(1), np.longdouble(1) / 3, np.int8(-1), np.uint64(2**64 - 1),
        np.bool(True), np.complex64(1j), np.datetime64("2024-02-29", "D"), np.datetime64("NaT"),
        np.timedelta64(5, "ms"), np.str_("ü"), np.str_(""), np.bytes_(b"a\0b"), random_array((1,), STRUCTURED)[0],
    ],
    ids=repr,
)  # fmt: skip
def test_numpy_scalars_remain_numpy_scalars(scalar: Any) -> None:
    assert is_same(send_and_receive(scalar), scalar)
    assert is_same(send_and_receive([{"a": scalar}]), [{"a": scalar}])


def test_nested_arrays_arrive() -> None:
    arrays = [random_array((n, 3), dtype) for n, dtype in enumerate(["f8", "?", STRUCTURED, "u1", "S5", ">i2"])]
    value = {"a": arrays[0], "b": [arrays[1], {"c": [arrays[2]], "d": arrays[1]}], 3: arrays[3:], "e": "text"}
    received = send_and_receive(value)
    assert is_same(received, value)
    assert not np.may_share_memory(received["b"][0], received["b"][1]["d"])


def test_the_memory_of_arrays_is_not_copied(tmp_path: Path) -> None:
    array = np.arange(10_000.0).reshape(100, 100)
    mapped = np.memmap(tmp_path / "mapped", "i4", "w+", shape=(50,))
    for sent in (array, array.T, array[20:30], mapped, array.astype("M8[s]"), array.astype("f2")):
        before = sent.view(np.ndarray)
        assert sum(np.shares_memory(np.frombuffer(buffer, "u1"), before) for buffer in encode([1, sent])) == 1
    assert type(send_and_receive(mapped)) is np.ndarray


def test_the_bytes_of_a_value() -> None:
    assert concatenate(encode(None)).tobytes() == (
        b"\x20\0\0\0\0\0\0\0" b"\x01\0\0\0\0\0\0\0" b"\xc0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    )  # fmt: skip
    assert concatenate(encode(["ü", np.array([[1, 2]], ">u2"), np.int8(-1)])).tobytes() == (
        b"\x50\0\0\0\0\0\0\0" b"\x1e\0\0\0\0\0\0\0"
        b"\x93" b"\xa2\xc3\xbc"
        b"\xc7\x0b\x01" b"\x95\xa3>u2\x92\x01\x02\xc2\xc2\x00"
        b"\xc7\x09\x01" b"\x95\xa3|i1\x90\xc2\xc3\x10" b"\0\0"
        b"\0\x01\0\x02\0\0\0\0\0\0\0\0\0\0\0\0"
        b"\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    )  # fmt: skip


def test_values_can_follow_one_another_and_are_aligned() -> None:
    values: list[Any] = [
        None,
        [random_array((3,), "u1"), random_array((2,), "G")],
        "x" * 21,
        random_array((), "f8"),
        {},
    ]
    parts = split_values(concatenate([buffer for value in values for buffer in encode(value)]))
    assert is_same([decode(part) for part in parts], values)
    assert [len(part) % ALIGNMENT for part in parts] == [0] * len(parts)
    assert split_values(b"") == []


class Text(str):
    pass


class Malicious:
    """An object with code that unpickling would run."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was executed",)


Named = collections.namedtuple("Named", "a")
Color = enum.IntEnum("Color", "RED")
DEEP: list[Any] = []
for _ in range(1100):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Malicious(), "test_values.Malicious"),
        ({"a": [Malicious()]}, "test_values.Malicious"),
        (np.array([Malicious()]), "object"),
        (np.array([(1, Malicious())], [("a", "i4"), ("b", "O")]), "'O'"),
        (np.array(["a"], np.dtypes.StringDType()), "StringDType"),
        (np.ma.masked_array([1, 2], [0, 1]), "numpy.ma.MaskedArray"),  # type: ignore[arg-type]
        (np.rec.array([(1,)], dtype=[("a", "i4")]), "numpy.rec.recarray"),
        (np.zeros(2, {"names": ["a"], "formats": ["i4"], "titles": ["title"]}), "title"),
        (np.zeros(2, [("a", "S0")])["a"], "S"),
        (1j, "complex"), (decimal.Decimal(1), "decimal.Decimal"), ({1, 2}, "set"), (frozenset(), "frozenset"),
        (datetime.datetime(2024, 1, 1), "datetime.datetime"), (range(3), "range"), (len, "builtin_function_or_method"),
        (np.float64, "type"), (np.dtype("f8"), "Float64DType"), (Path("a"), "PosixPath"),
        (Text("a"), "test_values.Text"), (Named(1), "test_values.Named"), (Color(1), "test_values.Color"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (2**64, "int cannot be sent"), (-(2**63) - 1, "int"), ("\ud800", "str cannot be sent"), (DEEP, "list"),
        ({(1, 2): 3}, "unhashable type: 'list'"), ([{(1, 2): 3}], "this list"), (msgpack.ExtType(5, b""), "5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_unsupported_types_are_refused_by_name(value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=name.replace(".", r"\.")):
        encode(value)


def test_nothing_is_unpickled() -> None:
    data = pickle.dumps(Malicious())
    assert send_and_receive(data) == data
    nested = {"names": ["a"], "formats": ["|O8"], "offsets": [0], "itemsize": 8}
    for malicious in ("|O", "|O8", "O", "object", "f4,O", [nested, [1]], nested):
        packed = msgpack.packb(msgpack.ExtType(1, msgpack.packb([malicious, [1], False, False, 0])))
        behind = bytes(-len(packed) % 16)
        whole = (32 + len(packed + behind)).to_bytes(8, "little") + len(packed).to_bytes(8, "little") + packed + behind
        with pytest.raises(ValueError, match=r"^this is not a value: an array of type .* is never decoded$"):
            decode(whole + bytes(16))


@pytest.mark.parametrize("array", [5, 2.5, [1.0], None, np.float64(1), np.ma.masked_array([1]), np.rec.array([1])])  # type: ignore[call-overload]
def test_only_plain_arrays_are_accepted_as_arrays(array: Any) -> None:
    with pytest.raises(TypeError, match=f"a .*{type(array).__name__} is not a plain numpy array"):
        as_plain_array(array)


def test_damaged_bytes_cause_at_most_a_wrong_value() -> None:
    value = ["text", np.arange(5), {"a": random_array((2,), STRUCTURED), "b": np.float32(1)}]
    whole = concatenate(encode(value)).tobytes()
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            decode(whole[:length])
        with pytest.raises(ValueError):
            split_values(whole + whole[: length or 1])
    with pytest.raises(ValueError):
        decode(whole + bytes(16))
    generator = np.random.default_rng(0)
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for position in [*range(len(whole)), *generator.integers(0, len(whole), 3000)]:
            damaged = bytearray(whole)
            damaged[position] = generator.integers(256)
            try:
                decode(damaged)
            except ValueError:
                refused += 1
    assert refused > 500
