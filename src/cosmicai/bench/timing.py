"""Interleaved measurements: trials take turns, several times, so that other load on the machine affects them alike.

Each trial has a process of its own, free of the settings of the others. The OpenVINO engine makes malloc return large
blocks to the system, for example, which would cost torch a quarter of its speed in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Engine, EngineChoice, choose_concurrency, split_rows
from ..surveys.shard import Galaxies

T = TypeVar("T")
_function: Callable[..., Any]  # set in a process that `build_in_process` started


def build_in_process(stack: ExitStack, make: Callable[..., Callable[..., T]], *arguments: object) -> Callable[..., T]:
    """Return a function that calls `make(*arguments)`'s result in a new process, which ends with the stack.

    `make` is a function of a module and is called in the new process; arguments and results are pickled. Raises what
    `make` or the function raises.
    """
    pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    pool.submit(_make, make, arguments).result()
    return lambda *arguments: pool.submit(_call, arguments).result()


def _make(make: Callable[..., Callable[..., Any]], arguments: Sequence[object]) -> None:
    global _function
    _function = make(*arguments)


def _call(arguments: Sequence[object]) -> Any:
    return _function(*arguments)


def measure_interleaved(
    trials: Sequence[Callable[[], T]], repeats: int, notify: Callable[[str], None]
) -> list[list[T]]:
    """Return the results of each trial in `repeats` passes through all of them, after one pass as a warm-up."""
    passes = []
    for number in range(repeats + 1):
        notify(f"pass {number} of {repeats}" if number else "warming up")
        passes.append([trial() for trial in trials])
    return [list(results) for results in zip(*passes[1:], strict=True)]


def summarize_spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum of the values as `name`, `name_min` and `name_max`."""
    return {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def predict_all(
    engine: Engine, choice: EngineChoice, galaxies: Galaxies, batch_size: int, threads: int
) -> NDArray[np.float32]:
    """Return redshifts (N,) of galaxies in memory, with as many concurrent calls of the engine as in a run."""
    size, calls = choose_concurrency(choice, threads, batch_size)
    with ThreadPoolExecutor(calls, "caller") as caller:
        redshifts = caller.map(
            lambda rows: engine.predict(galaxies.image[rows], galaxies.magnitude[rows]), split_rows(len(galaxies), size)
        )
        return np.concatenate(list(redshifts))
