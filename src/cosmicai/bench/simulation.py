"""Simulated schedules of runs with thousands of ranks, with the real planner and service times drawn from records.

`python -m cosmicai.bench.simulation planning SHARDS` and `... summarizing RECORDS` execute what a single process does
for as many shards or records, and print JSON: seconds by step.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from .. import storage
from ..engines.registry import BATCH_SIZE
from ..errors import InputError
from ..ranks.environment import Rank
from ..runs.plan import Plan, WorkItem
from ..runs.recorder import Recorder
from ..runs.schedule import assign_ranks, largest_first, split_work, static_assignment
from ..runs.store import RunFolder
from ..runs.summarize import summarize
from ..surveys.survey import ShardEntry, Survey, galaxies_per_partition
from .timing import summarize_spread

# Mean and standard deviation of the logarithm of seconds per galaxy.
# AI-for-Astronomy Lambda records, partition 25MB/100MB, 13,749 records.
FITTED = (-5.398, 0.280)
FITTED_TO = "lognormal fitted to AI-for-Astronomy Lambda records, partition 25MB/100MB, 13,749 records"
PARTITIONS_PER_RANK, PARTITION_MB = 10, 25.0
BATCH, INNER_BATCH = BATCH_SIZE["cpu"], 64
DRAWS = 5
PLANNED_FOR = 1000  # ranks of the plan in `time_planning`

Rates = NDArray[np.float64]
T = TypeVar("T")


def read_rates(folder: str) -> Rates:
    """Return seconds per galaxy of every valid record in the files `combined_data.json` at any depth.

    A record counts batches as full, although the last one usually is not, so that the rates are slightly too high.
    Raises InputError if there is no valid record.
    """
    rates: list[float] = []
    for path in sorted(Path(folder).rglob("combined_data.json")):
        try:
            # Not by `records.decode_json`, since these may hold NaN.
            records = json.loads(storage.read_bytes(str(path)))
        except (ValueError, RecursionError):
            continue
        rates += filter(None, map(_seconds_per_galaxy, records if isinstance(records, list) else ()))
    if not rates:
        raise InputError(f"{folder} holds no combined_data.json with records of ranks; name a folder of finished runs")
    return np.array(rates)


def _seconds_per_galaxy(record: object) -> float | None:
    names = ("total_cpu_time (seconds)", "num_batches", "batch_size")
    values = [record.get(name) for name in names] if isinstance(record, dict) else []
    numbers = [float(value) for value in values if isinstance(value, int | float) and 0 < value < inf]
    if len(numbers) < len(names):
        return None
    seconds, batches, size = numbers
    return seconds / (batches * size)


def simulate(ranks: int, planned_for: int, rates: Rates | None) -> dict[str, Any]:
    """Simulate `ranks` ranks on a survey of ten published partitions of 25 MB per rank, split for `planned_for` ranks.

    The seconds per galaxy of each work item are drawn from `rates`, or from the fitted lognormal distribution.
    `dynamic_ratio` and `static_ratio` are the time of the two schedules relative to the lower bound (median and range
    of DRAWS). `dynamic_to_mean` is the time of the dynamic one relative to the mean work per rank, which unlike the
    lower bound does not depend on the longest item.
    """
    galaxies = galaxies_per_partition(PARTITION_MB)
    shards = [ShardEntry(f"{number:06d}.h5", galaxies, 0) for number in range(PARTITIONS_PER_RANK * ranks)]
    items = largest_first(split_work(shards, BATCH, INNER_BATCH, planned_for))
    sizes = np.array([item.galaxies for item in items])
    assigned = np.fromiter(assign_ranks(sizes.tolist(), ranks), int)
    dynamic, static, to_mean = [], [], []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        drawn = rng.lognormal(*FITTED, len(items)) if rates is None else rng.choice(rates, len(items))
        seconds = sizes * drawn
        bound, makespan = compute_lower_bound(seconds, ranks), simulate_dynamic(seconds.tolist(), ranks)
        dynamic.append(makespan / bound)
        static.append(float(np.bincount(assigned, seconds).max()) / bound)
        to_mean.append(makespan * ranks / float(seconds.sum()))
    return {
        "ranks": ranks, "planned_for": planned_for, "items": len(items), "items_per_rank": len(items) / ranks,
        "largest_item": int(sizes.max()), "smallest_item": int(sizes.min()),
        **summarize_spread("dynamic_ratio", dynamic), **summarize_spread("static_ratio", static),
        "dynamic_to_mean": median(to_mean),
    }  # fmt: skip


def compute_lower_bound(seconds: NDArray[np.float64], ranks: int) -> float:
    """Return a lower bound for the time of any schedule: an equal share per rank, or the longest item."""
    return max(float(seconds.sum()) / ranks, float(seconds.max()))


def simulate_dynamic(seconds: Iterable[float], ranks: int) -> float:
    """Return the time when the last item ends if each item, in this order, goes to the rank that is free first."""
    free = [0.0] * ranks
    for duration in seconds:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def time_planning(count: int) -> dict[str, Any]:
    """Plan a survey of `count` shards and read the plan as a rank does; return the seconds by step."""
    seconds: dict[str, float] = {}
    text = _make_plan(count, seconds)
    plan = _time(seconds, "from_json", lambda: Plan.from_json(text, "plan.json"))
    _time(seconds, "share", lambda: static_assignment(plan.items, 0, PLANNED_FOR))
    return {"shards": count, "items": len(plan.items), "steps": seconds, "seconds": sum(seconds.values())}


def _make_plan(count: int, seconds: dict[str, float]) -> bytes:
    survey = Survey("survey", tuple(_shards(count)))
    items = _time(seconds, "cut", lambda: split_work(survey.shards, BATCH, INNER_BATCH, PLANNED_FOR))
    plan = _plan(survey, items)
    text = _time(seconds, "to_json", plan.to_json)
    _time(seconds, "digest", lambda: plan.digest)
    return text


def _shards(count: int) -> Iterator[ShardEntry]:
    galaxies = galaxies_per_partition(PARTITION_MB)
    for number in range(count):
        yield ShardEntry(f"{number:07d}.h5", galaxies, 26_353_000, hashlib.sha256(b"%d" % number).hexdigest())


def _plan(survey: Survey, items: tuple[WorkItem, ...]) -> Plan:
    return Plan(
        survey.uri, survey.shards, "weights", "0" * 64, "openvino", "float32", "cpu", BATCH, INNER_BATCH, None, None,
        items,
    )  # fmt: skip


def time_summarizing(count: int) -> dict[str, Any]:
    """Read the records of `count` ranks and summarize their run, which has no parts; return the seconds by step."""
    seconds: dict[str, float] = {}
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        run, survey = RunFolder(folder), Survey("survey", tuple(_shards(1)))
        run.write_plan(plan := _plan(survey, split_work(survey.shards, BATCH, INNER_BATCH)))
        record = Recorder(Rank(0, count), BATCH, plan.choice, None, run.uri, survey.uri).record()
        Path(folder, "records").mkdir()
        for rank in range(count):
            Path(run.record_path(rank, 1)).write_bytes(msgspec.json.encode(structs.replace(record, rank=rank)))
        records = _time(seconds, "read", run.records)
        _time(seconds, "summarize", lambda: summarize(run))
    return {"records": len(records), "steps": seconds, "seconds": seconds["summarize"]}


def _time(seconds: dict[str, float], name: str, step: Callable[[], T]) -> T:
    begin = time.perf_counter()
    result = step()
    seconds[name] = time.perf_counter() - begin
    return result


if __name__ == "__main__":
    print(json.dumps({"planning": time_planning, "summarizing": time_summarizing}[sys.argv[1]](int(sys.argv[2]))))
