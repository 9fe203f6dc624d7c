"""Collectives of threads that pass bytes to each other: every size, root and type, bit-exact and without deadlocks.

Sending blocks until the peer receives, as with a message that is larger than all buffers of a network. Every message
must be received, and all connections must be requested before the first message.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
import pytest

from fmi import collectives, reduction
from fmi.collectives import allgather, allreduce, barrier, broadcast, gather, reduce, scan, scatter
from fmi.errors import CollectiveMismatch, DeadlinePassed, FMIError, PeerLost

SIZES = [*range(1, 10), 16, 17, 32]
SMALL = range(1, 10)
TIMEOUT = 30.0  # seconds
TYPES = [
    "?",
    "i1",
    "<i2",
    ">i2",
    "i4",
    "i8",
    "u1",
    "u2",
    "u4",
    ">u8",
    "f2",
    ">f2",
    "f4",
    "f8",
    ">f8",
    "g",
    "F",
    ">D",
    "G",
]
OPERATIONS = {"sum": np.add, "product": np.multiply, "min": np.minimum, "max": np.maximum}


class Threads:
    """The queues between all pairs of ranks; None in a queue means that the sender has failed."""

    def __init__(self, size: int) -> None:
        self.size = size
        pairs = itertools.product(range(size), range(size))
        self.queues: dict[tuple[int, int], queue.SimpleQueue[Any]] = {pair: queue.SimpleQueue() for pair in pairs}


class Group:
    """A rank that is a thread."""

    timeout = TIMEOUT

    def __init__(self, threads: Threads, rank: int) -> None:
        self.rank, self.size = rank, threads.size
        self._queues = threads.queues
        self.requested: set[int] = set()
        self.peers: set[int] = set()
        self.tags: list[int] = []
        self.messages = 0
        self._is_exchanging = False

    def request_connections(self, peers: Sequence[int]) -> None:
        assert not self._is_exchanging
        assert all(0 <= peer < self.size and peer != self.rank for peer in peers)
        self.requested |= set(peers)

    def next_tag(self, kind: int) -> int:
        assert 1 <= kind <= 255
        self._is_exchanging = False
        self.tags.append(kind << 24 | len(self.tags))
        return self.tags[-1]

    def exchange(
        self,
        tag: int,
        deadline: float,
        *,
        dest: int | None = None,
        buffers: Sequence[bytes | bytearray | memoryview] = (),
        source: int | None = None,
        allocate: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
    ) -> memoryview | None:
        assert tag == self.tags[-1]
        self._is_exchanging = True
        self.peers |= {peer for peer in (dest, source) if peer is not None}
        assert self.peers <= self.requested
        is_received = threading.Event()
        if dest is not None:
            assert all(len(buffer) == memoryview(buffer).nbytes for buffer in buffers)
            self.messages += 1
            self._queues[self.rank, dest].put((tag, b"".join(buffers), is_received))
        place = None
        if source is not None:
            try:
                message = self._queues[source, self.rank].get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise DeadlinePassed(f"rank {source} sent nothing in time") from None
            if message is None:
                raise PeerLost(source, f"rank {source} is lost")
            if message[0] != tag:
                raise CollectiveMismatch(f"rank {source} is in {message[0]:#x}, rank {self.rank} in {tag:#x}")
            place = allocate(len(message[1]))
            assert (place.nbytes, place.format, place.ndim, place.readonly) == (len(message[1]), "B", 1, False)
            place[:] = message[1]
            message[2].set()
        if dest is not None and not is_received.wait(max(0.0, deadline - time.monotonic())):
            raise DeadlinePassed(f"rank {dest} received nothing in time")
        return place

    def fail(self) -> None:
        """Notify the other ranks that this one has failed."""
        for peer in range(self.size):
            self._queues[self.rank, peer].put(None)


def run_ranks(size: int, function: Callable[[Any], Any]) -> list[Any]:
    """Return what the function returns or raises for each rank's group."""
    threads = Threads(size)
    groups = [Group(threads, rank) for rank in range(size)]
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = function(groups[rank])
        except BaseException as error:
            found[rank] = error
            groups[rank].fail()

    workers = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(2 * TIMEOUT)
    assert not any(worker.is_alive() for worker in workers)
    if not any(isinstance(one, BaseException) for one in found):
        assert all(waiting.empty() for waiting in threads.queues.values())
        assert len({tuple(group.tags) for group in groups}) == 1
        assert all(group.requested == group.peers for group in groups)
    return found


def run_all(size: int, function: Callable[[Any], Any]) -> list[Any]:
    """Return what the function returns for each rank's group, or raise the error that caused the others."""
    found = run_ranks(size, function)
    errors = [one for one in found if isinstance(one, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, FMIError)):
        raise error
    return found


@pytest.fixture(params=["doubling", "ring"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make allreduce use this algorithm for arrays of every size."""
    monkeypatch.setattr(collectives, "RING_THRESHOLD", 0 if request.param == "ring" else 2**60)
    return request.param


def operand(rank: int, dtype: Any, count: int = 37) -> np.ndarray:
    """Return small numbers, different on every rank, whose results are exact in every type that can store them."""
    numbers = np.random.default_rng([rank, count]).integers(0, 4, count)
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        return (numbers - 1j * numbers[::-1]).astype(dtype)
    return (numbers if dtype.kind in "ub?" else numbers - 2).astype(dtype)


def expected(ranks: Sequence[int], dtype: Any, operation: str, count: int = 37) -> np.ndarray:
    arrays = [operand(rank, dtype, count) for rank in ranks]
    native = arrays[0].dtype.newbyteorder("=")
    with np.errstate(all="ignore"):
        return functools.reduce(lambda a, b: OPERATIONS[operation](a, b, dtype=native), arrays).astype(native)


def assert_same(found: Any, expected_result: np.ndarray) -> None:
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (expected_result.dtype, expected_result.shape)
    assert np.array_equal(found, expected_result, equal_nan=expected_result.dtype.kind in "fcmM")
    assert found.flags.writeable


# ---- Barrier and values ----


@pytest.mark.parametrize("size", SIZES)
def test_no_rank_leaves_a_barrier_before_all_have_entered(size: int) -> None:
    entered: list[list[int]] = [[] for _ in range(3)]

    def rounds(group: Any) -> list[int]:
        seen = []
        for number, there in enumerate(entered):
            if group.rank == number % size:
                time.sleep(0.01)
            there.append(group.rank)
            barrier(group)
            seen.append(len(there))
        return seen

    assert run_all(size, rounds) == [[size] * 3] * size


VALUES = [None, 1, "größer", {"a": [1, 2.5, b"x"]}, ["x" * 1000], np.arange(3.0), [np.zeros(4, "M8[s]")]]


def value_of(rank: int) -> Any:
    return [VALUES[rank % len(VALUES)], rank, "x" * rank * 10, np.full((rank, 2), rank, ">i2")]


def assert_value(found: Any, rank: int) -> None:
    plain, number, text, array = found
    assert repr(plain) == repr(VALUES[rank % len(VALUES)])
    assert (number, text) == (rank, "x" * rank * 10)
    assert (array.dtype, array.shape, array.tolist()) == (np.dtype(">i2"), (rank, 2), [[rank, rank]] * rank)


ROOTS = [(size, root) for size in SMALL for root in range(size)] + [(17, 5), (17, 16), (32, 0), (32, 31)]


@pytest.mark.parametrize(("size", "root"), ROOTS)
def test_values_are_broadcast_scattered_and_gathered(size: int, root: int) -> None:
    def everything(group: Any) -> tuple[Any, Any, Any]:
        mine = value_of(group.rank)
        ignored = object() if group.rank != root else mine
        parts = [value_of(rank + 100) for rank in range(size)] if group.rank == root else None
        return broadcast(group, ignored, root), scatter(group, parts, root), gather(group, mine, root)

    for rank, (sent, part, collected) in enumerate(run_all(size, everything)):
        assert_value(sent, root)
        assert_value(part, rank + 100)
        if rank == root:
            assert len(collected) == size
            for number, one in enumerate(collected):
                assert_value(one, number)
        else:
            assert collected is None


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_gather_all_values(size: int) -> None:
    for found in run_all(size, lambda group: allgather(group, value_of(group.rank))):
        assert len(found) == size
        for rank, value in enumerate(found):
            assert_value(value, rank)


def test_the_root_is_rank_0_by_default_and_any_sequence_is_scattered() -> None:
    found = run_all(3, lambda g: (broadcast(g, g.rank + 7), scatter(g, np.arange(6).reshape(3, 2)), gather(g, g.rank)))  # type: ignore[arg-type]
    assert [one[0] for one in found] == [7, 7, 7]
    assert [one[1].tolist() for one in found] == [[0, 1], [2, 3], [4, 5]]
    assert [one[2] for one in found] == [[0, 1, 2], None, None]


# ---- Reductions ----


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_is_reduced_as_by_numpy(algorithm: str, dtype: str, operation: Any) -> None:
    def everything(group: Any) -> tuple[Any, Any, Any]:
        mine = operand(group.rank, dtype)
        return allreduce(group, mine, operation), reduce(group, mine, operation, 2), scan(group, mine, operation)

    found = run_all(5, everything)
    for rank, (every, one, upto) in enumerate(found):
        assert_same(every, expected(range(5), dtype, operation))
        assert_same(upto, expected(range(rank + 1), dtype, operation))
        if rank == 2:
            assert_same(one, expected(range(5), dtype, operation))
        else:
            assert one is None


@pytest.mark.parametrize("count", [0, 1, 5, 64])
@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_ranks_reduces_any_number_of_elements(algorithm: str, size: int, count: int) -> None:
    for operation in ("sum", "max"):
        found = run_all(size, lambda group: allreduce(group, operand(group.rank, "i4", count), operation))  # noqa: B023
        for one in found:
            assert_same(one, expected(range(size), "i4", operation, count))


@pytest.mark.parametrize(("size", "root"), ROOTS)
def test_every_root_receives_the_sum(size: int, root: int) -> None:
    found = run_all(size, lambda group: reduce(group, operand(group.rank, "f8"), root=root))
    assert [one is not None for one in found] == [rank == root for rank in range(size)]
    assert_same(found[root], expected(range(size), "f8", "sum"))


@pytest.mark.parametrize("size", SIZES)
def test_a_scan_includes_the_ranks_up_to_this_one(size: int) -> None:
    for rank, found in enumerate(run_all(size, lambda group: scan(group, operand(group.rank, "i8")))):
        assert_same(found, expected(range(rank + 1), "i8", "sum"))


def test_booleans_are_combined_by_or_and_and(algorithm: str) -> None:
    table: dict[Any, list[bool]] = {
        "sum": [False, True, True],
        "max": [False, True, True],
        "product": [False, False, True],
    }
    for operation, expected_result in (table | {"min": table["product"]}).items():
        found = run_all(3, lambda group: allreduce(group, np.array([0, group.rank == 1, 1], "?"), operation))  # noqa: B023
        assert [one.tolist() for one in found] == [expected_result] * 3


def test_small_integers_wrap_around_and_keep_their_type(algorithm: str) -> None:
    for found in run_all(3, lambda group: allreduce(group, np.array([100, -100], "i1"))):
        assert (found.dtype, found.tolist()) == (np.int8, [44, -44])


def test_dates_and_durations(algorithm: str) -> None:
    dates = np.array(["2024-02-29", "NaT", "1970-01-01"], "M8[D]")

    def everything(group: Any) -> list[np.ndarray]:
        mine, lasting = dates + group.rank, np.array([group.rank, -1], ">m8[h]")
        return [allreduce(group, mine, "min"), allreduce(group, mine, "max"), allreduce(group, lasting)]

    for first, last, total in run_all(3, everything):
        assert_same(first, dates)
        assert_same(last, dates + 2)
        assert_same(total, np.array([3, -3], "m8[h]"))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (3, 4), (2, 3, 4)])
def test_shape_and_layout(algorithm: str, shape: tuple[int, ...]) -> None:
    layouts = [
        lambda array: array,
        lambda array: np.array(array, order="F"),
        lambda array: np.repeat(array[..., None], 2, -1)[..., 0],
        lambda array: np.frombuffer(b"x" + array.tobytes(), "u1")[1:].view("f4").reshape(shape),
    ]

    def everything(group: Any) -> list[Any]:
        mine = layouts[group.rank % 4](np.full(shape, group.rank + 1, "f4"))
        return [allreduce(group, mine), scan(group, mine), reduce(group, mine)]

    found = run_all(4, everything)
    for rank, (every, upto, one) in enumerate(found):
        assert_same(every, np.full(shape, 10, "f4"))
        assert_same(upto, np.full(shape, sum(range(rank + 2)), "f4"))
        if rank == 0:
            assert_same(one, np.full(shape, 10, "f4"))


# ---- Bit-identical results ----


def rough_numbers(rank: int, dtype: str) -> np.ndarray:
    """Return numbers whose sum depends on the order, with zeros and NaNs of both signs and many payloads."""
    generator = np.random.default_rng(rank)
    real = np.dtype(dtype).type(0).real.dtype
    numbers = (generator.normal(size=2002) * 2.0 ** generator.integers(-6, 6, 2002)).astype(real)
    numbers[:200] = generator.choice([-0.0, 0.0], 200)
    numbers[200:300:3] = np.inf * generator.choice([-1, 1], 34)
    if real != np.longdouble:
        bits = numbers.view(f"u{real.itemsize}")
        quiet = np.array([np.nan], real).view(bits.dtype)[0]
        bits[250:500:2] = quiet | generator.integers(0, 2**8, 125).astype(bits.dtype)
        bits[1500:1600] = quiet | (rank + 1)
    return numbers.view(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g", "F", "D"])
def test_all_ranks_receive_the_same_bits(algorithm: str, dtype: str, size: int) -> None:
    def everything(group: Any) -> list[bytes]:
        mine = rough_numbers(group.rank, dtype)
        # At another position in memory on every rank.
        mine = np.concatenate([mine[: group.rank], mine])[group.rank :]
        return [allreduce(group, mine, operation).tobytes() for operation in OPERATIONS]  # type: ignore[arg-type]

    found = run_all(size, everything)
    assert found == [found[0]] * size
    if dtype == "f8":
        total = np.frombuffer(found[0][0])
        numbers = np.stack([rough_numbers(rank, dtype) for rank in range(size)])
        with np.errstate(invalid="ignore"):
            close = np.abs(total - numbers.sum(axis=0)) <= 1e-14 * np.abs(numbers).sum(axis=0)
        assert (close | ~np.isfinite(total)).all()
        assert (np.isfinite(total) == np.isfinite(numbers).all(axis=0)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g", "F", "D"])
def test_few_elements_have_the_same_bits(algorithm: str, dtype: str, count: int) -> None:
    for start in range(0, 600, 40):

        def everything(group: Any) -> list[bytes]:
            mine = rough_numbers(group.rank, dtype)[start : start + count]  # noqa: B023
            return [allreduce(group, mine, operation).tobytes() for operation in OPERATIONS]  # type: ignore[arg-type]

        found = run_all(4, everything)
        assert found == [found[0]] * 4


@pytest.mark.parametrize("size", SIZES)
def test_operands_are_combined_in_rank_order(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """The operation keeps the magnitude of the first operand and the sign of the last one."""
    monkeypatch.setitem(reduction.UFUNCS, "sum", np.copysign)

    def everything(group: Any) -> list[Any]:
        mine = np.array([10.0 + group.rank, -10.0 - group.rank]) * (-1) ** group.rank
        return [allreduce(group, mine), scan(group, mine), *[reduce(group, mine, root=root) for root in range(size)]]

    def expected_result(first: int, last: int) -> list[float]:
        return [(10.0 + first) * (-1) ** last, (-10.0 - first) * (-1) ** last]

    for rank, (every, upto, *roots) in enumerate(run_all(size, everything)):
        assert every.tolist() == expected_result(0, size - 1)
        assert upto.tolist() == expected_result(0, rank)
        # A tree begins at its root, and wraps around after the last rank.
        assert roots[rank].tolist() == expected_result(rank, (rank - 1) % size)


def test_overflows_and_nans_are_no_errors(algorithm: str) -> None:
    def strict(group: Any) -> list[float]:
        with np.errstate(all="raise"):
            return allreduce(group, np.array([1e308, np.inf * (-1) ** group.rank])).tolist()

    for found in run_all(3, strict):
        assert repr(found) == "[inf, nan]"


# ---- Memory ----


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_arguments_are_not_modified_and_results_share_no_memory(algorithm: str, size: int) -> None:
    def everything(group: Any) -> None:
        mine = np.arange(12.0)
        mine.flags.writeable = False
        both = {"a": mine, "b": [mine]}
        results: list[np.ndarray] = [mine]
        for _ in range(2):
            results += [allreduce(group, mine), scan(group, mine), *filter(is_array, [reduce(group, mine)])]
            sent = broadcast(group, both)
            part = scatter(group, [both] * size if group.rank == 0 else None)
            results += [sent["a"], sent["b"][0], part["a"], part["b"][0]]
            for one in [*(gather(group, both) or []), *allgather(group, both)]:
                results += [one["a"], one["b"][0]]
        for one, other in itertools.combinations(results, 2):
            assert not np.may_share_memory(one, other)
        for one in results[1:]:
            one[:] = -1
        assert mine.tolist() == list(range(12))

    run_all(size, everything)


def is_array(value: Any) -> TypeGuard[np.ndarray]:
    return isinstance(value, np.ndarray)


def test_a_scattered_value_does_not_keep_others_in_memory() -> None:
    values = [np.zeros(1000, "u1") for _ in range(4)]

    def length(group: Any) -> int:
        base = scatter(group, values).base
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        return memoryview(base).nbytes

    assert max(run_all(4, length)) < 1200


# ---- Number of messages ----


def test_a_single_rank_sends_nothing(algorithm: str) -> None:
    def everything(group: Any) -> int:
        barrier(group, 0.0)
        assert broadcast(group, 1, timeout=0.0) == gather(group, 1)[0] == allgather(group, 1)[0] == 1  # type: ignore[index]
        assert scatter(group, [1]) == 1
        for function in (reduce, allreduce, scan):
            assert function(group, np.arange(3), "product").tolist() == [0, 1, 2]  # type: ignore[union-attr]
        return group.messages + len(group.requested)

    assert run_all(1, everything) == [0]


@pytest.mark.parametrize(("size", "steps"), [(2, 1), (4, 2), (7, 3), (8, 3), (32, 5)])
def test_the_number_of_messages(monkeypatch: pytest.MonkeyPatch, size: int, steps: int) -> None:
    def messages(function: Callable[[Any], Any]) -> list[int]:
        def run(group: Any) -> int:
            function(group)
            return group.messages

        return run_all(size, run)

    assert messages(barrier) == messages(lambda group: allgather(group, 1)) == [steps] * size
    for tree in (lambda g: broadcast(g, 1), lambda g: gather(g, 1), lambda g: scatter(g, [1] * size),
                 lambda g: reduce(g, np.ones(1))):  # fmt: skip
        assert sum(messages(tree)) == size - 1
    assert max(messages(lambda group: broadcast(group, 1))) == steps
    if size == 2**steps:
        assert messages(lambda group: allreduce(group, np.ones(3))) == [steps] * size
        monkeypatch.setattr(collectives, "RING_THRESHOLD", 24)
        assert messages(lambda group: allreduce(group, np.ones(3))) == [steps + 2 * (size - 1)] * size
        # A result that is not reproducible is distributed by rank 0.
        monkeypatch.setattr(collectives, "RING_THRESHOLD", 2**20)
        assert sum(messages(lambda group: allreduce(group, np.ones(1), "min"))) == steps * size + size - 1


# ---- Errors ----


@pytest.mark.parametrize("root", [-1, 3, 10])
def test_an_invalid_root_is_refused(root: int) -> None:
    for call in (
        lambda group: broadcast(group, 1, root), lambda group: scatter(group, [1, 2, 3], root),
        lambda group: gather(group, 1, root), lambda group: reduce(group, np.ones(1), root=root),
    ):  # fmt: skip
        for error in run_ranks(3, call):
            assert isinstance(error, ValueError)
            assert str(error) == f"root {root} is not one of the ranks 0 to 2"


@pytest.mark.parametrize(("values", "count"), [(None, 0), ([], 0), ([1, 2], 2), ([1] * 4, 4)])
def test_a_wrong_number_of_values_is_refused(values: Any, count: int) -> None:
    error, *others = run_ranks(3, lambda group: scatter(group, values))
    assert isinstance(error, ValueError)
    assert str(error) == f"cannot scatter {count} values to 3 ranks"
    assert all(isinstance(other, PeerLost) for other in others)


STRUCTURED = np.zeros(2, [("a", "i4")])


@pytest.mark.parametrize(
    ("array", "operation", "sentence"),
    [
        (STRUCTURED, "sum", "arrays of type [('a', '<i4')] do not support sum"),
        (np.array(["a"]), "sum", "arrays of type <U1 do not support sum"),
        (np.array([b"a"]), "max", "arrays of type |S1 do not support max"),
        (np.zeros(1, "V3"), "min", "arrays of type |V3 do not support min"),
        (np.zeros(1, "M8[s]"), "sum", "arrays of type datetime64[s] do not support sum"),
        (np.zeros(1, "M8[s]"), "product", "arrays of type datetime64[s] do not support product"),
        (np.zeros(1, "m8[s]"), "product", "arrays of type timedelta64[s] do not support product"),
        (np.array([None]), "sum", "arrays of type object do not support sum"),
        (np.array(["a"], np.dtypes.StringDType()), "sum", "arrays of type StringDType() do not support sum"),
        (np.ma.masked_array([1]), "sum", "a numpy.ma.MaskedArray is not a plain numpy array"),
        ([1.0], "sum", "a list is not a plain numpy array"),
        (1.0, "sum", "a float is not a plain numpy array"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [reduce, allreduce, scan])
def test_unsupported_operands_are_refused_by_name(function: Any, array: Any, operation: str, sentence: str) -> None:
    for size in (1, 3):
        for error in run_ranks(size, lambda group: function(group, array, operation)):
            assert isinstance(error, TypeError)
            assert str(error) == sentence


def test_an_unknown_operation_is_refused() -> None:
    for error in run_ranks(2, lambda group: allreduce(group, np.ones(1), "mean")):  # type: ignore[arg-type]
        assert isinstance(error, ValueError)
        assert str(error) == "unknown operation 'mean'; choose one of sum, product, min, max"


def test_unsupported_values_are_refused_by_name() -> None:
    for call in (
        lambda group: broadcast(group, object()), lambda group: scatter(group, [1, object()]),
        lambda group: gather(group, object()), lambda group: allgather(group, object()),
    ):  # fmt: skip
        first = run_ranks(2, call)[0]
        assert isinstance(first, TypeError)
        assert str(first) == "a object cannot be sent"


def test_a_failed_call_does_not_mix_with_the_next_call() -> None:
    def fail_once(group: Any) -> Any:
        if group.rank == 0:
            with pytest.raises(TypeError):
                broadcast(group, object(), timeout=0.5)
        return broadcast(group, 1, timeout=0.5)

    first, second = run_ranks(2, fail_once)
    assert isinstance(first, DeadlinePassed)
    assert isinstance(second, CollectiveMismatch)


ODD = [
    (np.ones(37, "f4"), "sum", "float32 (37,), sum"),
    (np.ones(37, "i8"), "sum", "int64 (37,), sum"),
    (np.ones((37, 1)), "sum", "float64 (37, 1), sum"),
    (np.ones(38), "sum", "float64 (38,), sum"),
    (np.ones(0), "sum", "float64 (0,), sum"),
    (np.ones(2**18), "sum", "float64 (262144,), sum"),
    (np.ones(37), "max", "float64 (37,), max"),
]  # fmt: skip


@pytest.mark.parametrize(("array", "operation", "text"), ODD, ids=[text for _, _, text in ODD])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8])
def test_all_ranks_detect_different_arrays(algorithm: str, size: int, array: Any, operation: Any, text: str) -> None:
    for odd in range(size):

        def differing(group: Any, odd: int = odd) -> Any:
            return allreduce(group, *((array, operation) if group.rank == odd else (np.ones(37), "sum")))

        for found in run_ranks(size, differing):
            assert isinstance(found, CollectiveMismatch)
            assert f"rank {odd} calls allreduce({text})" in str(found)
            assert "calls allreduce(float64 (37,), sum)" in str(found)


@pytest.mark.parametrize(("array", "operation", "text"), ODD, ids=[text for _, _, text in ODD])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_the_root_and_later_ranks_detect_it_too(size: int, array: Any, operation: Any, text: str) -> None:
    for odd in range(size):

        def at_root(group: Any, odd: int = odd) -> Any:
            return reduce(group, *((array, operation) if group.rank == odd else (np.ones(37), "sum")), root=1)  # type: ignore[misc]

        def up_to(group: Any, odd: int = odd) -> Any:
            return scan(group, *((array, operation) if group.rank == odd else (np.ones(37), "sum")))

        assert isinstance(run_ranks(size, at_root)[1], CollectiveMismatch)
        found = run_ranks(size, up_to)
        assert [isinstance(one, CollectiveMismatch) for one in found] == [rank >= max(odd, 1) for rank in range(size)]
        assert f"rank {odd} calls scan({text})" in str(found[-1])


def test_another_byte_order_is_not_a_mismatch(algorithm: str) -> None:
    for found in run_all(2, lambda group: allreduce(group, np.ones(3, "<f8" if group.rank else ">f8"))):
        assert_same(found, np.full(3, 2.0))


def test_another_length_in_a_ring_is_detected() -> None:
    class Truncating(Group):
        def exchange(self, *arguments: Any, buffers: Any = (), **named: Any) -> Any:
            short = [buffers[0][8:]] if self.rank == 0 and len(buffers) == 1 else buffers
            return super().exchange(*arguments, buffers=short, **named)

    threads = Threads(2)
    array = np.ones(collectives.RING_THRESHOLD // 8)

    def run_truncating() -> None:
        with pytest.raises(DeadlinePassed):
            allreduce(Truncating(threads, 0), array, timeout=0.3)  # type: ignore[arg-type]

    thread = threading.Thread(target=run_truncating)
    thread.start()
    with pytest.raises(CollectiveMismatch, match=r"^received 524280 bytes in a ring where 524288 were expected$"):
        allreduce(Group(threads, 1), array)  # type: ignore[arg-type]
    thread.join()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (barrier, lambda group: allreduce(group, np.ones(1))),
        (lambda group: broadcast(group, 1), lambda group: scatter(group, [1, 2])),
        (lambda group: allgather(group, 1), barrier),
        (lambda group: reduce(group, np.ones(1)), lambda group: gather(group, 1)),
        (lambda group: scan(group, np.ones(1)), lambda group: reduce(group, np.ones(1), root=1)),
    ],
)  # fmt: skip
def test_different_calls_are_a_mismatch(one: Any, other: Any) -> None:
    for functions in ((one, other), (other, one)):
        found = run_ranks(2, lambda group: (group.__setattr__("timeout", 0.3), functions[group.rank](group)))  # noqa: B023
        assert any(isinstance(error, CollectiveMismatch) for error in found)


def test_different_roots_are_detected_by_the_ranks_involved() -> None:
    def mixed(group: Any) -> Any:
        return broadcast(group, "x", root=2 if group.rank == 1 else 0, timeout=0.5)

    found = run_ranks(4, mixed)
    assert [found[0], *found[2:]] == ["x", "x", "x"]
    assert str(found[1]) == "rank 0 calls broadcast(root=0) while rank 1 calls broadcast(root=2)"

    def gathered(group: Any) -> Any:
        return gather(group, "x", root=2 if group.rank == 2 else 0, timeout=0.5)

    assert str(run_ranks(4, gathered)[2]) == "rank 3 calls gather(root=0) while rank 2 calls gather(root=2)"


@pytest.mark.parametrize(
    "call",
    [
        lambda group, **named: barrier(group, **named),
        lambda group, **named: broadcast(group, 1, 1, **named),
        lambda group, **named: scatter(group, [1] * 4, 1, **named),
        lambda group, **named: allgather(group, 1, **named),
        lambda group, **named: allreduce(group, np.ones(1), **named),
        lambda group, **named: allreduce(group, np.ones(2**18), **named),
    ],
)  # fmt: skip
def test_the_timeout_is_for_the_whole_call(call: Any) -> None:
    def late(group: Any) -> Any:
        if group.rank == 1:
            time.sleep(1.2)
            raise RuntimeError("too late")
        began = time.monotonic()
        with pytest.raises((DeadlinePassed, PeerLost)):
            call(group, timeout=0.2)
        return time.monotonic() - began

    taken = [one for one in run_ranks(4, late) if not isinstance(one, RuntimeError)]
    assert len(taken) == 3
    assert min(taken) >= 0.19
    assert max(taken) < 1.1


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_every_exchange_has_the_same_deadline(algorithm: str, timeout: float | None) -> None:
    deadlines: list[float] = []

    class Recording(Group):
        def exchange(self, tag: int, deadline: float, **named: Any) -> Any:
            deadlines.append(deadline)
            return super().exchange(tag, deadline, **named)

    threads = Threads(3)
    began = time.monotonic()
    named = {} if timeout is None else {"timeout": timeout}
    arguments = [(Recording(threads, rank), np.ones(3)) for rank in range(3)]
    workers = [threading.Thread(target=allreduce, args=given, kwargs=named) for given in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(deadlines) >= 4
    assert len(set(deadlines)) == 3
    assert all(0 <= deadline - began - (timeout or TIMEOUT) < 3 for deadline in deadlines)


def test_a_lost_rank_is_named() -> None:
    def dying(group: Any) -> Any:
        if group.rank == 2:
            raise RuntimeError("gone")
        return allreduce(group, np.ones(1))

    found = run_ranks(4, dying)
    assert isinstance(found[3], PeerLost)
    assert isinstance(found[0], PeerLost)
    assert found[0].rank == 2


def test_many_calls_follow_one_another(algorithm: str) -> None:
    def many(group: Any) -> list[Any]:
        found = []
        for number in range(20):
            found.append(allreduce(group, np.array([number + group.rank])).tolist())
            found.append(broadcast(group, number if group.rank == number % 5 else None, number % 5))
            found.append(allgather(group, group.rank))
        return found

    expected_result = [one for number in range(20) for one in ([5 * number + 10], number, [0, 1, 2, 3, 4])]
    assert run_all(5, many) == [expected_result] * 5
