"""The two parts of the network as compiled by OpenVINO, kept in the cache folder and tested whenever they are loaded.

Compiling takes longer than running a small survey. There is one file per weights, graph, OpenVINO version, precision,
inner batch and kind of processor. It holds the part's output for a fixed input as an .npy, then the exported network.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ...errors import InputError
from ...models.fold import FoldedWeights
from ...models.weights import WeightsFile
from .compiled_cache import get_or_create
from .export import find_exported_graph, read_folded
from .graph import PARTS, has_finite_constants
from .processor import cpu_settings, describe_processor, get_core

TOLERANCE = 1e-4  # of a test output, relative to its largest value


class NetworkGraphs:
    """The graphs of a weights file: exported ones where there are any, else built from weights that are folded once.

    Several threads may use it at the same time.
    """

    def __init__(self, weights: WeightsFile) -> None:
        self._weights, self._lock = weights, threading.Lock()
        self._folded: FoldedWeights | None = None

    @property
    def sha256(self) -> str:
        """SHA-256 digest of the weights."""
        return self._weights.sha256

    def build(self, part: str, batch: int) -> ov.Model:
        """Return the graph of a part of the network for `batch` galaxies.

        Raises InputError if the weights cannot be used or an exported graph is damaged.
        """
        exported = find_exported_graph(self._weights.sha256, part, batch)
        if exported is None:
            return PARTS[part](self._fold(), batch)
        again = "write it again with `cosmicai weights export`"
        try:
            model = get_core().read_model(exported)
        except RuntimeError:
            raise InputError(f"{exported} is not complete; {again}") from None
        if not has_finite_constants(model):
            raise InputError(f"{exported} holds weights that are NaN or infinite; {again}")
        return model

    def _fold(self) -> FoldedWeights:
        with self._lock:
            if self._folded is None:
                self._folded = read_folded(self._weights)
            return self._folded


@dataclass(frozen=True)
class CompiledPart:
    """A compiled part of the network and its output for the test input."""

    network: ov.CompiledModel
    data: NDArray[np.uint8]  # holds the constants that the network reads
    expected: NDArray[np.float32]

    def is_correct(self, streams: int) -> bool:
        """Return whether every stream still gives the expected output for the test input."""
        allowed = TOLERANCE * np.abs(self.expected).max(where=np.isfinite(self.expected), initial=0)
        outputs = _compute_test_outputs(self.network, streams)
        return all(np.allclose(own, self.expected, rtol=0, atol=allowed, equal_nan=True) for own in outputs)


def cache_name(sha256: str, part: str, precision: str, batch: int) -> str:
    """Return the start of the name of a file in the cache folder, for weights with this digest on this machine."""
    key = hashlib.sha256(describe_processor().encode()).hexdigest()[:16]
    return f"{sha256[:16]}-{part}-{precision}-{batch}-{key}"


def compile_part(graphs: NetworkGraphs, part: str, precision: str, batch: int) -> ov.CompiledModel:
    """Compile a part of the network for one stream. Raises InputError if the weights cannot be used."""
    return get_core().compile_model(graphs.build(part, batch), "CPU", cpu_settings(precision, 1))


def ensure_compiled(graphs: NetworkGraphs, part: str, precision: str, batch: int) -> None:
    """Compile a part into the cache folder unless it is there. Raises InputError if the weights cannot be used."""
    name = cache_name(graphs.sha256, part, precision, batch)
    _compiled_file(name, partial(compile_part, graphs, part, precision, batch))


def open_part(graphs: NetworkGraphs, part: str, precision: str, batch: int, streams: int) -> CompiledPart:
    """Load a part for `streams` streams, compiling it first if needed.

    Raises InputError if the weights cannot be used or OpenVINO does not run what it compiled.
    """
    name = cache_name(graphs.sha256, part, precision, batch)
    return _open(name, partial(compile_part, graphs, part, precision, batch), precision, streams)


def open_quantized_encoder(quantized: bytes, batch: int, streams: int) -> CompiledPart:
    """Load the encoder that `int8.quantize` returned, compiling it first if needed; raises as `open_part`."""
    from .int8 import read_quantized  # needed for int8 alone

    name = cache_name(hashlib.sha256(quantized).hexdigest(), "encoder", "int8", batch)
    settings = cpu_settings("float32", 1)
    return _open(name, lambda: get_core().compile_model(read_quantized(quantized), "CPU", settings), "float32", streams)


def _compiled_file(name: str, compile_network: Callable[[], ov.CompiledModel]) -> Path:
    def export() -> memoryview:
        network = compile_network()
        file = io.BytesIO()
        np.save(file, _compute_test_outputs(network, 1)[0])
        network.export_model(exported := io.BytesIO())
        file.write(exported.getbuffer())
        return file.getbuffer()

    return get_or_create(f"{name}.blob", export)


def _compute_test_outputs(network: ov.CompiledModel, streams: int) -> list[NDArray[np.float32]]:
    """Return the output of a part for a fixed input from each stream, all computed at the same time.

    A damaged network gives other outputs. In addition, two of some thousand processes started on a busy machine
    computed wrong first redshifts without an error; the cause was not found.
    """
    requests = [network.create_infer_request() for _ in range(streams)]
    shapes = [tuple(tensor.shape) for tensor in requests[0].input_tensors]
    inputs = [np.cos(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape) for shape in shapes]
    for request in requests:
        request.start_async(inputs)
    for request in requests:
        request.wait()
    return [request.get_output_tensor(0).data.copy() for request in requests]


def _open(name: str, compile_network: Callable[[], ov.CompiledModel], precision: str, streams: int) -> CompiledPart:
    """Load a compiled file; create it first if it is missing, and again if it is damaged."""
    path = _compiled_file(name, compile_network)
    try:
        return _load(path, precision, streams)
    except (RuntimeError, ValueError, EOFError):
        path.unlink(missing_ok=True)
    try:
        return _load(_compiled_file(name, compile_network), precision, streams)
    except (RuntimeError, ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"OpenVINO cannot run {path}, which it compiled: {reason}; use --engine reference") from None


def _load(path: Path, precision: str, streams: int) -> CompiledPart:
    """Raise RuntimeError, ValueError or EOFError if the file is damaged."""
    # Read, not mapped into memory, since a file can change.
    with path.open("rb") as file:
        expected = np.load(file, allow_pickle=False)
        data = np.fromfile(file, np.uint8)
    network = get_core().import_model(ov.Tensor(data, shared_memory=True), "CPU", cpu_settings(precision, streams))
    part = CompiledPart(network, data, expected)
    if not part.is_correct(streams):
        raise RuntimeError("its test output differs from the one at compilation")
    return part
