"""`cosmicai bench start`: seconds from the start of a process to its first redshifts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ..measurement.engine_spec import parse_engines, plan_run
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..measurement.subprocesses import child_json
from .galaxies import galaxies_in_memory, write_galaxies
from .timing import interleaved, spread

GALAXIES = 512
COLUMNS = (
    Column("name", "engine"),
    Column("imports_seconds", "imports s", ".2f"),
    Column("engine_seconds", "engine open s", ".2f"),
    Column("first_prediction_seconds", "first prediction s", ".2f"),
    Column("first_prediction_seconds_min", "min", ".2f"),
    Column("first_prediction_seconds_max", "max", ".2f"),
    Column("cold_first_prediction_seconds", "first prediction s, nothing cached", ".2f"),
)


def bench_start(weights: str, repeats: int, engines: str, tell: Callable[[str], None]) -> Report:
    """Starts a process per engine and repeat, which does what a rank does (`start_child`), one at a time.

    All seconds count from the start of the process, of which the kernel tells hundredths. The cache folder of an
    engine is its own and empty at first: the first process makes the compiled network (but for the choice of its inner
    batch, which was made before), the others find it. Raises InputError for bad input.
    """
    here = machine()
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        survey = write_galaxies(str(Path(folder, "survey")), galaxies_in_memory(None, GALAXIES))
        runs = {}
        for engine in parse_engines(engines):
            if run := plan_run(engine, survey, weights, str(Path(folder, engine.name)), None, tell):
                runs[engine] = run

        def turn(own: str, cache: Path) -> dict[str, Any]:
            return child_json("cosmicai.measurement.first_prediction", own, COSMICAI_CACHE=str(cache))

        caches = {engine: Path(folder, f"cache {engine.name}") for engine in runs}
        cold = {engine: turn(run.uri, caches[engine]) for engine, run in runs.items()}
        turns = [partial(turn, run.uri, caches[engine]) for engine, run in runs.items()]
        measured = interleaved(turns, repeats, tell)
    rows = [
        {
            "name": engine.name,
            "imports_seconds": median(seconds["imports"] for seconds in all_seconds),
            "engine_seconds": median(seconds["engine"] for seconds in all_seconds),
            **spread("first_prediction_seconds", [seconds["first_prediction"] for seconds in all_seconds]),
            "cold_first_prediction_seconds": cold[engine]["first_prediction"],
        }
        for engine, all_seconds in zip(runs, measured, strict=True)
    ]
    return Report("Start", COLUMNS, rows, here, {"weights": weights, "repeats": repeats}, {"weights": weights})
