"""`cosmicai bench analysis`: how long the analysis takes over the records of very many ranks, and its memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from ..engines.registry import BATCH_SIZE
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..measurement.subprocesses import child_with_peak
from ..ranks.environment import Rank
from ..runs.metrics import Metrics
from ..runs.plan import Plan, WorkItem
from ..runs.record import BITS_PER_GALAXY, PHASES, Recorder
from ..runs.store import RunFolder
from ..runs.summary import add_up, count_coverage, machine_of
from ..surveys.survey import ShardEntry, galaxies_per_partition
from .simulation import FITTED
from .timing import spread

GALAXIES = galaxies_per_partition(25)
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
APART = timedelta(days=1)  # of the runs
METRICS = Metrics(GALAXIES, mae=0.0125, mse=0.0003, bias=0.002, precision=0.0114, r2=0.9747, outliers=0.01)
COMMANDS = ("collect", "audit", "report")
COLUMNS = (
    Column("name", "command"),
    Column("runs", "runs", ","),
    Column("records", "records", ","),
    Column("seconds", "seconds", ",.1f"),
    Column("seconds_min", "fastest", ",.1f"),
    Column("seconds_max", "slowest", ",.1f"),
    Column("peak_rss_mb", "peak MB", ",.0f"),
)


def bench_analysis(runs: int, ranks: int, repeats: int, tell: Callable[[str], None]) -> Report:
    """`python -m analysis` over so many complete runs of so many ranks each, every command in a process of its own.

    `seconds` are by the clock from the start of the process to its end, `peak_rss_mb` is its largest resident memory in
    MB (2^20 bytes). The runs are made up (see `write_run`) and lie in the temporary folder (TMPDIR), where the system
    has just written and so still has them in memory. Raises InputError if a command fails.
    """
    here = machine()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        tell(f"making up {runs * ranks:,} records")
        for number in range(runs):
            write_run(str(Path(folder, "runs", str(number))), ranks, number)
        for repeat in range(repeats):
            for name in COMMANDS:
                tell(f"{name}, {repeat + 1} of {repeats}")
                found[name].append(_measured(name, str(Path(folder, "runs")), str(Path(folder, f"{name}-{repeat}"))))
    rows = [{"name": name, "runs": runs, "records": runs * ranks, **_figures(each)} for name, each in found.items()]
    return Report("Analysis", COLUMNS, rows, here, {"repeats": repeats})


def _measured(name: str, folder: str, out: str) -> tuple[float, float]:
    """Seconds and peak memory in MB of one command."""
    begin = time.perf_counter()
    _, peak = child_with_peak("analysis", name, folder, "--out", out)
    return time.perf_counter() - begin, peak


def _figures(measured: list[tuple[float, float]]) -> dict[str, float]:
    seconds, peaks = zip(*measured, strict=True)
    return {**spread("seconds", seconds), "peak_rss_mb": max(peaks)}


def write_run(uri: str, ranks: int, number: int) -> None:
    """A complete run that nobody made: a partition of 25 MB and an item for each rank, all ranks at once.

    Its parts are empty and it has no catalogue. The ranks' seconds are drawn as `simulation` has them, with `number` as
    the seed; runs of different numbers follow each other a day apart.
    """
    shards = tuple(ShardEntry(f"{rank + 1:06d}.h5", GALAXIES, 0) for rank in range(ranks))
    items = tuple(WorkItem(rank, 0, GALAXIES) for rank in range(ranks))
    plan = Plan(
        "survey", shards, "weights", "0" * 64, "openvino", "float32", "cpu", BATCH_SIZE["cpu"], 64, None, None, items,
    )  # fmt: skip
    run = RunFolder(uri)
    for name in ("parts", "records"):
        Path(run.path(name)).mkdir(parents=True)
    run.write_plan(plan)
    records = []
    for record in made_up(plan, ranks, number):  # without waiting for the disk, as RunFolder would 200,000 times
        records.append(record)
        Path(run.record_path(record["rank"], 1)).write_text(json.dumps(record, indent=1))
        Path(run.part_path(items[record["rank"]])).touch()
    summary = {
        "complete": True,
        "coverage": count_coverage(plan, set(items)) | {"flagged": {}},
        "metrics": vars(METRICS) | {"galaxies": plan.galaxies},
        "totals": add_up(records),
        "cost": None,
        "machines": [machine_of(records[0])],
        "failures": [],
        "plan_sha256": plan.digest,
    }
    run.write_json(run.summary_path, summary)


def made_up(plan: Plan, ranks: int, number: int) -> Iterator[dict[str, Any]]:
    """A record for each rank, with the figures of one that took all of them the time that was drawn for it."""
    rank = Rank(0, ranks, "local")
    template = Recorder(rank, plan.batch_size, plan.choice, None, "run", plan.survey).record() | {"state": "finished"}
    random, started = Random(number), STARTED + number * APART
    for own in range(ranks):
        working = GALAXIES * random.lognormvariate(*FITTED)
        seconds = dict(zip(PHASES, (0.5, 0.5, 0.02 * working, 0.97 * working, 0.01 * working), strict=True))
        batches = -(-GALAXIES // plan.batch_size)
        begun = started + timedelta(seconds=random.uniform(0, 2))
        yield template | {
            "rank": own,
            "local_rank": own,
            "galaxies": GALAXIES,
            "items": 1,
            "num_batches": batches,
            "seconds": seconds,
            "total_cpu_time (seconds)": 0.98 * working,
            "execution_time (seconds/batch)": working / batches,
            "sample_persec": GALAXIES / working,
            "throughput_bps": GALAXIES / working * BITS_PER_GALAXY,
            "started_at": begun.isoformat(),
            "working_at": (begun + timedelta(seconds=0.5)).isoformat(),
            "updated_at": (begun + timedelta(seconds=1 + working)).isoformat(),
        }
