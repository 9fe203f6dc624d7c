"""`cosmicai bench end-to-end`: how much of its engine's speed a run keeps, from disk to catalogue."""

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

from ..measurement.engine_spec import open_planned, parse_engines, plan_run
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..ranks.cores import available_cores
from ..ranks.environment import Rank
from ..runs.demo import GALAXIES_PER_SHARD, write_synthetic_survey
from ..runs.store import RunFolder
from ..runs.summary import summarize
from ..surveys.survey import Survey
from ..worker.loop import work
from .galaxies import SEED, read_all
from .timing import in_own_process, interleaved, predict_all, spread

COLUMNS = (
    Column("name", "engine"),
    Column("engine_galaxies_per_second", "engine alone, galaxies/s", ",.0f"),
    Column("run_galaxies_per_second", "run", ",.0f"),
    Column("run_galaxies_per_second_min", "min", ",.0f"),
    Column("run_galaxies_per_second_max", "max", ",.0f"),
    Column("run_fraction", "of the engine", ".1%"),
    Column("catalogue_galaxies_per_second", "with catalogue", ",.0f"),
    Column("catalogue_fraction", "of the engine", ".1%"),
)


def bench_end_to_end(weights: str, galaxies: int, repeats: int, engines: str, tell: Callable[[str], None]) -> Report:
    """Runs a synthetic survey and, in turn with it, gives the engine alone the same galaxies in memory.

    `run` counts from the first read to the last write, `catalogue` adds the time that catalogue, plot and summary
    take. The files are not in the system's cache when a run begins; the process has imported what it needs. Raises
    InputError for bad input.
    """
    here = machine()
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder, ExitStack() as stack:
        survey = write_synthetic_survey(str(Path(folder, "survey")), galaxies, SEED, GALAXIES_PER_SHARD)
        names, turns = [], []
        for own in parse_engines(engines):
            if run := plan_run(own, survey, weights, str(Path(folder, own.name)), None, tell):
                turn = in_own_process(stack, both_turns, run.uri, str(Path(folder, f"{own.name} again")))
                names.append(own.name)
                turns += [partial(turn, False), partial(turn, True)]
        measured = interleaved(turns, repeats, tell)
    rows = [_row(*own) for own in zip(names, measured[::2], measured[1::2], strict=True)]
    facts = {"weights": weights, "galaxies": galaxies, "repeats": repeats}
    notes = {"weights": weights, "galaxies": f"{galaxies:,} synthetic ones"}
    return Report("End to end", COLUMNS, rows, here, facts, notes)


def both_turns(begun: str, out: str) -> Callable[[bool], tuple[float, ...]]:
    """`turn(False)` is the engine alone, `turn(True)` a run of the same plan, each time in a new folder under `out`."""
    plan = RunFolder(begun).plan()
    survey, threads, numbers = Survey(plan.survey, plan.shards), available_cores(), count()
    in_memory, engine = read_all(survey), open_planned(RunFolder(begun))

    def turn(whole_run: bool) -> tuple[float, ...]:
        if whole_run:
            _forget(survey)
            return _run(RunFolder(begun), RunFolder(str(Path(out, str(next(numbers))))), threads)
        begin = time.perf_counter()
        predict_all(engine, plan.choice, in_memory, plan.batch_size, threads)
        return (len(in_memory) / (time.perf_counter() - begin),)

    return turn


def _run(begun: RunFolder, run: RunFolder, threads: int) -> tuple[float, float]:
    """Galaxies per second of a run by another one's plan, without and with its catalogue."""
    plan = begun.plan()
    run.write_plan(plan)
    if name := plan.quantized:
        run.write_quantized(begun.read_quantized(name))
    work(run, Rank(threads=threads))
    begin = time.perf_counter()
    totals = summarize(run)["totals"]
    with_catalogue = totals["working_seconds"] + time.perf_counter() - begin
    return totals["galaxies_per_second"], totals["galaxies"] / with_catalogue


def _forget(survey: Survey) -> None:
    for entry in survey.shards:
        with survey.open(entry) as shard:
            shard.forget(0, shard.galaxies)


def _row(name: str, alone: list[tuple[float, ...]], runs: list[tuple[float, ...]]) -> dict[str, Any]:
    engine, run, catalogue = (list(rates) for rates in (*zip(*alone, strict=True), *zip(*runs, strict=True)))
    return {
        "name": name,
        **spread("engine_galaxies_per_second", engine),
        **spread("run_galaxies_per_second", run),
        "run_fraction": median(run) / median(engine),
        **spread("catalogue_galaxies_per_second", catalogue),
        "catalogue_fraction": median(catalogue) / median(engine),
    }
