"""Which rank does which item: order, deaths, suspects, and that nothing is ever lost or done twice."""

import random
from collections import Counter

import pytest

from cosmicai.launchers.local.scheduler import DEADLY, Dealer
from cosmicai.runs.plan import WorkItem
from cosmicai.runs.schedule import share


def items_of(*sizes: int) -> list[WorkItem]:
    """An item of each size, of its own shard."""
    return [WorkItem(shard, 0, size) for shard, size in enumerate(sizes)]


def test_the_largest_come_first_and_each_to_one_rank():
    items = items_of(3, 9, 1, 9, 5)
    dealer = Dealer(items, 2, "dynamic")
    dealt = [dealer.next_for(turn % 2) for turn in range(5)]
    assert dealt == [items[1], items[3], items[4], items[0], items[2]]
    assert dealer.next_for(0) is dealer.next_for(1) is None
    assert set(dealer.held(0)) == {items[1], items[4], items[2]} and set(dealer.held(1)) == {items[3], items[0]}
    assert not dealer.is_done
    for turn, item in enumerate(dealt):
        dealer.finished(turn % 2, item)
    assert dealer.is_done and not dealer.held(0) and not dealer.held(1)


def test_nothing_to_do_is_done():
    assert Dealer([], 2, "dynamic").is_done and Dealer([], 2, "static").is_done


def test_what_a_dead_rank_held_goes_alone_to_a_rank_that_holds_nothing():
    items = items_of(9, 8, 7, 6, 5)
    dealer = Dealer(items, 2, "dynamic")
    assert [dealer.next_for(0), dealer.next_for(0), dealer.next_for(1)] == items[:3]
    assert dealer.died(0) == []
    assert dealer.next_for(1) == items[3], "rank 1 holds something: it gets no suspect"
    assert dealer.next_for(0) == items[0], "rank 0 was started again and holds nothing"
    assert dealer.next_for(0) is None, "it has a suspect: nothing else beside it"
    dealer.finished(1, items[2])
    dealer.finished(1, items[3])
    assert dealer.next_for(1) == items[1], "rank 1 holds nothing now: it takes the other suspect"
    assert dealer.next_for(1) is None
    dealer.finished(0, items[0])
    dealer.finished(1, items[1])
    assert dealer.next_for(0) == items[4]
    dealer.finished(0, items[4])
    assert dealer.is_done


def test_the_second_death_sets_one_item_aside_and_no_other():
    items = items_of(9, 8, 7)
    dealer = Dealer(items, 1, "dynamic")
    assert [dealer.next_for(0), dealer.next_for(0)] == items[:2]
    assert dealer.died(0) == []
    assert dealer.next_for(0) == items[0]
    assert dealer.died(0) == [items[0]]
    assert dealer.next_for(0) == items[1]
    assert dealer.next_for(0) is None
    dealer.finished(0, items[1])
    assert dealer.next_for(0) == items[2]
    assert not dealer.is_done
    dealer.finished(0, items[2])
    assert dealer.is_done


def test_a_rank_that_waits_gets_an_item_as_soon_as_another_rank_dies():
    items = items_of(9)
    dealer = Dealer(items, 2, "dynamic")
    assert dealer.next_for(0) == items[0]
    assert dealer.next_for(1) is dealer.next_for(1) is None
    assert not dealer.is_done
    dealer.died(0)
    dealer.leave(0)
    assert dealer.next_for(1) == items[0]
    dealer.finished(1, items[0])
    assert dealer.is_done and dealer.next_for(1) is None


def test_a_death_without_an_item_suspects_nobody():
    items = items_of(2, 1)
    dealer = Dealer(items, 2, "dynamic")
    assert dealer.died(0) == []
    assert [dealer.next_for(0), dealer.next_for(0)] == items


def test_static_shares_are_dealt_beforehand():
    items = items_of(*range(1, 20))
    dealer = Dealer(items, 3, "static")
    for rank in range(3):
        dealt = [dealer.next_for(rank) for _ in share(items, rank, 3)]
        assert dealt == share(items, rank, 3)
        assert dealer.next_for(rank) is None


def test_what_was_dealt_to_a_rank_that_leaves_is_everybodys():
    items = items_of(*range(1, 9))
    mine, others = share(items, 0, 2), share(items, 1, 2)
    dealer = Dealer(items, 2, "static")
    assert [dealer.next_for(0), dealer.next_for(1)] == [mine[0], others[0]]
    dealer.died(1)
    assert [dealer.next_for(0) for _ in mine[1:]] == mine[1:]
    assert dealer.next_for(0) is None, "rank 1 may be started again and do its own"
    dealer.leave(1)
    assert [dealer.next_for(0) for _ in others[1:]] == others[1:]
    assert dealer.next_for(0) is None
    for item in [*mine, *others[1:]]:
        dealer.finished(0, item)
    assert dealer.next_for(0) == others[0], "the suspect comes alone"
    dealer.finished(0, others[0])
    assert dealer.is_done


@pytest.mark.parametrize("schedule", ["dynamic", "static"])
@pytest.mark.parametrize("seed", range(25))
def test_whatever_dies_every_item_is_finished_once_or_set_aside(schedule, seed):
    rng = random.Random(seed)
    ranks = rng.randint(1, 6)
    items = items_of(*(rng.randint(1, 50) for _ in range(rng.randint(0, 60))))
    poison = set(rng.sample(items, len(items) // 10))
    dealer = Dealer(items, ranks, schedule)
    alive, restarts = set(range(ranks)), rng.choice([0, 5, 1000])
    finished, aside, deaths = Counter(), Counter(), Counter()
    for _ in range(20_000):
        if dealer.is_done or not alive:
            break
        rank = rng.choice(sorted(alive))
        held = sorted(dealer.held(rank))
        if held and (poison & set(held) or rng.random() < 0.05):
            deaths.update(held)
            found = dealer.died(rank)
            assert found == [item for item in held if deaths[item] == DEADLY]
            aside.update(found)
            assert not dealer.held(rank)
            if restarts:
                restarts -= 1
            else:
                dealer.leave(rank)
                alive.discard(rank)
        elif held and rng.random() < 0.6:
            item = rng.choice(held)
            dealer.finished(rank, item)
            finished[item] += 1
        elif (item := dealer.next_for(rank)) is not None:
            assert not finished[item] and not aside[item]
            assert not any(item in dealer.held(other) for other in alive - {rank})
            if deaths[item]:
                assert set(dealer.held(rank)) == {item}, "a suspect comes alone"
            else:
                assert not any(deaths[other] for other in held), "nothing comes beside a suspect"
    assert dealer.is_done or not alive
    assert max(finished.values(), default=1) == max(aside.values(), default=1) == 1
    assert not finished.keys() & aside.keys() and not finished.keys() & poison
    if alive:
        assert finished.keys() | aside.keys() == set(items)
        assert poison <= aside.keys()
    for rank in alive:
        assert dealer.next_for(rank) is None
