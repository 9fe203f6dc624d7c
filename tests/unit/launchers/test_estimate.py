"""Test estimates: what ranks reach together, and warnings of numbers of ranks that make no sense."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cosmicai.launchers import estimate
from cosmicai.launchers.base import RankRequest
from cosmicai.launchers.estimate import OVERSUBSCRIBED, compute_speed_up, describe_idle_ranks, estimate_local_run
from support.helpers import make_run, make_survey, random_galaxies, tiny_weights


@pytest.mark.parametrize(
    ("ranks", "items", "rooms", "speed_up"),
    [
        (1, 10, 2, 1), (2, 10, 2, 2), (3, 10, 2, 2 * OVERSUBSCRIBED), (100, 1000, 2, 2 * OVERSUBSCRIBED),
        (100, 2, 2, 2),  # all but two have nothing to do
        (100, 1000, None, 100), (100, 30, None, 30), (8, 1000, 8, 8), (9, 1000, 8, 8 * OVERSUBSCRIBED),
    ],
)  # fmt: skip
def test_ranks_are_no_faster_than_their_cores_and_no_more_than_their_items(ranks, items, rooms, speed_up):
    assert compute_speed_up(ranks, items, rooms) == speed_up


@pytest.mark.parametrize(
    ("ranks", "galaxies", "cores", "number"),
    [(64, 4096, None, "8"), (17, 4096, None, "8"), (64, 4096, 2, "2"), (1000, 100, None, "1"),
     (5000, 512_000, None, "1,000")],
)  # fmt: skip
def test_too_many_ranks_for_few_galaxies_get_the_sensible_number(ranks, galaxies, cores, number):
    warning = describe_idle_ranks(ranks, galaxies, 512, cores)
    assert warning is not None and warning.startswith(f"{ranks:,} ranks are too many for {galaxies:,} galaxies: ")
    assert warning.endswith(f"; use {number}")


@pytest.mark.parametrize(("ranks", "galaxies"), [(1, 1), (1, 256), (16, 4096), (8, 4096), (256, 659_857)])
def test_sensible_numbers_of_ranks_get_no_warning(ranks, galaxies):
    assert describe_idle_ranks(ranks, galaxies, 512) is None


@pytest.fixture
def planned(tmp_path):
    """Return a run of 400 galaxies in 100 batches."""
    survey = make_survey(tmp_path / "survey", random_galaxies(400), 100)
    return make_run(survey, tiny_weights(tmp_path / "w.safetensors"), str(tmp_path / "run"), ranks=50, batch_size=4)


@pytest.mark.parametrize(
    ("procs", "cores", "together", "warned"),
    [(2, 2, "2", None), (8, 2, "1.6", "use --procs 2"), (2, 8, "2", None), (50, 1, "0.8", "use --procs 1")],
)
def test_a_dry_run_knows_the_cores(monkeypatch, planned, procs, cores, together, warned):
    monkeypatch.setattr(estimate, "available_cores", lambda: cores)
    monkeypatch.setattr("cosmicai.launchers.local.resources.available_cores", lambda: cores)
    monkeypatch.setattr(estimate, "measure_rate", lambda run, threads: 100.0)
    lines = list(estimate_local_run(planned, RankRequest(procs=procs)))
    (line,) = [line for line in lines if "galaxies/s" in line]
    assert line.endswith(
        f" at {100 * float(together):,.0f} galaxies/s, {together} times what one such rank alone was measured"
    )
    warnings = [line for line in lines if line.startswith("WARNING: ")]
    assert [line.rpartition("; ")[2] for line in warnings] == ([warned] if warned else [])
    several = replace(RankRequest(procs=procs * 4), nodes=4)
    (line,) = [line for line in estimate_local_run(planned, several) if "galaxies/s" in line]
    assert f", {4 * float(together):g} times what" in line
