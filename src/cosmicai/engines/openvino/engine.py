"""The CPU engine: the folded network in OpenVINO, with one stream of one thread per core. It never imports torch.

The transformer, nine tenths of the work, runs in the precision of the plan, everything else in float32.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...models.weights import WeightsFile
from ..base import EngineChoice, choose_inner_batch, split_rows
from .compiled_part import NetworkGraphs, Stream, ensure_compiled, open_part, open_quantized_encoder
from .graph import INNER_BATCHES
from .inner_batch import choose_measured
from .processor import get_core, has_bfloat16, has_fast_int8

IMPLAUSIBLE = 100  # redshift


def choose_openvino(weights: WeightsFile, precision: str, batch_size: int) -> tuple[EngineChoice, str | None]:
    """Return the choices for a run with this engine on this machine, and a notice if they differ from the request.

    The inner batch is found by a short measurement, once per machine and network. The network is compiled into the
    cache folder. Raises InputError if the weights cannot be used.
    """
    notice = None
    if (precision == "bfloat16" and not has_bfloat16()) or (precision == "int8" and not has_fast_int8()):
        notice = f"this processor has no fast {precision}; the run is in float32"
        precision = "float32"
    encoder = "bfloat16" if precision == "bfloat16" else "float32"  # int8 is calibrated later
    candidates = sorted({choose_inner_batch(batch_size, largest) for largest in INNER_BATCHES})
    graphs, batch = NetworkGraphs(weights), candidates[0]
    if len(candidates) > 1:
        batch = choose_measured(graphs, encoder, candidates)
    for part, own in (("encoder", encoder), ("rest", "float32")):
        ensure_compiled(graphs, part, own, batch)
    return EngineChoice("openvino", precision, "cpu", batch), notice


class Encoder(Protocol):
    """The transformer, opened for some threads."""

    def is_correct(self, streams: int) -> bool:
        """Return whether it still gives the expected output for a test input, in every stream."""

    def open_stream(self) -> Stream:
        """Return a function for one thread that takes cutouts (B, 5, 32, 32) and returns features (B, width)."""


class OpenVINOEngine:
    """The network on `threads` streams of one thread each; `quantized` is the transformer in int8.

    A processor without bfloat16 runs such a plan in float32, and `precision` says so.
    Raises InputError if the weights cannot be used.
    """

    name = "openvino"
    device = "cpu"

    def __init__(
        self, weights: WeightsFile, choice: EngineChoice, threads: int, quantized: bytes | None = None
    ) -> None:
        self.precision, self._batch = choice.precision, choice.inner_batch
        if self.precision == "bfloat16" and not has_bfloat16():
            self.precision = "float32"
        get_core()  # created here, before two threads could each create one
        graphs = NetworkGraphs(weights)
        with ThreadPoolExecutor(2) as pool:
            rest = pool.submit(open_part, graphs, "rest", "float32", self._batch, threads)
            self._encoder = self._open_encoder(graphs, threads, quantized)
            self._rest = rest.result()
        self._threads, self._pool = threads, ThreadPoolExecutor(threads)
        self._streams = threading.local()

    def _open_encoder(self, graphs: NetworkGraphs, threads: int, quantized: bytes | None) -> Encoder:
        """Return the transformer for `threads` threads."""
        if quantized is None:
            return open_part(graphs, "encoder", self.precision, self._batch, threads)
        return open_quantized_encoder(quantized, self._batch, threads)

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return redshifts (B,) of cutouts (B, 5, 32, 32) and magnitudes (B, 5), all finite.

        Any number of threads may call this at the same time.
        """
        narrow = magnitude.astype(np.float32)  # as published
        redshifts = self._pool.map(
            lambda rows: self._predict_rows(image[rows], narrow[rows]), split_rows(len(image), self._batch)
        )
        return np.concatenate(list(redshifts))

    def _predict_rows(self, image: NDArray[np.float32], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
        rows = len(image)
        if rows < self._batch:
            image, magnitude = (_pad(values, self._batch) for values in (image, magnitude))
        redshift = self._infer(image, magnitude)
        if not (np.abs(redshift) < IMPLAUSIBLE).all():
            self._require_correct(image, magnitude, redshift)
        return redshift[:rows]

    def _infer(self, image: NDArray[np.float32], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
        own = self._streams
        if not hasattr(own, "rest"):
            own.encoder, own.rest = self._encoder.open_stream(), self._rest.open_stream()
        redshift: NDArray[np.float32] = own.rest(own.encoder(image), image, magnitude).copy()
        return redshift

    def _require_correct(
        self, image: NDArray[np.float32], magnitude: NDArray[np.float32], redshift: NDArray[np.float32]
    ) -> None:
        """Raise InputError unless the parts give their expected outputs and these galaxies the same redshifts again."""
        correct = all(part.is_correct(self._threads) for part in (self._encoder, self._rest))
        if not correct or not np.array_equal(self._infer(image, magnitude), redshift, equal_nan=True):
            raise InputError(
                "OpenVINO computed wrong redshifts in this process; they were not written; finish the run with --resume"
            )

    def peak_gpu_mb(self) -> float:
        """Return 0: this engine uses no GPU memory."""
        return 0.0


def _pad(values: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    padded = np.zeros((rows, *values.shape[1:]), np.float32)
    padded[: len(values)] = values
    return padded
