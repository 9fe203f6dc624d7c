"""The reference engine: the network in eager torch, float32, as the published code runs it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..galaxies.shard import BANDS, IMAGE_SHAPE
from ..model.astromae import AstroMAE
from ..model.weights import Weights, build

INNER_BATCH = 64


def usable_network(weights: Weights, device: str) -> AstroMAE:
    """The network, in main memory. Raises InputError if it cannot read our galaxies or no GPU is visible."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU is visible to this process; use --device cpu, or ask the scheduler for a GPU")
    network = build(weights)
    wanted = (network.config.bands, network.config.image_size, network.config.image_size)
    if wanted != IMAGE_SHAPE or network.config.magnitudes != len(BANDS):
        raise InputError(
            f"{weights.uri} is for cutouts {wanted} and {network.config.magnitudes} magnitudes; expected a network for "
            f"{IMAGE_SHAPE} and {len(BANDS)}"
        )
    return network


class ReferenceEngine:
    """Eager torch on `device` ("cpu" or "cuda").

    On a CPU a batch is cut into pieces of INNER_BATCH, and `threads` threads predict one piece each at a time: how
    torch would share one operation among its threads changes the last bits, this does not.
    Raises as `usable_network`.
    """

    name = "reference"
    precision = "float32"

    def __init__(self, weights: Weights, device: str, threads: int) -> None:
        network = usable_network(weights, device)
        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        self.device = device
        self._network = network.to(device)
        self._pool = ThreadPoolExecutor(threads)

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite."""
        inner = INNER_BATCH if self.device == "cpu" else len(image)
        pieces = [slice(start, start + inner) for start in range(0, len(image), inner)]
        return np.concatenate(list(self._pool.map(lambda rows: self._piece(image[rows], magnitude[rows]), pieces)))

    @torch.inference_mode()
    def _piece(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        redshift = self._network(torch.from_numpy(image).to(self.device), torch.from_numpy(magnitude).to(self.device))
        predicted: NDArray[np.float32] = redshift.cpu().numpy()
        return predicted

    def peak_gpu_mb(self) -> float:
        """Largest GPU memory held so far in MB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else 0.0
