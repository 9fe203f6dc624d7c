"""How rates are measured: everyone in turn, again and again, so that what disturbs the machine disturbs all alike.

Everyone has a process of its own, in which nobody else's settings hold. That matters: the OpenVINO engine tells malloc
to give large blocks back to the system, which costs torch a quarter of its speed in the same process.
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

from ..engines.base import Choice, Engine, calls_at_once, pieces
from ..surveys.shard import Galaxies

T = TypeVar("T")
_made: Callable[..., Any]  # in a process of its own: what it was started for


def in_own_process(stack: ExitStack, make: Callable[..., Callable[..., T]], *arguments: object) -> Callable[..., T]:
    """The function that `make(*arguments)` gives, made and called in a new process, which ends with the stack.

    `make` is a function of a module; arguments and results are pickled. Raises what `make` or the function raises.
    """
    pool = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    pool.submit(_make, make, arguments).result()
    return lambda *arguments: pool.submit(_call, arguments).result()


def _make(make: Callable[..., Callable[..., Any]], arguments: Sequence[object]) -> None:
    global _made
    _made = make(*arguments)


def _call(arguments: Sequence[object]) -> Any:
    return _made(*arguments)


def interleaved(turns: Sequence[Callable[[], T]], repeats: int, tell: Callable[[str], None]) -> list[list[T]]:
    """What each turn gave in each of the passes through all of them; a pass before those warms up and is left out."""
    passes = []
    for number in range(repeats + 1):
        tell(f"pass {number} of {repeats}" if number else "warming up")
        passes.append([turn() for turn in turns])
    return [list(own) for own in zip(*passes[1:], strict=True)]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median and range of some values, under `name`, `name_min` and `name_max`."""
    return {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def predict_all(
    engine: Engine, choice: Choice, galaxies: Galaxies, batch_size: int, threads: int
) -> NDArray[np.float32]:
    """Redshifts (N,) of galaxies in memory, with as many calls at once as a run has (`run.work`)."""
    rows, at_once = calls_at_once(choice, threads, batch_size)
    with ThreadPoolExecutor(at_once, "caller") as caller:
        found = caller.map(
            lambda own: engine.predict(galaxies.image[own], galaxies.magnitude[own]), pieces(len(galaxies), rows)
        )
        return np.concatenate(list(found))
