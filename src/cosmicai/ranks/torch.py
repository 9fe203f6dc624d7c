"""Ranks that torch.distributed connects: gloo on CPUs, NCCL between GPUs, the counter in its TCPStore."""

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
from .communicator import Operation
from .environment import Rank

MEETING = timedelta(minutes=10)  # for all ranks to come
WAITING = timedelta(days=1)  # of a rank that is done for the slowest; one that died is noticed at once
OPERATIONS = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}
COUNTER = "cosmicai/next_item"


@contextmanager
def connected_by_torch(rank: Rank, device: str) -> Iterator[TorchCommunicator]:
    """Joins the process group at MASTER_ADDR and MASTER_PORT. Raises InputError if the ranks do not all come."""
    try:
        # The store apart, so that the time to meet can be shorter than the time to wait for a slow rank.
        store, number, size = next(rendezvous("env://", rank.rank, rank.world_size, timeout=MEETING))
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=WAITING)
    except (RuntimeError, ValueError) as error:
        what = str(error).partition("\n")[0]
        raise InputError(
            f"rank {rank.rank} of {rank.world_size} did not find the others ({what}); "
            "MASTER_ADDR and MASTER_PORT must name a free port of the first node"
        ) from None
    try:
        yield TorchCommunicator(device, PrefixStore("cosmicai", store))
    finally:
        dist.destroy_process_group()


class TorchCommunicator:
    """The default process group, and a store in which to count."""

    def __init__(self, device: str, store: Store) -> None:
        self._device, self._store = device, store
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        self.allreduce(np.zeros(1))

    def allreduce(self, values: NDArray[np.float64], operation: Operation = "sum") -> NDArray[np.float64]:
        """The element-wise sum, minimum or maximum over all ranks of arrays of one shape, the same on every rank."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(tensor, OPERATIONS[operation])
        reduced: NDArray[np.float64] = tensor.cpu().numpy()
        return reduced

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks in their order on rank 0, None elsewhere."""
        own = _encoded(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(own)]))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        everyone = [torch.zeros_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, everyone)
        if everyone is None:
            return None
        return [_decoded(data[: int(size)]) for data, size in zip(everyone, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        own = _encoded(value if self.rank == 0 else None)
        size = torch.tensor([len(own)])
        dist.broadcast(size, 0)
        data = own if self.rank == 0 else torch.zeros(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return _decoded(data)

    def next_item(self) -> int:
        """The next number of a counter that all ranks share: 0, 1, 2, ... each given once."""
        return int(self._store.add(COUNTER, 1)) - 1


def _encoded(value: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(data: torch.Tensor) -> Any:
    return json.loads(data.numpy().tobytes())
