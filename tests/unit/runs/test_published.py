"""Published records of ranks: one per rank, with the published identities, whatever happened to the attempts."""

import json
import math
from typing import Any

import msgspec
import pytest

from cosmicai.records import decode_json
from cosmicai.runs.published import OWN_KEY, RankResult, add_uncounted, count_galaxies, merge_attempts, remove_repeated
from cosmicai.runs.record import PUBLISHED_KEYS, PUBLISHED_S3_KEYS, PhaseSeconds, Record
from support.helpers import make_record

STARTED = "2026-01-01T00:00:{:02d}+00:00"


def attempt(rank: int = 0, number: int = 1, galaxies: int = 100, **changes: Any) -> Record:
    """Return the record of an attempt that took 2 s of CPU time and 4 s by the clock."""
    given: dict[str, Any] = {
        "attempt": number, "galaxies": galaxies, "cpu_seconds": 2.0, "batches": 1, "batch_size": 64,
        "state": "finished", "seconds": PhaseSeconds(0.5, 0.5, 1.0, 2.0, 1.0), "started_at": STARTED.format(rank),
    }  # fmt: skip
    return make_record(rank, **(given | changes))


def galaxies_of(results: list[RankResult]) -> dict[int, int]:
    return {result.rank: result.galaxies for result in results}


def test_attempts_of_a_rank_become_one_published_record():
    reads: dict[str, Any] = dict(zip(PUBLISHED_S3_KEYS, (3, 1.5, 0.5, 0.25, 0.75, 100.0, 110.0), strict=True))
    later: dict[str, Any] = dict(zip(PUBLISHED_S3_KEYS, (1, 0.5, 0.5, 0.5, 0.5, 120.0, 121.0), strict=True))
    records = [attempt(0, 2, 30, cpu_seconds=1.0, **later), attempt(1), attempt(0, 1, **reads), attempt(0, 3, 0)]
    first, second = merge_attempts(records)
    assert [record.attempt for record in first.attempts] == [1, 2, 3]
    published = first.published("results/1")
    assert tuple(published) == (*PUBLISHED_KEYS, *PUBLISHED_S3_KEYS, OWN_KEY)
    assert published["total_cpu_time (seconds)"] == 5.0
    assert published["throughput_bps"] * 5.0 == pytest.approx(130 * 164160, rel=1e-15)
    assert published["sample_persec"] * 5.0 == pytest.approx(130, rel=1e-15)
    assert published["execution_time (seconds/batch)"] * 130 == pytest.approx(5.0 * 64, rel=1e-15)
    assert (published["num_batches"], published["result_path"]) == (3, "results/1")  # 130 in batches of 64
    assert tuple(published[key] for key in PUBLISHED_S3_KEYS) == (4, 2.0, 0.5, 0.25, 0.75, 100.0, 121.0)
    own = published[OWN_KEY]
    assert (own["rank"], own["attempts"], own["galaxies"]) == (0, 3, 130)
    assert (own["seconds"], own["galaxies_per_second"]) == (12.0, 130 / 12)
    assert tuple(second.published("results/1")) == (*PUBLISHED_KEYS, OWN_KEY)
    assert count_galaxies(published) == 130


@pytest.mark.parametrize("changes", [{"galaxies": 0}, {"cpu_seconds": 0.0}, {"galaxies": 0, "cpu_seconds": 0.0}])
def test_no_galaxies_or_no_cpu_time_have_a_rate_of_zero(changes):
    [result] = merge_attempts([attempt(**changes, seconds=PhaseSeconds(0.0, 0.0, 0.0, 0.0, 0.0))])
    published = result.published("results/1")
    assert [published[PUBLISHED_KEYS[place]] for place in (2, 6, 7)] == [0.0, 0.0, 0.0]
    assert published[OWN_KEY]["galaxies_per_second"] == 0.0
    assert count_galaxies(published) == 0


@pytest.mark.parametrize(
    "record",
    [{}, {"throughput_bps": 1e9}, {"throughput_bps": "fast", "total_cpu_time (seconds)": 1.0},
     {"throughput_bps": math.inf, "total_cpu_time (seconds)": 1.0}],
)  # fmt: skip
def test_a_record_that_states_no_galaxies_counts_none(record):
    assert count_galaxies(record) == 0


def test_an_item_of_a_killed_attempt_that_no_record_counts_is_added_to_its_rank():
    results = merge_attempts([attempt(0), attempt(1, state="running"), attempt(2)])
    assert galaxies_of(add_uncounted(results, 350, largest_item=50)) == {0: 100, 1: 150, 2: 100}
    assert galaxies_of(add_uncounted(results, 300, largest_item=50)) == {0: 100, 1: 100, 2: 100}
    assert galaxies_of(add_uncounted(results, 290, largest_item=50)) == {0: 100, 1: 100, 2: 100}


def test_more_than_killed_attempts_can_leave_is_not_added_since_records_are_missing():
    killed = merge_attempts([attempt(0), attempt(1, state="running")])
    assert galaxies_of(add_uncounted(killed, 251, largest_item=50)) == {0: 100, 1: 100}
    finished = merge_attempts([attempt(0), attempt(1)])
    assert galaxies_of(add_uncounted(finished, 201, largest_item=50)) == {0: 100, 1: 100}


def test_galaxies_of_a_killed_rank_without_cpu_time_are_added_to_one_that_has_some():
    results = merge_attempts([attempt(0), attempt(1, galaxies=0, cpu_seconds=0.0, state="running")])
    assert galaxies_of(add_uncounted(results, 150, largest_item=50)) == {0: 150, 1: 0}
    assert add_uncounted(results[1:], 50, largest_item=50) == results[1:]
    assert add_uncounted([], 50, largest_item=50) == []


def test_what_was_done_twice_is_taken_off_the_ranks_that_began_first():
    results = merge_attempts([attempt(0, galaxies=30), attempt(1), attempt(1, 2, 20, started_at=STARTED.format(59))])
    assert galaxies_of(remove_repeated(results, 150)) == {0: 30, 1: 120}
    assert galaxies_of(remove_repeated(results, 110)) == {0: 0, 1: 110}
    assert galaxies_of(remove_repeated(results, 0)) == {0: 0, 1: 0}


def test_a_record_has_the_wall_clock_in_keys_of_its_own_and_an_old_one_in_the_published_keys():
    record = attempt(wall_galaxies_per_second=25.0, wall_seconds_per_batch=4.0, galaxies_per_cpu_second=50.0)
    values = msgspec.to_builtins(record)
    assert (values["galaxies_per_second"], values["seconds_per_batch"], values["sample_persec"]) == (25.0, 4.0, 50.0)
    old = {name: value for name, value in values.items() if name not in ("galaxies_per_second", "seconds_per_batch")}
    old |= {"sample_persec": 12.5, "execution_time (seconds/batch)": 8.0, "throughput_bps": 12.5 * 164160}
    read = decode_json(json.dumps(old), Record, where="it", remedy="none")
    assert (read.galaxies_per_second, read.seconds_per_batch) == (12.5, 8.0)
    [result] = merge_attempts([read])
    assert count_galaxies(result.published("results/1")) == 100
