"""Prefetching: order, errors, and what a survey larger than memory leaves in the page cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from cosmicai.errors import StorageError
from cosmicai.runs.plan import Plan, WorkItem
from cosmicai.surveys.shard import Galaxies, Shard
from cosmicai.surveys.survey import ShardEntry, Survey
from cosmicai.worker import prefetch
from cosmicai.worker.prefetch import FETCHED_ROWS, FETCHES, Chunk, Prefetcher, ReadFailure, read_items, rows_per_fetch
from support.helpers import make_survey, random_galaxies


def plan_of(survey: Survey, batch_size: int, items: tuple[WorkItem, ...]) -> Plan:
    return Plan(
        survey.uri, survey.shards, "w", "0", "openvino", "float32", "cpu", batch_size, batch_size, None, None, items
    )


OPEN = Survey.open
ITEMS = (WorkItem(0, 0, 20), WorkItem(0, 20, 30), WorkItem(1, 0, 25), WorkItem(2, 0, 30), WorkItem(3, 0, 10))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(make_survey(tmp_path / "s", random_galaxies(100), 30), 10, ITEMS)


def test_chunks_come_in_order_and_end_with_their_items(plan: Plan) -> None:
    found = [chunk for chunk in read_items(plan, ITEMS, 10, 1000) if isinstance(chunk, Chunk)]
    assert [(chunk.item, chunk.stop, chunk.is_last) for chunk in found] == [
        (item, min(start + 10, item.stop), start + 10 >= item.stop)
        for item in ITEMS for start in range(item.start, item.stop, 10)
    ]  # fmt: skip
    galaxies = random_galaxies(100)
    expected = [*range(30), *range(30, 55), *range(60, 90), *range(90, 100)]
    assert np.concatenate([batch.galaxies.objid for batch in found]).tolist() == (galaxies.objid[expected]).tolist()


def test_no_chunk_reaches_into_the_next_batch(plan: Plan) -> None:
    found = [rows for rows in read_items(plan, ITEMS[:2], 4, 1000) if isinstance(rows, Chunk)]
    assert [rows.stop for rows in found] == [4, 8, 10, 14, 18, 20, 24, 28, 30]
    assert [rows.is_last for rows in found] == [False] * 5 + [True] + [False] * 2 + [True]


def test_an_item_that_cannot_be_read_is_named_and_the_next_one_is_read(plan: Plan) -> None:
    Path(plan.survey, "000002.h5").unlink()
    found = list(read_items(plan, ITEMS, 10, 1000))
    broken = [batch for batch in found if isinstance(batch, ReadFailure)]
    assert [(batch.item, "000002.h5" in batch.reason) for batch in broken] == [(ITEMS[2], True)]
    assert {batch.item for batch in found} == set(ITEMS)


@pytest.mark.parametrize(("in_use", "kept"), [(0, 0), (1, 1), (10, 1), (11, 2), (40, 2), (41, 3), (1000, 5)])
def test_rows_far_enough_back_of_a_large_survey_are_dropped_from_the_cache_once(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, in_use: int, kept: int
) -> None:
    dropped: list[tuple[str, int, int]] = []
    monkeypatch.setattr(prefetch, "_is_large", lambda plan: True)
    monkeypatch.setattr(Shard, "drop_cached", lambda shard, *rows: dropped.append((Path(shard.uri).name, *rows)))
    list(read_items(plan, ITEMS, 10, in_use))
    rows = [(f"{item.shard + 1:06d}.h5", item.start, item.stop) for item in ITEMS]
    assert dropped == rows[: len(ITEMS) - kept]


@pytest.mark.parametrize("in_use", [0, 1, 1000])
def test_items_of_one_shard_that_follow_each_other_open_it_once(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, in_use: int
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(Survey, "open", lambda survey, shard: opened.append(shard.name) or OPEN(survey, shard))  # type: ignore[func-returns-value]
    items = [WorkItem(0, 0, 10), WorkItem(0, 10, 20), WorkItem(1, 0, 10), WorkItem(0, 20, 30)]
    found = list(read_items(plan, items, 10, in_use))
    assert [rows.item for rows in found if isinstance(rows, Chunk)] == items
    if in_use:
        assert opened == ["000001.h5", "000002.h5", "000001.h5"]
    else:  # no galaxies may be held, so each shard is closed at its end
        assert opened == ["000001.h5", "000001.h5", "000002.h5", "000001.h5"]


def test_a_small_survey_stays_in_the_cache_and_every_file_is_closed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shard, "drop_cached", lambda *_: pytest.fail("dropped"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for in_use in (0, 1000):
        some = read_items(plan, ITEMS, 10, in_use)
        for _ in range(4):
            next(some)
        del some  # which closes the shards
        list(read_items(plan, ITEMS, 10, in_use))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_one_value_is_read_while_the_previous_one_is_used() -> None:
    started = [threading.Event() for _ in range(4)]

    def values() -> Iterator[int]:
        for value in range(3):
            started[value].set()
            yield value
        started[3].set()

    with ThreadPoolExecutor(1) as reader:
        found = Prefetcher(values(), reader)
        assert started[0].wait(60)  # at once, before the first value is taken
        for value in iter(found.take, None):
            assert started[value + 1].wait(60)
            assert value + 2 > 3 or not started[value + 2].is_set()


def test_an_error_in_the_reader_thread_reaches_the_caller() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise OSError("broken")

    with ThreadPoolExecutor(1) as reader:
        found = Prefetcher(values(), reader)
        assert found.take() == 1
        with pytest.raises(OSError, match="broken"):
            found.take()


@pytest.mark.parametrize(
    ("batch_size", "rows", "fetched"),
    [
        (512, 128, 512),
        (1000, 128, 512),
        (1000, 96, 480),
        (1000, 600, 600),
        (100, 64, 100),
        (32, 32, 32),
        (2048, 512, 512),
    ],
)
def test_a_request_fetches_about_512_rows_in_whole_inner_batches(
    plan: Plan, batch_size: int, rows: int, fetched: int
) -> None:
    assert FETCHED_ROWS == 512
    assert rows_per_fetch(structs.replace(plan, batch_size=batch_size), rows) == fetched


@pytest.fixture
def on_s3(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The same plan with an S3 address for its survey, batches of 10 and 5 rows per request."""
    monkeypatch.setattr(Survey, "open", lambda survey, shard: OPEN(Survey(plan.survey, plan.shards), shard))
    monkeypatch.setattr(prefetch, "FETCHED_ROWS", 5)
    return structs.replace(plan, survey="s3://bucket/survey")


READ = Shard.read
LONG = WorkItem(2, 0, 30)


def test_chunks_from_s3_are_fetched_in_parallel_and_come_in_order(on_s3: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of four requests ends only after the other three."""
    together, begun = threading.Barrier(FETCHES, timeout=60), []
    others = threading.Semaphore(0)

    def read(shard: Shard, start: int, stop: int) -> Galaxies:
        begun.append(start)
        if start < 5 * FETCHES:
            together.wait()
            for _ in range(0 if start else FETCHES - 1):
                assert others.acquire(timeout=60)
            others.release()
        return READ(shard, start, stop)

    monkeypatch.setattr(Shard, "read", read)
    found = list(read_items(on_s3, [LONG], 5, 1000))
    assert [rows.stop for rows in found if isinstance(rows, Chunk)] == [5, 10, 15, 20, 25, 30]
    assert [rows.is_last for rows in found if isinstance(rows, Chunk)] == [False] * 5 + [True]
    assert sorted(begun) == [0, 5, 10, 15, 20, 25]
    objid = np.concatenate([rows.galaxies.objid for rows in found if isinstance(rows, Chunk)])
    assert objid.tolist() == random_galaxies(100).objid[60:90].tolist()


@pytest.mark.parametrize("fetches", [1, 2, 3])
def test_no_more_requests_are_made_at_a_time_than_allowed(
    on_s3: Plan, monkeypatch: pytest.MonkeyPatch, fetches: int
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(Shard, "read", lambda shard, *rows: begun.append(rows[0]) or READ(shard, *rows))  # type: ignore[func-returns-value]
    found = read_items(on_s3, [LONG], 5, 1000, fetches)
    for taken in range(1, 7):
        next(found)
        assert len(begun) <= min(taken + fetches - 1, 6)
    assert list(found) == [] and sorted(begun) == [0, 5, 10, 15, 20, 25]


def test_chunks_from_s3_are_those_of_a_local_survey(plan: Plan, on_s3: Plan) -> None:
    remote, local = read_items(on_s3, ITEMS, 5, 1000), read_items(plan, ITEMS, 5, 1000)
    for got, wanted in zip(remote, local, strict=True):
        assert isinstance(got, Chunk) and isinstance(wanted, Chunk)
        assert (got.item, got.stop) == (wanted.item, wanted.stop)
        assert np.array_equal(got.galaxies.image, wanted.galaxies.image)
        assert np.array_equal(got.galaxies.objid, wanted.galaxies.objid)


@pytest.mark.parametrize("bad", [0, 10, 25])
def test_a_failed_request_ends_its_own_item_only(on_s3: Plan, monkeypatch: pytest.MonkeyPatch, bad: int) -> None:
    def read(shard: Shard, start: int, stop: int) -> Galaxies:
        if shard.uri.endswith("000003.h5") and start == bad:
            raise StorageError("the connection broke")
        return READ(shard, start, stop)

    monkeypatch.setattr(Shard, "read", read)
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = list(read_items(on_s3, ITEMS, 5, 1000))
    of_item = [rows for rows in found if rows.item == LONG]
    assert [rows.stop for rows in of_item if isinstance(rows, Chunk)] == list(range(5, bad + 1, 5))
    assert of_item[-1] == ReadFailure(LONG, "the connection broke")
    assert [rows.item for rows in found if isinstance(rows, ReadFailure)] == [LONG]
    ends = [rows.item for rows in found if isinstance(rows, Chunk) and rows.is_last]
    assert ends == [item for item in ITEMS if item != LONG]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("parallel")] == []
    del found, of_item
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_after_a_failed_request_the_shard_is_opened_again(on_s3: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Shard] = []
    is_broken = iter([True])

    def read(shard: Shard, start: int, stop: int) -> Galaxies:
        if next(is_broken, False):
            raise StorageError("it was replaced while it was being read")
        assert shard is opened[-1]
        return READ(shard, start, stop)

    def open_and_remember(survey: Survey, entry: ShardEntry) -> Shard:
        opened.append(open_shard(survey, entry))
        return opened[-1]

    open_shard = Survey.open
    monkeypatch.setattr(Survey, "open", open_and_remember)
    monkeypatch.setattr(Shard, "read", read)
    items = [WorkItem(0, 0, 5), WorkItem(0, 5, 10), WorkItem(0, 10, 15)]
    found = list(read_items(on_s3, items, 5, 1000))
    assert [type(rows) for rows in found] == [ReadFailure, Chunk, Chunk]
    assert len(opened) == 2


def test_an_error_other_than_of_input_ends_all_items(on_s3: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(shard: Shard, start: int, stop: int) -> Galaxies:
        raise MemoryError

    monkeypatch.setattr(Shard, "read", read)
    with pytest.raises(MemoryError):
        list(read_items(on_s3, ITEMS, 5, 1000))


def test_an_item_is_taken_only_after_the_previous_one_is_read(on_s3: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(Shard, "read", lambda shard, *rows: read.append(rows[1] - rows[0]) or READ(shard, *rows))  # type: ignore[func-returns-value]
    requested: list[int] = []  # galaxies read when each item was taken

    def items() -> Iterator[WorkItem]:
        for item in ITEMS:
            requested.append(sum(read))
            yield item

    taken = 0
    for rows in read_items(on_s3, items(), 5, 1000):
        assert isinstance(rows, Chunk)
        taken += len(rows.galaxies)
        assert sum(requested[1:2]) == 0 or taken > ITEMS[0].galaxies
    assert requested == [sum(item.galaxies for item in ITEMS[:number]) for number in range(len(ITEMS))]
