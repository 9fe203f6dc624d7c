"""What every engine offers."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A loaded network on a device."""

    name: str
    precision: str
    device: str

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite."""

    def peak_gpu_mb(self) -> float:
        """Largest GPU memory held so far in MB; 0 on a CPU."""
