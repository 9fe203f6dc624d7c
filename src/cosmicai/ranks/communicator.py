"""How ranks talk: one small protocol, whoever started them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .environment import RENDEZVOUS, Environment, Rank

Operation = Literal["sum", "min", "max"]


class Communicator(Protocol):
    """Every rank calls the same methods in the same order, but for `next_item`, which any thread calls when it likes.

    What is gathered and broadcast is anything that JSON can hold.
    """

    @property
    def rank(self) -> int:
        """This process's number, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def barrier(self) -> None:
        """Returns when all ranks have called it."""

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """The element-wise sum, minimum or maximum over all ranks of arrays of one shape, the same on every rank."""

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks in their order on rank 0, None elsewhere."""

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""

    def next_item(self) -> int:
        """The next number of a counter that all ranks share: 0, 1, 2, ... each given once."""


class Alone:
    """A communicator of one."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self._counter = count()

    def barrier(self) -> None:
        """Nobody to wait for."""

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """A copy of the values."""
        return values.copy()

    def gather(self, value: Any) -> list[Any] | None:
        """The value."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The value."""
        return value

    def next_item(self) -> int:
        """0, 1, 2, ..."""
        return next(self._counter)


@contextmanager
def connect(rank: Rank, environment: Environment, device: str = "cpu") -> Iterator[Communicator | None]:
    """The communicator of those who were started with this rank; None where there is none, as in a SLURM array.

    Leaving the block through an exception ends the other ranks too where they would wait for this one for ever.
    Raises InputError if the launcher's ranks do not find each other.
    """
    if rank.world_size == 1:
        yield Alone()
    elif rank.platform == "mpi":
        from .mpi import connected_by_mpi

        with connected_by_mpi(rank) as communicator:
            yield communicator
    elif RENDEZVOUS in environment:
        from .fmi import connected_by_fmi, meeting_of

        with connected_by_fmi(rank.rank, rank.world_size, meeting_of(rank, environment)) as communicator:
            yield communicator
    elif rank.platform in ("torchrun", "slurm") and "MASTER_ADDR" in environment:
        from .torch import connected_by_torch

        with connected_by_torch(rank, device) as communicator:
            yield communicator
    else:
        yield None
