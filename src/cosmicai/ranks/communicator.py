"""How ranks communicate: one small protocol, whichever launcher started them."""

from __future__ import annotations

from itertools import count
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Operation = Literal["sum", "min", "max"]


class Communicator(Protocol):
    """Collective operations and a counter of a group of ranks.

    Every rank calls the collective methods in the same order; `next_item` may be called at any time, from any thread.
    Values that are gathered or broadcast are anything that JSON can represent.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def barrier(self) -> None:
        """Return when all ranks have called it."""

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """Return the element-wise sum, minimum or maximum over all ranks of arrays of one shape, on every rank."""

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, by rank, on rank 0, and None on the others."""

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""

    def next_item(self) -> int:
        """Return the next number of a counter that all ranks share: 0, 1, 2, ..., each exactly once."""


class SingleProcessCommunicator:
    """A communicator for a world of one rank."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self._counter = count()

    def barrier(self) -> None:
        """Return at once."""

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """Return a copy of the values."""
        return values.copy()

    def gather(self, value: Any) -> list[Any] | None:
        """Return a list of the one value."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value

    def next_item(self) -> int:
        """Return 0, 1, 2, ..., each exactly once."""
        return next(self._counter)
