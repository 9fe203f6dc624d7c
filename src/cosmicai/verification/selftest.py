"""`cosmicai selftest`: does this installation turn galaxies into redshifts, with every engine that is here?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..engines.registry import PRECISIONS
from ..errors import InputError
from ..measurement.engine_spec import parse_engines, plan_run
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..models.weights import DEMO
from ..ranks.environment import rank_from_environment
from ..runs.catalogue import read_catalogue
from ..runs.demo import write_synthetic_survey
from ..runs.summary import summarize
from ..worker.loop import work

GALAXIES, SEED = 1024, 0
LARGEST_NMAD = 0.012  # of the demo weights on these galaxies it is 0.0085
LARGEST_SHIFT = 1e-5  # of one engine in float32 against another, |dz|
COLUMNS = (
    Column("name", "engine"),
    Column("galaxies", "galaxies", ","),
    Column("nmad", "NMAD", ".6f"),
    Column("largest_dz", "largest |dz|", ".1e"),
    Column("passed", "passed"),
)


def selftest(tell: Callable[[str], None]) -> Report:
    """Runs synthetic galaxies through every engine and precision that can run here, each from survey to catalogue.

    `largest_dz` is the largest |z - z0| / (1 + z0) against the first engine in float32. An engine has passed if no
    galaxy is missing, NMAD against the spectroscopic redshifts is at most LARGEST_NMAD and, in float32, `largest_dz`
    at most LARGEST_SHIFT. What cannot run here is told and absent. Raises InputError if that is all of them.
    """
    rows: list[dict[str, Any]] = []
    exact = None
    with TemporaryDirectory(prefix="cosmicai-selftest-") as folder:
        survey = write_synthetic_survey(str(Path(folder, "survey")), GALAXIES, SEED, GALAXIES // 2)
        for wanted in parse_engines(",".join(PRECISIONS)):
            run = plan_run(wanted, survey, DEMO, str(Path(folder, wanted.name)), None, tell)
            if run is None:
                continue
            work(run, rank_from_environment())
            summary = summarize(run)
            redshift = np.concatenate([table["redshift_phot"].to_numpy() for table in read_catalogue(run)])
            exact = redshift if exact is None else exact
            largest, nmad = float(np.abs((redshift - exact) / (1 + exact)).max()), summary["metrics"]["precision"]
            passed = summary["complete"] and nmad <= LARGEST_NMAD
            passed = passed and (wanted.precision != "float32" or largest <= LARGEST_SHIFT)
            row = {"galaxies": summary["coverage"]["done"], "nmad": nmad, "largest_dz": largest, "passed": passed}
            rows.append({"name": wanted.name} | row)
    if not rows:
        raise InputError("no engine can run here; see above for what each of them wants")
    return Report("Selftest", COLUMNS, rows, machine())
