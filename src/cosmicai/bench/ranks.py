"""`cosmicai bench ranks`: speed and memory of runs by number of ranks, and simulated schedules of thousands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from msgspec import structs

from ..errors import InputError
from ..measurement.engine_spec import EngineSpec, create_engine_run, parse_engine_specs, select_by_device
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import last_line, run_module_with_peak
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..ranks.cores import allowed_cores, available_cores
from ..runs.demo import GALAXIES_PER_SHARD
from ..runs.schedule import split_work
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from ..surveys.synthetic import write_synthetic_survey
from .galaxies import SEED
from .simulation import FITTED_TO, read_rates, simulate
from .timing import build_in_process, summarize_spread

WORLD_SIZES = (1_000, 10_000)  # ranks that are simulated
SHARDS, RECORDS = 1_000_000, 10_000  # to plan, and to summarize
SAMPLE_INTERVAL = 0.1  # seconds between samples of the memory of all ranks
COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("ranks", "ranks", "d"),
    MeasurementColumn("galaxies_per_second", "galaxies/s", ",.0f"),
    MeasurementColumn("galaxies_per_second_min", "min", ",.0f"),
    MeasurementColumn("galaxies_per_second_max", "max", ",.0f"),
    MeasurementColumn("speedup", "x one rank", ".2f"),
    MeasurementColumn("pss_mb", "MB of all ranks", ",.0f"),
    MeasurementColumn("added_mb", "MB of an added rank", ",.0f"),
)
# A launcher divides its available cores among its ranks, so it gets one core per rank while there are enough.
_ON_CORES = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


@dataclass(frozen=True)
class _RunFigures:
    """Galaxies per second of a complete run, and the peak memory of all its ranks in MB if it was sampled."""

    galaxies_per_second: float
    pss_mb: float | None


def bench_ranks(
    weights: str,
    galaxies: int,
    ranks: Sequence[int],
    repeats: int,
    engines: str,
    simulated: str | None,
    notify: Callable[[str], None],
) -> MeasurementTable:
    """Run a synthetic survey with each number of single-threaded ranks, one per core while there are enough cores.

    `galaxies_per_second` is the rate of the run, from the first read of any rank to the last write: median and range of
    the repeats, which are interleaved. `speedup` is relative to one rank, which is always measured. `pss_mb` is the
    peak memory of all ranks together (PSS: a page shared by n processes counts 1/n for each) while all of them run, in
    a first pass that is not timed; `added_mb` is the increase per rank after the first. The launcher is not included.
    MB are 2^20 bytes. `simulation`, `planning` and `summarizing` come from module `simulation`; its service times are
    drawn from the records in the folder `simulated`. Raises InputError if input or options are invalid or a run fails.
    """
    if sys.platform != "linux":
        raise InputError("the memory of ranks is measured with Linux's smaps_rollup; run `bench ranks` on Linux")
    if not (specs := select_by_device(parse_engine_specs(engines), ["cpu"])):
        raise InputError(f"--engines {engines}: ranks of one thread run on CPUs; use openvino or reference")
    drawn = None if simulated is None else read_rates(simulated)
    here, numbers = describe_machine(), sorted({1, *ranks})
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        survey = write_synthetic_survey(str(Path(folder, "survey")), galaxies, SEED, GALAXIES_PER_SHARD)
        planned = _plan_runs(specs, survey, weights, folder, notify)
        trials = {(spec.name, number): partial(_run_plan, run, number) for spec, run in planned for number in numbers}
        notify("memory")
        memory = {key: trial(str(Path(folder, "memory", *map(str, key))), True).pss_mb for key, trial in trials.items()}
        rates: dict[tuple[str, int], list[float]] = {key: [] for key in trials}
        for repeat in range(1, repeats + 1):
            notify(f"pass {repeat} of {repeats}")
            for key, trial in trials.items():
                rates[key].append(trial(str(Path(folder, str(repeat), *map(str, key))), False).galaxies_per_second)
    rows = [_make_row(name, number, rates, memory) for name, number in trials]
    notify("simulation, planning, summarizing")
    facts = {
        "weights": weights, "galaxies": galaxies, "repeats": repeats,
        "simulation": {
            "service_times": FITTED_TO if drawn is None else f"{len(drawn):,} records in {simulated}",
            "rows": [
                simulate(size, planned_for, drawn) for size in WORLD_SIZES for planned_for in (1, size)
            ],
        },
        "planning": _run_simulation("planning", SHARDS),
        "summarizing": _run_simulation("summarizing", RECORDS),
    }  # fmt: skip
    return MeasurementTable("Ranks", COLUMNS, rows, here, facts, _describe_facts(facts))


def _plan_runs(
    specs: Sequence[EngineSpec], survey: Survey, weights: str, folder: str, notify: Callable[[str], None]
) -> list[tuple[EngineSpec, RunFolder]]:
    """Return a planned run for each engine, whose plan the measured runs use.

    They are created in a process that ends before anything is measured: while it exists, the pages of its libraries
    are shared with the ranks and would lower their PSS.
    """
    planned = []
    with ExitStack() as stack:
        plan = build_in_process(stack, _planner)
        for spec in specs:
            run, notices = plan(spec, survey, weights, str(Path(folder, "planned", spec.name)))
            for notice in notices:
                notify(notice)
            if run:
                planned.append((spec, run))
    return planned


def _planner() -> Callable[..., tuple[RunFolder | None, list[str]]]:
    def plan(spec: EngineSpec, survey: Survey, weights: str, out: str) -> tuple[RunFolder | None, list[str]]:
        notices: list[str] = []
        return create_engine_run(spec, survey, weights, out, None, notices.append), notices

    return plan


def _run_plan(planned: RunFolder, ranks: int, out: str, sample_memory: bool) -> _RunFigures:
    """Run a plan, split for `ranks` ranks, in the folder `out`. Raises InputError if it is not completed."""
    run, plan = RunFolder(out), planned.plan()
    run.write_plan(structs.replace(plan, items=split_work(plan.shards, plan.batch_size, plan.inner_batch, ranks)))
    if name := plan.quantized:
        run.write_quantized(planned.read_quantized(name))
    cores = ",".join(map(str, allowed_cores()[: min(ranks, available_cores())]))
    command = ["launch", "resume", run.uri, "--procs", str(ranks)]
    largest = None
    with (
        TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-c", _ON_CORES, cores, *command], stdout=subprocess.DEVNULL, stderr=errors
        ) as process,
    ):
        while sample_memory and process.poll() is None:
            if (now := _read_ranks_pss_mb(run, ranks)) is not None:
                largest = max(now, largest or 0.0)
            time.sleep(SAMPLE_INTERVAL)
        if process.wait():
            errors.seek(0)
            last = last_line(errors.read().decode(errors="replace"))
            raise InputError(f"`python -m {' '.join(command)}` failed: {last}")
    summary = run.summary()
    assert summary, "a launcher that exits with 0 has written the summary"
    return _RunFigures(summary.totals.galaxies_per_second, largest)


def _read_ranks_pss_mb(run: RunFolder, ranks: int) -> float | None:
    """Return the memory of all ranks of a run in MB, or None unless all of them are running."""
    pids = {record.rank: record.pid for record in run.records().values() if record.state == "running"}
    return read_pss_mb(pids.values()) if len(pids) == ranks else None


def read_pss_mb(pids: Iterable[int]) -> float | None:
    """Return the proportional set size of these processes in MB (2^20 bytes), or None if one of them has ended."""
    total = 0
    for pid in pids:
        try:
            lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):  # it has ended or is ending
            return None
    return total / 1024


def _make_row(
    name: str, ranks: int, rates: dict[tuple[str, int], list[float]], memory: dict[tuple[str, int], float | None]
) -> dict[str, Any]:
    own, one = memory[name, ranks], memory[name, 1]
    return {
        "name": name,
        "ranks": ranks,
        **summarize_spread("galaxies_per_second", rates[name, ranks]),
        "speedup": median(rates[name, ranks]) / median(rates[name, 1]),
        "pss_mb": own,
        "added_mb": None if own is None or one is None or ranks == 1 else (own - one) / (ranks - 1),
    }


def _run_simulation(step: str, count: int) -> dict[str, Any]:
    """Return what module `simulation` printed, and `peak_rss_mb` of its process."""
    printed, peak = run_module_with_peak("cosmicai.bench.simulation", step, str(count))
    return {**json.loads(printed), "peak_rss_mb": peak}


def _describe_facts(facts: dict[str, Any]) -> dict[str, str]:
    """Return the figures that are not in the table, as notes for people."""
    notes = {
        "weights": facts["weights"],
        "galaxies": f"{facts['galaxies']:,} synthetic ones",
        "ranks": f"of one thread, one per core; more than {available_cores()} share the available cores",
        "simulation": f"time over the lower bound (range of draws); {facts['simulation']['service_times']}",
    }
    for own in facts["simulation"]["rows"]:
        notes[f"{own['ranks']:,} ranks, {own['items_per_rank']:.0f} items each"] = (
            f"  dynamic {own['dynamic_ratio']:.3f} ({own['dynamic_ratio_min']:.3f} to {own['dynamic_ratio_max']:.3f}), "
            f"static {own['static_ratio']:.3f} ({own['static_ratio_min']:.3f} to {own['static_ratio_max']:.3f})"
        )
    for name, what in (("planning", "shards"), ("summarizing", "records")):
        own = facts[name]
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in own["steps"].items())
        notes[name] = f"{own[what]:,} {what} in {own['seconds']:.1f} s ({steps}), {own['peak_rss_mb']:,.0f} MB"
    return notes
