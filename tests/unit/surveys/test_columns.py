"""Test how columns of several sources are joined: every value stays what it is, and what is missing stays missing."""

import itertools
from typing import Any

import numpy as np
import pytest

from cosmicai.errors import InputError
from cosmicai.surveys.columns import ColumnSpec, inspect_column, join_specs


def values_of(*values: int | None, dtype: str) -> np.ma.MaskedArray[Any, Any]:
    """Return integers or booleans of which None is missing."""
    return np.ma.MaskedArray(
        np.array([value or 0 for value in values], dtype), [value is None for value in values], dtype=dtype
    )


def inspect(values: Any) -> ColumnSpec:
    return inspect_column([values], values.dtype, "", "a.fits: x")


@pytest.mark.parametrize(
    ("pieces", "dtype", "null"),
    [
        ((values_of(255, 0, dtype="u1"), None, values_of(3, dtype="u1")), "<i2", -(2**15)),
        ((values_of(-128, dtype="i1"), values_of(None, 2, dtype="i1"), values_of(5, dtype="i1")), "<i2", -(2**15)),
        ((values_of(1, dtype="?"), None, values_of(0, 1, dtype="?"), values_of(None, 0, dtype="?")), "<i2", -(2**15)),
        ((values_of(-(2**15), dtype="i2"), values_of(None, 2, dtype="i4")), "<i4", -(2**31)),
        ((values_of(1, dtype="u1"), values_of(None, dtype="i1"), values_of(-(2**15), dtype="i2")), "<i4", -(2**31)),
        ((values_of(2**63, dtype="u8"), values_of(None, 2, dtype="u8")), "<u8", 2**64 - 1),
    ],
)
def test_values_and_nulls_survive_in_any_order_of_the_sources(pieces, dtype, null):
    for order in itertools.permutations(pieces):
        own = [{} if piece is None else {"x": inspect(piece)} for piece in order]
        joined = join_specs([(f"{number}.fits", each) for number, each in enumerate(own)])["x"]
        assert joined == ColumnSpec(np.dtype(dtype), "", null)
        for piece, specs in zip(order, own, strict=True):
            if piece is not None:
                stored = joined.convert(specs["x"].store(piece, "x"), specs["x"], "x")
                assert [None if value == null else value for value in stored.tolist()] == piece.tolist()


def test_a_value_that_would_stand_for_a_missing_one_is_refused():
    spec = ColumnSpec(np.dtype("<i8"), "", -(2**63))
    with pytest.raises(InputError, match=r"^a\.fits: x holds -9223372036854775808, which stands for a missing value"):
        spec.store(np.array([1, -(2**63)]), "a.fits: x")


def test_integers_with_nulls_become_floating_point_with_nan():
    spec = ColumnSpec(np.dtype("<f8"), "deg")
    np.testing.assert_array_equal(spec.store(values_of(1, None, 3, dtype="i8"), "x"), [1.0, np.nan, 3.0])
