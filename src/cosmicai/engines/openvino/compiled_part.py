"""The two parts of the network as compiled by OpenVINO, kept in the cache folder and tested whenever they are loaded.

Compiling takes longer than running a small survey. There is one file (`sealed_file.py`) per weights, graph, OpenVINO
version, precision, inner batch and kind of processor.
"""

from __future__ import annotations

import hashlib
import io
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ...errors import InputError
from ...models.fold import FoldedWeights
from ...models.weights import WeightsFile
from .compiled_cache import UnusableFile, cache_folder, get_or_create
from .export import read_exported_graph, read_folded
from .graph import PARTS
from .processor import cpu_settings, describe_processor, get_core
from .sealed_file import seal, unseal

Stream = Callable[..., NDArray[np.float32]]
TOLERANCE = 1e-4  # of a test output, relative to its largest value


class NetworkGraphs:
    """The graphs of a weights file: exported ones where there are any, else built from weights that are folded once.

    Several threads may use it at the same time.
    """

    def __init__(self, weights: WeightsFile) -> None:
        self._weights, self._lock = weights, threading.Lock()
        self._folded: FoldedWeights | None = None

    @property
    def key(self) -> str:
        """What the network is known by."""
        return self._weights.key

    def folded(self) -> FoldedWeights:
        """Return the folded network in float32. Raises InputError if the weights cannot be used."""
        with self._lock:
            if self._folded is None:
                self._folded = read_folded(self._weights)
            return self._folded

    def build(self, part: str, batch: int) -> ov.Model:
        """Return the graph of a part of the network for `batch` galaxies.

        Raises InputError if the weights cannot be used or an exported graph is damaged.
        """
        exported = read_exported_graph(self._weights.key, part, batch)
        return PARTS[part](self.folded(), batch) if exported is None else exported


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

    def open_stream(self) -> Stream:
        """Return a function for one thread that takes the inputs and returns the output, until it is called again."""
        request = self.network.create_infer_request()
        return lambda *inputs: request.infer(list(inputs), share_inputs=True, share_outputs=True)[0]


def cache_name(network: str, part: str, precision: str, batch: int) -> str:
    """Return the start of the name of a file in the cache folder, for a network by its digest on this machine."""
    key = hashlib.sha256(describe_processor().encode()).hexdigest()[:16]
    return f"{network[:16]}-{part}-{precision}-{batch}-{key}"


def compile_part(graphs: NetworkGraphs, part: str, precision: str, batch: int) -> ov.CompiledModel:
    """Compile a part of the network for one stream. Raises InputError if the weights cannot be used."""
    return get_core().compile_model(graphs.build(part, batch), "CPU", cpu_settings(precision, 1))


def ensure_compiled(graphs: NetworkGraphs, part: str, precision: str, batch: int) -> None:
    """Compile a part into the cache folder unless it is there, whole. Raises InputError if the weights are unusable."""
    name = f"{cache_name(graphs.key, part, precision, batch)}.blob"
    get_or_create(name, lambda: _pack(name, compile_part(graphs, part, precision, batch)), partial(unseal, name))


def open_part(graphs: NetworkGraphs, part: str, precision: str, batch: int, streams: int) -> CompiledPart:
    """Load a part for `streams` streams, compiling it first if needed.

    Raises InputError if the weights cannot be used or OpenVINO does not run what it compiled.
    """
    name = f"{cache_name(graphs.key, part, precision, batch)}.blob"
    return _open(name, partial(compile_part, graphs, part, precision, batch), precision, streams)


def open_quantized_encoder(quantized: bytes, batch: int, streams: int) -> CompiledPart:
    """Load the encoder that `int8.quantize` returned, compiling it first if needed; raises as `open_part`."""
    from .int8 import read_quantized  # needed for int8 alone

    name = f"{cache_name(hashlib.sha256(quantized).hexdigest(), 'encoder', 'int8', batch)}.blob"
    settings = cpu_settings("float32", 1)
    return _open(name, lambda: get_core().compile_model(read_quantized(quantized), "CPU", settings), "float32", streams)


def _pack(name: str, network: ov.CompiledModel) -> memoryview:
    """Return the file of this name that holds a compiled part."""
    network.export_model(exported := io.BytesIO())
    return seal(name, _compute_test_outputs(network, 1)[0], exported.getbuffer())


def _compute_test_outputs(network: ov.CompiledModel, streams: int) -> list[NDArray[np.float32]]:
    """Return the output of a part for a fixed input from each stream, all computed at the same time.

    Two of some thousand processes started on a busy machine computed wrong first redshifts without an error. In 3,714
    starts with whole files, poisoned heaps (MALLOC_PERTURB_) and both cores busy it did not come again; the cause was
    not found. A damaged file, which gives such redshifts too, is found by its digest before.
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
    try:
        return get_or_create(
            name, lambda: _pack(name, compile_network()), lambda file: _load(*unseal(name, file), precision, streams)
        )
    except UnusableFile as error:
        raise InputError(
            f"OpenVINO cannot run {cache_folder() / name}, which it compiled: {error}; use --engine reference"
        ) from None


def _load(expected: NDArray[np.float32], data: NDArray[np.uint8], precision: str, streams: int) -> CompiledPart:
    """Return the compiled part. Raises UnusableFile if OpenVINO cannot run it."""
    try:
        network = get_core().import_model(ov.Tensor(data, shared_memory=True), "CPU", cpu_settings(precision, streams))
        part = CompiledPart(network, data, expected)
        if part.is_correct(streams):
            return part
    except RuntimeError as error:
        raise UnusableFile(str(error).partition("\n")[0]) from None
    raise UnusableFile("its test output differs from the one at compilation")
