"""The machine's ceiling: how fast its libraries multiply matrices, measured, not taken from a data sheet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

Shape = tuple[int, int, int]  # rows, inputs, outputs

# Each is multiplied there and back: rows x inputs x outputs, rows x outputs x inputs. The first is the network's own:
# the MLP of one block, for 64 galaxies on a CPU and 1024 on a GPU.
SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((64 * 17, 192, 768), (2048, 2048, 2048), (4096, 1024, 1024)),
    "cuda": ((1024 * 17, 192, 768), (4096, 4096, 4096), (8192, 8192, 8192)),
}
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16")}
SECONDS = 0.2  # of one shape, at least
CALL_GFLOP = 5.0  # of one call of a graph, about: the time to start one must not count


@dataclass(frozen=True)
class Ceiling:
    """The best rate of all shapes and libraries, in GFLOP/s (a multiplication and an addition are two)."""

    device: str
    precision: str
    gflop_per_second: float
    library: str
    shape: str


@dataclass(frozen=True)
class _Trial:
    library: str
    shape: Shape
    gflop: float  # of one unit
    multiply: Callable[[int], None]  # does so many units


def measure_ceiling(device: str, precision: str, threads: int) -> Ceiling | None:
    """The ceiling with this many threads of a CPU, or of a GPU; None if the device does not have the precision."""
    if precision not in PRECISIONS[device] or not _computes(device, precision):
        return None
    torch.set_num_threads(threads)
    with _arithmetic(precision):
        rates = ((_rate(trial), trial) for trial in _trials(device, precision, threads))
        best, trial = max(rates, key=lambda measured: measured[0])
    rows, inputs, outputs = trial.shape
    return Ceiling(device, precision, best, trial.library, f"{rows}x{inputs}x{outputs}")


def _computes(device: str, precision: str) -> bool:
    if precision == "float32":
        return True
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not find_spec("openvino"):
        return False
    from ..engines.openvino.engine import has_bfloat16

    return has_bfloat16()


@contextmanager
def _arithmetic(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _trials(device: str, precision: str, threads: int) -> Iterator[_Trial]:
    for shape in SHAPES[device]:
        yield _torch_trial(shape, device, precision)
        if device == "cpu" and find_spec("openvino"):
            yield _openvino_trial(shape, precision, threads)


def _rate(trial: _Trial) -> float:
    """GFLOP/s of one trial."""
    trial.multiply(1)
    units = 1
    while True:
        begin = time.perf_counter()
        trial.multiply(units)
        if (elapsed := time.perf_counter() - begin) >= SECONDS:
            return units * trial.gflop / elapsed
        units *= 2


def _gflop(shape: Shape) -> float:
    rows, inputs, outputs = shape
    return 2 * 2 * rows * inputs * outputs / 1e9


def _torch_trial(shape: Shape, device: str, precision: str) -> _Trial:
    rows, inputs, outputs = shape
    kind: dict[str, Any] = {"dtype": torch.bfloat16 if precision == "bfloat16" else torch.float32, "device": device}
    x, there, back = (torch.randn(size, **kind) for size in ((rows, inputs), (inputs, outputs), (outputs, inputs)))
    hidden, result = torch.empty(rows, outputs, **kind), torch.empty(rows, inputs, **kind)

    def multiply(units: int) -> None:
        for _ in range(units):
            torch.mm(x, there, out=hidden)
            torch.mm(hidden, back, out=result)
        if device == "cuda":
            torch.cuda.synchronize()

    return _Trial("torch", shape, _gflop(shape), multiply)


def _openvino_trial(shape: Shape, precision: str, streams: int) -> _Trial:
    """A chain of products with constant weights, on every stream at once."""
    import openvino as ov
    from openvino import opset13 as op

    from ..engines.openvino.engine import cpu_settings

    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    pairs = max(1, round(CALL_GFLOP / _gflop(shape)))
    x = parameter = op.parameter([rows, inputs], np.float32)
    for wide, narrow in [(outputs, inputs), (inputs, outputs)] * pairs:
        # Scaled so that the values neither grow nor vanish on their way.
        weight = rng.standard_normal((wide, narrow), np.float32) / np.float32(np.sqrt(narrow))
        x = op.matmul(x, op.constant(weight), False, True)
    network = ov.Core().compile_model(ov.Model([x], [parameter], "products"), "CPU", cpu_settings(precision, streams))
    queue = ov.AsyncInferQueue(network, streams)
    for request in queue:
        request.input_tensors[0].data[:] = rng.standard_normal((rows, inputs), np.float32)

    def multiply(units: int) -> None:
        for _ in range(units * streams):
            queue.start_async()
        queue.wait_all()

    return _Trial("openvino", shape, pairs * _gflop(shape) * streams, multiply)
