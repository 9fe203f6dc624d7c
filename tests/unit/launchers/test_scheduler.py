"""Scheduling of items: order, crashes, suspects, and that no item is lost or done twice."""

import random
from collections import Counter

import pytest

from cosmicai.launchers.local.scheduler import MAX_CRASHES, WorkScheduler
from cosmicai.runs.plan import WorkItem
from cosmicai.runs.schedule import static_assignment


def items_of(*sizes: int) -> list[WorkItem]:
    """An item of each size, of its own shard."""
    return [WorkItem(shard, 0, size) for shard, size in enumerate(sizes)]


def test_the_largest_come_first_and_each_to_one_rank():
    items = items_of(3, 9, 1, 9, 5)
    scheduler = WorkScheduler(items, 2, "dynamic")
    assigned = [scheduler.next_item(turn % 2) for turn in range(5)]
    assert assigned == [items[1], items[3], items[4], items[0], items[2]]
    assert scheduler.next_item(0) is scheduler.next_item(1) is None
    assert set(scheduler.held_by(0)) == {items[1], items[4], items[2]} and set(scheduler.held_by(1)) == {
        items[3],
        items[0],
    }
    assert not scheduler.is_done
    for turn, item in enumerate(assigned):
        assert item is not None
        scheduler.item_finished(turn % 2, item)
    assert scheduler.is_done and not scheduler.held_by(0) and not scheduler.held_by(1)


def test_nothing_to_do_is_done():
    assert WorkScheduler([], 2, "dynamic").is_done and WorkScheduler([], 2, "static").is_done


def test_an_item_of_a_lost_rank_is_assigned_alone():
    items = items_of(9, 8, 7, 6, 5)
    scheduler = WorkScheduler(items, 2, "dynamic")
    assert [scheduler.next_item(0), scheduler.next_item(0), scheduler.next_item(1)] == items[:3]
    assert scheduler.rank_lost(0) == []
    assert scheduler.next_item(1) == items[3], "rank 1 holds something: it gets no suspect"
    assert scheduler.next_item(0) == items[0], "rank 0 was started again and holds nothing"
    assert scheduler.next_item(0) is None, "it has a suspect: nothing else beside it"
    scheduler.item_finished(1, items[2])
    scheduler.item_finished(1, items[3])
    assert scheduler.next_item(1) == items[1], "rank 1 holds nothing now: it takes the other suspect"
    assert scheduler.next_item(1) is None
    scheduler.item_finished(0, items[0])
    scheduler.item_finished(1, items[1])
    assert scheduler.next_item(0) == items[4]
    scheduler.item_finished(0, items[4])
    assert scheduler.is_done


def test_after_the_second_crash_one_item_is_given_up():
    items = items_of(9, 8, 7)
    scheduler = WorkScheduler(items, 1, "dynamic")
    assert [scheduler.next_item(0), scheduler.next_item(0)] == items[:2]
    assert scheduler.rank_lost(0) == []
    assert scheduler.next_item(0) == items[0]
    assert scheduler.rank_lost(0) == [items[0]]
    assert scheduler.next_item(0) == items[1]
    assert scheduler.next_item(0) is None
    scheduler.item_finished(0, items[1])
    assert scheduler.next_item(0) == items[2]
    assert not scheduler.is_done
    scheduler.item_finished(0, items[2])
    assert scheduler.is_done


def test_a_rank_that_waits_gets_an_item_as_soon_as_another_rank_dies():
    items = items_of(9)
    scheduler = WorkScheduler(items, 2, "dynamic")
    assert scheduler.next_item(0) == items[0]
    assert scheduler.next_item(1) is scheduler.next_item(1) is None
    assert not scheduler.is_done
    scheduler.rank_lost(0)
    scheduler.rank_retired(0)
    assert scheduler.next_item(1) == items[0]
    scheduler.item_finished(1, items[0])
    assert scheduler.is_done and scheduler.next_item(1) is None


def test_a_crash_without_an_item_suspects_none():
    items = items_of(2, 1)
    scheduler = WorkScheduler(items, 2, "dynamic")
    assert scheduler.rank_lost(0) == []
    assert [scheduler.next_item(0), scheduler.next_item(0)] == items


def test_static_shares_are_assigned_in_advance():
    items = items_of(*range(1, 20))
    scheduler = WorkScheduler(items, 3, "static")
    for rank in range(3):
        assigned = [scheduler.next_item(rank) for _ in static_assignment(items, rank, 3)]
        assert assigned == static_assignment(items, rank, 3)
        assert scheduler.next_item(rank) is None


def test_the_items_of_a_retired_rank_are_available_to_all():
    items = items_of(*range(1, 9))
    mine, others = static_assignment(items, 0, 2), static_assignment(items, 1, 2)
    scheduler = WorkScheduler(items, 2, "static")
    assert [scheduler.next_item(0), scheduler.next_item(1)] == [mine[0], others[0]]
    scheduler.rank_lost(1)
    assert [scheduler.next_item(0) for _ in mine[1:]] == mine[1:]
    assert scheduler.next_item(0) is None, "rank 1 may be started again and do its own"
    scheduler.rank_retired(1)
    assert [scheduler.next_item(0) for _ in others[1:]] == others[1:]
    assert scheduler.next_item(0) is None
    for item in [*mine, *others[1:]]:
        scheduler.item_finished(0, item)
    assert scheduler.next_item(0) == others[0], "the suspect comes alone"
    scheduler.item_finished(0, others[0])
    assert scheduler.is_done


@pytest.mark.parametrize("schedule", ["dynamic", "static"])
@pytest.mark.parametrize("seed", range(25))
def test_every_item_is_finished_once_or_given_up(schedule, seed):
    rng = random.Random(seed)
    ranks = rng.randint(1, 6)
    items = items_of(*(rng.randint(1, 50) for _ in range(rng.randint(0, 60))))
    poison = set(rng.sample(items, len(items) // 10))
    scheduler = WorkScheduler(items, ranks, schedule)
    alive, restarts = set(range(ranks)), rng.choice([0, 5, 1000])
    finished, given_up, crashes = (Counter[WorkItem]() for _ in range(3))
    for _ in range(20_000):
        if scheduler.is_done or not alive:
            break
        rank = rng.choice(sorted(alive))
        held = sorted(scheduler.held_by(rank))
        if held and (poison & set(held) or rng.random() < 0.05):
            crashes.update(held)
            found = scheduler.rank_lost(rank)
            assert found == [item for item in held if crashes[item] == MAX_CRASHES]
            given_up.update(found)
            assert not scheduler.held_by(rank)
            if restarts:
                restarts -= 1
            else:
                scheduler.rank_retired(rank)
                alive.discard(rank)
        elif held and rng.random() < 0.6:
            done = rng.choice(held)
            scheduler.item_finished(rank, done)
            finished[done] += 1
        elif (item := scheduler.next_item(rank)) is not None:
            assert not finished[item] and not given_up[item]
            assert not any(item in scheduler.held_by(other) for other in alive - {rank})
            if crashes[item]:
                assert set(scheduler.held_by(rank)) == {item}, "a suspect comes alone"
            else:
                assert not any(crashes[other] for other in held), "nothing comes beside a suspect"
    assert scheduler.is_done or not alive
    assert max(finished.values(), default=1) == max(given_up.values(), default=1) == 1
    assert not finished.keys() & given_up.keys() and not finished.keys() & poison
    if alive:
        assert finished.keys() | given_up.keys() == set(items)
        assert poison <= given_up.keys()
    for rank in alive:
        assert scheduler.next_item(rank) is None
