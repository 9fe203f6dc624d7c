"""Work sources: which items a rank gets from each of them, in which order, and when there are no more."""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from cosmicai.runs.plan import WorkItem
from cosmicai.runs.schedule import largest_first
from cosmicai.worker import sources
from cosmicai.worker.sources import CounterSource, DeadlineSource, OutOfTime, StaticSource, TooSlow, agree_on_missing
from cosmicai.worker.supervisor_socket import SupervisorSource, supervisor_from_environment

ITEMS = [WorkItem(0, start, start + 10) for start in range(0, 50, 10)]


def refusal(error: type[Exception], call: Any) -> str:
    """Return the one line of the error that the call raises."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error and "\n" not in str(caught.value)
    return str(caught.value)


@dataclass
class FakeCommunicator:
    """Ranks of one process, which share a counter and rank 0's last broadcast."""

    rank: int
    size: int
    numbers: count[int] = field(default_factory=count)
    sent: list[str] = field(default_factory=list)

    def next_item(self) -> int:
        return next(self.numbers)

    def broadcast(self, value: Any) -> Any:
        if self.rank == 0:
            self.sent.append(json.dumps(value))
        return json.loads(self.sent[-1])


def test_a_counter_gives_each_item_to_the_rank_that_requests_next() -> None:
    items = [WorkItem(0, start, 2 * start) for start in (1, 4, 16, 8, 2, 32)]
    first: Any = FakeCommunicator(0, 2)
    second: Any = FakeCommunicator(1, 2, first.numbers)
    here, there = iter(CounterSource(items, first)), iter(CounterSource(reversed(items), second))
    expected = largest_first(items)
    assert [next(iterator) for iterator in (here, here, there, here, there)] == expected[:5]
    assert list(there) == expected[5:]
    assert list(here) == []
    assert list(CounterSource([], FakeCommunicator(0, 1))) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [1, 7, 8, 9, 1000])
def test_ranks_agree_on_what_rank_0_finds_missing(number: int) -> None:
    draw = random.Random(number)
    items = [WorkItem(index, 0, 1) for index in range(number)]
    early = {item for item in items if draw.random() < 0.5}
    for done in (set(), early, set(items), early | {WorkItem(9, 5, 6)}):
        first: Any = FakeCommunicator(0, 3)
        missing = [item for item in items if item not in done]
        assert agree_on_missing(items, done, first) == missing
        for rank in (1, 2):  # which find everything done, or nothing
            assert agree_on_missing(items, set(items), FakeCommunicator(rank, 3, sent=first.sent)) == missing  # type: ignore[arg-type]
            assert agree_on_missing(items, set(), FakeCommunicator(rank, 3, sent=first.sent)) == missing  # type: ignore[arg-type]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that tests set, and the seconds that are then left."""
    clock = SimpleNamespace(now=1000.0, left=100.0)
    monkeypatch.setattr(sources, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def deadline(clock: SimpleNamespace) -> DeadlineSource:
    return DeadlineSource(StaticSource(ITEMS), lambda: clock.left)


def test_a_deadline_gives_items_in_order_while_there_is_time(clock: SimpleNamespace) -> None:
    items = iter(deadline(clock))
    assert [next(items, None) for _ in range(7)] == [*ITEMS, None, None]


def test_the_first_item_is_always_tried(clock: SimpleNamespace) -> None:
    source = deadline(clock)
    clock.left = 0.0
    assert list(source) == [ITEMS[0]]


@pytest.mark.parametrize(("limit", "margin"), [(900.0, 4.0), (40.0, 4.0), (20.0, 2.0), (3.0, 0.3)])
@pytest.mark.parametrize("longest", [1.0, 7.5])
def test_no_item_is_given_that_would_take_longer_than_there_is_time(
    clock: SimpleNamespace, limit: float, margin: float, longest: float
) -> None:
    clock.left = limit
    source = deadline(clock)
    items = iter(source)
    clock.left = 100.0
    for seconds in (longest, longest / 2):  # the longest decides, not the last
        item = next(items)
        clock.now += seconds
        source.completed(item)
    clock.left = longest + margin + 0.01
    assert next(items) == ITEMS[2]
    clock.left = longest + margin
    assert next(items, None) is None


def test_an_item_that_is_refused_for_lack_of_time_is_not_taken_from_the_source(clock: SimpleNamespace) -> None:
    """Else no rank would do an item of a shared counter."""
    numbers = count()
    source = DeadlineSource(CounterSource(ITEMS, FakeCommunicator(0, 1, numbers)), lambda: clock.left)  # type: ignore[arg-type]
    items = iter(source)
    next(items)
    clock.left = 0.0
    assert list(items) == [] and next(numbers) == 1


def test_a_failed_item_does_not_count_as_slow(clock: SimpleNamespace) -> None:
    source = deadline(clock)
    items = iter(source)
    item = next(items)
    clock.now += 50
    source.failed(item, "its disk is gone")
    clock.left = 4.01
    assert next(items) == ITEMS[1]


def test_a_rank_stops_when_its_items_cannot_be_completed_in_time(clock: SimpleNamespace) -> None:
    source = deadline(clock)
    items = iter(source)
    first, second = next(items), next(items)
    for left in (100.0, 2.01):
        clock.left = left
        source.heartbeat()
    clock.left = 2.0
    assert refusal(TooSlow, source.heartbeat) == (
        "not one item was done within the time limit; give the function more time or memory"
    )
    source.failed(first, "its disk is gone")
    assert refusal(TooSlow, source.heartbeat).startswith("not one item")
    source.completed(second)
    assert refusal(OutOfTime, source.heartbeat) == (
        "the time limit came before the end of an item; what was finished is kept"
    )


@pytest.fixture
def supervised() -> Iterator[tuple[SupervisorSource, socket.socket]]:
    """A rank's source and the supervisor's end of its socket."""
    supervisor, rank = socket.socketpair()
    supervisor.settimeout(60)
    source = supervisor_from_environment({"COSMICAI_LAUNCHER_FD": str(rank.detach())})
    assert source is not None
    with supervisor:
        yield source, supervisor
        source.close()


def test_a_supervisor_assigns_items_one_by_one(supervised: tuple[SupervisorSource, socket.socket]) -> None:
    source, supervisor = supervised
    supervisor.sendall(f"{ITEMS[0].name}\nno item\n{ITEMS[2].name}\n\n".encode())
    assert list(source) == [ITEMS[0], ITEMS[2]]
    assert supervisor.recv(1000) == b"next\nnext\nnext\nnext\n"
    source.completed(ITEMS[0])
    source.failed(ITEMS[2], "its disk is gone")
    for _ in range(3):  # only one is sent
        source.heartbeat()
    assert supervisor.recv(1000) == f"finished {ITEMS[0].name}\nfailed {ITEMS[2].name}\nalive\n".encode()


@pytest.mark.parametrize("which", ["the rank", "the supervisor"])
def test_a_closed_socket_ends_the_items(supervised: tuple[SupervisorSource, socket.socket], which: str) -> None:
    source, supervisor = supervised
    found: list[WorkItem] = []
    waiting = threading.Thread(target=lambda: found.extend(source))
    waiting.start()
    assert supervisor.recv(1000) == b"next\n"
    source.close() if which == "the rank" else supervisor.close()
    waiting.join(60)
    assert not waiting.is_alive() and found == []
    source.heartbeat()
    source.completed(ITEMS[0])
    assert list(source) == []


def test_a_rank_without_supervisor_has_no_such_source() -> None:
    assert supervisor_from_environment({}) is None
    assert supervisor_from_environment({"COSMICAI_LAUNCHER_FD": ""}) is None
