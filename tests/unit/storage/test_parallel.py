"""Parallel calls: results in order, a limit on calls in progress, and errors in their place."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import pytest

from cosmicai.storage.parallel import map_in_order


def workers() -> list[str]:
    """Return the names of the threads that `map_in_order` still runs."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("parallel")]


@pytest.mark.parametrize("threads", [0, 1, 3, 16])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_results_come_in_the_order_of_their_values(threads: int, count: int) -> None:
    assert list(map_in_order(lambda value: value * value, iter(range(count)), threads)) == [n * n for n in range(count)]
    assert workers() == []


def test_an_early_result_waits_for_those_before_it() -> None:
    last_is_done = threading.Event()

    def slow_at_first(value: int) -> int:
        if value == 3:
            last_is_done.set()
        else:
            assert last_is_done.wait(60)
        return value

    assert list(map_in_order(slow_at_first, range(4), 4)) == [0, 1, 2, 3]


def test_as_many_calls_as_threads_run_at_once() -> None:
    together = threading.Barrier(4, timeout=60)  # fails unless four calls run at once
    assert list(map_in_order(lambda _: together.wait() >= 0, range(12), 4)) == [True] * 12


def test_without_threads_the_function_runs_in_the_callers_thread() -> None:
    assert set(map_in_order(lambda _: threading.get_ident(), range(3), 0)) == {threading.get_ident()}
    assert threading.get_ident() not in set(map_in_order(lambda _: threading.get_ident(), range(3), 1))


@pytest.mark.parametrize(("threads", "ahead"), [(0, 0), (1, 0), (3, 2), (5, 4)])
def test_values_are_taken_only_as_results_are_needed(threads: int, ahead: int) -> None:
    taken: list[int] = []

    def values() -> Iterator[int]:
        for value in range(10):
            taken.append(value)
            yield value

    results = map_in_order(abs, values(), threads)
    assert taken == []
    for number in range(10):
        assert next(results) == number
        assert taken == list(range(min(number + 1 + ahead, 10)))
    assert next(results, None) is None


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_an_error_is_raised_in_its_place_and_ends_the_iteration(threads: int) -> None:
    begun: list[int] = []

    def fail_at_two(value: int) -> int:
        begun.append(value)
        if value == 2:
            raise ValueError("two")
        return value

    results = map_in_order(fail_at_two, range(100), threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert next(results, None) is None
    assert len(begun) <= 2 + max(threads, 1)
    assert workers() == []


def test_closing_the_iteration_ends_all_threads() -> None:
    begun: list[int] = []
    results = map_in_order(lambda value: begun.append(value) or value, range(1000), 4)  # type: ignore[func-returns-value]
    assert next(results) == 0
    assert workers() != []
    assert isinstance(results, Generator)
    results.close()
    assert workers() == []
    assert len(begun) <= 4
