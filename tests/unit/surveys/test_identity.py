"""Test the identity of galaxies: every kind of id that a source may hold, what is refused, and duplicates."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cosmicai.errors import InputError
from cosmicai.surveys.identity import (
    Duplicates,
    combine_sources,
    convert_objids,
    count_duplicates,
    has_objid,
    join_objids,
    no_objids,
    objids,
    widest,
)

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
EXPECTED = "expected ids as 64-bit integers or text"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 7, 127], np.int8), [0, 7, 127]),
        (np.array([1, 2], ">i2"), [1, 2]),
        (np.array([SMALLEST, -1, LARGEST]), [SMALLEST, -1, LARGEST]),
        (np.array([0, LARGEST], np.uint64), [0, LARGEST]),
        (np.array([3, 4], ">u4"), [3, 4]),
        (np.array([1.0, np.nan, 2.0**53 - 1]), [1, -1, 2**53 - 1]),
        (np.array([2.0**24 - 1, np.nan], ">f4"), [2**24 - 1, -1]),
        (np.ma.masked_array([1, 2, 3], mask=[False, True, False]), [1, -1, 3]),
        (np.ma.masked_array(np.array([2**64 - 1, 5], np.uint64), mask=[True, False]), [-1, 5]),
        (np.ma.masked_array([0.5, 5.0], mask=[True, False]), [-1, 5]),
        (np.array([1, None, LARGEST], object), [1, -1, LARGEST]),
        (np.array([np.int32(4), float("nan")], object), [4, -1]),
        (np.array([1.0, None], object), [1, -1]),
        (np.array([None, None], object), [-1, -1]),
        (np.array([], np.int32), []),
        (1237648720693755918, [1237648720693755918]),  # a header card
    ],
)
def test_whole_numbers_of_any_kind_become_int64(values, expected):
    found = objids(values, "a.h5: objid")
    assert (found.dtype, found.tolist()) == (np.int64, expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([b"a", b"bc  ", b"d\0", b"", b"   "]), [b"a", b"bc", b"d", b"", b""]),
        (np.array(["J1234+56", " x ", "Ä"]), [b"J1234+56", b" x", "Ä".encode()]),
        (np.array(["a", b"b ", None, np.str_("c"), float("nan")], object), [b"a", b"b", b"", b"c", b""]),
        (np.array(["007", "1237648720693755918"]), [b"007", b"1237648720693755918"]),
        (np.ma.masked_array(["a", "long"], mask=[False, True]), [b"a", b""]),
        (np.ma.masked_array([b"\xff", b"b"], mask=[True, False]), [b"", b"b"]),
        (np.array(["", ""]), [b"", b""]),
        ("ID 7", [b"ID 7"]),
    ],
)
def test_text_of_any_kind_becomes_utf8_as_long_as_the_longest(values, expected):
    found = objids(values, "a.h5: objid")
    assert found.tolist() == expected
    assert found.dtype == f"S{max(1, *map(len, expected))}"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.array([1, 2**63], np.uint64), f"holds {2**63}, beyond the range of int64; write the ids as text"),
        (np.array([1, 2**63], object), f"holds {2**63}, beyond the range of int64; write the ids as text"),
        (np.array([SMALLEST - 1], object), f"holds {SMALLEST - 1}, beyond the range of int64; write the ids as text"),
        (np.array([1.0, 2.5]), f"holds 2.5, which is not a whole number; {EXPECTED}"),
        (np.array([2.5, None], object), f"holds 2.5, which is not a whole number; {EXPECTED}"),
        *(
            (array, f"is {array.dtype} and holds {text}, which may have been rounded; write the ids as int64 or text")
            for array, text in (
                (np.array([1.0, 2.0**53]), "9007199254740992.0"),
                (np.array([-(2.0**53)]), "-9007199254740992.0"),
                (np.array([np.inf]), "inf"),
                (np.array([2**24], np.float32), "16777216.0"),
                (np.array([2048], np.float16), "2048.0"),
            )
        ),
        (np.array([b"a", b"\xff"]), f"holds text that is not UTF-8; {EXPECTED}"),
        (np.array(["\ud800"]), f"holds text that is not UTF-8; {EXPECTED}"),
        (np.array(["\ud800", None], object), f"holds text that is not UTF-8; {EXPECTED}"),
        (np.array([b"a\0b"]), f"holds ids with NUL characters inside; {EXPECTED}"),
        (np.array([1, "a"], object), f"holds objects of type int and str; {EXPECTED}"),
        (np.array([True, None], object), f"holds objects of type bool; {EXPECTED}"),
        (np.array([True]), f"is bool; {EXPECTED}"),
        (np.array([1j]), f"is complex128; {EXPECTED}"),
        (np.array(["2020-01-01"], "M8[D]"), f"is datetime64[D]; {EXPECTED}"),
        (np.zeros(2, [("a", "i8")]), f"is [('a', '<i8')]; {EXPECTED}"),
        (np.zeros((2, 3), int), "has the shape (2, 3); expected one id per galaxy"),
    ],
)
def test_what_is_no_id_or_may_have_been_rounded_is_refused_by_name(values, problem):
    with pytest.raises(InputError) as caught:
        objids(values, "a.h5: objid")
    text = str(caught.value)
    assert text.startswith("a.h5: objid ") and "\n" not in text
    assert text.removeprefix("a.h5: objid ") == problem


def test_galaxies_without_an_id():
    assert has_objid(np.array([-1, 0, -2])).tolist() == [False, True, True]
    assert has_objid(np.array([b"", b"a"])).tolist() == [False, True]
    assert no_objids(2).tolist() == [-1, -1] and no_objids(2).dtype == np.int64
    assert no_objids(2, np.dtype("S3")).tolist() == [b"", b""] and no_objids(2, np.dtype("S3")).dtype == "S3"


def test_ids_of_several_kinds_are_joined_as_text_that_holds_all():
    parts = [np.array([b"a"]), np.array([SMALLEST, -1, 7]), np.array([b"a long one", b""])]
    assert widest(part.dtype for part in parts) == "S20"
    found = join_objids(parts)
    assert (found.dtype, found.tolist()) == ("S20", [b"a", str(SMALLEST).encode(), b"", b"7", b"a long one", b""])
    assert join_objids(parts[::2]).dtype == "S10"
    assert join_objids([np.array([1]), np.array([2])]).dtype == np.int64
    assert widest([]) == np.int64


def test_ids_that_do_not_fit_are_never_cut():
    assert convert_objids(np.array([b"ab"], "S9"), np.dtype("S2")).tolist() == [b"ab"]
    for values, dtype in (([b"abc"], "S2"), ([1234], "S3"), ([b"1"], "i8")):
        with pytest.raises(ValueError, match="ids"):
            convert_objids(np.array(values), np.dtype(dtype))


def test_sources_with_numbers_and_with_text_are_refused_by_name():
    number, text = np.dtype("i8"), np.dtype("S4")
    assert combine_sources({}) == combine_sources({"a": number}) == np.int64
    assert combine_sources({"a": text, "b": np.dtype("S7")}) == "S7"
    with pytest.raises(InputError) as caught:
        combine_sources({"a.npz": number, "b.fits": text, "c.npz": number})
    assert str(caught.value) == (
        "the ids of b.fits are text, those of a.npz are numbers; expected one kind, convert the ids of one, or ingest "
        "them into two surveys"
    )


def pieces(*values: Any) -> Any:
    return lambda: [np.array(piece) for piece in values]


def test_duplicates_are_counted_within_and_across_pieces_and_named_in_order():
    assert count_duplicates(pieces([5, 1, 2], [2, 9, 5, 5], [-1, -1, 8])) == Duplicates(2, 5, (5, 2), 8)
    text = count_duplicates(pieces([b"b", b"", b"a"], [b"a", b"long", b"", b"b"]))
    assert text == Duplicates(2, 4, ("b", "a"), 5)
    assert text.describe() == "2 ids occur more than once (4 galaxies), as b, a"
    assert count_duplicates(pieces([3, 3], [4, 4], [5, 5], [6, 6])).examples == (3, 4, 5)
    assert count_duplicates(pieces([7, 7, 7])).describe() == "1 id occurs more than once (3 galaxies), as 7"


@pytest.mark.parametrize("values", [[], [[]], [[1]], [[-1, -1]], [[b"", b""]], [[b"a", b"b"]], [[1, 2], [3]]])
def test_galaxies_without_an_id_are_no_duplicates(values):
    found = count_duplicates(lambda: [np.array(piece, None if piece else np.int64) for piece in values])
    assert (found.ids, found.galaxies, found.examples) == (0, 0, ()) and found.describe() == "every id occurs once"


@pytest.mark.parametrize("kind", ["'<i8'", "'S24'"])
def test_the_ids_of_many_galaxies_are_counted_in_little_memory(kind):
    code = (
        "import sys, numpy as np\n"
        "from cosmicai.surveys.identity import count_duplicates\n"
        f"read = lambda: (np.arange(start, start + 5000).astype({kind}) for start in range(0, 2_000_000, 5000))\n"
        "assert count_duplicates(read).known == 2_000_000\n"
        "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = [
        int(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout)
        for text in (code.replace("2_000_000", "5000"), code)
    ]
    assert peaks[1] - peaks[0] < 2_000_000 * 20 / 1024, peaks  # kB; 20 bytes per galaxy
