"""The reference engine: the network in eager torch in float32, as the published code runs it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..models.weights import WeightsFile, build_network, check_architecture
from .base import EngineChoice, require_compatible_network, split_rows

INNER_BATCH = 64


def choose_reference(weights: WeightsFile, device: str, batch_size: int) -> EngineChoice:
    """Return the choices for a run with this engine.

    Raises InputError if the weights cannot be used, or if `device` is "cuda" and no GPU is visible.
    """
    require_device(device)
    require_compatible_network(check_architecture(weights.load()), weights.uri)
    return EngineChoice("reference", "float32", device, min(batch_size, INNER_BATCH) if device == "cpu" else batch_size)


def require_device(device: str) -> None:
    """Raise InputError if `device` is "cuda" and no GPU is visible."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU is visible to this process; use --device cpu, or ask the scheduler for a GPU")


class ReferenceEngine:
    """Eager torch on `device` ("cpu" or "cuda").

    On a CPU each of `threads` threads predicts one inner batch at a time. Sharing one operation among torch's threads
    would make the last bits depend on their number. Raises InputError if the weights cannot be used or no GPU is
    visible.
    """

    name = "reference"
    precision = "float32"

    def __init__(self, weights: WeightsFile, choice: EngineChoice, threads: int) -> None:
        require_device(choice.device)
        network = build_network(weights.load())
        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # no rounding to TF32
        self.device = choice.device
        self._inner_batch = choice.inner_batch
        self._network = network.to(self.device)
        self._pool = ThreadPoolExecutor(threads)

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite."""
        redshifts = self._pool.map(
            lambda rows: self._predict_rows(image[rows], magnitude[rows]), split_rows(len(image), self._inner_batch)
        )
        return np.concatenate(list(redshifts))

    @torch.inference_mode()
    def _predict_rows(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        redshift = self._network(torch.from_numpy(image).to(self.device), torch.from_numpy(magnitude).to(self.device))
        predicted: NDArray[np.float32] = redshift.cpu().numpy()
        return predicted

    def peak_gpu_mb(self) -> float:
        """Return the largest GPU memory allocated so far in MB (2^20 bytes); 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else 0.0
