"""What is measured, each in a process of its own (`timing.in_own_process`): an engine, and galaxies in memory.

torch is imported only by those that need it, as in a run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..measurement.engine_spec import open_planned
from ..models.weights import build, load_weights
from ..ranks.cores import available_cores
from ..runs.store import RunFolder
from ..surveys.survey import open_survey
from .galaxies import read_all
from .timing import predict_all

Redshift = NDArray[np.float32]
# Galaxies per second, and their redshifts where they were predicted.
Turn = Callable[..., tuple[float, Redshift | None]]


def published_row(weights: str, survey: str, device: str) -> Turn:
    """The published loop with all cores; `turn(tf32)` says whether the convolutions of a GPU may round to TF32, which
    is torch's default."""
    import torch

    from .published_loop import published_dataset, published_loop

    torch.set_num_threads(available_cores())
    network, dataset = build(load_weights(weights)).to(device), published_dataset(read_all(open_survey(survey)))

    def turn(tf32: bool = True) -> tuple[float, Redshift]:
        torch.backends.cudnn.allow_tf32 = tf32
        return _timed(lambda: published_loop(network, dataset, device))

    return turn


def engine_row(run: str, survey: str, compiled: bool = False) -> Turn:
    """The engine of a run, on a GPU also with the kernels that torch writes; `turn(resident)` without the way of the
    galaxies to the GPU."""
    plan, galaxies = RunFolder(run).plan(), read_all(open_survey(survey))
    engine: Any
    if compiled:
        from ..engines.cuda import CudaEngine

        engine = CudaEngine(plan.weights_file.load(), plan.precision, plan.inner_batch, compiled=True)
    else:
        engine = open_planned(RunFolder(run))

    def turn(resident: bool = False) -> tuple[float, Redshift | None]:
        if resident:
            return engine.resident_rate(), None
        return _timed(lambda: predict_all(engine, plan.choice, galaxies, plan.batch_size, available_cores()))

    return turn


def _timed(predict: Callable[[], Redshift]) -> tuple[float, Redshift]:
    begin = time.perf_counter()
    redshift = predict()
    return len(redshift) / (time.perf_counter() - begin), redshift
