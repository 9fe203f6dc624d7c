"""How fast a device copies memory, by measurement."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

BYTES = {"cpu": 2**28, "cuda": 2**31}  # of one copy on the device; several times any cache
HOST_BYTES = 2**28  # of one copy between a GPU and pinned memory
SECONDS = 0.2  # least time for one kind of copy


@dataclass(frozen=True)
class Bandwidth:
    """Rates in GB/s (10^9 bytes): a copy on the device, counted read and written, and copies to and from a GPU."""

    device_gb_per_second: float
    to_device_gb_per_second: float | None = None
    from_device_gb_per_second: float | None = None


def measure_bandwidth(device: str) -> Bandwidth:
    """Return the bandwidth of the memory of "cpu" or "cuda", and on a GPU of copies from and to pinned memory."""
    own = _measure(*(torch.ones(BYTES[device], dtype=torch.uint8, device=device) for _ in range(2)))
    if device == "cpu":
        return Bandwidth(2 * own)
    pinned = torch.ones(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.ones(HOST_BYTES, dtype=torch.uint8, device=device)
    return Bandwidth(2 * own, _measure(there, pinned), _measure(pinned, there))


def _measure(target: torch.Tensor, source: torch.Tensor) -> float:
    """Return GB/s of copies, each byte counted once."""
    copies = 1
    while True:
        begin = time.perf_counter()
        for _ in range(copies):
            target.copy_(source, non_blocking=True)
        if target.is_cuda or source.is_cuda:
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - begin
        if copies > 1 and elapsed >= SECONDS:  # the first copy warms up
            return copies * source.nbytes / elapsed / 1e9
        copies *= 2
