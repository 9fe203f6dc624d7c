"""Communicate through MPI; the shared counter is in rank 0's memory, increased by one-sided operations."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..console import notify
from ..errors import InputError
from .communicator import Operation
from .environment import Environment, Rank

EXIT_FAILURE = 1
PROGRESS_INTERVAL = 0.01  # seconds


@contextmanager
def connect_mpi(rank: Rank) -> Iterator[MPICommunicator]:
    """Initialize MPI and yield the communicator of its world.

    An exception in the block aborts all ranks, since the others would wait indefinitely. Raises InputError if the MPI
    library of mpi4py is not the one that started this process.
    """
    # Debian's Open MPI is configured without the one-sided operations between nodes; this enables all that exist.
    os.environ.setdefault("OMPI_MCA_osc", "^monitoring")
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI

        _require_same_interface(MPI.Get_library_version(), os.environ)
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
        # Printed before Abort, which may end this process too.
        notify(f"rank {rank.rank}: {error or type(error).__name__}")
        world.Abort(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else EXIT_FAILURE)
    communicator.close()


def _require_same_interface(library: str, environment: Environment) -> None:
    """Raise InputError if this MPI library does not understand these variables, and would end the process."""
    name = library.partition(",")[0].strip()
    if library.startswith("Open MPI") and "PMI_RANK" in environment and "PMIX_RANK" not in environment:
        raise InputError(
            f"this rank was started through PMI, as by MPICH, Intel MPI or `srun --mpi=pmi2`, and mpi4py uses {name}, "
            "which needs PMIx; start it with `srun --mpi=pmix` or Open MPI's mpirun, or use jobs/infer_array.sh"
        )


class MPICommunicator:
    """MPI's world, and a window of one number as the shared counter."""

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
        self._window_lock = threading.Lock()  # a rank may hold one lock of a window at a time
        self._closing = threading.Event()
        self._progress_thread = threading.Thread(target=self._make_progress, name="mpi-progress", daemon=True)
        if self.rank == 0:
            self._window.tomemory()[:] = bytes(8)
            self._progress_thread.start()
        self.barrier()

    def _make_progress(self) -> None:
        """Call MPI regularly, so that it serves the other ranks' access to this rank's memory.

        Over TCP, MPI serves it only while this rank is inside a call of MPI, and the others would wait for the end of a
        batch. Within one node and on RDMA networks this is not needed.
        """
        while not self._closing.wait(PROGRESS_INTERVAL):
            self._world.Iprobe()

    def close(self) -> None:
        """Free the window. A collective operation."""
        self.barrier()
        if self.rank == 0:
            self._closing.set()
            self._progress_thread.join()
        self._window.Free()

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        self._world.Barrier()

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """Return the element-wise sum, minimum or maximum over all ranks of arrays of one shape, on every rank."""
        reduced = values.copy(order="C")
        self._world.Allreduce(self._mpi.IN_PLACE, reduced, getattr(self._mpi, operation.upper()))
        return reduced

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, by rank, on rank 0, and None on the others."""
        own = json.dumps(value).encode()
        sizes = np.empty(self.size, np.int64)
        self._world.Allgather(np.array([len(own)]), sizes)
        gathered = bytearray(sizes.sum()) if self.rank == 0 else None
        self._world.Gatherv(own, gathered and [gathered, sizes])
        if gathered is None:
            return None
        ends = np.cumsum(sizes)
        return [json.loads(gathered[end - size : end]) for size, end in zip(sizes, ends, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        own = json.dumps(value).encode() if self.rank == 0 else b""
        size = np.array([len(own)])
        self._world.Bcast(size)
        data = bytearray(own).ljust(size[0], b"\0")
        self._world.Bcast(data)
        return json.loads(data)

    def next_item(self) -> int:
        """Return the next number of a counter that all ranks share: 0, 1, 2, ..., each exactly once."""
        one, number = np.ones(1, np.int64), np.empty(1, np.int64)
        with self._window_lock:
            self._window.Lock(0, self._mpi.LOCK_SHARED)
            self._window.Fetch_and_op(one, number, 0)
            self._window.Unlock(0)
        return int(number[0])
