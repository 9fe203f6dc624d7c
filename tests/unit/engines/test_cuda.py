"""The CUDA engine: on a GPU where one is visible, and everywhere on a simulation of CUDA's streams and graphs.

In the simulation the CPU computes. It simulates that work on a stream is done in order but late, that streams are
synchronized by events alone, and that a graph repeats what it recorded in the same memory. So the tests show whether
batches are mixed up, not whether CUDA accepts the capture.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cosmicai.engines import cuda
from cosmicai.engines.cuda import CudaEngine, choose_cuda
from cosmicai.errors import InputError
from cosmicai.models.weights import Weights, build_network, extract_weights, find_weights, load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.ranks.torch import connect_torch
from cosmicai.surveys import synthetic
from cosmicai.surveys.shard import Galaxies
from support.networks import SMALL, random_network

NO_GPU = "no GPU is visible to this process"
BATCH = 8
ROWS = 70


class Stream:
    """A stream that does its work in order, each step after a short delay."""

    current = threading.local()
    failures: list[BaseException] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(1)

    def enqueue(self, work: Callable[[], object]) -> Future[None]:
        def late() -> None:
            time.sleep(random.random() * 1e-3)
            try:
                work()
            except BaseException as error:
                self.failures.append(error)

        return self.thread.submit(late)

    def synchronize(self) -> None:
        self.enqueue(lambda: None).result()


def current() -> Any:
    """Return the current Stream, or None."""
    return getattr(Stream.current, "stream", None)


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    before, Stream.current.stream = current(), chosen
    yield
    Stream.current.stream = before


class Event:
    def __init__(self, blocking: bool = False) -> None:
        self.reached: Future[None] = Future()

    def record(self) -> None:
        self.reached = current().enqueue(lambda: None)

    def wait(self) -> None:
        reached = self.reached
        current().enqueue(reached.result)

    def synchronize(self) -> None:
        self.reached.result()


class Graph(TorchDispatchMode):
    """A graph that records operations, and replays them in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        places = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}

        def repeat() -> None:
            for place, value in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                # Views and values changed in place are in the right memory already.
                if isinstance(place, torch.Tensor) and place.untyped_storage().data_ptr() not in places:
                    place.copy_(value)

        self.steps.append(repeat)
        return result

    def replay(self) -> None:
        def steps() -> None:
            with torch.inference_mode():
                for step in self.steps:
                    step()

        current().enqueue(steps)


@contextmanager
def graph(captured: Graph, stream: Stream) -> Iterator[None]:
    assert isinstance(stream, Stream), "a capture is not on the default stream"
    with captured:
        yield


def simulate(monkeypatch: pytest.MonkeyPatch) -> None:
    copy, zeros = torch.Tensor.copy_, torch.zeros

    def late_copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if current() is None:
            return copy(to, source)
        current().enqueue(lambda: copy(to, source))
        return to

    def pageable_zeros(*shape: int, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return zeros(*shape, **options)

    for name, fake in {
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation: True,
        "synchronize": lambda: None,
        "Stream": Stream,
        "stream": stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.Tensor, "copy_", late_copy)
    monkeypatch.setattr(torch, "zeros", pageable_zeros)
    monkeypatch.setattr(CudaEngine, "device", "cpu")


@pytest.fixture(params=[pytest.param("a GPU", marks=pytest.mark.cuda), "a simulation"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real or simulated GPU that CudaEngine can run on."""
    if request.param == "a simulation":
        simulate(monkeypatch)
    elif not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    Stream.failures.clear()
    yield request.param
    assert Stream.failures == []


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch)


@pytest.fixture
def real_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("demo")


@pytest.fixture(scope="module")
def some() -> Galaxies:
    return next(iter(synthetic.generate_batches(ROWS)))


@pytest.fixture(scope="module")
def expected(weights: Weights, some: Galaxies) -> NDArray[np.float32]:
    """Predictions of the reference network on the CPU."""
    with torch.inference_mode():
        found: NDArray[np.float32] = build_network(weights)(
            torch.tensor(some.image), torch.tensor(some.magnitude)
        ).numpy()
    assert found.std() > 0.1
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("tf32", 3e-3), ("bfloat16", 2e-2)])
def test_every_precision_predicts_what_the_reference_predicts(
    precision: str, tolerance: float, gpu: str, weights: Weights, some: Galaxies, expected: NDArray[np.float32]
) -> None:
    engine = CudaEngine(weights, precision, 32)
    found = engine.predict(some.image, some.magnitude)
    assert (engine.name, engine.precision, found.shape, found.dtype) == ("cuda", precision, (ROWS,), np.float32)
    assert np.abs(found - expected).max() <= tolerance
    assert np.array_equal(found, engine.predict(some.image, some.magnitude))


@pytest.mark.parametrize("rows", [0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + 3, 8 * BATCH])
def test_any_number_of_rows_is_predicted_as_one_by_one(rows: int, gpu: str, weights: Weights, some: Galaxies) -> None:
    engine = CudaEngine(weights, "float32", BATCH)
    engine.predict(some.image[::-1], some.magnitude[::-1])  # fills every buffer with other galaxies
    found = engine.predict(some.image[:rows], some.magnitude[:rows])
    alone = [engine.predict(some.image[row : row + 1], some.magnitude[row : row + 1]) for row in range(rows)]
    assert found.shape == (rows,)
    assert np.abs(found - np.ravel(alone)).max(initial=0) <= 1e-6


def test_every_thread_gets_the_redshifts_of_its_own_galaxies(
    gpu: str, weights: Weights, some: Galaxies, expected: NDArray[np.float32]
) -> None:
    engine = CudaEngine(weights, "float32", BATCH)
    ends = [0, 1, 8, 17, 20, 39, 47, 63, ROWS]
    parts = [slice(start, end) for start, end in pairwise(ends)] * 4
    random.Random(0).shuffle(parts)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda rows: engine.predict(some.image[rows], some.magnitude[rows]), parts))
    for rows, part in zip(parts, found, strict=True):
        assert np.abs(part - expected[rows]).max() <= 1e-5


def test_predictions_are_copies_that_belong_to_the_caller(gpu: str, weights: Weights, some: Galaxies) -> None:
    engine = CudaEngine(weights, "float32", BATCH)
    first = engine.predict(some.image[:BATCH], some.magnitude[:BATCH])
    kept = first.copy()
    for _ in range(engine.in_flight + 1):
        engine.predict(some.image[BATCH : 2 * BATCH], some.magnitude[BATCH : 2 * BATCH])
    assert np.array_equal(first, kept)


def test_slots_are_reused_after_galaxies_of_another_shape(
    gpu: str, weights: Weights, some: Galaxies, expected: NDArray[np.float32]
) -> None:
    engine = CudaEngine(weights, "float32", BATCH)
    for _ in range(engine.in_flight + 1):
        with pytest.raises(ValueError, match="broadcast"):
            engine.predict(some.image[:, :, :16], some.magnitude)
    assert np.abs(engine.predict(some.image, some.magnitude) - expected).max() <= 1e-5


def test_a_network_without_class_token_runs_too(gpu: str, some: Galaxies) -> None:
    network = random_network(replace(SMALL, class_token=False))
    with torch.inference_mode():
        alone = network(torch.tensor(some.image), torch.tensor(some.magnitude)).numpy()
    found = CudaEngine(extract_weights(network, {}), "float32", BATCH).predict(some.image, some.magnitude)
    assert np.abs(found - alone).max() <= 1e-5 * max(1, np.abs(alone).max())


@pytest.mark.parametrize(("precision", "tf32"), [("tf32", True), ("float32", False), ("bfloat16", False)])
def test_the_rounding_of_float32_is_set_during_the_capture_alone(
    precision: str, tf32: bool, gpu: str, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flags() -> tuple[bool, ...]:
        backends = torch.backends
        return backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.deterministic

    before, capture, seen = flags(), CudaEngine._capture, []

    def record_flags(self: CudaEngine) -> torch.Tensor:
        seen.append(flags())
        return capture(self)

    monkeypatch.setattr(CudaEngine, "_capture", record_flags)
    CudaEngine(weights, precision, BATCH)
    assert seen == [(tf32, tf32, True)]
    assert flags() == before


def test_measuring_the_graph_alone_does_not_change_predictions(
    gpu: str, weights: Weights, some: Galaxies, expected: NDArray[np.float32]
) -> None:
    engine = CudaEngine(weights, "float32", BATCH)
    assert engine.measure_resident_rate(0.01) > 0
    assert engine.measure_pinned_rate(0.01) > 0
    assert engine.replay(2) == 2 * BATCH
    assert np.abs(engine.predict(some.image, some.magnitude) - expected).max() <= 1e-5


@pytest.mark.cuda
def test_the_peak_memory_is_at_least_that_of_the_network(real_gpu: None, weights: Weights) -> None:
    assert CudaEngine(weights, "float32", BATCH).peak_gpu_mb() > weights.parameters * 4 / 2**20


@pytest.mark.cuda
def test_a_compiled_network_predicts_the_same(
    real_gpu: None, weights: Weights, some: Galaxies, expected: NDArray[np.float32]
) -> None:
    engine = CudaEngine(weights, "bfloat16", 32, compiled=True)
    assert np.abs(engine.predict(some.image, some.magnitude) - expected).max() <= 2e-2


@pytest.mark.cuda
def test_ranks_on_gpus_reduce_through_nccl(real_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with connect_torch(Rank(platform="torchrun"), "cuda") as communicator:
        assert torch.distributed.get_backend_config() == "cpu:gloo,cuda:nccl"
        assert communicator.allreduce(np.array([1.5, -2.0])).tolist() == [1.5, -2.0]
        assert (communicator.gather({"rank": 0}), communicator.broadcast("ζ")) == ([{"rank": 0}], "ζ")
        assert [communicator.next_item() for _ in range(3)] == [0, 1, 2]


# Refusals, and the choices of a plan.


def test_without_a_gpu_there_is_no_engine(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for refused in (lambda: CudaEngine(weights), lambda: choose_cuda(find_weights("demo"), "bfloat16", 512)):
        with pytest.raises(InputError, match=NO_GPU):
            refused()


def test_an_unknown_precision_is_refused(weights: Weights) -> None:
    with pytest.raises(InputError, match="no precision int8; expected bfloat16 or tf32 or float32"):
        CudaEngine(weights, "int8")


@pytest.mark.parametrize("precision", list(cuda.PRECISIONS))
def test_an_old_gpu_computes_in_float32_alone(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    if precision == "float32":
        assert choose_cuda(find_weights("demo"), precision, 512).precision == "float32"
    else:
        with pytest.raises(InputError, match=f"Tesla V100 does not compute in {precision}; use --precision float32"):
            choose_cuda(find_weights("demo"), precision, 512)


@pytest.mark.parametrize(("batch_size", "inner"), [(1, 1), (512, 512), (1024, 1024), (1500, 750), (4096, 1024)])
def test_a_batch_is_cut_into_equal_pieces(batch_size: int, inner: int, simulation: None) -> None:
    choice = choose_cuda(find_weights("demo"), "bfloat16", batch_size)
    assert (choice.engine, choice.precision, choice.device, choice.inner_batch) == ("cuda", "bfloat16", "cuda", inner)


def test_a_network_for_other_galaxies_is_refused(simulation: None, tmp_path: Path) -> None:
    uri = str(tmp_path / "a.safetensors")
    extract_weights(random_network(replace(SMALL, bands=3)), {}).save(uri)
    with pytest.raises(InputError, match=r"is for cutouts \(3, 32, 32\)"):
        choose_cuda(find_weights(uri), "float32", 512)
