"""The folded network as graphs in files, which a container image includes for any kind of processor.

A compiled network is for one kind of processor, a graph for all of them. A rank that finds no compiled network need not
read the weights and fold them. A graph is a .xml and a .bin of OpenVINO; the .xml ends with a comment that holds the
XXH3-128 digest of both files and their name.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import openvino as ov
import xxhash

from ... import storage
from ...errors import InputError
from ...models.fold import FoldedWeights, fold
from ...models.weights import WeightsFile
from ..base import require_compatible_network
from .graph import INNER_BATCHES, PARTS, VERSION
from .processor import get_core

FOLDER = "COSMICAI_GRAPHS"
MARK = b"<!-- cosmicai-graph/1 "


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
                data, text = (Path(temporary, f"graph.{kind}").read_bytes() for kind in ("bin", "xml"))
                name = _name(weights.key, part, batch)
                # .xml last, since a graph exists once its .xml does
                for kind, content in (("bin", data), ("xml", text + _seal(name, text, data))):
                    written.append(storage.join(folder, f"{name}.{kind}"))
                    storage.write_bytes(written[-1], content)
    return written


def read_exported_graph(network: str, part: str, batch: int) -> ov.Model | None:
    """Return a part's graph from the folder COSMICAI_GRAPHS, or None if it is not there.

    Raises InputError if its files cannot be read or are not those that were exported.
    """
    folder, name = os.environ.get(FOLDER), _name(network, part, batch)
    path = Path(folder or "", f"{name}.xml")
    if not folder or not path.exists():
        return None
    xml, data = (storage.read_bytes(str(path.with_suffix(suffix))) for suffix in (".xml", ".bin"))
    text, mark, end = xml.rpartition(MARK)
    if mark + end != _seal(name, text, data):
        is_whole = end.split()[:2] == [b"%d" % len(text), b"%d" % len(data)]
        problem = "is damaged: it and its .bin differ from their digest" if is_whole else "is not complete"
        raise InputError(f"{path} {problem}; write it again with `cosmicai weights export`")
    return get_core().read_model(text, data)


def _seal(name: str, text: bytes, data: bytes) -> bytes:
    """Return the end of a .xml: the bytes of the .xml without it, those of the .bin, and the digest of both."""
    digest = xxhash.xxh3_128(name.encode())
    digest.update(text)
    digest.update(data)
    return MARK + b"%d %d %s -->\n" % (len(text), len(data), digest.hexdigest().encode())


def _name(network: str, part: str, batch: int) -> str:
    return f"{network[:16]}-{part}-{batch}-{VERSION}"
