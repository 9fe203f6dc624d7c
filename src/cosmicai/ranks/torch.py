"""Communicate through torch.distributed: gloo on CPUs, NCCL between GPUs, and the shared counter in its TCPStore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from ..errors import InputError
from .communicator import Communicator, Operation
from .environment import Rank

JOIN_TIMEOUT = timedelta(minutes=10)  # until all ranks have joined
COLLECTIVE_TIMEOUT = timedelta(days=1)  # that a finished rank waits for the slowest; a lost one is noticed at once
OPERATIONS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
COUNTER = "cosmicai/next_item"


@contextmanager
def connect_torch(rank: Rank, device: str) -> Iterator[TorchCommunicator]:
    """Join the process group at MASTER_ADDR and MASTER_PORT and yield its communicator.

    It reduces through NCCL if each rank has a GPU of its own, else through gloo: NCCL refuses two ranks on one GPU.
    Raises InputError if not all ranks join.
    """
    try:
        # A store of its own, so that joining can have a shorter timeout than waiting for a slow rank.
        store, number, size = next(rendezvous("env://", rank.rank, rank.world_size, timeout=JOIN_TIMEOUT))
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"rank {rank.rank} of {rank.world_size} could not join the other ranks ({reason}); "
            "MASTER_ADDR and MASTER_PORT must name a free port of the first node"
        ) from None
    try:
        communicator = TorchCommunicator("cpu", PrefixStore("cosmicai", store))
        if device == "cuda" and have_own_values(communicator, _identify_gpu()):
            communicator = TorchCommunicator("cuda", PrefixStore("cosmicai", store))
        yield communicator
    finally:
        dist.destroy_process_group()


class TorchCommunicator:
    """The default process group, and a store that keeps the shared counter."""

    def __init__(self, device: str, store: Store) -> None:
        self._device, self._store = device, store
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def barrier(self) -> None:
        """Return when all ranks have called it."""
        self.allreduce(np.zeros(1))

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """Return the element-wise sum, minimum or maximum over all ranks of arrays of one shape, on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, OPERATIONS[operation])
        reduced: NDArray[np.float64] = tensor.cpu().numpy()
        return reduced

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all ranks, by rank, on rank 0, and None on the others."""
        own = _encode(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(own)]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        gathered = [torch.zeros_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, gathered)
        if gathered is None:
            return None
        return [_decode(data[: int(size)]) for data, size in zip(gathered, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        own = _encode(value if self.rank == 0 else None)
        size = torch.tensor([len(own)])
        dist.broadcast(size, 0)
        data = own if self.rank == 0 else torch.zeros(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return _decode(data)

    def next_item(self) -> int:
        """Return the next number of a counter that all ranks share: 0, 1, 2, ..., each exactly once."""
        return int(self._store.add(COUNTER, 1)) - 1


def have_own_values(communicator: Communicator, value: str) -> bool:
    """Return, on every rank alike, whether no two ranks have the same value."""
    values = communicator.gather(value)
    return bool(communicator.broadcast(values is not None and len(set(values)) == len(values)))


def _identify_gpu() -> str:
    return str(torch.cuda.get_device_properties().uuid)


def _encode(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decode(data: torch.Tensor) -> Any:
    return json.loads(data.numpy().tobytes())
