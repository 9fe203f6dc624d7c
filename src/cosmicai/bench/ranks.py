"""`cosmicai bench ranks`: how speed and memory of a run grow with its ranks, and how thousands would share a survey."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from ..errors import InputError
from ..measurement.engine_spec import Wanted, of_devices, parse_engines, plan_run
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..measurement.subprocesses import child_with_peak
from ..ranks.cores import allowed_cores, available_cores
from ..runs.demo import GALAXIES_PER_SHARD, write_synthetic_survey
from ..runs.schedule import cut
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from .galaxies import SEED
from .simulation import FITTED_TO, read_rates, simulate
from .timing import in_own_process, spread

WORLD_SIZES = (1_000, 10_000)  # ranks that are simulated
SHARDS, RECORDS = 1_000_000, 10_000  # that are planned, and summarized
SAMPLE_EVERY = 0.1  # seconds between looks at the memory of all ranks
COLUMNS = (
    Column("name", "engine"),
    Column("ranks", "ranks", "d"),
    Column("galaxies_per_second", "galaxies/s", ",.0f"),
    Column("galaxies_per_second_min", "min", ",.0f"),
    Column("galaxies_per_second_max", "max", ",.0f"),
    Column("speedup", "x one rank", ".2f"),
    Column("pss_mb", "MB of all ranks", ",.0f"),
    Column("added_mb", "MB of an added rank", ",.0f"),
)
# A launcher divides the cores that it may use among its ranks; so it gets one for each rank, as far as they go.
_ON_CORES = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
os.execv(sys.executable, [sys.executable, "-m", *sys.argv[2:]])
"""


@dataclass(frozen=True)
class _Launched:
    """A run that is complete: its galaxies per second, and the memory of its ranks in MB where it was looked at."""

    galaxies_per_second: float
    pss_mb: float | None


def bench_ranks(
    weights: str,
    galaxies: int,
    ranks: Sequence[int],
    repeats: int,
    engines: str,
    simulated: str | None,
    tell: Callable[[str], None],
) -> Report:
    """Runs a synthetic survey with each number of ranks of one thread, each on a core of its own while there are any.

    `galaxies_per_second` is the run's own, from the first read of any rank to the last write: median and range of the
    repeats, which take turns. `speedup` is against one rank, which is always measured. `pss_mb` is the largest sum of
    what all ranks hold (PSS: a page that several processes share counts to each in part) while all of them are there,
    in a first pass, which is not timed; `added_mb` is what each rank after the first adds to it. The launcher is no
    rank. MB are 2^20 bytes. `simulation`, `planning` and `summarizing` are of module `simulation`; its service times
    are drawn from the records in the folder `simulated`. Raises InputError for bad input or if a run fails.
    """
    if sys.platform != "linux":
        raise InputError("the memory of ranks is measured with Linux's smaps_rollup; run `bench ranks` on Linux")
    if not (wanted := of_devices(parse_engines(engines), ["cpu"])):
        raise InputError(f"--engines {engines}: ranks of one thread run on CPUs; use openvino or reference")
    drawn = None if simulated is None else read_rates(simulated)
    here, numbers = machine(), sorted({1, *ranks})
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        survey = write_synthetic_survey(str(Path(folder, "survey")), galaxies, SEED, GALAXIES_PER_SHARD)
        begun = _begun(wanted, survey, weights, folder, tell)
        turns = {(own.name, number): partial(_launched, run, number) for own, run in begun for number in numbers}
        tell("memory")
        held = {key: turn(str(Path(folder, "memory", *map(str, key))), True).pss_mb for key, turn in turns.items()}
        rates: dict[tuple[str, int], list[float]] = {key: [] for key in turns}
        for repeat in range(1, repeats + 1):
            tell(f"pass {repeat} of {repeats}")
            for key, turn in turns.items():
                rates[key].append(turn(str(Path(folder, str(repeat), *map(str, key))), False).galaxies_per_second)
    rows = [_row(name, number, rates, held) for name, number in turns]
    tell("simulation, planning, summarizing")
    facts = {
        "weights": weights, "galaxies": galaxies, "repeats": repeats,
        "simulation": {
            "service_times": FITTED_TO if drawn is None else f"{len(drawn):,} records in {simulated}",
            "rows": [
                simulate(size, planned_for, drawn) for size in WORLD_SIZES for planned_for in (1, size)
            ],
        },
        "planning": _in_child("planning", SHARDS),
        "summarizing": _in_child("summarizing", RECORDS),
    }  # fmt: skip
    return Report("Ranks", COLUMNS, rows, here, facts, _notes(facts))


def _begun(
    wanted: Sequence[Wanted], survey: Survey, weights: str, folder: str, tell: Callable[[str], None]
) -> list[tuple[Wanted, RunFolder]]:
    """Runs whose plans the measured ones take over. They are begun in a process that ends: as long as it lives, the
    pages of its libraries would count to the ranks in part only."""
    found = []
    with ExitStack() as stack:
        plan = in_own_process(stack, _planner)
        for own in wanted:
            run, notices = plan(own, survey, weights, str(Path(folder, "begun", own.name)))
            for notice in notices:
                tell(notice)
            if run:
                found.append((own, run))
    return found


def _planner() -> Callable[..., tuple[RunFolder | None, list[str]]]:
    def plan(own: Wanted, survey: Survey, weights: str, out: str) -> tuple[RunFolder | None, list[str]]:
        notices: list[str] = []
        return plan_run(own, survey, weights, out, None, notices.append), notices

    return plan


def _launched(begun: RunFolder, ranks: int, out: str, sampled: bool) -> _Launched:
    """Runs a plan anew, cut for so many ranks, in the folder `out`. Raises InputError if it is not completed."""
    run, plan = RunFolder(out), begun.plan()
    run.write_plan(replace(plan, items=cut(plan.shards, plan.batch_size, plan.inner_batch, ranks)))
    if name := plan.quantized:
        run.write_quantized(begun.read_quantized(name))
    cores = ",".join(map(str, allowed_cores()[: min(ranks, available_cores())]))
    command = ["launch", "resume", run.uri, "--procs", str(ranks)]
    largest = None
    with (
        TemporaryFile() as said,
        subprocess.Popen(
            [sys.executable, "-c", _ON_CORES, cores, *command], stdout=subprocess.DEVNULL, stderr=said
        ) as process,
    ):
        while sampled and process.poll() is None:
            if (now := _pss_of_ranks_mb(run, ranks)) is not None:
                largest = max(now, largest or 0.0)
            time.sleep(SAMPLE_EVERY)
        if process.wait():
            said.seek(0)
            last = (said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise InputError(f"`python -m {' '.join(command)}` failed: {last}")
    totals = (run.summary() or {})["totals"]
    return _Launched(totals["galaxies_per_second"], largest)


def _pss_of_ranks_mb(run: RunFolder, ranks: int) -> float | None:
    """What all ranks of a run hold now; None unless all of them are there."""
    pids = {record["rank"]: record["pid"] for record in run.records().values() if record["state"] == "running"}
    return pss_mb(pids.values()) if len(pids) == ranks else None


def pss_mb(pids: Iterable[int]) -> float | None:
    """Memory that these processes hold in MB (2^20 bytes), a page that they share with others in part; None if one of
    them is gone."""
    total = 0
    for pid in pids:
        try:
            lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):  # it has ended, or is just about to
            return None
    return total / 1024


def _row(
    name: str, ranks: int, rates: dict[tuple[str, int], list[float]], held: dict[tuple[str, int], float | None]
) -> dict[str, Any]:
    own, one = held[name, ranks], held[name, 1]
    return {
        "name": name,
        "ranks": ranks,
        **spread("galaxies_per_second", rates[name, ranks]),
        "speedup": median(rates[name, ranks]) / median(rates[name, 1]),
        "pss_mb": own,
        "added_mb": None if own is None or one is None or ranks == 1 else (own - one) / (ranks - 1),
    }


def _in_child(what: str, count: int) -> dict[str, Any]:
    """Of module `simulation`: what it printed, and `peak_rss_mb` of the process."""
    printed, peak = child_with_peak("cosmicai.bench.simulation", what, str(count))
    return {**json.loads(printed), "peak_rss_mb": peak}


def _notes(facts: dict[str, Any]) -> dict[str, str]:
    """What is no row of the table, for people."""
    notes = {
        "weights": facts["weights"],
        "galaxies": f"{facts['galaxies']:,} synthetic ones",
        "ranks": f"of one thread, each on its own core; more than {available_cores()} share the cores that there are",
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
