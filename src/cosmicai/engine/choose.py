"""From an engine's name to an engine; each is imported only when it is asked for."""

from __future__ import annotations

from ..errors import InputError
from ..model.weights import Weights
from .base import Engine

ENGINES = ("reference",)


def open_engine(name: str, weights: Weights, device: str, threads: int) -> Engine:
    """Loads the network into the engine of this name. Raises InputError if there is none or it cannot run here."""
    if name == "reference":
        from .reference import ReferenceEngine

        return ReferenceEngine(weights, device, threads)
    raise InputError(f"there is no engine {name!r}; expected one of {', '.join(ENGINES)}")
