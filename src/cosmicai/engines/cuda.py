"""The folded network on an NVIDIA GPU, replayed as one CUDA graph of `batch` rows.

The way of a batch through its slot, and what each step waits for; one is copied while another is computed:

    a thread         rows into the slot's pinned buffers           a free slot
    copy stream      those into the slot's buffers on the GPU      what is ahead in the stream
    compute stream   those into the graph's inputs; replay;        `copied`, and what is ahead in the stream
                     predictions into a pinned buffer
    the thread       predictions to the caller; slot free again    `done`
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from ..models.fold import fold
from ..models.folded import FoldedAstroMAE
from ..models.weights import Weights, WeightsFile, check
from ..surveys.shard import BANDS, IMAGE_SHAPE
from .base import GPU_SLOTS, Choice, inner_batch, pieces, require_our_galaxies
from .reference import require_device

PRECISIONS = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
LARGEST = 1024  # galaxies in one replay
WARM_UP = 3  # passes before capture: libraries load, choose their kernels and take their workspaces
REPLAYS = 20  # between two looks at the clock


def choose_cuda(weights: WeightsFile, precision: str, batch_size: int) -> Choice:
    """What a run with this engine will do. Raises InputError if the weights cannot be used or `CudaEngine` would."""
    require_precision(precision)
    require_our_galaxies(check(weights.load()), weights.uri)
    return Choice("cuda", precision, "cuda", inner_batch(batch_size, LARGEST))


def require_precision(precision: str) -> None:
    """Raises InputError if there is no such precision, no GPU is visible, or it does not compute in this precision."""
    if precision not in PRECISIONS:
        raise InputError(f"the engine cuda has no precision {precision}; expected {' or '.join(PRECISIONS)}")
    require_device("cuda")
    # Both came with the same generation of GPUs.
    if precision != "float32" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{torch.cuda.get_device_name()} does not compute in {precision}; use --precision float32")


@contextmanager
def _arithmetic(tf32: bool) -> Iterator[None]:
    """What the captured kernels may do: round float32 to TF32 or not, and nothing that would change from run to run."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = tf32, tf32, True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before


class _Slot:
    """The buffers of one batch, in pinned memory and on the GPU, and the events that order its way."""

    def __init__(self, batch: int, device: str) -> None:
        self.image = torch.zeros(batch, *IMAGE_SHAPE, pin_memory=True)
        self.magnitude = torch.zeros(batch, len(BANDS), dtype=torch.float64, pin_memory=True)
        self.redshift = torch.zeros(batch, pin_memory=True)
        self.gpu_image = torch.zeros(batch, *IMAGE_SHAPE, device=device)
        self.gpu_magnitude = torch.zeros(batch, len(BANDS), dtype=torch.float64, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # Its waiting thread sleeps: the core is for reading galaxies.
        self.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


class CudaEngine:
    """The folded network on the current GPU, `in_flight` batches of `batch` galaxies at once.

    `precision` is "bfloat16", "tf32" or "float32"; redshifts are float32 in each. `compiled` lets torch.compile write
    the kernels: it chooses them by timing, so two processes may differ in the last bits.
    While an engine is made no other thread may use the GPU: the capture of its graph would fail.
    Raises InputError as `require_precision`, or if the weights cannot be used.
    """

    name = "cuda"
    device = "cuda"
    in_flight = GPU_SLOTS

    def __init__(
        self, weights: Weights, precision: str = "bfloat16", batch: int = LARGEST, *, compiled: bool = False
    ) -> None:
        require_precision(precision)
        self.precision, self._batch = precision, batch
        dtype = PRECISIONS[precision]
        network = FoldedAstroMAE(fold(weights, np.float32), dtype).to(self.device)
        # Kept with the graph, which reads the parameters where they lie.
        self._network = torch.compile(network, mode="max-autotune-no-cudagraphs") if compiled else network
        self._image = torch.zeros(batch, *IMAGE_SHAPE, dtype=dtype, device=self.device)
        self._magnitude = torch.zeros(batch, len(BANDS), dtype=torch.float64, device=self.device)
        self._copying = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()  # held while work is given to the streams, never while it is waited for
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(self.in_flight):
            self._free.put(_Slot(batch, self.device))
        self._pool = ThreadPoolExecutor(self.in_flight)
        self._graph = torch.cuda.CUDAGraph()
        with _arithmetic(precision == "tf32"):
            self._redshift = self._capture()

    @torch.inference_mode()
    def _capture(self) -> Tensor:
        """Captures the graph; returns where it leaves its predictions, (batch,) float32."""
        torch.cuda.synchronize()  # parameters and buffers were written on another stream
        # Warm-up, capture and every replay are on one stream, and so share the libraries' workspaces.
        with torch.cuda.stream(self._computing):
            for _ in range(WARM_UP):
                self._network(self._image, self._magnitude)
        with torch.cuda.graph(self._graph, stream=self._computing):
            redshift: Tensor = self._network(self._image, self._magnitude)
        return redshift

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite; from any number of threads."""
        redshift = np.empty(len(image), np.float32)

        def predict_piece(rows: slice) -> None:
            slot = self._free.get()
            try:
                self._predict(slot, image[rows], magnitude[rows], redshift[rows])
            finally:
                self._free.put(slot)

        list(self._pool.map(predict_piece, pieces(len(image), self._batch)))
        return redshift

    def _predict(
        self, slot: _Slot, image: NDArray[np.float32], magnitude: NDArray[np.float64], redshift: NDArray[np.float32]
    ) -> None:
        rows = len(image)
        slot.image.numpy()[:rows] = image
        slot.magnitude.numpy()[:rows] = magnitude
        with self._lock:
            self._enqueue(slot, rows)
        slot.done.synchronize()  # without the GIL
        redshift[:] = slot.redshift.numpy()[:rows]

    def _enqueue(self, slot: _Slot, rows: int) -> None:
        """Gives a batch to the streams. What lies behind `rows` is of another batch: no galaxy sees its neighbours."""
        with torch.cuda.stream(self._copying):
            slot.gpu_image[:rows].copy_(slot.image[:rows], non_blocking=True)
            slot.gpu_magnitude[:rows].copy_(slot.magnitude[:rows], non_blocking=True)
            slot.copied.record()
        with torch.cuda.stream(self._computing):
            slot.copied.wait()
            self._image[:rows].copy_(slot.gpu_image[:rows])  # to the network's precision
            self._magnitude[:rows].copy_(slot.gpu_magnitude[:rows])
            self._graph.replay()
            slot.redshift[:rows].copy_(self._redshift[:rows], non_blocking=True)
            slot.done.record()

    def resident_rate(self, seconds: float = 2.0) -> float:
        """Galaxies per second of the graph alone, on noise that is on the GPU already, for at least `seconds`."""

        def replay() -> int:
            for _ in range(REPLAYS):
                self._graph.replay()
            self._computing.synchronize()
            return REPLAYS * self._batch

        with self._lock, torch.cuda.stream(self._computing):
            self._image.normal_()  # with zeros a GPU is faster than with galaxies
            self._magnitude.uniform_(15, 22)
            replay()
            start, galaxies, elapsed = time.perf_counter(), 0, 0.0
            while elapsed < seconds:
                galaxies += replay()
                elapsed = time.perf_counter() - start
        return galaxies / elapsed

    def peak_gpu_mb(self) -> float:
        """Largest GPU memory held so far in MB."""
        return torch.cuda.max_memory_allocated() / 2**20
