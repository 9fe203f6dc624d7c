"""The CPU engine: the folded network in OpenVINO, one stream of one thread per core. It never imports torch.

The transformer, nine tenths of the work, runs in the precision that was asked for, all else in float32.
Compiling takes longer than running a small survey, so what is compiled is kept in the cache folder: one file per
weights, graph, OpenVINO, precision, inner batch and kind of processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from ...errors import InputError
from ...models.fold import Folded
from ...models.weights import WeightsFile
from ..base import Choice, inner_batch, pieces
from .compiled_cache import cached
from .export import exported_graph, read_folded
from .graph import INNER_BATCHES, PARTS, VERSION

HINTS = {"float32": "f32", "bfloat16": "bf16"}  # asked for explicitly: OpenVINO's own default is bfloat16
WORTHWHILE = 1.03  # how much faster 128 must be
PROBES = 3
IMPLAUSIBLE = 100  # redshift
SAME = 1e-4  # difference from the known answer, relative to its largest value
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h of glibc


@cache
def _core() -> ov.Core:
    # Compiling frees arrays of many sizes. glibc would take them for its heap, where they leave holes of a hundred
    # megabytes, unless the size is fixed from which on memory comes from the system and goes back to it; and a heap of
    # their own for threads that allocate next to nothing while they compute.
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**20)
        library.mallopt(M_ARENA_MAX, 1)
    return ov.Core()


@cache
def _processor() -> str:
    """What a compiled network depends on besides the network."""
    facts = [str(_core().get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    return json.dumps([ov.__version__, VERSION, *facts, os.environ.get("ONEDNN_MAX_CPU_ISA", "")])


@cache
def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16; found by compiling a small product, since capabilities can lie."""
    if "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    x = op.parameter([16, 16], np.float32)
    product = ov.Model([op.matmul(x, op.constant(np.ones((16, 16), np.float32)), False, True)], [x], "product")
    try:
        _core().compile_model(product, "CPU", cpu_settings("bfloat16", 1))
    except RuntimeError:
        return False
    return True


@cache
def has_fast_int8() -> bool:
    """Whether this processor is faster in int8 than in float32, as x86 is with AVX-512 or VNNI (1.4 to 1.7 times).

    With AVX2 alone it takes half as long again.
    """
    try:
        flags = set(re.findall(r"avx512f|avx_vnni", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return False
    return bool(flags) and os.environ.get("ONEDNN_MAX_CPU_ISA", "") not in ("SSE41", "AVX", "AVX2")


def cpu_settings(precision: str, streams: int) -> dict[str, Any]:
    """OpenVINO's settings for so many streams of one thread each; float32 or bfloat16."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "ENABLE_CPU_PINNING": False,  # ranks side by side would all be pinned to the first cores
    }


class _Network:
    """The graphs of a weights file: exported ones where there are any, else from weights that are folded once, also for
    several threads."""

    def __init__(self, weights: WeightsFile) -> None:
        self._weights, self._folding = weights, threading.Lock()
        self._found: Folded | None = None

    @property
    def sha256(self) -> str:
        """Digest of the weights."""
        return self._weights.sha256

    def graph(self, part: str, batch: int) -> ov.Model:
        """A part of the network for so many galaxies. Raises InputError if the weights cannot be used."""
        exported = exported_graph(self._weights.sha256, part, batch)
        if exported is None:
            return PARTS[part](self._folded(), batch)
        try:
            return _core().read_model(exported)
        except RuntimeError:
            raise InputError(f"{exported} is not whole; write it anew with `cosmicai weights export`") from None

    def _folded(self) -> Folded:
        with self._folding:
            if self._found is None:
                self._found = read_folded(self._weights)
            return self._found


def _name(sha256: str, part: str, precision: str, batch: int) -> str:
    key = hashlib.sha256(_processor().encode()).hexdigest()[:16]
    return f"{sha256[:16]}-{part}-{precision}-{batch}-{key}"


def _compiled_file(name: str, compile_it: Callable[[], ov.CompiledModel]) -> Path:
    """A compiled part in the cache folder: its answer (see `_ask`) as an .npy, then the exported network."""

    def export() -> memoryview:
        network = compile_it()
        file = io.BytesIO()
        np.save(file, _ask(network, 1)[0])
        network.export_model(exported := io.BytesIO())
        file.write(exported.getbuffer())
        return file.getbuffer()

    return cached(f"{name}.blob", export)


def _ask(network: ov.CompiledModel, streams: int) -> list[NDArray[np.float32]]:
    """What a part makes of certain inputs, on every stream at once.

    A network that was damaged on its way gives another answer. And twice, among thousands of starts on a busy machine,
    the first redshifts of a process were nonsense without an error, for a reason that was not found.
    """
    requests = [network.create_infer_request() for _ in range(streams)]
    shapes = [tuple(tensor.shape) for tensor in requests[0].input_tensors]
    inputs = [np.cos(np.arange(math.prod(shape), dtype=np.float32)).reshape(shape) for shape in shapes]
    for request in requests:
        request.start_async(inputs)
    for request in requests:
        request.wait()
    return [request.get_output_tensor(0).data.copy() for request in requests]


def _compile(network: _Network, part: str, precision: str, batch: int) -> ov.CompiledModel:
    return _core().compile_model(network.graph(part, batch), "CPU", cpu_settings(precision, 1))


def choose_openvino(weights: WeightsFile, precision: str, batch_size: int) -> tuple[Choice, str | None]:
    """What a run with this engine will do here, and a notice if that is not what was asked for.

    The inner batch is found by a short measurement, once per machine and network. Raises InputError if the weights
    cannot be used.
    """
    notice = None
    if (precision == "bfloat16" and not has_bfloat16()) or (precision == "int8" and not has_fast_int8()):
        notice = f"this processor is not made for {precision}; the run is in float32"
        precision = "float32"
    encoder = "bfloat16" if precision == "bfloat16" else "float32"  # int8 is calibrated later
    choices = sorted({inner_batch(batch_size, largest) for largest in INNER_BATCHES})
    network, batch = _Network(weights), choices[0]
    if len(choices) > 1:
        name = f"{_name(weights.sha256, 'whole', encoder, batch)}-or-{choices[1]}.json"
        batch = json.loads(cached(name, partial(_probe, network, encoder, choices)).read_bytes())["inner_batch"]
    for part, own in (("encoder", encoder), ("rest", "float32")):
        name = _name(weights.sha256, part, own, batch)
        _compiled_file(name, partial(_compile, network, part, own, batch))
    return Choice("openvino", precision, "cpu", batch), notice


def _probe(network: _Network, precision: str, choices: list[int]) -> bytes:
    """Measures inner batches on one thread: {"inner_batch", "galaxies_per_second"} as JSON."""
    rates = {batch: batch / sum(_seconds(network, part, precision, batch) for part in PARTS) for batch in choices}
    small, large = choices
    best = large if rates[large] > WORTHWHILE * rates[small] else small
    return json.dumps({"inner_batch": best, "galaxies_per_second": rates}).encode()


def _seconds(network: _Network, part: str, precision: str, batch: int) -> float:
    request, seconds = _compile(network, part, precision, batch).create_infer_request(), []
    inputs = [np.zeros(tensor.shape, np.float32) for tensor in request.input_tensors]
    for _ in range(PROBES + 1):
        begin = time.perf_counter()
        request.infer(inputs)
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])


class OpenVINOEngine:
    """`threads` streams of one thread each; `quantized` is the transformer in int8.

    A processor that does not compute in bfloat16 runs such a plan in float32, as `precision` then says.
    Raises InputError if the weights cannot be used.
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, weights: WeightsFile, choice: Choice, threads: int, quantized: bytes | None = None) -> None:
        self.precision, self._batch = choice.precision, choice.inner_batch
        if self.precision == "bfloat16" and not has_bfloat16():
            self.precision = "float32"
        _core()  # before there are two threads that would each make one
        network = _Network(weights)
        with ThreadPoolExecutor(2) as opening:
            rest = opening.submit(_open_part, network, "rest", "float32", self._batch, threads)
            if quantized is None:
                self._encoder = _open_part(network, "encoder", self.precision, self._batch, threads)
            else:
                self._encoder = _open_quantized(quantized, self._batch, threads)
            self._rest = rest.result()
        self._threads, self._pool = threads, ThreadPoolExecutor(threads)
        self._own = threading.local()

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite; from any number of threads."""
        narrow = magnitude.astype(np.float32)  # as published
        found = self._pool.map(lambda rows: self._piece(image[rows], narrow[rows]), pieces(len(image), self._batch))
        return np.concatenate(list(found))

    def _piece(self, image: NDArray[np.float32], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = len(image)
        if rows < self._batch:
            image, magnitude = (_filled_up(values, self._batch) for values in (image, magnitude))
        redshift = self._infer(image, magnitude)
        if not (np.abs(redshift) < IMPLAUSIBLE).all():
            self._demand_sense(image, magnitude, redshift)
        return redshift[:rows]

    def _infer(self, image: NDArray[np.float32], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
        own = self._own
        if not hasattr(own, "rest"):
            own.encoder, own.rest = (part.network.create_infer_request() for part in (self._encoder, self._rest))
        encoded = own.encoder.infer([image], share_inputs=True, share_outputs=True)[0]
        redshift: NDArray[np.float32] = own.rest.infer([encoded, image, magnitude], share_inputs=True)[0].copy()
        return redshift

    def _demand_sense(
        self, image: NDArray[np.float32], magnitude: NDArray[np.float32], redshift: NDArray[np.float32]
    ) -> None:
        """Raises InputError unless the parts still give their known answers and these galaxies the same redshifts."""
        sound = all(part.is_sound(self._threads) for part in (self._encoder, self._rest))
        if not sound or not np.array_equal(self._infer(image, magnitude), redshift, equal_nan=True):
            raise InputError(
                "OpenVINO computed nonsense in this process, which was not written; finish the run with --resume"
            )

    def peak_gpu_mb(self) -> float:
        """Largest GPU memory held so far in MB; 0 on a CPU."""
        return 0.0


def _filled_up(values: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    full = np.zeros((rows, *values.shape[1:]), np.float32)
    full[: len(values)] = values
    return full


@dataclass(frozen=True)
class _Opened:
    network: ov.CompiledModel
    data: NDArray[np.uint8]  # must live as long as the network, which reads constants there
    answer: NDArray[np.float32]

    def is_sound(self, streams: int) -> bool:
        """Whether every stream gives the known answer."""
        allowed = SAME * np.abs(self.answer).max(where=np.isfinite(self.answer), initial=0)
        found = _ask(self.network, streams)
        return all(np.allclose(own, self.answer, rtol=0, atol=allowed, equal_nan=True) for own in found)


def _open_part(network: _Network, part: str, precision: str, batch: int, streams: int) -> _Opened:
    name = _name(network.sha256, part, precision, batch)
    return _open(name, partial(_compile, network, part, precision, batch), precision, streams)


def _open_quantized(quantized: bytes, batch: int, streams: int) -> _Opened:
    from .int8 import read_quantized

    name = _name(hashlib.sha256(quantized).hexdigest(), "encoder", "int8", batch)
    settings = cpu_settings("float32", 1)
    return _open(name, lambda: _core().compile_model(read_quantized(quantized), "CPU", settings), "float32", streams)


def _open(name: str, compile_it: Callable[[], ov.CompiledModel], precision: str, streams: int) -> _Opened:
    """A part of the network from its compiled file, which is made if it is not there or is damaged."""
    path = _compiled_file(name, compile_it)
    try:
        return _import(path, precision, streams)
    except (RuntimeError, ValueError, EOFError):
        path.unlink(missing_ok=True)
    try:
        return _import(_compiled_file(name, compile_it), precision, streams)
    except (RuntimeError, ValueError, EOFError) as error:
        what = str(error).partition("\n")[0]
        raise InputError(f"OpenVINO cannot run {path}, which it compiled: {what}; use --engine reference") from None


def _import(path: Path, precision: str, streams: int) -> _Opened:
    """Raises RuntimeError, ValueError or EOFError if the file is damaged."""
    # In memory, not mapped: a file can change.
    with path.open("rb") as file:
        answer = np.load(file, allow_pickle=False)
        data = np.fromfile(file, np.uint8)
    network = _core().import_model(ov.Tensor(data, shared_memory=True), "CPU", cpu_settings(precision, streams))
    opened = _Opened(network, data, answer)
    if not opened.is_sound(streams):
        raise RuntimeError("it gives other numbers than it was compiled to give")
    return opened
