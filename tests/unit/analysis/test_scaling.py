"""Test Amdahl's law, speed-ups, stragglers and phases against known or independently computed values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.collect import collect
from analysis.scaling import (
    compute_speed_up,
    fit_amdahl,
    measure_stragglers,
    summarize_phases,
)
from analysis.tables import RANK_COLUMNS, make_table
from cosmicai.errors import InputError

NUMBERS = [1, 2, 4, 8, 16, 32]


def ranks_of(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return ranks of the run `a`, numbered from 0, unless the rows state otherwise."""
    return make_table(({"run": "a", "rank": place} | row for place, row in enumerate(rows)), RANK_COLUMNS)


def in_phases(**seconds: float) -> dict[str, float]:
    """Return a row with the seconds of these phases."""
    return {f"{name}_seconds": value for name, value in seconds.items()}


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_a_law_without_noise_is_recovered(fraction):
    seconds = [120 * (fraction + (1 - fraction) / n) for n in NUMBERS]
    found = fit_amdahl(NUMBERS, seconds)
    assert found.serial_fraction == pytest.approx(fraction, abs=1e-12)
    assert found.one_rank_seconds == pytest.approx(120)
    assert (found.sigma, found.residual) == pytest.approx((0, 0), abs=1e-10)
    assert (found.points, found.numbers) == (6, 6)
    np.testing.assert_allclose(found.seconds(np.array(NUMBERS, dtype=float)), seconds)


def test_the_largest_speed_up_is_one_over_the_serial_fraction():
    assert fit_amdahl([1, 2, 4], [100, 55, 32.5]).largest_speed_up == pytest.approx(10)
    assert fit_amdahl([1, 2, 4], [100, 45, 17.5]).largest_speed_up == float("inf")


def test_the_error_of_the_fraction_is_the_spread_of_fits():
    rng = np.random.default_rng(0)
    ranks = np.repeat(NUMBERS, 3)
    exact = 120 * (0.1 + 0.9 / ranks)
    fits = [fit_amdahl(ranks, exact + rng.normal(0, 2, len(ranks))) for _ in range(400)]  # type: ignore[arg-type]
    fractions = np.array([fit.serial_fraction for fit in fits])
    assert fractions.mean() == pytest.approx(0.1, abs=0.003)
    assert np.median([fit.sigma for fit in fits]) == pytest.approx(fractions.std(), rel=0.1)
    assert np.sqrt(np.mean([fit.residual**2 for fit in fits])) == pytest.approx(2, rel=0.05)
    assert (fits[0].points, fits[0].numbers) == (18, 6)


def test_missing_times_are_skipped():
    found = fit_amdahl([1, 2, 4, 8], [100, float("nan"), 32.5, 21.25])
    assert (found.points, found.serial_fraction) == (3, pytest.approx(0.1))


@pytest.mark.parametrize(("ranks", "there"), [([], 0), ([8, 8, 8, 8], 1), ([1, 1, 2, 2], 2)])
def test_fewer_than_three_numbers_of_ranks_are_not_fitted(ranks, there):
    with pytest.raises(InputError) as refused:
        fit_amdahl(ranks, [float(place) for place, _ in enumerate(ranks)])
    message = f"a fit of Amdahl's law needs times of 3 different numbers of ranks, and there are {there}; "
    assert str(refused.value) == message + "measure more of them"


def test_times_with_which_one_rank_would_take_no_time_are_refused():
    with pytest.raises(InputError, match="the fitted time of one rank is not above 0, since these times grow"):
        fit_amdahl([2, 4, 8], [1, 20, 40])


def test_speed_up_is_against_the_fewest_ranks():
    table = compute_speed_up([8, 2, 4, 4, 4, 16], [30.0, 100.0, 50.0, 40.0, 90.0, float("nan")])
    assert table.to_dict("list") == {
        "ranks": [2, 4, 8],
        "seconds": [100, 50, 30],
        "speed_up": [1, 2, pytest.approx(10 / 3)],
        "efficiency": [1, 1, pytest.approx(10 / 12)],
    }
    assert len(compute_speed_up([], [])) == 0


def test_stragglers_are_in_order_with_the_idle_time_of_the_others():
    found = measure_stragglers(ranks_of(*({"seconds": one} for one in (4.0, 1.0, 3.0, 12.0))))
    assert found.seconds.tolist() == [1, 3, 4, 12]
    assert (found.slowest_to_median, found.idle, found.column) == (12 / 3.5, 1 - 5 / 12, "seconds")


def test_attempts_of_a_rank_are_added_up_and_ranks_without_times_do_not_count():
    rows = ranks_of(
        {"rank": 0, "attempt": 1, "seconds": 2.0}, {"rank": 0, "attempt": 2, "seconds": 3.0},
        {"rank": 1, "seconds": 4.0}, {"rank": 2, "cpu_seconds": 9.0},
    )  # fmt: skip
    assert measure_stragglers(rows).seconds.tolist() == [4, 5]


def test_cpu_time_is_used_if_no_rank_has_other_times():
    found = measure_stragglers(ranks_of({"cpu_seconds": 2.0}, {"cpu_seconds": 1.0}))
    assert (found.seconds.tolist(), found.column) == ([1, 2], "cpu_seconds")


def test_stragglers_need_one_run_with_times_of_its_ranks():
    with pytest.raises(InputError, match=r"^ranks of 2 runs were given, a and others; give those of one run$"):
        measure_stragglers(ranks_of({"seconds": 1.0}, {"seconds": 1.0, "run": "b"}))
    with pytest.raises(InputError, match=r"^the ranks of a do not state how long they worked; expected ranks with"):
        measure_stragglers(ranks_of({}, {}))
    with pytest.raises(InputError, match=r"^there are no ranks that state how long they worked; expected ranks with"):
        measure_stragglers(ranks_of())


def test_phases_are_medians_by_run_in_their_order():
    rows = ranks_of(
        {"run": "b"} | in_phases(start=1, load=2, read=3, predict=4, write=5),
        {"run": "a"} | in_phases(start=1, read=1),
        {"run": "a"} | in_phases(start=2, read=9),
        {"run": "a"} | in_phases(start=6),
        {"run": "without phases"},
    )
    nothing = pytest.approx(float("nan"), nan_ok=True)
    assert summarize_phases(rows).to_dict("list") == {
        "run": ["b", "a"], "start": [1, 2], "load": [2, nothing], "read": [3, 5], "predict": [4, nothing],
        "write": [5, nothing],
    }  # fmt: skip


def test_stragglers_of_a_published_run_are_those_of_its_records(shared: Path):
    folder = shared / "published" / "lambda" / "partition-25MB" / "total" / "1"
    cpu = np.array(
        [record["total_cpu_time (seconds)"] for record in json.loads((folder / "combined_data.json").read_text())]
    )
    ranks = collect([str(folder)]).ranks.assign(seconds=float("nan"))
    found = measure_stragglers(ranks)
    np.testing.assert_array_equal(found.seconds, np.sort(cpu))
    assert len(cpu) == 517
    assert found.idle == pytest.approx(1 - cpu.mean() / cpu.max(), rel=1e-12)
    assert found.slowest_to_median == pytest.approx(cpu.max() / np.median(cpu), rel=1e-12)
