"""The protocol that every engine implements, and the choices that decide the numbers it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.config import AstroMAEConfig
from ..surveys.shard import BANDS, IMAGE_SHAPE

GPU_SLOTS = 3  # batches that are copied to, computed on and copied from a GPU at the same time


@dataclass(frozen=True)
class EngineChoice:
    """An engine and everything that decides its numbers; part of every plan.

    `inner_batch` is the number of galaxies in one call of the network. A batch is split into inner batches and the last
    one is padded, so that a galaxy is computed together with the same others whichever rank predicts it.
    """

    engine: str
    precision: str
    device: str
    inner_batch: int


class Engine(Protocol):
    """A network loaded on a device."""

    name: str
    precision: str
    device: str

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite.

        Any number of threads may call this at the same time.
        """

    def peak_gpu_mb(self) -> float:
        """Return the largest GPU memory allocated so far in MB (2^20 bytes); 0 on a CPU."""


def choose_concurrency(choice: EngineChoice, threads: int, batch_size: int) -> tuple[int, int]:
    """Return the galaxies per call of `predict`, and the number of concurrent calls that keep the device busy.

    All of them are in memory, so there are no more calls than needed: one per computing thread or GPU slot, and one
    that is ready when any of these finishes.
    """
    return min(batch_size, choice.inner_batch), 1 + (threads if choice.device == "cpu" else GPU_SLOTS)


def split_rows(rows: int, size: int) -> list[slice]:
    """Return consecutive slices of at most `size` rows that cover `rows` rows."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def choose_inner_batch(batch_size: int, largest: int) -> int:
    """Return the smallest inner batch that splits a batch into as few pieces as the largest one: least padding."""
    return -(-batch_size // -(-batch_size // largest))


def require_compatible_network(config: AstroMAEConfig, uri: str) -> None:
    """Raise InputError if a network of this configuration does not read the cutouts and magnitudes of shards."""
    expected = (config.bands, config.image_size, config.image_size)
    if expected != IMAGE_SHAPE or config.magnitudes != len(BANDS):
        raise InputError(
            f"{uri} is for cutouts {expected} and {config.magnitudes} magnitudes; expected a network for {IMAGE_SHAPE} "
            f"and {len(BANDS)}"
        )
