"""The folded network as graphs in files, which a container image includes for any kind of processor.

A compiled network is for one kind of processor, a graph for all of them. A rank that finds no compiled network need not
read the weights and fold them.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov

from ... import storage
from ...models.fold import FoldedWeights, fold
from ...models.weights import WeightsFile
from ..base import require_compatible_network
from .graph import INNER_BATCHES, PARTS, VERSION

FOLDER = "COSMICAI_GRAPHS"


def read_folded(weights: WeightsFile) -> FoldedWeights:
    """Return the folded network of a weights file in float32.

    Raises InputError if the weights cannot be used or are for other cutouts or magnitudes than those of shards.
    """
    folded = fold(weights.load(), np.float32)
    require_compatible_network(folded.config, weights.uri)
    return folded


def export_graphs(weights: WeightsFile, folder: str) -> list[str]:
    """Write the graphs of these weights to a folder and return their paths.

    Raises InputError if the weights cannot be used or the folder cannot be written.
    """
    folded, written = read_folded(weights), []
    for batch in INNER_BATCHES:
        for part, build in PARTS.items():
            with TemporaryDirectory() as temporary:
                ov.save_model(build(folded, batch), Path(temporary, "graph.xml"), compress_to_fp16=False)
                for kind in ("bin", "xml"):  # .xml last, since a graph exists once its .xml does
                    written.append(storage.join(folder, f"{_name(weights.sha256, part, batch)}.{kind}"))
                    storage.write_bytes(written[-1], Path(temporary, f"graph.{kind}").read_bytes())
    return written


def find_exported_graph(sha256: str, part: str, batch: int) -> Path | None:
    """Return the path of a part's graph in the folder COSMICAI_GRAPHS, or None if it is not there."""
    folder = os.environ.get(FOLDER)
    path = Path(folder or "", f"{_name(sha256, part, batch)}.xml")
    return path if folder and path.exists() else None


def _name(sha256: str, part: str, batch: int) -> str:
    return f"{sha256[:16]}-{part}-{batch}-{VERSION}"
