"""The CUDA engine: the folded network on an NVIDIA GPU, replayed as one CUDA graph of `batch` rows.

Each batch passes through a slot of buffers. One batch is copied while another is computed:

    where             what is done                                   after
    calling thread    copy rows to the slot's pinned buffers         a slot is free
    copy stream       copy them to the slot's buffers on the GPU     earlier work of the stream
    compute stream    copy them to the graph's inputs, replay,       event `copied`, earlier work of the stream
                      copy predictions to a pinned buffer
    calling thread    return predictions, free the slot              event `done`
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
from ..models.weights import Weights, WeightsFile, check_architecture
from ..surveys.shard import BANDS, IMAGE_SHAPE
from .base import GPU_SLOTS, EngineChoice, choose_inner_batch, require_compatible_network, split_rows
from .reference import require_device

PRECISIONS = {"bfloat16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
LARGEST_BATCH = 1024  # galaxies per replay
WARM_UP_PASSES = 3  # before capture: libraries load, choose kernels and allocate workspaces
REPLAYS = 20  # between two readings of the clock


def choose_cuda(weights: WeightsFile, precision: str, batch_size: int) -> EngineChoice:
    """Return the choices for a run with this engine.

    Raises InputError if the weights cannot be used, no GPU is visible or it does not support this precision.
    """
    require_precision(precision)
    require_compatible_network(check_architecture(weights.load()), weights.uri)
    return EngineChoice("cuda", precision, "cuda", choose_inner_batch(batch_size, LARGEST_BATCH))


def require_precision(precision: str) -> None:
    """Raise InputError if the precision is unknown, no GPU is visible, or it does not support this precision."""
    if precision not in PRECISIONS:
        raise InputError(f"the engine cuda has no precision {precision}; expected {' or '.join(PRECISIONS)}")
    require_device("cuda")
    # The same generation of GPUs introduced bfloat16 and TF32.
    if precision != "float32" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{torch.cuda.get_device_name()} does not compute in {precision}; use --precision float32")


@contextmanager
def _set_arithmetic(tf32: bool) -> Iterator[None]:
    """Let captured kernels round float32 to TF32 or not, and allow only deterministic ones."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = tf32, tf32, True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before


class _Slot:
    """Buffers of one batch in pinned memory and on the GPU, and the events that order the work on them."""

    def __init__(self, batch: int, device: str) -> None:
        self.image = torch.zeros(batch, *IMAGE_SHAPE, pin_memory=True)
        self.magnitude = torch.zeros(batch, len(BANDS), dtype=torch.float64, pin_memory=True)
        self.redshift = torch.zeros(batch, pin_memory=True)
        self.gpu_image = torch.zeros(batch, *IMAGE_SHAPE, device=device)
        self.gpu_magnitude = torch.zeros(batch, len(BANDS), dtype=torch.float64, device=device)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        # A thread that waits for it sleeps, so that its core can read galaxies.
        self.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]


class CudaEngine:
    """The folded network on the current GPU, with up to `in_flight` batches of `batch` galaxies at the same time.

    `precision` is "bfloat16", "tf32" or "float32"; redshifts are float32 in each. With `compiled`, torch.compile
    generates the kernels and selects them by timing, so the last bits may differ between processes.
    No other thread may use the GPU while an engine is created, or the capture of its graph fails.
    Raises InputError as `require_precision`, or if the weights cannot be used.
    """

    name = "cuda"
    device = "cuda"
    in_flight = GPU_SLOTS

    def __init__(
        self, weights: Weights, precision: str = "bfloat16", batch: int = LARGEST_BATCH, *, compiled: bool = False
    ) -> None:
        require_precision(precision)
        self.precision, self._batch = precision, batch
        dtype = PRECISIONS[precision]
        network = FoldedAstroMAE(fold(weights, np.float32), dtype).to(self.device)
        # The graph reads the parameters from the network's memory, which must stay allocated.
        self._network = torch.compile(network, mode="max-autotune-no-cudagraphs") if compiled else network
        self._image = torch.zeros(batch, *IMAGE_SHAPE, dtype=dtype, device=self.device)
        self._magnitude = torch.zeros(batch, len(BANDS), dtype=torch.float64, device=self.device)
        self._copying = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._computing = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()  # held while work is enqueued on the streams, never while waiting for it
        self._free: SimpleQueue[_Slot] = SimpleQueue()
        for _ in range(self.in_flight):
            self._free.put(_Slot(batch, self.device))
        self._pool = ThreadPoolExecutor(self.in_flight)
        self._graph = torch.cuda.CUDAGraph()
        with _set_arithmetic(precision == "tf32"):
            self._redshift = self._capture()

    @torch.inference_mode()
    def _capture(self) -> Tensor:
        """Capture the graph and return the tensor (batch,), float32, that it writes predictions to."""
        torch.cuda.synchronize()  # parameters and buffers were written on another stream
        # Warm-up, capture and all replays use one stream and so share the libraries' workspaces.
        with torch.cuda.stream(self._computing):
            for _ in range(WARM_UP_PASSES):
                self._network(self._image, self._magnitude)
        with torch.cuda.graph(self._graph, stream=self._computing):
            redshift: Tensor = self._network(self._image, self._magnitude)
        return redshift

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite.

        Any number of threads may call this at the same time.
        """
        redshift = np.empty(len(image), np.float32)

        def predict_rows(rows: slice) -> None:
            slot = self._free.get()
            try:
                self._predict_in_slot(slot, image[rows], magnitude[rows], redshift[rows])
            finally:
                self._free.put(slot)

        list(self._pool.map(predict_rows, split_rows(len(image), self._batch)))
        return redshift

    def _predict_in_slot(
        self, slot: _Slot, image: NDArray[np.float32], magnitude: NDArray[np.float64], redshift: NDArray[np.float32]
    ) -> None:
        rows = len(image)
        slot.image.numpy()[:rows] = image
        slot.magnitude.numpy()[:rows] = magnitude
        with self._lock:
            self._enqueue(slot, rows)
        slot.done.synchronize()  # releases the GIL
        redshift[:] = slot.redshift.numpy()[:rows]

    def _enqueue(self, slot: _Slot, rows: int) -> None:
        """Enqueue a batch on the streams.

        Rows after the first `rows` keep values of an earlier batch; the network computes each row independently.
        """
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

    def replay(self, times: int) -> int:
        """Replay the graph on whatever its inputs hold, wait for the end, and return the galaxies computed."""
        with self._lock, torch.cuda.stream(self._computing):
            for _ in range(times):
                self._graph.replay()
            self._computing.synchronize()
        return times * self._batch

    def measure_resident_rate(self, seconds: float = 1.0) -> float:
        """Return galaxies per second of the graph alone, on noise already on the GPU, over at least `seconds`."""
        with self._lock, torch.cuda.stream(self._computing):
            self._image.normal_()  # a GPU is faster with zeros than with galaxies
            self._magnitude.uniform_(15, 22)
        self.replay(REPLAYS)
        start, galaxies, elapsed = time.perf_counter(), 0, 0.0
        while elapsed < seconds:
            galaxies += self.replay(REPLAYS)
            elapsed = time.perf_counter() - start
        return galaxies / elapsed

    def measure_pinned_rate(self, seconds: float = 1.0) -> float:
        """Return galaxies per second of noise in pinned memory, with its copies to the GPU, over at least `seconds`."""
        slots = [self._free.get() for _ in range(self.in_flight)]
        try:
            first = slots[0]
            first.image.normal_()
            first.magnitude.uniform_(15, 22)
            for slot in slots:
                if slot is not first:
                    slot.image.copy_(first.image)
                    slot.magnitude.copy_(first.magnitude)
                self._enqueue_in_order(slot)
            start, galaxies, elapsed = time.perf_counter(), 0, 0.0
            while elapsed < seconds:
                for slot in slots:
                    slot.done.synchronize()
                    self._enqueue_in_order(slot)
                galaxies += len(slots) * self._batch
                elapsed = time.perf_counter() - start
            for slot in slots:
                slot.done.synchronize()
        finally:
            for slot in slots:
                self._free.put(slot)
        return galaxies / elapsed

    def _enqueue_in_order(self, slot: _Slot) -> None:
        with self._lock:
            self._enqueue(slot, self._batch)

    def peak_gpu_mb(self) -> float:
        """Return the largest GPU memory allocated so far in MB (2^20 bytes)."""
        return torch.cuda.max_memory_allocated() / 2**20
