"""Ranks that MPI connects; the counter is fetched and increased one-sidedly in rank 0's memory."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .communicator import Operation
from .environment import Environment, Rank

FAILED = 1
ATTEND_EVERY = 0.01  # seconds


@contextmanager
def connected_by_mpi(rank: Rank) -> Iterator[MPICommunicator]:
    """Joins MPI's world. An exception in the block aborts the whole of it, since the others would wait for ever.

    Raises InputError if mpi4py's MPI is not the one that started this process.
    """
    # Debian's Open MPI is set up without what one-sided operations between nodes need; this offers all that is there.
    os.environ.setdefault("OMPI_MCA_osc", "^monitoring")
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI

        _require_common_language(MPI.Get_library_version(), os.environ)
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"rank {rank.rank} of {rank.world_size} was started by MPI, which mpi4py cannot load "
            f"({str(error).partition(chr(10))[0]}); install mpi4py and the MPI library of this mpirun"
        ) from None
    world = MPI.COMM_WORLD
    if world.size != rank.world_size:
        raise InputError(
            f"{rank.world_size} ranks were started and this one finds {world.size}: mpi4py uses "
            f"{MPI.Get_library_version().partition(',')[0].strip()}, which is not the MPI of this mpirun or srun"
        )
    communicator = MPICommunicator(world)
    try:
        yield communicator
    except BaseException as error:
        # What the user sees is said before the others end, and with them this process.
        print(f"rank {rank.rank}: {error or type(error).__name__}", file=sys.stderr, flush=True)
        world.Abort(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else FAILED)
    communicator.close()


def _require_common_language(library: str, environment: Environment) -> None:
    """Raises InputError if MPI could not find out from these variables who it is, and would end this process."""
    name = library.partition(",")[0].strip()
    if library.startswith("Open MPI") and "PMI_RANK" in environment and "PMIX_RANK" not in environment:
        raise InputError(
            f"this rank was started by PMI, as MPICH, Intel MPI or `srun --mpi=pmi2` do, and mpi4py uses {name}, which "
            "speaks PMIx; start it with `srun --mpi=pmix` or Open MPI's mpirun, or use jobs/infer_array.sh"
        )


class MPICommunicator:
    """MPI's world and a window with one number in it."""

    def __init__(self, world: Any) -> None:
        from mpi4py import MPI

        self._mpi, self._world = MPI, world
        self.rank, self.size = world.rank, world.size
        try:
            self._window = MPI.Win.Allocate(8 if self.rank == 0 else 0, 8, comm=world)
        except MPI.Exception as error:
            raise InputError(
                f"this MPI has no one-sided operations between these nodes ({error}); with Open MPI try --mca osc ucx"
            ) from None
        self._counting = threading.Lock()  # a rank may hold one lock of a window at a time
        self._closing = threading.Event()
        self._attendant = threading.Thread(target=self._attend, name="attendant", daemon=True)
        if self.rank == 0:
            self._window.tomemory()[:] = bytes(8)
            self._attendant.start()
        self.barrier()

    def _attend(self) -> None:
        """Lets MPI see to what the other ranks want of this one's memory, which else waits until this one calls MPI.

        Within one node, or with an RDMA network, it would not; over TCP others waited for all of a batch.
        """
        while not self._closing.wait(ATTEND_EVERY):
            self._world.Iprobe()

    def close(self) -> None:
        """Gives the window back, when all ranks do so."""
        self.barrier()
        if self.rank == 0:
            self._closing.set()
            self._attendant.join()
        self._window.Free()

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        self._world.Barrier()

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """The element-wise sum, minimum or maximum over all ranks of arrays of one shape, the same on every rank."""
        reduced = values.copy(order="C")
        self._world.Allreduce(self._mpi.IN_PLACE, reduced, getattr(self._mpi, operation.upper()))
        return reduced

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks in their order on rank 0, None elsewhere."""
        own = json.dumps(value).encode()
        sizes = np.empty(self.size, np.int64)
        self._world.Allgather(np.array([len(own)]), sizes)
        everyone = bytearray(sizes.sum()) if self.rank == 0 else None
        self._world.Gatherv(own, everyone and [everyone, sizes])
        if everyone is None:
            return None
        ends = np.cumsum(sizes)
        return [json.loads(everyone[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        own = json.dumps(value).encode() if self.rank == 0 else b""
        size = np.array([len(own)])
        self._world.Bcast(size)
        data = bytearray(own).ljust(size[0], b"\0")
        self._world.Bcast(data)
        return json.loads(data)

    def next_item(self) -> int:
        """The next number of a counter that all ranks share: 0, 1, 2, ... each given once."""
        one, number = np.ones(1, np.int64), np.empty(1, np.int64)
        with self._counting:
            self._window.Lock(0, self._mpi.LOCK_SHARED)
            self._window.Fetch_and_op(one, number, 0)
            self._window.Unlock(0)
        return int(number[0])
