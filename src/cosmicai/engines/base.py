"""What every engine offers, and what decides its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.config import AstroMAEConfig
from ..surveys.shard import BANDS, IMAGE_SHAPE

GPU_SLOTS = 3  # batches on their way to, on and from a GPU


@dataclass(frozen=True)
class Choice:
    """An engine and all that decides its numbers; part of every plan.

    `inner_batch` is how many galaxies one call of the network sees: a batch is cut into pieces of that size, the last
    one filled up, so that a galaxy meets the same neighbours whoever predicts it.
    """

    engine: str
    precision: str
    device: str
    inner_batch: int


class Engine(Protocol):
    """A loaded network on a device."""

    name: str
    precision: str
    device: str

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite; from any number of threads."""

    def peak_gpu_mb(self) -> float:
        """Largest GPU memory held so far in MB; 0 on a CPU."""


def calls_at_once(choice: Choice, threads: int, batch_size: int) -> tuple[int, int]:
    """How many galaxies of a batch one call of `predict` gets, and how many calls keep the device busy.

    No more than it takes, since they all are in memory: a piece for everyone who computes, and one more, so that nobody
    waits for it.
    """
    return min(batch_size, choice.inner_batch), 1 + (threads if choice.device == "cpu" else GPU_SLOTS)


def pieces(rows: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` rows."""
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def inner_batch(batch_size: int, largest: int) -> int:
    """The smallest piece with which a batch takes as few pieces as with the largest: nothing is filled up in vain."""
    return -(-batch_size // -(-batch_size // largest))


def require_our_galaxies(config: AstroMAEConfig, uri: str) -> None:
    """Raises InputError if a network of this configuration does not read the cutouts and magnitudes of our shards."""
    wanted = (config.bands, config.image_size, config.image_size)
    if wanted != IMAGE_SHAPE or config.magnitudes != len(BANDS):
        raise InputError(
            f"{uri} is for cutouts {wanted} and {config.magnitudes} magnitudes; expected a network for {IMAGE_SHAPE} "
            f"and {len(BANDS)}"
        )
