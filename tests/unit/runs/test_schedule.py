"""Planning: every galaxy in one item, items of fair size, and the same redshifts however the work is split."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cosmicai.engines.base import choose_inner_batch
from cosmicai.ranks.environment import Rank
from cosmicai.runs.plan import WorkItem
from cosmicai.runs.schedule import (
    FAIR_SHARE,
    ITEM_GALAXIES,
    LAST_SHARE,
    largest_first,
    split_work,
    static_assignment,
)
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import ShardEntry, Survey, open_survey, write_survey
from support.helpers import FIELDS, make_run, random_galaxies, run_worker, tiny_weights


def shards_of(sizes: Sequence[int]) -> list[ShardEntry]:
    return [ShardEntry(f"{number:06d}.h5", size, 1) for number, size in enumerate(sizes)]


def check(sizes: Sequence[int], batch_size: int, inner: int, ranks: int) -> None:
    """Check that the items of such a survey are what `split_work` promises."""
    items = split_work(shards_of(sizes), batch_size, inner, ranks)
    rows = [(item.shard, row) for item in items for row in range(item.start, item.stop)]
    assert rows == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    for item in items:
        begin = sum(sizes[: item.shard]) + item.start // batch_size * batch_size
        part = LAST_SHARE + (FAIR_SHARE - LAST_SHARE) * (1 - begin / sum(sizes))
        fair = part * sum(sizes) / ranks if ranks > 1 else math.inf
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
def test_every_galaxy_is_in_one_item_of_fair_size(sizes: list[int], batch_size: int, ranks: int) -> None:
    for largest in (64, 128):
        check(sizes, batch_size, choose_inner_batch(batch_size, largest), ranks)


def test_in_random_surveys_every_galaxy_is_in_one_item() -> None:
    draw = random.Random(20_260_101)
    for _ in range(300):
        sizes = [draw.choice([0, 1, 63, draw.randrange(3000)]) for _ in range(draw.randint(1, 6))]
        batch_size = draw.choice([1, 64, 512, draw.randint(1, 3000)])
        check(sizes, batch_size, draw.randint(1, batch_size), draw.choice([1, 2, draw.randint(1, 200)]))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "inner", "ranks", "expected"),
    [
        ([100_000], 512, 64, 1, {2048: 48, 1696: 1}),  # at most what a killed rank may lose
        ([100_000], 1000, 50, 1, {3000: 33, 1000: 1}),  # rounded up to whole batches
        ([100_000], 5000, 100, 1, {5000: 20}),
        ([20_480], 512, 64, 1, {2048: 10}),
        ([20_480], 512, 64, 16, {64: 320}),
        ([20_480], 512, 64, 10_000, {64: 320}),  # never less than an inner batch
        ([1000, 24], 512, 64, 1, {1000: 1, 24: 1}),  # a single rank
        ([1000, 24], 512, 64, 2, {64: 15, 40: 1, 24: 1}),
        ([0], 512, 64, 2, {}),
    ],
)
def test_sizes_of_items(sizes: list[int], batch_size: int, inner: int, ranks: int, expected: dict[int, int]) -> None:
    assert Counter(item.galaxies for item in split_work(shards_of(sizes), batch_size, inner, ranks)) == expected


@pytest.mark.parametrize(
    ("galaxies", "batch_size", "inner", "first", "last"),
    [
        # Each of two ranks does 10,240: at first at most 512, after a batch 500 (seven inner batches and the rest of
        # the batch), and in the last batch 62, where an inner batch is the minimum.
        (20_480, 512, 64, [512, 448, 64], [64] * 8),
        # At most 2,500 at first, 2,387 in the second batch, 362 in the last.
        (100_000, 5000, 100, [2500, 2500, 2300, 2300, 400], [*[300] * 16, 200]),
        # At most 2,048 of any item, and whole batches as long as one fits.
        (200_000, 512, 64, [2048, 2048, 2048], [512, 512, 512, 320]),
    ],
)
def test_items_for_two_ranks_shrink_from_a_twentieth_to_a_two_hundredth(
    galaxies: int, batch_size: int, inner: int, first: list[int], last: list[int]
) -> None:
    found = [item.galaxies for item in split_work(shards_of([galaxies]), batch_size, inner, 2)]
    assert (found[: len(first)], found[-len(last) :]) == (first, last)


def test_items_smaller_than_a_batch_start_anew_with_every_batch() -> None:
    items = split_work(shards_of([230, 110]), 100, 40, 2)
    spans = [(0, 0, 40), (0, 40, 80), (0, 80, 100), (0, 100, 140), (0, 140, 180), (0, 180, 200), (0, 200, 230)]
    spans += [(1, 0, 40), (1, 40, 80), (1, 80, 100), (1, 100, 110)]
    assert items == tuple(WorkItem(*span) for span in spans)


ITEMS = [WorkItem(0, 0, 10), WorkItem(0, 10, 15), WorkItem(1, 0, 30), WorkItem(1, 30, 40), WorkItem(2, 0, 7)]


def test_largest_items_come_first_and_equal_ones_in_survey_order() -> None:
    expected = [ITEMS[2], ITEMS[0], ITEMS[3], ITEMS[4], ITEMS[1]]
    assert largest_first(ITEMS) == largest_first(reversed(ITEMS)) == expected


def test_each_item_is_assigned_to_the_rank_with_the_fewest_galaxies() -> None:
    assert static_assignment(ITEMS, 0, 1) == ITEMS
    assert [static_assignment(ITEMS, rank, 2) for rank in range(2)] == [
        [ITEMS[2]],
        [ITEMS[0], ITEMS[1], ITEMS[3], ITEMS[4]],
    ]
    assert [static_assignment(ITEMS, rank, 6) for rank in range(6)] == [[ITEMS[n]] for n in (2, 0, 3, 4, 1)] + [[]]
    assert static_assignment([], 3, 4) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 50, 1000])
def test_all_items_are_assigned_and_ranks_have_nearly_equal_work(world_size: int) -> None:
    draw = random.Random(world_size)
    for _ in range(5):
        items = [WorkItem(number, 0, draw.randint(1, 2048)) for number in range(draw.randint(0, 300))]
        shares = [static_assignment(items, rank, world_size) for rank in range(world_size)]
        assert sorted(item for own in shares for item in own) == items
        assert all(own == sorted(own) for own in shares)
        loads = [sum(item.galaxies for item in own) for own in shares]
        assert max(loads) - min(loads) <= max((item.galaxies for item in items), default=0)


SIZES = (1013, 64, 377, 1, 1999)


@pytest.fixture(scope="module")
def surveys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Survey, str]:
    """A survey of shards of odd sizes with one unusable galaxy, and weights."""
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
def test_redshifts_do_not_depend_on_how_the_work_is_split(
    tmp_path: Path, surveys: tuple[Survey, str], engine: str, batch_size: int
) -> None:
    survey, weights = surveys
    assert tuple(shard.galaxies for shard in survey.shards) == SIZES
    digests, counts = set(), []
    for ranks in (1, 3, 50):
        run = make_run(survey, weights, str(tmp_path / f"{ranks}"), engine=engine, batch_size=batch_size, ranks=ranks)
        run_worker(run, Rank(threads=2))
        summary = summarize(run)
        assert summary.complete and summary.coverage.flagged["NONFINITE_PIXEL"] == 1  # type: ignore[index]
        digests.add(summary.catalogue_sha256)
        counts.append(len(run.plan().items))
    assert counts[0] < counts[2]
    assert len(digests) == 1
