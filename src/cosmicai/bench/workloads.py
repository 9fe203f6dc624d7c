"""Trials of an engine on galaxies in memory, each made in a process of its own (`timing.build_in_process`).

torch is imported only by those that need it, as in a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measurement.engine_spec import open_run_engine
from ..models.weights import build_network, load_weights
from ..ranks.cores import available_cores
from ..runs.store import RunFolder
from ..surveys.survey import open_survey
from .galaxies import read_galaxies
from .timing import predict_all
from .whole_run import repeat_run

Redshift = NDArray[np.float32]
# Returns galaxies per second, and their redshifts unless the galaxies were noise.
Trial = Callable[..., tuple[float, Redshift | None]]


def prepare_published_loop(weights: str, survey: str, device: str) -> Trial:
    """Return a trial of the published loop on all cores.

    `trial(tf32)` sets whether convolutions on a GPU may round to TF32, which is torch's default.
    """
    import torch

    from .published_loop import make_published_dataset, run_published_loop

    torch.set_num_threads(available_cores())
    network = build_network(load_weights(weights)).to(device)
    dataset = make_published_dataset(read_galaxies(open_survey(survey)))

    def trial(tf32: bool = True) -> tuple[float, Redshift]:
        torch.backends.cudnn.allow_tf32 = tf32
        return measure_rate(lambda: run_published_loop(network, dataset, device))

    return trial


def prepare_engine(run: str, survey: str, compiled: bool = False) -> Trial:
    """Return a trial of the engine of a run, with `compiled` on a GPU with kernels that torch.compile generates.

    `trial(source)` measures galaxies in memory, as arrays ("memory"); a whole run that reads them from files which are
    in the file system's cache ("files"); and on a GPU noise that lies in pinned memory ("pinned") or on the GPU
    already ("resident").
    """
    folder, numbers = RunFolder(run), count()
    plan, galaxies = folder.plan(), read_galaxies(open_survey(survey))
    engine: Any
    if compiled:
        from ..engines.cuda import CudaEngine

        engine = CudaEngine(plan.weights_file.load(), plan.precision, plan.inner_batch, compiled=True)
    else:
        engine = open_run_engine(folder)

    def trial(source: str = "memory") -> tuple[float, Redshift | None]:
        if source == "resident":
            return engine.measure_resident_rate(), None
        if source == "pinned":
            return engine.measure_pinned_rate(), None
        if source == "files":
            again = RunFolder(f"{run} again {next(numbers)}")
            return repeat_run(folder, again, available_cores()).galaxies_per_second, None
        return measure_rate(lambda: predict_all(engine, plan.choice, galaxies, plan.batch_size, available_cores()))

    return trial


def measure_rate(predict: Callable[[], Redshift]) -> tuple[float, Redshift]:
    """Return galaxies per second of a call that returns redshifts (N,), and these."""
    begin = time.perf_counter()
    redshift = predict()
    return len(redshift) / (time.perf_counter() - begin), redshift
