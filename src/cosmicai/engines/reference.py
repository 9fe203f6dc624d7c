"""The reference engine: the network in eager torch, float32, as the published code runs it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..models.weights import WeightsFile, build, check
from .base import Choice, pieces, require_our_galaxies

INNER_BATCH = 64


def choose_reference(weights: WeightsFile, device: str, batch_size: int) -> Choice:
    """What a run with this engine will do. Raises InputError if the weights cannot be used or no GPU is visible."""
    require_device(device)
    require_our_galaxies(check(weights.load()), weights.uri)
    return Choice("reference", "float32", device, min(batch_size, INNER_BATCH) if device == "cpu" else batch_size)


def require_device(device: str) -> None:
    """Raises InputError if `device` is "cuda" and no GPU is visible."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU is visible to this process; use --device cpu, or ask the scheduler for a GPU")


class ReferenceEngine:
    """Eager torch on `device` ("cpu" or "cuda").

    On a CPU `threads` threads predict one piece of the inner batch each at a time: how torch would share one operation
    among its threads changes the last bits, this does not. Raises InputError if the weights cannot be used or no GPU
    is visible.
    """

    name = "reference"
    precision = "float32"

    def __init__(self, weights: WeightsFile, choice: Choice, threads: int) -> None:
        require_device(choice.device)
        network = build(weights.load())
        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        self.device = choice.device
        self._inner_batch = choice.inner_batch
        self._network = network.to(self.device)
        self._pool = ThreadPoolExecutor(threads)

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite."""
        found = self._pool.map(
            lambda rows: self._piece(image[rows], magnitude[rows]), pieces(len(image), self._inner_batch)
        )
        return np.concatenate(list(found))

    @torch.inference_mode()
    def _piece(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        redshift = self._network(torch.from_numpy(image).to(self.device), torch.from_numpy(magnitude).to(self.device))
        predicted: NDArray[np.float32] = redshift.cpu().numpy()
        return predicted

    def peak_gpu_mb(self) -> float:
        """Largest GPU memory held so far in MB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else 0.0
