"""`python -m cosmicai.measurement.first_prediction RUN`: works as a rank until its first redshifts.

Prints JSON: seconds since the process was started, once everything is imported, the engine is open, and the first
inner batch is predicted; and since 1970 at that moment.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from ..cli import main as cli  # noqa: F401  a rank is started by the command line
from ..runs.record import process_age
from ..runs.store import RunFolder
from ..worker.loop import predict_rows
from ..worker.prefetch import Ahead, Rows, read_items
from .engine_spec import open_planned


def main(folder: str) -> None:
    """Begins the work of a run folder and leaves it as it is."""
    seconds = {"imports": process_age()}
    run = RunFolder(folder)
    plan = run.plan()
    with ThreadPoolExecutor(1) as reader:
        galaxies = Ahead(read_items(plan, iter(plan.items), plan.inner_batch, plan.batch_size), reader)
        engine = open_planned(run)
        seconds["engine"] = process_age()
        first = galaxies.take()
        assert isinstance(first, Rows)
        predict_rows(engine, first)
        seconds["first_prediction"] = process_age()
        seconds["first_prediction_at"] = time.time()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
