"""Connect a rank to the others of its launch: choose and open the communicator that fits the launcher.

The implementations are imported only when they are chosen: torch and mpi4py would slow down the start of every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..console import notify
from .communicator import Communicator, SingleProcessCommunicator
from .environment import RENDEZVOUS, Environment, Rank


@contextmanager
def connect(rank: Rank, environment: Environment, device: str = "cpu") -> Iterator[Communicator | None]:
    """Yield the communicator of all ranks of this launch; None if the launcher offers none, as in a SLURM array.

    An exception that leaves the block also terminates those ranks that would otherwise wait for this one indefinitely.
    Raises InputError if the ranks cannot be connected.
    """
    if rank.world_size == 1:
        yield SingleProcessCommunicator()
    elif rank.platform == "mpi":
        from .mpi import connect_mpi

        with connect_mpi(rank) as communicator:
            yield communicator
    elif RENDEZVOUS in environment:
        from .fmi import connect_fmi, rendezvous_from_environment

        with connect_fmi(rank.rank, rank.world_size, rendezvous_from_environment(rank, environment)) as communicator:
            yield communicator
    elif rank.platform in ("torchrun", "slurm") and "MASTER_ADDR" in environment:
        from .torch import connect_torch

        if rank.rank == 0:
            where = f"{environment['MASTER_ADDR']}:{environment.get('MASTER_PORT', '')}"
            notify(f"waiting for {rank.world_size - 1} other ranks at {where} (MASTER_ADDR, MASTER_PORT)")
        with connect_torch(rank, device) as communicator:
            yield communicator
    else:
        yield None
