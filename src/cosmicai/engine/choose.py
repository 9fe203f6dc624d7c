"""From an engine's name to an engine; each is imported only when it is asked for."""

from __future__ import annotations

from ..errors import InputError
from ..model.weights import Weights
from .base import Engine

ENGINES = ("reference",)


def check_engine(name: str, weights: Weights, device: str) -> None:
    """Raises InputError if the engine of this name could not run these weights on this machine; loads nothing."""
    if name not in ENGINES:
        raise InputError(f"there is no engine {name!r}; expected one of {', '.join(ENGINES)}")
    from .reference import usable_network

    usable_network(weights, device)


def open_engine(name: str, weights: Weights, device: str, threads: int) -> Engine:
    """Loads the network into the engine of this name, which `check_engine` has accepted."""
    from .reference import ReferenceEngine

    return ReferenceEngine(weights, device, threads)
