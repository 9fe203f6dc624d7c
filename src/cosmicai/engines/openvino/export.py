"""The folded network as graphs in files, which an image brings along for whatever processor it will meet.

A compiled network is for one kind of processor. A graph is for all of them, and saves a rank that finds nothing
compiled from reading the weights and folding them.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov

from ... import storage
from ...models.fold import Folded, fold
from ...models.weights import WeightsFile
from ..base import require_our_galaxies
from .graph import INNER_BATCHES, PARTS, VERSION

FOLDER = "COSMICAI_GRAPHS"


def read_folded(weights: WeightsFile) -> Folded:
    """The folded network of a weights file. Raises InputError if it cannot be used or is not for our galaxies."""
    folded = fold(weights.load(), np.float32)
    require_our_galaxies(folded.config, weights.uri)
    return folded


def export_graphs(weights: WeightsFile, folder: str) -> list[str]:
    """Writes the graphs of these weights to a folder and returns their paths.

    Raises InputError if the weights cannot be used or the folder cannot be written.
    """
    folded, written = read_folded(weights), []
    for batch in INNER_BATCHES:
        for part, graph in PARTS.items():
            with TemporaryDirectory() as own:
                ov.save_model(graph(folded, batch), Path(own, "graph.xml"), compress_to_fp16=False)
                for kind in ("bin", "xml"):  # the latter last, by which a graph is found
                    written.append(storage.join(folder, f"{_name(weights.sha256, part, batch)}.{kind}"))
                    storage.write_bytes(written[-1], Path(own, f"graph.{kind}").read_bytes())
    return written


def exported_graph(sha256: str, part: str, batch: int) -> Path | None:
    """The graph of a network's part in the folder that COSMICAI_GRAPHS names; None if it is not there."""
    folder = os.environ.get(FOLDER)
    path = Path(folder or "", f"{_name(sha256, part, batch)}.xml")
    return path if folder and path.exists() else None


def _name(sha256: str, part: str, batch: int) -> str:
    return f"{sha256[:16]}-{part}-{batch}-{VERSION}"
