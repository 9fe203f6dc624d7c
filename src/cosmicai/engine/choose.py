"""From an engine's name to an engine; each is imported only when it is asked for."""

from __future__ import annotations

from ..errors import InputError
from ..model.weights import Weights
from .base import Engine

ENGINES = ("reference",)


def check_engine(name: str, weights: Weights, device: str) -> None:
    """Raises InputError if there is no engine of this name or it could not run these weights here; loads nothing."""
    if name not in ENGINES:
        raise InputError(f"there is no engine {name!r}; expected one of {', '.join(ENGINES)}")
    from .reference import usable_network

    usable_network(weights, device)


def open_engine(name: str, weights: Weights, device: str, threads: int) -> Engine:
    """Loads the network into the engine of this name. Raises InputError if there is none or it cannot run here."""
    if name == "reference":
        from .reference import ReferenceEngine

        return ReferenceEngine(weights, device, threads)
    raise InputError(f"there is no engine {name!r}; the run was planned with another version of this program")
