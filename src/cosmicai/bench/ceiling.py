"""The ceiling of a machine: how fast its libraries multiply matrices, by measurement."""

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

# Each is two products: (rows, inputs) x (inputs, outputs) and (rows, outputs) x (outputs, inputs). The first is the MLP
# of one block of the network, for 64 galaxies on a CPU and 1024 on a GPU.
SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((64 * 17, 192, 768), (2048, 2048, 2048), (4096, 1024, 1024)),
    "cuda": ((1024 * 17, 192, 768), (4096, 4096, 4096), (8192, 8192, 8192)),
}
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16")}
SECONDS = 0.2  # least time for one shape
CALL_GFLOP = 5.0  # about, of one call of a graph, so that the time to start a call is negligible


@dataclass(frozen=True)
class Ceiling:
    """The highest rate of all shapes and libraries in GFLOP/s; a multiplication and an addition are two operations."""

    device: str
    precision: str
    gflop_per_second: float
    library: str
    shape: str


@dataclass(frozen=True)
class _Product:
    library: str
    shape: Shape
    gflop: float  # per unit
    multiply: Callable[[int], None]  # computes a number of units


def measure_ceiling(device: str, precision: str, threads: int) -> Ceiling | None:
    """Return the ceiling of a CPU with this many threads, or of a GPU; None if it does not support the precision."""
    if precision not in PRECISIONS[device] or not _is_supported(device, precision):
        return None
    torch.set_num_threads(threads)
    with _set_tf32(precision):
        rates = ((_measure_rate(product), product) for product in _prepare_products(device, precision, threads))
        best, product = max(rates, key=lambda measured: measured[0])
    rows, inputs, outputs = product.shape
    return Ceiling(device, precision, best, product.library, f"{rows}x{inputs}x{outputs}")


def _is_supported(device: str, precision: str) -> bool:
    if precision == "float32":
        return True
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if not find_spec("openvino"):
        return False
    from ..engines.openvino.processor import has_bfloat16

    return has_bfloat16()


@contextmanager
def _set_tf32(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _prepare_products(device: str, precision: str, threads: int) -> Iterator[_Product]:
    for shape in SHAPES[device]:
        yield _torch_product(shape, device, precision)
        if device == "cpu" and find_spec("openvino"):
            yield _openvino_product(shape, precision, threads)


def _measure_rate(product: _Product) -> float:
    """Return GFLOP/s of one kind of product."""
    product.multiply(1)
    units = 1
    while True:
        begin = time.perf_counter()
        product.multiply(units)
        if (elapsed := time.perf_counter() - begin) >= SECONDS:
            return units * product.gflop / elapsed
        units *= 2


def _gflop(shape: Shape) -> float:
    rows, inputs, outputs = shape
    return 2 * 2 * rows * inputs * outputs / 1e9


def _torch_product(shape: Shape, device: str, precision: str) -> _Product:
    rows, inputs, outputs = shape
    kind: dict[str, Any] = {"dtype": torch.bfloat16 if precision == "bfloat16" else torch.float32, "device": device}
    x, wide, narrow = (torch.randn(size, **kind) for size in ((rows, inputs), (inputs, outputs), (outputs, inputs)))
    hidden, result = torch.empty(rows, outputs, **kind), torch.empty(rows, inputs, **kind)

    def multiply(units: int) -> None:
        for _ in range(units):
            torch.mm(x, wide, out=hidden)
            torch.mm(hidden, narrow, out=result)
        if device == "cuda":
            torch.cuda.synchronize()

    return _Product("torch", shape, _gflop(shape), multiply)


def _openvino_product(shape: Shape, precision: str, streams: int) -> _Product:
    """Return a chain of products with constant weights, on all streams at the same time."""
    import openvino as ov
    from openvino import opset13 as op

    from ..engines.openvino.processor import cpu_settings

    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    pairs = max(1, round(CALL_GFLOP / _gflop(shape)))
    x = parameter = op.parameter([rows, inputs], np.float32)
    for wide, narrow in [(outputs, inputs), (inputs, outputs)] * pairs:
        # Scaled so that the values neither grow nor vanish along the chain.
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

    return _Product("openvino", shape, pairs * _gflop(shape) * streams, multiply)
