"""`cosmicai bench sweep`: a survey by size of partition, batch size and number of ranks.

    FOLDER/surveys/partition-25MB                 the survey, cut anew
    FOLDER/partition-25MB/batch-512/world-2/1     a run folder: the first repeat, by two ranks
    FOLDER/sweep.json                             machine, command and medians, written at the end

A run that is complete is never done again and one that was broken off is begun anew, so a sweep goes on where it
stopped. All combinations are run once before any is run twice.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from .. import storage
from ..console.progress import progress
from ..errors import InputError
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..models.weights import WeightsFile, find_weights
from ..runs.demo import named_survey
from ..runs.plan import Asked
from ..runs.store import RunFolder
from ..surveys.survey import Survey, galaxies_per_partition, open_survey, resplit
from .timing import spread

COLUMNS = (
    Column("partition_mb", "partition MB", "g"),
    Column("batch_size", "batch size", "d"),
    Column("world_size", "ranks", "d"),
    Column("runs", "runs", "d"),
    Column("galaxies_per_second", "galaxies/s", ",.0f"),
    Column("galaxies_per_second_min", "min", ",.0f"),
    Column("galaxies_per_second_max", "max", ",.0f"),
    Column("wall_seconds", "wall s", ",.1f"),
    Column("peak_rss_mb", "peak MB, largest rank", ",.0f"),
)


@dataclass(frozen=True)
class Sweep:
    """What is to be run on the survey at this address; None leaves it to the run."""

    survey: str
    folder: str
    weights: str
    partition_mb: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    world_sizes: tuple[int, ...]
    repeats: int
    engine: str | None = None
    precision: str | None = None

    @property
    def combinations(self) -> list[tuple[float, int, int]]:
        """Size of partition in MB (2^20 bytes), batch size, ranks."""
        return list(product(self.partition_mb, self.batch_sizes, self.world_sizes))

    def run(self, partition_mb: float, batch_size: int, world_size: int, repeat: int) -> RunFolder:
        """Where a run lies; repeats are numbered from 1."""
        names = (f"partition-{partition_mb:g}MB", f"batch-{batch_size}", f"world-{world_size}", str(repeat))
        return RunFolder(storage.join(storage.absolute(self.folder), *names))

    def cut_survey(self, partition_mb: float) -> str:
        """Where the survey in partitions of this size lies."""
        return storage.join(storage.absolute(self.folder), "surveys", f"partition-{partition_mb:g}MB")

    def command(self, partition_mb: float, batch_size: int, world_size: int, repeat: int) -> list[str]:
        """What is run, after `python -m`."""
        run = self.run(partition_mb, batch_size, world_size, repeat)
        chosen = {"--engine": self.engine, "--precision": self.precision}
        return [
            "launch", self.cut_survey(partition_mb), "--weights", self.weights, "--out", run.uri,
            "--batch-size", str(batch_size), "--procs", str(world_size), "--accept-precision-loss",
            *(word for name, value in chosen.items() if value for word in (name, value)),
        ]  # fmt: skip

    def missing(self) -> list[tuple[float, int, int, int]]:
        """The runs that are not complete: a combination and the number of the repeat."""
        repeats = range(1, self.repeats + 1)
        everything = ((*own, repeat) for repeat, own in product(repeats, self.combinations))
        return [own for own in everything if self.run(*own).complete_summary() is None]


def bench_sweep(sweep: Sweep, tell: Callable[[str], None]) -> tuple[Report, bool]:
    """Does the runs that are missing, one after the other; also says whether all of them are now complete.

    Raises InputError for bad input, and if the folder holds another sweep's runs. A run that fails is told.
    """
    here, weights, source = machine(), find_weights(sweep.weights), named_survey(sweep.survey, sweep.folder)
    surveys = {size: _cut(source, sweep.cut_survey(size), size) for size in sweep.partition_mb}
    missing, every = sweep.missing(), len(sweep.combinations) * sweep.repeats
    _refuse_others(sweep, surveys, weights)
    with progress(every, every - len(missing), unit="runs") as advance:
        for own in missing:
            run = sweep.run(*own)
            if run.has_plan():
                shutil.rmtree(run.uri)
            done = subprocess.run([sys.executable, "-m", *sweep.command(*own)], capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                tell(f"{run.uri} ended with exit code {done.returncode}: {last}")
            advance(1)
    rows = [_row(sweep, *own) for own in sweep.combinations]
    facts = {"survey": sweep.survey, "weights": sweep.weights, "galaxies": source.galaxies, "repeats": sweep.repeats}
    notes = {"weights": sweep.weights, "survey": f"{source.uri}, {source.galaxies:,} galaxies"}
    return Report("Sweep", COLUMNS, rows, here, facts, notes), not sweep.missing()


def _cut(source: Survey, out: str, partition_mb: float) -> Survey:
    if not storage.exists(out):
        return resplit(source, out, galaxies_per_partition(partition_mb))
    there = open_survey(out)
    if there.galaxies != source.galaxies:
        raise InputError(f"{out} holds {there.galaxies} galaxies, {source.uri} {source.galaxies}; choose another --out")
    return there


def _refuse_others(sweep: Sweep, surveys: dict[float, Survey], weights: WeightsFile) -> None:
    engine = None if sweep.engine == "auto" else sweep.engine
    for (size, batch_size, world_size), repeat in product(sweep.combinations, range(1, sweep.repeats + 1)):
        run, cut = sweep.run(size, batch_size, world_size, repeat), surveys[size]
        asked = Asked(cut.uri, cut.shards, weights.uri, weights.sha256, engine, sweep.precision, None, batch_size)
        if run.has_plan() and (different := run.plan().differences(asked)):
            raise InputError(
                f"{run.uri} belongs to another sweep (it differs in {', '.join(different)}); choose another --out"
            )


def _row(sweep: Sweep, partition_mb: float, batch_size: int, world_size: int) -> dict[str, Any]:
    runs = (sweep.run(partition_mb, batch_size, world_size, repeat) for repeat in range(1, sweep.repeats + 1))
    totals = [summary["totals"] for run in runs if (summary := run.complete_summary())]
    row: dict[str, Any] = {
        "partition_mb": partition_mb,
        "batch_size": batch_size,
        "world_size": world_size,
        "runs": len(totals),
    }
    for name in ("galaxies_per_second", "wall_seconds", "peak_rss_mb"):
        values = [total[name] for total in totals]
        row |= spread(name, values) if values else dict.fromkeys((name, f"{name}_min", f"{name}_max"))
    return row
