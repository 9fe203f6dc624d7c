"""`python -m cosmicai.measurement.first_prediction RUN`: do what a rank does until its first redshifts.

Prints JSON: seconds from the start of the process until everything is imported (`imports`), the engine is open
(`engine`) and the first inner batch is predicted (`first_prediction`); and the time of the latter in seconds since 1970
(`first_prediction_at`).
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from ..runs.provenance import process_age
from ..runs.store import RunFolder
from ..worker.loop import predict_chunk
from ..worker.prefetch import Chunk, Prefetcher, read_items
from .engine_spec import open_run_engine

# A rank is started by the command line, whose imports are part of what is measured. It is imported by its name because
# nothing below the command line depends on it.
importlib.import_module("cosmicai.cli.main")


def main(folder: str) -> None:
    """Predict the first inner batch of a run and print the seconds; the run folder stays as it is."""
    seconds = {"imports": process_age()}
    run = RunFolder(folder)
    plan = run.plan()
    with ThreadPoolExecutor(1) as reader:
        galaxies = Prefetcher(read_items(plan, iter(plan.items), plan.inner_batch, plan.batch_size), reader)
        engine = open_run_engine(run)
        seconds["engine"] = process_age()
        first = galaxies.take()
        assert isinstance(first, Chunk)
        predict_chunk(engine, plan, first)
        seconds["first_prediction"] = process_age()
        seconds["first_prediction_at"] = time.time()
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
