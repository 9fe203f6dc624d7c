"""Collectives of threads that hand each other bytes: every size, root and type, to the bit, and without a deadlock.

What a thread sends is taken only when its peer receives it, as with a message that is larger than all that a network
holds. Every message that is sent must be received, and every rank that is needed be wished for before the first one.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fmi import collectives
from fmi.collectives import allgather, allreduce, barrier, broadcast, gather, reduce, scan, scatter
from fmi.errors import DeadlinePassed, Disagreement, FMIError, PeerLost

SIZES = [*range(1, 10), 16, 17, 32]
SMALL = range(1, 10)
LONGEST = 30.0  # seconds
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
    """The queues of all pairs of ranks; None in one says that the sender has failed."""

    def __init__(self, size: int) -> None:
        self.size = size
        pairs = itertools.product(range(size), repeat=2)
        self.queues: dict[tuple[int, int], queue.SimpleQueue[Any]] = {pair: queue.SimpleQueue() for pair in pairs}


class Group:
    """A rank that is a thread."""

    timeout = LONGEST

    def __init__(self, threads: Threads, rank: int) -> None:
        self.rank, self.size = rank, threads.size
        self._queues = threads.queues
        self.wished: set[int] = set()
        self.peers: set[int] = set()
        self.tags: list[int] = []
        self.messages = 0
        self._is_talking = False

    def wish(self, peers: Sequence[int]) -> None:
        assert not self._is_talking
        assert all(0 <= peer < self.size and peer != self.rank for peer in peers)
        self.wished |= set(peers)

    def next_tag(self, kind: int) -> int:
        assert 1 <= kind <= 255
        self._is_talking = False
        self.tags.append(kind << 24 | len(self.tags))
        return self.tags[-1]

    def exchange(
        self,
        tag: int,
        deadline: float,
        *,
        to: int | None = None,
        buffers: Sequence[bytes | bytearray | memoryview] = (),
        source: int | None = None,
        room: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
    ) -> memoryview | None:
        assert tag == self.tags[-1]
        self._is_talking = True
        self.peers |= {peer for peer in (to, source) if peer is not None}
        assert self.peers <= self.wished
        taken = threading.Event()
        if to is not None:
            assert all(len(buffer) == memoryview(buffer).nbytes for buffer in buffers)
            self.messages += 1
            self._queues[self.rank, to].put((tag, b"".join(buffers), taken))
        place = None
        if source is not None:
            try:
                message = self._queues[source, self.rank].get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise DeadlinePassed(f"rank {source} sent nothing in time") from None
            if message is None:
                raise PeerLost(source, f"rank {source} is lost")
            if message[0] != tag:
                raise Disagreement(f"rank {source} is in {message[0]:#x}, rank {self.rank} in {tag:#x}")
            place = room(len(message[1]))
            assert (place.nbytes, place.format, place.ndim, place.readonly) == (len(message[1]), "B", 1, False)
            place[:] = message[1]
            message[2].set()
        if to is not None and not taken.wait(max(0.0, deadline - time.monotonic())):
            raise DeadlinePassed(f"rank {to} took nothing in time")
        return place

    def lose(self) -> None:
        """Tells the others that this rank comes no more."""
        for peer in range(self.size):
            self._queues[self.rank, peer].put(None)


def outcomes(size: int, function: Callable[[Any], Any]) -> list[Any]:
    """What the function returns or raises for each rank's group."""
    threads = Threads(size)
    groups = [Group(threads, rank) for rank in range(size)]
    found: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            found[rank] = function(groups[rank])
        except BaseException as error:
            found[rank] = error
            groups[rank].lose()

    workers = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(2 * LONGEST)
    assert not any(worker.is_alive() for worker in workers)
    if not any(isinstance(one, BaseException) for one in found):
        assert all(waiting.empty() for waiting in threads.queues.values())
        assert len({tuple(group.tags) for group in groups}) == 1
        assert all(group.wished == group.peers for group in groups)
    return found


def together(size: int, function: Callable[[Any], Any]) -> list[Any]:
    """What the function returns for each rank's group; raises what the first of them raises that is to blame."""
    found = outcomes(size, function)
    errors = [one for one in found if isinstance(one, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, FMIError)):
        raise error
    return found


@pytest.fixture(params=["doubling", "ring"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes allreduce take this way for arrays of every size."""
    monkeypatch.setattr(collectives, "RING_FROM", 0 if request.param == "ring" else 2**60)
    return request.param


def operand(rank: int, dtype: Any, count: int = 37) -> np.ndarray:
    """Small numbers, different on every rank, whose results are exact in every type that has room for them."""
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


def assert_same(found: Any, wanted: np.ndarray) -> None:
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert np.array_equal(found, wanted, equal_nan=wanted.dtype.kind in "fcmM")
    assert found.flags.writeable


# ---- Barrier and values ----


@pytest.mark.parametrize("size", SIZES)
def test_nobody_leaves_a_barrier_before_all_have_come(size: int) -> None:
    come: list[list[int]] = [[] for _ in range(3)]

    def rounds(group: Any) -> list[int]:
        seen = []
        for number, there in enumerate(come):
            if group.rank == number % size:
                time.sleep(0.01)
            there.append(group.rank)
            barrier(group)
            seen.append(len(there))
        return seen

    assert together(size, rounds) == [[size] * 3] * size


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
def test_values_go_out_and_come_in(size: int, root: int) -> None:
    def everything(group: Any) -> tuple[Any, Any, Any]:
        mine = value_of(group.rank)
        ignored = object() if group.rank != root else mine
        parts = [value_of(rank + 100) for rank in range(size)] if group.rank == root else None
        return broadcast(group, ignored, root), scatter(group, parts, root), gather(group, mine, root)

    for rank, (sent, part, collected) in enumerate(together(size, everything)):
        assert_value(sent, root)
        assert_value(part, rank + 100)
        if rank == root:
            assert len(collected) == size
            for number, one in enumerate(collected):
                assert_value(one, number)
        else:
            assert collected is None


@pytest.mark.parametrize("size", SIZES)
def test_everyone_gathers_all(size: int) -> None:
    for found in together(size, lambda group: allgather(group, value_of(group.rank))):
        assert len(found) == size
        for rank, value in enumerate(found):
            assert_value(value, rank)


def test_the_root_is_rank_0_and_the_sequence_any() -> None:
    found = together(3, lambda g: (broadcast(g, g.rank + 7), scatter(g, np.arange(6).reshape(3, 2)), gather(g, g.rank)))
    assert [one[0] for one in found] == [7, 7, 7]
    assert [one[1].tolist() for one in found] == [[0, 1], [2, 3], [4, 5]]
    assert [one[2] for one in found] == [[0, 1, 2], None, None]


# ---- Reductions ----


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_is_reduced_as_numpy_does(way: str, dtype: str, operation: Any) -> None:
    def everything(group: Any) -> tuple[Any, Any, Any]:
        mine = operand(group.rank, dtype)
        return allreduce(group, mine, operation), reduce(group, mine, operation, 2), scan(group, mine, operation)

    found = together(5, everything)
    for rank, (every, one, upto) in enumerate(found):
        assert_same(every, expected(range(5), dtype, operation))
        assert_same(upto, expected(range(rank + 1), dtype, operation))
        if rank == 2:
            assert_same(one, expected(range(5), dtype, operation))
        else:
            assert one is None


@pytest.mark.parametrize("count", [0, 1, 5, 64])
@pytest.mark.parametrize("size", SIZES)
def test_any_number_of_ranks_reduces_any_number_of_elements(way: str, size: int, count: int) -> None:
    for operation in ("sum", "max"):
        found = together(size, lambda group: allreduce(group, operand(group.rank, "i4", count), operation))  # noqa: B023
        for one in found:
            assert_same(one, expected(range(size), "i4", operation, count))


@pytest.mark.parametrize(("size", "root"), ROOTS)
def test_every_root_gets_the_sum(size: int, root: int) -> None:
    found = together(size, lambda group: reduce(group, operand(group.rank, "f8"), root=root))
    assert [one is not None for one in found] == [rank == root for rank in range(size)]
    assert_same(found[root], expected(range(size), "f8", "sum"))


@pytest.mark.parametrize("size", SIZES)
def test_a_scan_is_of_the_ranks_so_far(size: int) -> None:
    for rank, found in enumerate(together(size, lambda group: scan(group, operand(group.rank, "i8")))):
        assert_same(found, expected(range(rank + 1), "i8", "sum"))


def test_booleans_are_or_and_and(way: str) -> None:
    table = {"sum": [False, True, True], "max": [False, True, True], "product": [False, False, True]}
    for operation, wanted in (table | {"min": table["product"]}).items():
        found = together(3, lambda group: allreduce(group, np.array([0, group.rank == 1, 1], "?"), operation))  # noqa: B023
        assert [one.tolist() for one in found] == [wanted] * 3


def test_small_integers_wrap_and_keep_their_type(way: str) -> None:
    for found in together(3, lambda group: allreduce(group, np.array([100, -100], "i1"))):
        assert (found.dtype, found.tolist()) == (np.int8, [44, -44])


def test_dates_and_durations(way: str) -> None:
    dates = np.array(["2024-02-29", "NaT", "1970-01-01"], "M8[D]")

    def everything(group: Any) -> list[np.ndarray]:
        mine, lasting = dates + group.rank, np.array([group.rank, -1], ">m8[h]")
        return [allreduce(group, mine, "min"), allreduce(group, mine, "max"), allreduce(group, lasting)]

    for first, last, total in together(3, everything):
        assert_same(first, dates)
        assert_same(last, dates + 2)
        assert_same(total, np.array([3, -3], "m8[h]"))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (3, 4), (2, 3, 4)])
def test_shape_and_layout(way: str, shape: tuple[int, ...]) -> None:
    layouts = [
        lambda array: array,
        lambda array: np.array(array, order="F"),
        lambda array: np.repeat(array[..., None], 2, -1)[..., 0],
        lambda array: np.frombuffer(b"x" + array.tobytes(), "u1")[1:].view("f4").reshape(shape),
    ]

    def everything(group: Any) -> list[Any]:
        mine = layouts[group.rank % 4](np.full(shape, group.rank + 1, "f4"))
        return [allreduce(group, mine), scan(group, mine), reduce(group, mine)]

    found = together(4, everything)
    for rank, (every, upto, one) in enumerate(found):
        assert_same(every, np.full(shape, 10, "f4"))
        assert_same(upto, np.full(shape, sum(range(rank + 2)), "f4"))
        if rank == 0:
            assert_same(one, np.full(shape, 10, "f4"))


# ---- The same bits ----


def rough(rank: int, dtype: str) -> np.ndarray:
    """Numbers whose sum depends on the order of adding, with zeros and NaNs of all signs and many payloads."""
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
def test_all_ranks_get_the_same_bits(way: str, dtype: str, size: int) -> None:
    def everything(group: Any) -> list[bytes]:
        mine = rough(group.rank, dtype)
        # Elsewhere in memory on every rank.
        mine = np.concatenate([mine[: group.rank], mine])[group.rank :]
        return [allreduce(group, mine, operation).tobytes() for operation in OPERATIONS]  # type: ignore[arg-type]

    found = together(size, everything)
    assert found == [found[0]] * size
    if dtype == "f8":
        total = np.frombuffer(found[0][0])
        numbers = np.stack([rough(rank, dtype) for rank in range(size)])
        with np.errstate(invalid="ignore"):
            close = np.abs(total - numbers.sum(axis=0)) <= 1e-14 * np.abs(numbers).sum(axis=0)
        assert (close | ~np.isfinite(total)).all()
        assert (np.isfinite(total) == np.isfinite(numbers).all(axis=0)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "g", "F", "D"])
def test_few_elements_have_the_same_bits_too(way: str, dtype: str, count: int) -> None:
    for start in range(0, 600, 40):

        def everything(group: Any) -> list[bytes]:
            mine = rough(group.rank, dtype)[start : start + count]  # noqa: B023
            return [allreduce(group, mine, operation).tobytes() for operation in OPERATIONS]  # type: ignore[arg-type]

        found = together(4, everything)
        assert found == [found[0]] * 4


@pytest.mark.parametrize("size", SIZES)
def test_operands_come_in_the_order_of_ranks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Of an operation that keeps the size of the first and the sign of the last."""
    monkeypatch.setitem(collectives.UFUNCS, "sum", np.copysign)

    def everything(group: Any) -> list[Any]:
        mine = np.array([10.0 + group.rank, -10.0 - group.rank]) * (-1) ** group.rank
        return [allreduce(group, mine), scan(group, mine), *[reduce(group, mine, root=root) for root in range(size)]]

    def wanted(first: int, last: int) -> list[float]:
        return [(10.0 + first) * (-1) ** last, (-10.0 - first) * (-1) ** last]

    for rank, (every, upto, *roots) in enumerate(together(size, everything)):
        assert every.tolist() == wanted(0, size - 1)
        assert upto.tolist() == wanted(0, rank)
        # A tree begins with its root, and goes on behind the last rank with rank 0.
        assert roots[rank].tolist() == wanted(rank, (rank - 1) % size)


def test_overflows_and_nans_stop_nobody(way: str) -> None:
    def strict(group: Any) -> list[float]:
        with np.errstate(all="raise"):
            return allreduce(group, np.array([1e308, np.inf * (-1) ** group.rank])).tolist()

    for found in together(3, strict):
        assert repr(found) == "[inf, nan]"


# ---- Memory ----


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_nothing_is_changed_and_nothing_is_shared(way: str, size: int) -> None:
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

    together(size, everything)


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def test_a_part_does_not_keep_the_parts_of_others() -> None:
    values = [np.zeros(1000, "u1") for _ in range(4)]

    def length(group: Any) -> int:
        base = scatter(group, values).base
        while isinstance(base, np.ndarray) and base.base is not None:
            base = base.base
        return memoryview(base).nbytes

    assert max(together(4, length)) < 1200


# ---- How much is said ----


def test_a_rank_alone_says_nothing(way: str) -> None:
    def everything(group: Any) -> int:
        barrier(group, 0.0)
        assert broadcast(group, 1, timeout=0.0) == gather(group, 1)[0] == allgather(group, 1)[0] == 1
        assert scatter(group, [1]) == 1
        for function in (reduce, allreduce, scan):
            assert function(group, np.arange(3), "product").tolist() == [0, 1, 2]
        return group.messages + len(group.wished)

    assert together(1, everything) == [0]


@pytest.mark.parametrize(("size", "steps"), [(2, 1), (4, 2), (7, 3), (8, 3), (32, 5)])
def test_how_many_messages_there_are(monkeypatch: pytest.MonkeyPatch, size: int, steps: int) -> None:
    def messages(function: Callable[[Any], Any]) -> list[int]:
        def run(group: Any) -> int:
            function(group)
            return group.messages

        return together(size, run)

    assert messages(barrier) == messages(lambda group: allgather(group, 1)) == [steps] * size
    for tree in (lambda g: broadcast(g, 1), lambda g: gather(g, 1), lambda g: scatter(g, [1] * size),
                 lambda g: reduce(g, np.ones(1))):  # fmt: skip
        assert sum(messages(tree)) == size - 1
    assert max(messages(lambda group: broadcast(group, 1))) == steps
    if size == 2**steps:
        assert messages(lambda group: allreduce(group, np.ones(3))) == [steps] * size
        monkeypatch.setattr(collectives, "RING_FROM", 24)
        assert messages(lambda group: allreduce(group, np.ones(3))) == [steps + 2 * (size - 1)] * size
        # What processors differ in is that of rank 0.
        monkeypatch.setattr(collectives, "RING_FROM", 2**20)
        assert sum(messages(lambda group: allreduce(group, np.ones(1), "min"))) == steps * size + size - 1


# ---- What can go wrong ----


@pytest.mark.parametrize("root", [-1, 3, 10])
def test_a_root_that_is_no_rank_is_refused(root: int) -> None:
    for call in (
        lambda group: broadcast(group, 1, root), lambda group: scatter(group, [1, 2, 3], root),
        lambda group: gather(group, 1, root), lambda group: reduce(group, np.ones(1), root=root),
    ):  # fmt: skip
        for error in outcomes(3, call):
            assert isinstance(error, ValueError)
            assert str(error) == f"the root {root} is none of the ranks 0 to 2"


@pytest.mark.parametrize(("values", "count"), [(None, 0), ([], 0), ([1, 2], 2), ([1] * 4, 4)])
def test_a_wrong_number_of_values_is_refused(values: Any, count: int) -> None:
    error, *others = outcomes(3, lambda group: scatter(group, values))
    assert isinstance(error, ValueError)
    assert str(error) == f"{count} values cannot go to 3 ranks"
    assert all(isinstance(other, PeerLost) for other in others)


STRUCTURED = np.zeros(2, [("a", "i4")])


@pytest.mark.parametrize(
    ("array", "operation", "sentence"),
    [
        (STRUCTURED, "sum", "arrays of type [('a', '<i4')] have no sum"),
        (np.array(["a"]), "sum", "arrays of type <U1 have no sum"),
        (np.array([b"a"]), "max", "arrays of type |S1 have no max"),
        (np.zeros(1, "V3"), "min", "arrays of type |V3 have no min"),
        (np.zeros(1, "M8[s]"), "sum", "arrays of type datetime64[s] have no sum"),
        (np.zeros(1, "M8[s]"), "product", "arrays of type datetime64[s] have no product"),
        (np.zeros(1, "m8[s]"), "product", "arrays of type timedelta64[s] have no product"),
        (np.array([None]), "sum", "arrays of type object have no sum"),
        (np.array(["a"], np.dtypes.StringDType()), "sum", "arrays of type StringDType() have no sum"),
        (np.ma.masked_array([1]), "sum", "a numpy.ma.MaskedArray is not a plain numpy array"),
        ([1.0], "sum", "a list is not a plain numpy array"),
        (1.0, "sum", "a float is not a plain numpy array"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", [reduce, allreduce, scan])
def test_what_cannot_be_reduced_is_refused_by_name(function: Any, array: Any, operation: str, sentence: str) -> None:
    for size in (1, 3):
        for error in outcomes(size, lambda group: function(group, array, operation)):
            assert isinstance(error, TypeError)
            assert str(error) == sentence


def test_operations_have_names() -> None:
    for error in outcomes(2, lambda group: allreduce(group, np.ones(1), "mean")):  # type: ignore[arg-type]
        assert isinstance(error, ValueError)
        assert str(error) == "there is no operation 'mean'; choose one of sum, product, min, max"


def test_what_cannot_be_sent_is_refused_by_name() -> None:
    for call in (
        lambda group: broadcast(group, object()), lambda group: scatter(group, [1, object()]),
        lambda group: gather(group, object()), lambda group: allgather(group, object()),
    ):  # fmt: skip
        first = outcomes(2, call)[0]
        assert isinstance(first, TypeError)
        assert str(first) == "a object cannot be sent"


def test_a_rank_that_gave_up_does_not_meet_the_others_in_the_next_call() -> None:
    def stumbling(group: Any) -> Any:
        if group.rank == 0:
            with pytest.raises(TypeError):
                broadcast(group, object(), timeout=0.5)
        return broadcast(group, 1, timeout=0.5)

    first, second = outcomes(2, stumbling)
    assert isinstance(first, DeadlinePassed)
    assert isinstance(second, Disagreement)


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
def test_all_ranks_learn_that_their_arrays_differ(way: str, size: int, array: Any, operation: Any, text: str) -> None:
    for odd in range(size):

        def differing(group: Any, odd: int = odd) -> Any:
            return allreduce(group, *((array, operation) if group.rank == odd else (np.ones(37), "sum")))

        for found in outcomes(size, differing):
            assert isinstance(found, Disagreement)
            assert f"rank {odd} calls allreduce({text})" in str(found)
            assert "calls allreduce(float64 (37,), sum)" in str(found)


@pytest.mark.parametrize(("array", "operation", "text"), ODD, ids=[text for _, _, text in ODD])
@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_the_root_and_later_ranks_learn_it_too(size: int, array: Any, operation: Any, text: str) -> None:
    for odd in range(size):

        def at_root(group: Any, odd: int = odd) -> Any:
            return reduce(group, *((array, operation) if group.rank == odd else (np.ones(37), "sum")), root=1)

        def up_to(group: Any, odd: int = odd) -> Any:
            return scan(group, *((array, operation) if group.rank == odd else (np.ones(37), "sum")))

        assert isinstance(outcomes(size, at_root)[1], Disagreement)
        found = outcomes(size, up_to)
        assert [isinstance(one, Disagreement) for one in found] == [rank >= max(odd, 1) for rank in range(size)]
        assert f"rank {odd} calls scan({text})" in str(found[-1])


def test_another_byte_order_is_no_disagreement(way: str) -> None:
    for found in together(2, lambda group: allreduce(group, np.ones(3, "<f8" if group.rank else ">f8"))):
        assert_same(found, np.full(3, 2.0))


def test_a_ring_of_another_length_is_noticed() -> None:
    class Liar(Group):
        def exchange(self, *arguments: Any, buffers: Any = (), **named: Any) -> Any:
            short = [buffers[0][8:]] if self.rank == 0 and len(buffers) == 1 else buffers
            return super().exchange(*arguments, buffers=short, **named)

    threads = Threads(2)
    array = np.ones(collectives.RING_FROM // 8)

    def lie() -> None:
        with pytest.raises(DeadlinePassed):
            allreduce(Liar(threads, 0), array, timeout=0.3)  # type: ignore[arg-type]

    liar = threading.Thread(target=lie)
    liar.start()
    with pytest.raises(Disagreement, match=r"^524280 bytes came where 524288 were to go around$"):
        allreduce(Group(threads, 1), array)  # type: ignore[arg-type]
    liar.join()


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
def test_different_calls_are_a_disagreement(one: Any, other: Any) -> None:
    for functions in ((one, other), (other, one)):
        found = outcomes(2, lambda group: (group.__setattr__("timeout", 0.3), functions[group.rank](group)))  # noqa: B023
        assert any(isinstance(error, Disagreement) for error in found)


def test_different_roots_are_noticed_by_who_hears_of_them() -> None:
    def mixed(group: Any) -> Any:
        return broadcast(group, "x", root=2 if group.rank == 1 else 0, timeout=0.5)

    found = outcomes(4, mixed)
    assert [found[0], *found[2:]] == ["x", "x", "x"]
    assert str(found[1]) == "rank 0 calls broadcast(root=0) where rank 1 calls broadcast(root=2)"

    def gathered(group: Any) -> Any:
        return gather(group, "x", root=2 if group.rank == 2 else 0, timeout=0.5)

    assert str(outcomes(4, gathered)[2]) == "rank 3 calls gather(root=0) where rank 2 calls gather(root=2)"


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
def test_the_deadline_is_of_the_whole_call(call: Any) -> None:
    def late(group: Any) -> Any:
        if group.rank == 1:
            time.sleep(1.2)
            raise RuntimeError("too late")
        began = time.monotonic()
        with pytest.raises((DeadlinePassed, PeerLost)):
            call(group, timeout=0.2)
        return time.monotonic() - began

    taken = [one for one in outcomes(4, late) if not isinstance(one, RuntimeError)]
    assert len(taken) == 3
    assert min(taken) >= 0.19
    assert max(taken) < 1.1


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_every_exchange_has_the_same_deadline(way: str, timeout: float | None) -> None:
    deadlines: list[float] = []

    class Noting(Group):
        def exchange(self, tag: int, deadline: float, **named: Any) -> Any:
            deadlines.append(deadline)
            return super().exchange(tag, deadline, **named)

    threads = Threads(3)
    began = time.monotonic()
    named = {} if timeout is None else {"timeout": timeout}
    arguments = [(Noting(threads, rank), np.ones(3)) for rank in range(3)]
    workers = [threading.Thread(target=allreduce, args=given, kwargs=named) for given in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(deadlines) >= 4
    assert len(set(deadlines)) == 3
    assert all(0 <= deadline - began - (timeout or LONGEST) < 3 for deadline in deadlines)


def test_a_rank_that_is_lost_is_named() -> None:
    def dying(group: Any) -> Any:
        if group.rank == 2:
            raise RuntimeError("gone")
        return allreduce(group, np.ones(1))

    found = outcomes(4, dying)
    assert isinstance(found[3], PeerLost)
    assert isinstance(found[0], PeerLost)
    assert found[0].rank == 2


def test_many_calls_follow_one_another_without_waiting(way: str) -> None:
    def many(group: Any) -> list[Any]:
        found = []
        for number in range(20):
            found.append(allreduce(group, np.array([number + group.rank])).tolist())
            found.append(broadcast(group, number if group.rank == number % 5 else None, number % 5))
            found.append(allgather(group, group.rank))
        return found

    wanted = [one for number in range(20) for one in ([5 * number + 10], number, [0, 1, 2, 3, 4])]
    assert together(5, many) == [wanted] * 5
