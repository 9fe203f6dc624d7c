"""The reference engine: the network in eager torch, float32, as the published code runs it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..model.weights import Weights, build


class ReferenceEngine:
    """Eager torch on `device` ("cpu" or "cuda") with `threads` CPU threads.

    Raises InputError if the weights are of another architecture or no GPU is visible.
    """

    name = "reference"
    precision = "float32"

    def __init__(self, weights: Weights, device: str, threads: int) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("no GPU is visible to this process; use --device cpu, or ask the scheduler for a GPU")
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        self.device = device
        self._network = build(weights).to(device)

    @torch.inference_mode()
    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite."""
        redshift = self._network(torch.from_numpy(image).to(self.device), torch.from_numpy(magnitude).to(self.device))
        predicted: NDArray[np.float32] = redshift.cpu().numpy()
        return predicted

    def peak_gpu_mb(self) -> float:
        """Largest GPU memory held so far in MB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else 0.0
