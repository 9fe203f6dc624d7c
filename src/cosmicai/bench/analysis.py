"""`cosmicai bench analysis`: time and memory of the analysis on the records of many ranks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import msgspec
from msgspec import structs

from ..engines.registry import BATCH_SIZE
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import run_module_with_peak
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..ranks.environment import Rank
from ..runs.metrics import Metrics
from ..runs.plan import Plan, WorkItem
from ..runs.record import BITS_PER_GALAXY, PhaseSeconds, Record
from ..runs.recorder import Recorder
from ..runs.store import RunFolder
from ..runs.summary import Summary, SummaryMetrics, add_up, count_coverage
from ..surveys.survey import ShardEntry, galaxies_per_partition
from .simulation import FITTED
from .timing import summarize_spread

GALAXIES = galaxies_per_partition(25)
STARTED = datetime(2026, 1, 1, tzinfo=UTC)
INTERVAL = timedelta(days=1)  # between runs
METRICS = Metrics(GALAXIES, mae=0.0125, mse=0.0003, bias=0.002, precision=0.0114, r2=0.9747, outliers=0.01)
COMMANDS = ("collect", "audit", "report")
COLUMNS = (
    MeasurementColumn("name", "command"),
    MeasurementColumn("runs", "runs", ","),
    MeasurementColumn("records", "records", ","),
    MeasurementColumn("seconds", "seconds", ",.1f"),
    MeasurementColumn("seconds_min", "fastest", ",.1f"),
    MeasurementColumn("seconds_max", "slowest", ",.1f"),
    MeasurementColumn("peak_rss_mb", "peak MB", ",.0f"),
)


def bench_analysis(runs: int, ranks: int, repeats: int, notify: Callable[[str], None]) -> MeasurementTable:
    """Measure the commands of `python -m analysis` on `runs` complete runs of `ranks` ranks, each in its own process.

    `seconds` are wall-clock time from start to end of the process; `peak_rss_mb` is its peak resident memory in MB
    (2^20 bytes). The runs are generated (see `write_run`) in the temporary folder (TMPDIR) and are still in the file
    system's cache. Raises InputError if a command fails.
    """
    here = describe_machine()
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        notify(f"generating {runs * ranks:,} records")
        for number in range(runs):
            write_run(str(Path(folder, "runs", str(number))), ranks, number)
        for repeat in range(repeats):
            for name in COMMANDS:
                notify(f"{name}, {repeat + 1} of {repeats}")
                results[name].append(_measure(name, str(Path(folder, "runs")), str(Path(folder, f"{name}-{repeat}"))))
    rows = [{"name": name, "runs": runs, "records": runs * ranks, **_summarize(each)} for name, each in results.items()]
    return MeasurementTable("Analysis", COLUMNS, rows, here, {"repeats": repeats})


def _measure(name: str, folder: str, out: str) -> tuple[float, float]:
    """Return seconds and peak memory in MB of one command."""
    begin = time.perf_counter()
    _, peak = run_module_with_peak("analysis", name, folder, "--out", out)
    return time.perf_counter() - begin, peak


def _summarize(results: list[tuple[float, float]]) -> dict[str, float]:
    seconds, peaks = zip(*results, strict=True)
    return {**summarize_spread("seconds", seconds), "peak_rss_mb": max(peaks)}


def write_run(uri: str, ranks: int, number: int) -> None:
    """Write the folder of a complete run that was never executed: one partition of 25 MB and one work item per rank.

    Parts are empty and there is no catalogue. The ranks' seconds are drawn from the distribution of `simulation`, with
    `number` as the seed; runs of consecutive numbers are a day apart.
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
    for record in generate_records(plan, ranks, number):  # RunFolder would wait for the disk
        records.append(record)
        Path(run.record_path(record.rank, 1)).write_text(json.dumps(msgspec.to_builtins(record), indent=1))
        Path(run.part_path(items[record.rank])).touch()
    summary = Summary(
        complete=True,
        coverage=structs.replace(count_coverage(plan, set(items)), flagged={}),
        metrics=SummaryMetrics.from_metrics(replace(METRICS, galaxies=plan.galaxies)),
        totals=add_up(records),
        cost=None,
        machines=(records[0].measured_on,),
        failures=(),
        plan_sha256=plan.digest,
        catalogue_sha256="",
        catalogue=run.catalogue_path,
        plot=run.plot_path("png"),
    )
    run.write_json(run.summary_path, summary)


def generate_records(plan: Plan, ranks: int, number: int) -> Iterator[Record]:
    """Yield a record for each rank, consistent with the time drawn for it."""
    rank = Rank(0, ranks, "local")
    template = Recorder(rank, plan.batch_size, plan.choice, None, "run", plan.survey).record()
    random, started = Random(number), STARTED + number * INTERVAL
    for own in range(ranks):
        working = GALAXIES * random.lognormvariate(*FITTED)
        seconds = PhaseSeconds(0.5, 0.5, 0.02 * working, 0.97 * working, 0.01 * working)
        batches = -(-GALAXIES // plan.batch_size)
        rank_started = started + timedelta(seconds=random.uniform(0, 2))
        yield structs.replace(
            template,
            state="finished",
            rank=own,
            local_rank=own,
            galaxies=GALAXIES,
            items=1,
            batches=batches,
            seconds=seconds,
            cpu_seconds=0.98 * working,
            seconds_per_batch=working / batches,
            galaxies_per_second=GALAXIES / working,
            throughput_bps=GALAXIES / working * BITS_PER_GALAXY,
            started_at=rank_started.isoformat(),
            working_at=(rank_started + timedelta(seconds=0.5)).isoformat(),
            updated_at=(rank_started + timedelta(seconds=1 + working)).isoformat(),
        )
