"""`cosmicai bench precisions`: how far engines and precisions move redshifts from float32 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..measurement.engine_spec import create_engine_run, has_passed_check, parse_engine_specs
from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..runs.metrics import compute_metrics
from .engines import compare_redshifts
from .galaxies import load_galaxies, write_galaxies
from .timing import build_in_process
from .workloads import prepare_engine

EXACT = "reference:float32"  # the network as published, on the CPU
COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("nmad", "NMAD", ".6f"),
    MeasurementColumn("nmad_shift", "shift of NMAD", "+.3%"),
    MeasurementColumn("largest_dz", "largest |dz|", ".1e"),
    MeasurementColumn("check_passed", "check passed"),
)


def bench_precisions(
    weights: str, survey: str | None, count: int, engines: str, notify: Callable[[str], None]
) -> MeasurementTable:
    """Compare engines with the reference engine in float32 on the CPU, by `count` galaxies of the survey or synthetic
    ones.

    `largest_dz` is the largest |z - z0| / (1 + z0), and `nmad_shift` the relative change of NMAD (if there are
    spectroscopic redshifts), where z0 is the reference. `check_passed` is the check of a run, on fewer galaxies.
    `notify` receives the engines that cannot run here. Raises InputError if input or options are invalid.
    """
    here, specs, galaxies = describe_machine(), parse_engine_specs(engines), load_galaxies(survey, count)
    rows: list[dict[str, Any]] = []
    exact = None
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        written = write_galaxies(str(Path(folder, "survey")), galaxies)
        for spec in dict.fromkeys((*parse_engine_specs(EXACT), *specs)):
            run = create_engine_run(spec, written, weights, str(Path(folder, spec.name)), None, notify)
            if run is None:
                continue
            with ExitStack() as stack:
                _, redshift = build_in_process(stack, prepare_engine, run.uri, written.uri)()
            assert redshift is not None
            exact = redshift if exact is None else exact
            metrics = compute_metrics(redshift, galaxies.redshift)
            rows.append({
                "name": spec.name, "nmad": metrics.precision if metrics else None,
                **compare_redshifts([redshift], exact, galaxies.redshift), "check_passed": has_passed_check(run.plan()),
            })  # fmt: skip
    facts = {"weights": weights, "survey": survey, "galaxies": len(galaxies)}
    return MeasurementTable("Precisions", COLUMNS, rows, here, facts, {"weights": weights})
