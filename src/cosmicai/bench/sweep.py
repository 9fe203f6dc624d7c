"""`cosmicai bench sweep`: a survey by partition size, batch size and number of ranks.

    FOLDER/surveys/partition-25MB                 the survey, split into partitions of this size
    FOLDER/partition-25MB/batch-512/world-2/1     a run folder: the first repeat, with two ranks
    FOLDER/sweep.json                             machine, command and medians, written at the end

A complete run is never repeated, and an incomplete one starts from scratch, so a sweep continues where it stopped. All
combinations are run once before any is run twice.
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
from ..console.progress import show_progress
from ..errors import InputError
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import last_line
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.weights import WeightsFile, find_weights
from ..runs.demo import open_named_survey
from ..runs.plan import PlanRequest
from ..runs.store import RunFolder
from ..storage.outputs import require_output_folder
from ..surveys.survey import Survey, galaxies_per_partition, open_survey, resplit_survey
from .timing import summarize_spread

COLUMNS = (
    MeasurementColumn("partition_mb", "partition MB", "g"),
    MeasurementColumn("batch_size", "batch size", "d"),
    MeasurementColumn("world_size", "ranks", "d"),
    MeasurementColumn("runs", "runs", "d"),
    MeasurementColumn("galaxies_per_second", "galaxies/s", ",.0f"),
    MeasurementColumn("galaxies_per_second_min", "min", ",.0f"),
    MeasurementColumn("galaxies_per_second_max", "max", ",.0f"),
    MeasurementColumn("wall_seconds", "wall s", ",.1f"),
    MeasurementColumn("peak_rss_mb", "peak MB, largest rank", ",.0f"),
)


@dataclass(frozen=True)
class Sweep:
    """All settings to run a survey with; an engine or precision of None is the default of a run."""

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
        """Partition size in MB (2^20 bytes), batch size and number of ranks of each combination."""
        return list(product(self.partition_mb, self.batch_sizes, self.world_sizes))

    def run_folder(self, partition_mb: float, batch_size: int, world_size: int, repeat: int) -> RunFolder:
        """Return the folder of a run; repeats are numbered from 1."""
        names = (f"partition-{partition_mb:g}MB", f"batch-{batch_size}", f"world-{world_size}", str(repeat))
        return RunFolder(storage.join(storage.absolute(self.folder), *names))

    def survey_uri(self, partition_mb: float) -> str:
        """Return the address of the survey in partitions of this size."""
        return storage.join(storage.absolute(self.folder), "surveys", f"partition-{partition_mb:g}MB")

    def command(self, partition_mb: float, batch_size: int, world_size: int, repeat: int) -> list[str]:
        """Return the command of a run, without `python -m`."""
        run = self.run_folder(partition_mb, batch_size, world_size, repeat)
        chosen = {"--engine": self.engine, "--precision": self.precision}
        return [
            "launch", self.survey_uri(partition_mb), "--weights", self.weights, "--out", run.uri,
            "--batch-size", str(batch_size), "--procs", str(world_size), "--accept-precision-loss",
            *(word for name, value in chosen.items() if value for word in (name, value)),
        ]  # fmt: skip

    def missing(self) -> list[tuple[float, int, int, int]]:
        """Return the settings of the runs that are not complete: a combination and the number of the repeat."""
        repeats = range(1, self.repeats + 1)
        settings = ((*combination, repeat) for repeat, combination in product(repeats, self.combinations))
        return [setting for setting in settings if self.run_folder(*setting).complete_summary() is None]


def bench_sweep(sweep: Sweep, notify: Callable[[str], None]) -> tuple[MeasurementTable, bool]:
    """Do the missing runs one after the other; return the table and whether all runs are now complete.

    `notify` receives the runs that fail. Raises InputError if input or options are invalid, or if the folder holds runs
    of another sweep.
    """
    require_output_folder(sweep.folder)
    here, weights = describe_machine(), find_weights(sweep.weights)
    source = open_named_survey(sweep.survey, sweep.folder)
    surveys = {size: _split_survey(source, sweep.survey_uri(size), size) for size in sweep.partition_mb}
    missing, total = sweep.missing(), len(sweep.combinations) * sweep.repeats
    _require_same_sweep(sweep, surveys, weights)
    with show_progress(total, total - len(missing), unit="runs") as advance:
        for setting in missing:
            run = sweep.run_folder(*setting)
            if run.has_plan():
                shutil.rmtree(run.uri)
            done = subprocess.run([sys.executable, "-m", *sweep.command(*setting)], capture_output=True, text=True)
            if done.returncode:
                notify(f"{run.uri} ended with exit code {done.returncode}: {last_line(done.stderr)}")
            advance(1)
    rows = [_make_row(sweep, *combination) for combination in sweep.combinations]
    facts = {"survey": sweep.survey, "weights": sweep.weights, "galaxies": source.galaxies, "repeats": sweep.repeats}
    notes = {"weights": sweep.weights, "survey": f"{source.uri}, {source.galaxies:,} galaxies"}
    return MeasurementTable("Sweep", COLUMNS, rows, here, facts, notes), not sweep.missing()


def _split_survey(source: Survey, out: str, partition_mb: float) -> Survey:
    if not storage.exists(out):
        return resplit_survey(source, out, galaxies_per_partition(partition_mb))
    survey = open_survey(out)
    if survey.galaxies != source.galaxies:
        raise InputError(
            f"{out} holds {survey.galaxies} galaxies, {source.uri} {source.galaxies}; choose another --out"
        )
    return survey


def _require_same_sweep(sweep: Sweep, surveys: dict[float, Survey], weights: WeightsFile) -> None:
    engine = None if sweep.engine == "auto" else sweep.engine
    for (size, batch_size, world_size), repeat in product(sweep.combinations, range(1, sweep.repeats + 1)):
        run, survey = sweep.run_folder(size, batch_size, world_size, repeat), surveys[size]
        request = PlanRequest(
            survey.uri, survey.shards, weights.uri, weights.sha256, engine, sweep.precision, None, batch_size
        )
        if run.has_plan() and (different := run.plan().differences(request)):
            raise InputError(
                f"{run.uri} belongs to another sweep (it differs in {', '.join(different)}); choose another --out"
            )


def _make_row(sweep: Sweep, partition_mb: float, batch_size: int, world_size: int) -> dict[str, Any]:
    runs = (sweep.run_folder(partition_mb, batch_size, world_size, repeat) for repeat in range(1, sweep.repeats + 1))
    totals = [summary.totals for run in runs if (summary := run.complete_summary())]
    row: dict[str, Any] = {
        "partition_mb": partition_mb,
        "batch_size": batch_size,
        "world_size": world_size,
        "runs": len(totals),
    }
    for name in ("galaxies_per_second", "wall_seconds", "peak_rss_mb"):
        values = [getattr(total, name) for total in totals]
        row |= summarize_spread(name, values) if values else dict.fromkeys((name, f"{name}_min", f"{name}_max"))
    return row
