"""`cosmicai bench start`: seconds from the start of a process to its first redshifts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ..measurement.engine_spec import create_engine_run, parse_engine_specs
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import run_module_json
from ..measurement.table import MeasurementColumn, MeasurementTable
from .galaxies import load_galaxies, write_galaxies
from .timing import measure_interleaved, summarize_spread

GALAXIES = 512
COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("imports_seconds", "imports s", ".2f"),
    MeasurementColumn("engine_seconds", "engine open s", ".2f"),
    MeasurementColumn("first_prediction_seconds", "first prediction s", ".2f"),
    MeasurementColumn("first_prediction_seconds_min", "min", ".2f"),
    MeasurementColumn("first_prediction_seconds_max", "max", ".2f"),
    MeasurementColumn("cold_first_prediction_seconds", "first prediction s, nothing cached", ".2f"),
)


def bench_start(weights: str, repeats: int, engines: str, notify: Callable[[str], None]) -> MeasurementTable:
    """Start one process per engine and repeat, one at a time, which does what a rank does (`first_prediction`).

    All seconds count from the start of the process, which the kernel reports in hundredths. Each engine has a cache
    folder of its own that is empty at first: the first process compiles the network (the inner batch was chosen
    before), the others load it. Raises InputError if options are invalid.
    """
    here = describe_machine()
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        survey = write_galaxies(str(Path(folder, "survey")), load_galaxies(None, GALAXIES))
        runs = {}
        for spec in parse_engine_specs(engines):
            if run := create_engine_run(spec, survey, weights, str(Path(folder, spec.name)), None, notify):
                runs[spec] = run

        def start_rank(run: str, cache: Path) -> dict[str, Any]:
            return run_module_json("cosmicai.measurement.first_prediction", run, COSMICAI_CACHE=str(cache))

        caches = {spec: Path(folder, f"cache {spec.name}") for spec in runs}
        cold = {spec: start_rank(run.uri, caches[spec]) for spec, run in runs.items()}
        trials = [partial(start_rank, run.uri, caches[spec]) for spec, run in runs.items()]
        measured = measure_interleaved(trials, repeats, notify)
    rows = [
        {
            "name": spec.name,
            "imports_seconds": median(seconds["imports"] for seconds in all_seconds),
            "engine_seconds": median(seconds["engine"] for seconds in all_seconds),
            **summarize_spread("first_prediction_seconds", [seconds["first_prediction"] for seconds in all_seconds]),
            "cold_first_prediction_seconds": cold[spec]["first_prediction"],
        }
        for spec, all_seconds in zip(runs, measured, strict=True)
    ]
    facts = {"weights": weights, "repeats": repeats}
    return MeasurementTable("Start", COLUMNS, rows, here, facts, {"weights": weights})
