"""The baseline: the network as the published code runs it, in eager torch on a TensorDataset in memory.

`python -m cosmicai.bench.published_loop PARTITION.pt WEIGHTS` does so for one file and prints JSON: galaxies, galaxies
per second from opening the file to the last prediction, and the peak resident memory in MB (2^20 bytes). A partition on
S3 is read completely into memory first, as by the published function.
"""

from __future__ import annotations

import io
import json
import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ..models.weights import build_network, load_weights
from ..ranks.cores import available_cores
from ..runs.provenance import peak_rss_mb
from ..storage import read_bytes
from ..storage.s3 import is_s3
from ..surveys.shard import Galaxies

BATCH_SIZE = 512


def make_published_dataset(galaxies: Galaxies) -> TensorDataset:
    """Return the galaxies as the published partitions hold them."""
    return TensorDataset(*map(torch.from_numpy, (galaxies.image, galaxies.magnitude, galaxies.redshift)))


@torch.no_grad()
def run_published_loop(
    network: nn.Module, dataset: TensorDataset, device: str = "cpu", batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """Return redshifts (N,) of the data set; `network` is on `device` already."""
    predicted = [
        network(image.to(device), magnitude.to(device))
        for image, magnitude, _ in DataLoader(dataset, batch_size=batch_size)
    ]
    redshift: NDArray[np.float32] = torch.cat(predicted).cpu().numpy()
    return redshift


def main(partition: str, weights: str) -> None:
    """Predict a partition as one process of the published code does, and print the figures."""
    torch.set_num_threads(available_cores())
    network = build_network(load_weights(weights))
    begin = time.perf_counter()
    with torch.serialization.safe_globals([TensorDataset]):
        dataset = torch.load(io.BytesIO(read_bytes(partition)) if is_s3(partition) else partition)
    galaxies = len(run_published_loop(network, dataset))
    per_second = galaxies / (time.perf_counter() - begin)
    print(json.dumps({"galaxies": galaxies, "galaxies_per_second": per_second, "peak_rss_mb": peak_rss_mb()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
