"""The engine `native`: the transformer in this project's own code, everything else in OpenVINO in float32.

In float32 it needs AVX2. In `bf16x3`, which splits each float32 of a matrix product into two bfloat16, and in bfloat16
it needs AMX.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...models.weights import WeightsFile
from ..base import EngineChoice
from ..openvino.compiled_cache import UnusableFile, get_or_create
from ..openvino.compiled_part import TOLERANCE, NetworkGraphs, Stream
from ..openvino.engine import Encoder, OpenVINOEngine, choose_openvino
from ..openvino.sealed_file import seal, unseal
from .build import SOURCE
from .library import find_problem, find_variant, load_library
from .network import Form, NativeNetwork, find_unsupported, form_of, list_constants

SHAPE = (21, 5, 32, 32)  # of the test input: more galaxies than a vector has lanes, and not a multiple of them


def choose_native(weights: WeightsFile, precision: str, batch_size: int) -> tuple[EngineChoice, str | None]:
    """Return the choices for a run with this engine on this machine, and a notice if they differ from the request.

    Raises InputError if it cannot run here, or has no code for this network, or if the weights cannot be used.
    """
    if problem := find_problem(precision):
        raise InputError(f"{problem}; use --engine openvino")
    graphs = NetworkGraphs(weights)
    if unsupported := find_unsupported(graphs.folded().config):
        raise InputError(f"the native engine has no code for a network of {unsupported}; use --engine openvino")
    choice, notice = choose_openvino(weights, "float32", batch_size)
    _open_encoder(graphs, precision)  # into the cache, for the ranks
    return replace(choice, engine="native", precision=precision), notice


class NativeEngine(OpenVINOEngine):
    """The network on `threads` threads.

    A processor without the instructions runs such a plan in OpenVINO in float32; `name` and `precision` say so. Raises
    InputError if the weights cannot be used.
    """

    def __init__(self, weights: WeightsFile, choice: EngineChoice, threads: int) -> None:
        self._native = None if find_problem(choice.precision) else choice.precision
        super().__init__(weights, replace(choice, precision="float32"), threads)
        self.name, self.precision = ("native", self._native) if self._native else ("openvino", "float32")

    def _open_encoder(self, graphs: NetworkGraphs, threads: int, quantized: bytes | None) -> Encoder:
        if self._native is None:
            return super()._open_encoder(graphs, threads, quantized)
        return _open_encoder(graphs, self._native)


@dataclass(frozen=True)
class NativeEncoder:
    """The transformer, and its output for the test input."""

    network: NativeNetwork
    expected: NDArray[np.float32]

    def is_correct(self, streams: int) -> bool:
        """Return whether it still gives the expected output for the test input; all streams share one code."""
        allowed = TOLERANCE * np.abs(self.expected).max(where=np.isfinite(self.expected), initial=0)
        own = self.network.encode(_test_input())
        return np.allclose(own, self.expected, rtol=0, atol=allowed, equal_nan=True)

    def open_stream(self) -> Stream:
        """Return the function that encodes cutouts, for any thread."""
        return self.network.encode


def _open_encoder(graphs: NetworkGraphs, precision: str) -> NativeEncoder:
    """Load the constants of a network from the cache, where they are written first if needed.

    Raises InputError if the weights cannot be used.
    """
    variant = find_variant(precision)
    assert variant, "find_problem has found none"
    path = SOURCE / variant.file
    library, digest = load_library(path), hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"{graphs.key[:16]}-native-{variant.precision}-{variant.name}-{digest[:16]}.constants"

    def make() -> memoryview:
        folded = graphs.folded()
        constants = np.concatenate([np.array(form_of(folded.config), np.float32)] + [
            np.ravel(values) for values in list_constants(folded)
        ])  # fmt: skip
        return seal(name, _load(library, constants).encode(_test_input()), constants.data.cast("B"))

    def decode(file: io.BufferedIOBase) -> NativeEncoder:
        expected, content = unseal(name, file)
        encoder = NativeEncoder(_load(library, content.view(np.float32)), expected)
        if not encoder.is_correct(1):
            raise UnusableFile("its test output differs from the one when it was written")
        return encoder

    return get_or_create(name, make, decode)


def _load(library: ctypes.CDLL, constants: NDArray[np.float32]) -> NativeNetwork:
    """Return the network of constants that begin with its form."""
    width, hidden, depth = (int(value) for value in constants[:3])
    form: Form = (width, hidden, depth)
    return NativeNetwork(library, form, constants[3:])


def _test_input() -> NDArray[np.float32]:
    return np.cos(np.arange(np.prod(SHAPE), dtype=np.float32)).reshape(SHAPE)
