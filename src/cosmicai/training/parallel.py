"""Data-parallel training: several ranks that share every batch, started by `python -m torch.distributed.run`.

A batch is that of a single process: each rank takes a part of it, BatchNorm takes its statistics over the whole, and
DistributedDataParallel averages the gradients. So the loss curve is that of one process but for rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..engines.reference import require_device
from ..errors import InputError
from ..models.astromae import AstroMAE
from ..ranks.environment import Rank, rank_from_environment
from ..ranks.torch import connect_torch
from .recipe import TrainingOptions

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Which of the ranks of a training this process is."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """Return this rank's part of `total` items; parts differ by at most one."""
        return slice(self.rank * total // self.count, (self.rank + 1) * total // self.count)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, to each of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


def started_rank() -> Rank:
    """Return which rank of a training this process was started as by `torch.distributed.run`; alone without it."""
    rank = rank_from_environment()
    return rank if rank.platform == "torchrun" else Rank()


@contextmanager
def connect_ranks(options: TrainingOptions) -> Iterator[Ranks]:
    """Connect the ranks of this training, by gloo or on GPUs by NCCL; a process on its own is the only rank.

    Raises InputError if a batch has fewer galaxies than there are ranks, this rank has no GPU of its own where it is to
    train on one, or not all ranks join.
    """
    rank = started_rank()
    if options.batch_size < rank.world_size:
        raise InputError(
            f"--batch-size {options.batch_size} is below the number of ranks, {rank.world_size}; each needs a galaxy "
            "of every batch, use a larger batch or fewer ranks"
        )
    require_device(options.device)
    if options.device == "cuda":
        gpus = torch.cuda.device_count()
        if gpus < rank.local_size:
            raise InputError(
                f"{gpus} GPUs are visible and {rank.local_size} ranks are on this machine; each needs a GPU: "
                "use fewer ranks, or --device cpu"
            )
        torch.cuda.set_device(rank.local_rank)
    if rank.world_size == 1:
        yield Ranks()
        return
    with connect_torch(rank, options.device):
        yield Ranks(rank.rank, rank.world_size)


def share_batches(network: AstroMAE, ranks: Ranks, device: str) -> nn.Module:
    """Return the module whose forward and backward pass take the ranks' parts of a batch for one batch.

    It is of the same parameters and buffers as `network`.
    """
    if ranks.count == 1:
        return network
    if device == "cuda":
        shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = SharedBatchNorm  # it keeps its parameters, which the optimizer may have already
        shared = network
    # Of 1 x 1 kernels, whose strides may be any: it costs nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # The last Inception block never runs one of its branches, whose parameters therefore have no gradient.
    return DistributedDataParallel(shared, forward_sync_buffers=False, find_unused_parameters=True)


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose statistics are those of all ranks' galaxies; torch's SyncBatchNorm is for GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W) by its statistics over all ranks, or in evaluation by the running ones."""
        if not self.training:
            return super().forward(x)
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        values = x.new_tensor(x.numel() / x.shape[1])
        distributed.all_reduce(values)
        count = float(values)
        mean = _sum_over_ranks(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _sum_over_ranks(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks; its gradient is the sum of theirs."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        total = x.detach().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


def _sum_over_ranks(x: Tensor) -> Tensor:
    return _SumOverRanks.apply(x)  # type: ignore[no-any-return,no-untyped-call]
