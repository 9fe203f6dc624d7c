"""How thousands of ranks would share a survey, reckoned instead of run: the plan's own code, and service times drawn
from what was measured elsewhere.

`python -m cosmicai.bench.simulation planning SHARDS` and `... summarizing RECORDS` do for real what one process does
for so many, and print JSON: seconds by step.
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

import numpy as np
from numpy.typing import NDArray

from ..engines.registry import BATCH_SIZE
from ..errors import InputError
from ..ranks.environment import Rank
from ..runs.plan import Plan, WorkItem
from ..runs.record import Recorder
from ..runs.schedule import cut, largest_first, owners, share
from ..runs.store import RunFolder
from ..runs.summary import summarize
from ..surveys.survey import ShardEntry, Survey, galaxies_per_partition
from .timing import spread

# Mean and standard deviation of the logarithm of seconds per galaxy.
# AI-for-Astronomy Lambda records, partition 25MB/100MB, 13,749 records.
FITTED = (-5.398, 0.280)
FITTED_TO = "lognormal fitted to AI-for-Astronomy Lambda records, partition 25MB/100MB, 13,749 records"
PARTITIONS_PER_RANK, PARTITION_MB = 10, 25.0
BATCH, INNER_BATCH = BATCH_SIZE["cpu"], 64
DRAWS = 5
PLANNED_FOR = 1000  # ranks, one of which shares out the plan of `planning`

Rates = NDArray[np.float64]
T = TypeVar("T")


def read_rates(folder: str) -> Rates:
    """Seconds per galaxy of each record in the files `combined_data.json` at any depth; what is no record is left out.

    A record counts whole batches, so that its last one, mostly not full, makes it look a little faster than it was.
    Raises InputError if there is none.
    """
    found: list[float] = []
    for path in sorted(Path(folder).rglob("combined_data.json")):
        try:
            records = json.loads(path.read_bytes())
        except ValueError:
            continue
        found += filter(None, map(_seconds_per_galaxy, records if isinstance(records, list) else ()))
    if not found:
        raise InputError(f"{folder} holds no combined_data.json with records of ranks; name a folder of finished runs")
    return np.array(found)


def _seconds_per_galaxy(record: object) -> float | None:
    names = ("total_cpu_time (seconds)", "num_batches", "batch_size")
    values = [record.get(name) for name in names] if isinstance(record, dict) else []
    numbers = [float(value) for value in values if isinstance(value, int | float) and 0 < value < inf]
    if len(numbers) < len(names):
        return None
    seconds, batches, size = numbers
    return seconds / (batches * size)


def simulate(ranks: int, planned_for: int, rates: Rates | None) -> dict[str, Any]:
    """So many ranks on a survey of ten published partitions of 25 MB each, cut for `planned_for` ranks.

    Every item takes its galaxies times a number of seconds of its own, drawn from `rates` or else from the lognormal
    that was fitted. `dynamic_ratio` and `static_ratio` are the time of both schedules over the lower bound (median and
    range of DRAWS), `dynamic_to_mean` that of the dynamic one over what each rank has to do on average, which a single
    long item cannot flatter.
    """
    galaxies = galaxies_per_partition(PARTITION_MB)
    shards = [ShardEntry(f"{number:06d}.h5", galaxies, 0) for number in range(PARTITIONS_PER_RANK * ranks)]
    items = largest_first(cut(shards, BATCH, INNER_BATCH, planned_for))
    sizes = np.array([item.galaxies for item in items])
    dealt = np.fromiter(owners(sizes.tolist(), ranks), int)
    dynamic, static, to_mean = [], [], []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        drawn = rng.lognormal(*FITTED, len(items)) if rates is None else rng.choice(rates, len(items))
        seconds = sizes * drawn
        bound, needed = lower_bound(seconds, ranks), dynamic_makespan(seconds.tolist(), ranks)
        dynamic.append(needed / bound)
        static.append(float(np.bincount(dealt, seconds).max()) / bound)
        to_mean.append(needed * ranks / float(seconds.sum()))
    return {
        "ranks": ranks, "planned_for": planned_for, "items": len(items), "items_per_rank": len(items) / ranks,
        "largest_item": int(sizes.max()), "smallest_item": int(sizes.min()),
        **spread("dynamic_ratio", dynamic), **spread("static_ratio", static), "dynamic_to_mean": median(to_mean),
    }  # fmt: skip


def lower_bound(seconds: NDArray[np.float64], ranks: int) -> float:
    """No schedule of these items ends before all ranks have done their even share, or one of them the longest item."""
    return max(float(seconds.sum()) / ranks, float(seconds.max()))


def dynamic_makespan(seconds: Iterable[float], ranks: int) -> float:
    """When the last item ends, if each goes to the rank that is free first, in this order."""
    free = [0.0] * ranks
    for own in seconds:
        heapq.heapreplace(free, free[0] + own)
    return max(free)


def planning(count: int) -> dict[str, Any]:
    """Plans a survey of so many shards, and reads the plan as a rank does: seconds by step."""
    seconds: dict[str, float] = {}
    text = _planned(count, seconds)
    plan = _timed(seconds, "from_json", lambda: Plan.from_json(text, "plan.json"))
    _timed(seconds, "share", lambda: share(plan.items, 0, PLANNED_FOR))
    return {"shards": count, "items": len(plan.items), "steps": seconds, "seconds": sum(seconds.values())}


def _planned(count: int, seconds: dict[str, float]) -> str:
    survey = Survey("survey", tuple(_shards(count)))
    items = _timed(seconds, "cut", lambda: cut(survey.shards, BATCH, INNER_BATCH, PLANNED_FOR))
    plan = _plan(survey, items)
    text = _timed(seconds, "to_json", plan.to_json)
    _timed(seconds, "digest", lambda: plan.digest)
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


def summarizing(count: int) -> dict[str, Any]:
    """Reads the records of so many ranks, and summarizes their run, of which nothing is done: seconds of either."""
    seconds: dict[str, float] = {}
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        run, survey = RunFolder(folder), Survey("survey", tuple(_shards(1)))
        run.write_plan(plan := _plan(survey, cut(survey.shards, BATCH, INNER_BATCH)))
        record = Recorder(Rank(0, count), BATCH, plan.choice, None, run.uri, survey.uri).record()
        Path(folder, "records").mkdir()
        for rank in range(count):
            Path(run.record_path(rank, 1)).write_text(json.dumps(record | {"rank": rank}))
        found = _timed(seconds, "read", run.records)
        _timed(seconds, "summarize", lambda: summarize(run))
    return {"records": len(found), "steps": seconds, "seconds": seconds["summarize"]}


def _timed(seconds: dict[str, float], name: str, step: Callable[[], T]) -> T:
    begin = time.perf_counter()
    result = step()
    seconds[name] = time.perf_counter() - begin
    return result


if __name__ == "__main__":
    print(json.dumps({"planning": planning, "summarizing": summarizing}[sys.argv[1]](int(sys.argv[2]))))
