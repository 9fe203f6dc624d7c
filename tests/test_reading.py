"""Reading ahead: order, errors, and what a survey larger than the memory leaves behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cosmicai.galaxies.shard import Shard
from cosmicai.galaxies.survey import Survey
from cosmicai.run import reading
from cosmicai.run.plan import Plan, WorkItem
from cosmicai.run.reading import Ahead, Rows, Unreadable, read_items
from helpers import make_survey, random_galaxies


def plan_of(survey: Survey, batch_size: int, items: tuple[WorkItem, ...]) -> Plan:
    return Plan(
        survey.uri, survey.shards, "w", "0", "openvino", "float32", "cpu", batch_size, batch_size, None, None, items
    )


OPEN = Survey.open
ITEMS = (WorkItem(0, 0, 20), WorkItem(0, 20, 30), WorkItem(1, 0, 25), WorkItem(2, 0, 30), WorkItem(3, 0, 10))


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(make_survey(tmp_path / "s", random_galaxies(100), 30), 10, ITEMS)


def test_batches_come_in_order_and_end_with_their_items(plan: Plan) -> None:
    found = [batch for batch in read_items(plan, ITEMS, 10, 1000) if isinstance(batch, Rows)]
    assert [(batch.item, batch.stop, batch.is_last) for batch in found] == [
        (item, min(start + 10, item.stop), start + 10 >= item.stop)
        for item in ITEMS for start in range(item.start, item.stop, 10)
    ]  # fmt: skip
    galaxies = random_galaxies(100)
    expected = [*range(30), *range(30, 55), *range(60, 90), *range(90, 100)]
    assert np.concatenate([batch.galaxies.objid for batch in found]).tolist() == (galaxies.objid[expected]).tolist()


def test_a_batch_comes_in_pieces_that_never_reach_into_the_next(plan: Plan) -> None:
    found = [rows for rows in read_items(plan, ITEMS[:2], 4, 1000) if isinstance(rows, Rows)]
    assert [rows.stop for rows in found] == [4, 8, 10, 14, 18, 20, 24, 28, 30]
    assert [rows.is_last for rows in found] == [False] * 5 + [True] + [False] * 2 + [True]


def test_an_item_that_cannot_be_read_is_named_and_the_next_one_is_read(plan: Plan) -> None:
    Path(plan.survey, "000002.h5").unlink()
    found = list(read_items(plan, ITEMS, 10, 1000))
    broken = [batch for batch in found if isinstance(batch, Unreadable)]
    assert [(batch.item, "000002.h5" in batch.reason) for batch in broken] == [(ITEMS[2], True)]
    assert {batch.item for batch in found} == set(ITEMS)


@pytest.mark.parametrize(("in_use", "kept"), [(0, 0), (1, 1), (10, 1), (11, 2), (40, 2), (41, 3), (1000, 5)])
def test_what_lies_far_enough_back_of_a_large_survey_is_forgotten_once(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, in_use: int, kept: int
) -> None:
    forgotten: list[tuple[str, int, int]] = []
    monkeypatch.setattr(reading, "_is_large", lambda plan: True)
    monkeypatch.setattr(Shard, "forget", lambda shard, *rows: forgotten.append((Path(shard.uri).name, *rows)))
    list(read_items(plan, ITEMS, 10, in_use))
    rows = [(f"{item.shard + 1:06d}.h5", item.start, item.stop) for item in ITEMS]
    assert forgotten == rows[: len(ITEMS) - kept]


@pytest.mark.parametrize("in_use", [0, 1, 1000])
def test_items_of_one_shard_that_follow_each_other_open_it_once(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, in_use: int
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(Survey, "open", lambda survey, shard: opened.append(shard.name) or OPEN(survey, shard))
    items = [WorkItem(0, 0, 10), WorkItem(0, 10, 20), WorkItem(1, 0, 10), WorkItem(0, 20, 30)]
    found = list(read_items(plan, items, 10, in_use))
    assert [rows.item for rows in found if isinstance(rows, Rows)] == items
    if in_use:
        assert opened == ["000001.h5", "000002.h5", "000001.h5"]
    else:  # nothing may be referred to, so each is closed at its end
        assert opened == ["000001.h5", "000001.h5", "000002.h5", "000001.h5"]


def test_a_small_survey_stays_in_the_cache_and_every_file_is_closed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shard, "forget", lambda *_: pytest.fail("forgotten"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for in_use in (0, 1000):
        some = read_items(plan, ITEMS, 10, in_use)
        for _ in range(4):
            next(some)
        del some  # which closes the shards
        list(read_items(plan, ITEMS, 10, in_use))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_one_value_is_made_while_the_one_before_is_used() -> None:
    asked = [threading.Event() for _ in range(4)]

    def values() -> Iterator[int]:
        for value in range(3):
            asked[value].set()
            yield value
        asked[3].set()

    with ThreadPoolExecutor(1) as reader:
        found = Ahead(values(), reader)
        assert asked[0].wait(60)  # at once, before anything is asked for
        for value in iter(found.take, None):
            assert asked[value + 1].wait(60)
            assert value + 2 > 3 or not asked[value + 2].is_set()


def test_an_error_while_reading_ahead_reaches_the_caller() -> None:
    def values() -> Iterator[int]:
        yield 1
        raise OSError("broken")

    with ThreadPoolExecutor(1) as reader:
        found = Ahead(values(), reader)
        assert found.take() == 1
        with pytest.raises(OSError, match="broken"):
            found.take()
