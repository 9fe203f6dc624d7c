"""Who does what: every galaxy once, in items that are fair, and the same redshifts however the work is cut."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmicai.engines.base import inner_batch
from cosmicai.ranks.environment import Rank
from cosmicai.runs.create import begin
from cosmicai.runs.plan import WorkItem
from cosmicai.runs.schedule import (
    FAIR_SHARE,
    ITEM_GALAXIES,
    LAST_SHARE,
    agree_on_missing,
    counted,
    cut,
    largest_first,
    share,
)
from cosmicai.runs.summary import summarize
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import ShardEntry, Survey, open_survey, write_survey
from cosmicai.worker.loop import work
from support.helpers import FIELDS, random_galaxies, tiny_weights


def shards_of(sizes: Sequence[int]) -> list[ShardEntry]:
    return [ShardEntry(f"{number:06d}.h5", size, 1) for number, size in enumerate(sizes)]


def check(sizes: Sequence[int], batch_size: int, inner: int, ranks: int) -> None:
    """Whether the items of such a survey are what `cut` promises."""
    items = cut(shards_of(sizes), batch_size, inner, ranks)
    rows = [(item.shard, row) for item in items for row in range(item.start, item.stop)]
    assert rows == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    for item in items:
        begin = sum(sizes[: item.shard]) + item.start // batch_size * batch_size
        share = LAST_SHARE + (FAIR_SHARE - LAST_SHARE) * (1 - begin / sum(sizes))
        fair = share * sum(sizes) / ranks if ranks > 1 else math.inf
        assert 0 < item.galaxies <= max(fair, inner)
        assert item.galaxies <= -(-ITEM_GALAXIES // batch_size) * batch_size
        into_batch, size = item.start % batch_size, sizes[item.shard]
        end_of_batch = min(item.start - into_batch + batch_size, size)
        whole_batches = into_batch == 0 and (item.stop % batch_size == 0 or item.stop == size)
        pieces = into_batch % inner == 0 and item.stop <= end_of_batch
        ends = (item.stop - (item.start - into_batch)) % inner == 0 or item.stop == end_of_batch
        assert whole_batches or (pieces and ends)


@pytest.mark.parametrize("ranks", [1, 2, 7, 64, 5000])
@pytest.mark.parametrize("batch_size", [1, 2, 100, 512, 2047, 2048, 2049, 100_000])
@pytest.mark.parametrize("sizes", [[1], [0, 0, 5], [511, 1278, 2556], [5000], [3, 4096, 1, 0, 2049]])
def test_every_galaxy_is_in_one_item_that_is_fair_and_well_cut(sizes: list[int], batch_size: int, ranks: int) -> None:
    for largest in (64, 128):
        check(sizes, batch_size, inner_batch(batch_size, largest), ranks)


def test_whatever_the_survey_every_galaxy_is_in_one_item() -> None:
    draw = random.Random(20_260_101)
    for _ in range(300):
        sizes = [draw.choice([0, 1, 63, draw.randrange(3000)]) for _ in range(draw.randint(1, 6))]
        batch_size = draw.choice([1, 64, 512, draw.randint(1, 3000)])
        check(sizes, batch_size, draw.randint(1, batch_size), draw.choice([1, 2, draw.randint(1, 200)]))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "inner", "ranks", "expected"),
    [
        ([100_000], 512, 64, 1, {2048: 48, 1696: 1}),  # no more than a killed rank may lose
        ([100_000], 1000, 50, 1, {3000: 33, 1000: 1}),  # rounded up to whole batches
        ([100_000], 5000, 100, 1, {5000: 20}),
        ([20_480], 512, 64, 1, {2048: 10}),
        ([20_480], 512, 64, 16, {64: 320}),
        ([20_480], 512, 64, 10_000, {64: 320}),  # never less than an inner batch
        ([1000, 24], 512, 64, 1, {1000: 1, 24: 1}),  # nobody to share with
        ([1000, 24], 512, 64, 2, {64: 15, 40: 1, 24: 1}),
        ([0], 512, 64, 2, {}),
    ],
)
def test_sizes_of_items(sizes: list[int], batch_size: int, inner: int, ranks: int, expected: dict[int, int]) -> None:
    assert Counter(item.galaxies for item in cut(shards_of(sizes), batch_size, inner, ranks)) == expected


@pytest.mark.parametrize(
    ("galaxies", "batch_size", "inner", "first", "last"),
    [
        # Each of two ranks does 10,240: 512 at most at first, 500 after a batch (seven inner batches and the rest of
        # the batch), and 62 in the last batch, where an inner batch is the least.
        (20_480, 512, 64, [512, 448, 64], [64] * 8),
        # 2,500 at first, 2,387 in the second batch, 362 in the last.
        (100_000, 5000, 100, [2500, 2500, 2300, 2300, 400], [*[300] * 16, 200]),
        # 2,048 is the most of any item; whole batches as long as there is room for one.
        (200_000, 512, 64, [2048, 2048, 2048], [512, 512, 512, 320]),
    ],
)
def test_items_for_two_ranks_shrink_from_a_twentieth_to_a_two_hundredth(
    galaxies: int, batch_size: int, inner: int, first: list[int], last: list[int]
) -> None:
    found = [item.galaxies for item in cut(shards_of([galaxies]), batch_size, inner, 2)]
    assert (found[: len(first)], found[-len(last) :]) == (first, last)


def test_items_of_pieces_start_anew_with_every_batch() -> None:
    items = cut(shards_of([230, 110]), 100, 40, 2)
    spans = [(0, 0, 40), (0, 40, 80), (0, 80, 100), (0, 100, 140), (0, 140, 180), (0, 180, 200), (0, 200, 230)]
    spans += [(1, 0, 40), (1, 40, 80), (1, 80, 100), (1, 100, 110)]
    assert items == tuple(WorkItem(*span) for span in spans)


ITEMS = [WorkItem(0, 0, 10), WorkItem(0, 10, 15), WorkItem(1, 0, 30), WorkItem(1, 30, 40), WorkItem(2, 0, 7)]


def test_the_largest_come_first_and_equal_ones_in_survey_order() -> None:
    expected = [ITEMS[2], ITEMS[0], ITEMS[3], ITEMS[4], ITEMS[1]]
    assert largest_first(ITEMS) == largest_first(reversed(ITEMS)) == expected


def test_each_item_goes_to_the_rank_with_the_least_to_do() -> None:
    assert share(ITEMS, 0, 1) == ITEMS
    assert [share(ITEMS, rank, 2) for rank in range(2)] == [[ITEMS[2]], [ITEMS[0], ITEMS[1], ITEMS[3], ITEMS[4]]]
    assert [share(ITEMS, rank, 6) for rank in range(6)] == [[ITEMS[n]] for n in (2, 0, 3, 4, 1)] + [[]]
    assert share([], 3, 4) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 50, 1000])
def test_ranks_share_all_items_and_nearly_equal_work(world_size: int) -> None:
    draw = random.Random(world_size)
    for _ in range(5):
        items = [WorkItem(number, 0, draw.randint(1, 2048)) for number in range(draw.randint(0, 300))]
        shares = [share(items, rank, world_size) for rank in range(world_size)]
        assert sorted(item for own in shares for item in own) == items
        assert all(own == sorted(own) for own in shares)
        loads = [sum(item.galaxies for item in own) for own in shares]
        assert max(loads) - min(loads) <= max((item.galaxies for item in items), default=0)


@dataclass
class Talking:
    """What ranks of one process share: a counter and what rank 0 last said."""

    rank: int
    size: int
    numbers: count[int] = field(default_factory=count)
    said: list[str] = field(default_factory=list)

    def next_item(self) -> int:
        return next(self.numbers)

    def broadcast(self, value: Any) -> Any:
        if self.rank == 0:
            self.said.append(json.dumps(value))
        return json.loads(self.said[-1])


def test_each_item_comes_to_whoever_asks_next() -> None:
    first = Talking(0, 2)
    second = Talking(1, 2, first.numbers)
    here, there = counted("abcdef", first), counted("abcdef", second)
    assert [next(iterator) for iterator in (here, here, there, here, there)] == list("abcde")
    assert list(there) == ["f"]
    assert list(here) == []
    assert list(counted("", Talking(0, 1))) == []


@pytest.mark.parametrize("number", [1, 7, 8, 9, 1000])
def test_ranks_agree_on_what_rank_0_finds_missing(number: int) -> None:
    draw = random.Random(number)
    items = [WorkItem(index, 0, 1) for index in range(number)]
    early = {item for item in items if draw.random() < 0.5}
    for done in (set(), early, set(items), early | {WorkItem(9, 5, 6)}):
        first = Talking(0, 3)
        missing = [item for item in items if item not in done]
        assert agree_on_missing(items, done, first) == missing
        for rank in (1, 2):  # which come when all is done already, or do not look
            assert agree_on_missing(items, set(items), Talking(rank, 3, said=first.said)) == missing
            assert agree_on_missing(items, set(), Talking(rank, 3, said=first.said)) == missing


SIZES = (1013, 64, 377, 1, 1999)


@pytest.fixture(scope="module")
def surveys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Survey, str]:
    """A survey of odd shards, some of whose galaxies cannot be used, and weights."""
    folder = tmp_path_factory.mktemp("odd")
    galaxies = random_galaxies(sum(SIZES))
    galaxies.image[100, 0, 0, 0] = np.nan
    ends = np.cumsum(SIZES)
    (folder / "s").mkdir()
    for number, end in enumerate(ends):
        one: Galaxies = galaxies[end - SIZES[number] : end]
        part = write_survey(str(folder / f"part-{number}"), [one], len(one), len(one), FIELDS)
        Path(part.uri, "000001.h5").rename(folder / "s" / f"{number}.h5")
    return open_survey(str(folder / "s")), tiny_weights(folder / "w.safetensors")


@pytest.mark.parametrize("batch_size", [100, 512])
@pytest.mark.parametrize("engine", ["openvino", "reference"])
def test_redshifts_do_not_depend_on_how_the_work_is_cut(
    tmp_path: Path, surveys: tuple[Survey, str], engine: str, batch_size: int
) -> None:
    survey, weights = surveys
    assert tuple(shard.galaxies for shard in survey.shards) == SIZES
    digests, cuts = set(), []
    for ranks in (1, 3, 50):
        run = begin(survey, weights, str(tmp_path / f"{ranks}"), engine=engine, batch_size=batch_size, ranks=ranks)
        work(run, Rank(threads=2))
        summary = summarize(run)
        assert summary["complete"] and summary["coverage"]["flagged"]["NONFINITE_PIXEL"] == 1
        digests.add(summary["catalogue_sha256"])
        cuts.append(len(run.plan().items))
    assert cuts[0] < cuts[2]
    assert len(digests) == 1
