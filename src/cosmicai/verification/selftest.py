"""`cosmicai selftest`: check that every engine of this installation computes correct redshifts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines.registry import PRECISIONS
from ..errors import InputError
from ..measurement.engine_spec import create_engine_run, parse_engine_specs
from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.weights import DEMO
from ..ranks.environment import rank_from_environment
from ..runs.catalogue.reading import read_catalogue
from ..runs.summarize import summarize
from ..surveys.synthetic import write_synthetic_survey
from ..worker import loop
from ..worker.sources import select_source

GALAXIES, SEED = 1024, 0
LARGEST_NMAD = 0.012  # the demo weights have 0.0085 on these galaxies
LARGEST_SHIFT = 1e-5  # |dz| between two engines in float32
COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("galaxies", "galaxies", ","),
    MeasurementColumn("nmad", "NMAD", ".6f"),
    MeasurementColumn("largest_dz", "largest |dz|", ".1e"),
    MeasurementColumn("passed", "passed"),
)


def selftest(notify: Callable[[str], None]) -> MeasurementTable:
    """Run synthetic galaxies, from survey to catalogue, with every engine and precision that can run here.

    `largest_dz` is the largest |z - z0| / (1 + z0) relative to the first engine in float32. An engine passes if no
    galaxy is missing, NMAD relative to the spectroscopic redshifts is at most LARGEST_NMAD and, in float32,
    `largest_dz` is at most LARGEST_SHIFT. `notify` receives the engines that cannot run here. Raises InputError if none
    can.
    """
    rows: list[dict[str, Any]] = []
    exact = None
    rank = rank_from_environment()
    with TemporaryDirectory(prefix="cosmicai-selftest-") as folder:
        survey = write_synthetic_survey(str(Path(folder, "survey")), GALAXIES, SEED, GALAXIES // 2)
        specs = parse_engine_specs(",".join(PRECISIONS))
        for spec in sorted(specs, key=lambda spec: spec.precision != "float32"):  # the first of them compares
            run = create_engine_run(spec, survey, DEMO, str(Path(folder, spec.name)), None, notify)
            if run is None:
                continue
            loop.run(run, rank, select_source(run, rank))
            summary = summarize(run)
            redshift = np.concatenate([table["redshift_phot"].to_numpy() for table in read_catalogue(run)])
            exact = redshift if exact is None else exact
            largest = float(np.abs((redshift - exact) / (1 + exact)).max())
            nmad = summary.metrics.precision if summary.metrics else None
            passed = summary.complete and nmad is not None and nmad <= LARGEST_NMAD
            passed = passed and (spec.precision != "float32" or largest <= LARGEST_SHIFT)
            row = {"galaxies": summary.coverage.completed, "nmad": nmad, "largest_dz": largest, "passed": passed}
            rows.append({"name": spec.name} | row)
    if not rows:
        raise InputError("no engine can run here; the messages above say what each of them needs")
    return MeasurementTable("Selftest", COLUMNS, rows, describe_machine())
