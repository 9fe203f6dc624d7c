"""`cosmicai bench end-to-end`: the fraction of the engine's speed that a run achieves, from disk to catalogue."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ..measurement.engine_spec import create_engine_run, open_run_engine, parse_engine_specs
from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..ranks.cores import available_cores
from ..runs.demo import GALAXIES_PER_SHARD
from ..runs.store import RunFolder
from ..runs.summarize import summarize
from ..surveys.shard import FIELDS
from ..surveys.survey import Survey, write_survey
from ..surveys.synthetic import write_synthetic_survey
from .galaxies import SEED, generate_noise, read_galaxies
from .timing import build_in_process, measure_interleaved, predict_all, summarize_spread
from .whole_run import drop_file_cache, repeat_run

COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("engine_galaxies_per_second", "engine alone, galaxies/s", ",.0f"),
    MeasurementColumn("run_galaxies_per_second", "run", ",.0f"),
    MeasurementColumn("run_galaxies_per_second_min", "min", ",.0f"),
    MeasurementColumn("run_galaxies_per_second_max", "max", ",.0f"),
    MeasurementColumn("run_fraction", "of the engine", ".1%"),
    MeasurementColumn("read_fraction", "waited for reading", ".1%"),
    MeasurementColumn("catalogue_galaxies_per_second", "with catalogue", ",.0f"),
    MeasurementColumn("catalogue_fraction", "of the engine", ".1%"),
)


def bench_end_to_end(
    weights: str,
    galaxies: int,
    repeats: int,
    engines: str,
    noise: bool,
    cached: bool,
    notify: Callable[[str], None],
) -> MeasurementTable:
    """Run a synthetic survey and, interleaved with it, the engine alone on the same galaxies in memory.

    `run` counts from the first read to the last write; `catalogue` adds the time for catalogue, plot and summary, and
    `read_fraction` is the share of the run that it waited for galaxies to be read. Unless `cached`, the files are not
    in the file system's cache when a run starts; the process has imported all modules. With `noise` the survey is
    noise, which is generated several times faster. Raises InputError if input or options are invalid.
    """
    here = describe_machine()
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder, ExitStack() as stack:
        uri = str(Path(folder, "survey"))
        if noise:
            survey = write_survey(uri, generate_noise(galaxies), galaxies, GALAXIES_PER_SHARD, FIELDS)
        else:
            survey = write_synthetic_survey(uri, galaxies, SEED, GALAXIES_PER_SHARD)
        names, trials = [], []
        for spec in parse_engine_specs(engines):
            if run := create_engine_run(spec, survey, weights, str(Path(folder, spec.name)), None, notify):
                trial = build_in_process(
                    stack, prepare_trials, run.uri, str(Path(folder, f"{spec.name} again")), cached
                )
                names.append(spec.name)
                trials += [partial(trial, False), partial(trial, True)]
        measured = measure_interleaved(trials, repeats, notify)
    rows = [_make_row(*results) for results in zip(names, measured[::2], measured[1::2], strict=True)]
    facts = {"weights": weights, "galaxies": galaxies, "repeats": repeats, "noise": noise, "cached": cached}
    kind, place = "of noise" if noise else "synthetic ones", "in the file system's cache" if cached else "on disk"
    notes = {"weights": weights, "galaxies": f"{galaxies:,} {kind}, {place}"}
    return MeasurementTable("End to end", COLUMNS, rows, here, facts, notes)


def prepare_trials(planned: str, out: str, cached: bool) -> Callable[[bool], tuple[float, ...]]:
    """Return a trial of the plan in the run folder `planned`.

    `trial(False)` runs the engine alone, `trial(True)` the whole run, each time in a new folder under `out`, of
    files which are in the file system's cache if `cached`.
    """
    plan = RunFolder(planned).plan()
    survey, threads, numbers = Survey(plan.survey, plan.shards), available_cores(), count()
    in_memory, engine = read_galaxies(survey), open_run_engine(RunFolder(planned))

    def trial(whole_run: bool) -> tuple[float, ...]:
        if whole_run:
            if not cached:
                drop_file_cache(survey)
            return _run(RunFolder(planned), RunFolder(str(Path(out, str(next(numbers))))), threads)
        begin = time.perf_counter()
        predict_all(engine, plan.choice, in_memory, plan.batch_size, threads)
        return (len(in_memory) / (time.perf_counter() - begin),)

    return trial


def _run(planned: RunFolder, run: RunFolder, threads: int) -> tuple[float, float, float]:
    """Repeat a run, and return galaxies per second without and with its catalogue, and the share of reading."""
    seconds = repeat_run(planned, run, threads).seconds
    begin = time.perf_counter()
    totals = summarize(run).totals
    with_catalogue = totals.working_seconds + time.perf_counter() - begin
    return totals.galaxies_per_second, totals.galaxies / with_catalogue, seconds.read / seconds.working


def _make_row(name: str, alone: list[tuple[float, ...]], runs: list[tuple[float, ...]]) -> dict[str, Any]:
    engine, run, catalogue, read = (list(values) for values in (*zip(*alone, strict=True), *zip(*runs, strict=True)))
    return {
        "name": name,
        **summarize_spread("engine_galaxies_per_second", engine),
        **summarize_spread("run_galaxies_per_second", run),
        "run_fraction": median(run) / median(engine),
        "read_fraction": median(read),
        **summarize_spread("catalogue_galaxies_per_second", catalogue),
        "catalogue_fraction": median(catalogue) / median(engine),
    }
