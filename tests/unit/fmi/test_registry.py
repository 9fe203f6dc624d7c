"""What the server knows, without any network."""

from __future__ import annotations

import pytest

from fmi import messages
from fmi.errors import Refused
from fmi.messages import Message, encode
from fmi.registry import Group, Jobs, Limits, Member, Pair

START = 1000.0  # of the clock, in seconds


class Line:
    """A connection that keeps what is sent on it."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.is_closed = False

    def send(self, message: Message) -> None:
        encode(message)  # all that is sent must fit
        self.said.append(message)

    def close(self) -> None:
        self.is_closed = True


def member(rank: int, round_trip: float = 0.0) -> Member:
    return Member(rank, Line(), ("192.0.2.1", 5000 + rank), ("10.0.0.1", 5000 + rank), round_trip)


def line(one: Member) -> Line:
    assert isinstance(one.connection, Line)
    return one.connection


def said(one: Member) -> list[Message]:
    """What has come since this was asked last."""
    heard = line(one).said[:]
    line(one).said.clear()
    return heard


def together(
    jobs: Jobs, size: int, job: str = "survey", *, round_trips: tuple[float, ...] = ()
) -> tuple[Group, list[Member]]:
    """A complete group, of which all were told."""
    members = [member(rank, round_trips[rank] if round_trips else 0.0) for rank in range(size)]
    for one in members:
        group = jobs.join(job, size, one, START)
        jobs.complete(group, START)
    for one in members:
        assert said(one) == [messages.Ready()]
    return group, members


def refusal(one: Member) -> messages.Refused:
    """What a rank was refused with, last of all."""
    *_, last = line(one).said
    assert isinstance(last, messages.Refused)
    assert line(one).is_closed
    return last


def introduced(jobs: Jobs, group: Group, one: Member, other: Member) -> Pair:
    pair = jobs.connect(group, one, other.rank)
    assert pair
    said(one), said(other)
    return pair


def relayed(jobs: Jobs, group: Group, one: Member, other: Member) -> Pair:
    pair = introduced(jobs, group, one, other)
    assert jobs.relay(group, pair.low, pair.number) is pair
    said(one), said(other)
    return pair


# ---- Coming ----


def test_a_group_is_complete_when_all_have_come_and_not_before() -> None:
    jobs = Jobs(Limits())
    members = [member(rank) for rank in (2, 0, 1)]
    groups = []
    for one in members[:2]:
        groups.append(jobs.join("survey", 3, one, START))
        assert not jobs.complete(groups[-1], START)
        assert said(one) == []
    groups.append(jobs.join("survey", 3, members[2], START + 5))
    assert jobs.complete(groups[2], START + 5)
    assert groups[0] is groups[1] is groups[2]
    assert [said(one) for one in members] == [[messages.Ready()]] * 3
    assert not jobs.complete(groups[2], START + 6)
    assert [said(one) for one in members] == [[]] * 3
    assert groups[0].began == START + 5


def test_one_rank_alone_is_a_group() -> None:
    group, _ = together(Jobs(Limits()), 1)
    assert group.is_complete


def test_two_jobs_with_the_same_ranks_have_nothing_in_common() -> None:
    jobs = Jobs(Limits())
    one, ones = together(jobs, 2, "one")
    two, twos = together(jobs, 2, "two")
    assert one.number != two.number
    assert [jobs.next_item(one, ones[0]), jobs.next_item(two, twos[0]), jobs.next_item(one, ones[1])] == [0, 0, 1]
    jobs.connect(one, ones[0], 1)
    assert [len(said(own)) for own in (*ones, *twos)] == [1, 1, 0, 0]
    assert jobs.leave(one, ones[0], "lost")
    assert [said(own) for own in (*ones, *twos)] == [[], [messages.Left(0, "lost")], [], []]
    assert jobs.groups == [one, two]


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (3, 2), (0, 0), (0, 9), (8, 9)])
def test_a_rank_that_there_is_not_is_refused(rank: int, size: int) -> None:
    jobs = Jobs(Limits(ranks=8))
    with pytest.raises(Refused, match=f"no rank {rank} of {size}; a job has 1 to 8 ranks") as refused:
        jobs.join("survey", size, member(rank), START)
    assert refused.value.code == "rank"
    assert jobs.groups == []


@pytest.mark.parametrize("is_complete", [False, True])
def test_ranks_of_another_size_are_refused_and_harm_nobody(is_complete: bool) -> None:
    jobs = Jobs(Limits())
    members = [member(0), member(1)]
    for one in members[: 2 if is_complete else 1]:
        group = jobs.join("survey", 2, one, START)
    assert jobs.complete(group, START) == is_complete
    for one in members:
        said(one)
    with pytest.raises(Refused, match="job survey has 2 ranks and this one says 3; start all of them alike") as refused:
        jobs.join("survey", 3, member(0), START)
    assert refused.value.code == "size"
    assert group.members[0] is members[0]
    assert [said(one) for one in members] == [[], []]
    assert jobs.groups == [group]


def test_there_are_so_many_jobs_and_no_more() -> None:
    jobs = Jobs(Limits(jobs=2))
    first, members = together(jobs, 1, "a")
    together(jobs, 1, "b")
    with pytest.raises(Refused, match="there are 2 jobs already; try again later") as refused:
        jobs.join("c", 1, member(0), START)
    assert refused.value.code == "busy"
    jobs.join("b", 1, member(0), START)  # which ends the one of this name
    jobs.leave(first, members[0], "left")
    jobs.join("c", 1, member(0), START)


# ---- Coming anew ----


def test_a_rank_that_comes_anew_before_all_are_there_takes_the_place() -> None:
    jobs = Jobs(Limits())
    old, new, other = member(0), member(0), member(1)
    group = jobs.join("survey", 2, old, START)
    assert jobs.join("survey", 2, new, START) is group
    assert refusal(old) == messages.Refused("replaced", "rank 0 of job survey has come anew")
    assert not jobs.leave(group, old, "lost")
    assert not jobs.complete(group, START)
    jobs.join("survey", 2, other, START)
    assert jobs.complete(group, START)
    assert said(new) == said(other) == [messages.Ready()]
    assert len(line(old).said) == 1


def test_a_rank_that_comes_anew_afterwards_ends_the_group_and_begins_another() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 3)
    assert jobs.next_item(group, members[0]) == 0
    pair = relayed(jobs, group, members[0], members[2])
    end = Line()
    jobs.attach("survey", 2, pair.number, pair.ticket or b"", end)
    new = member(1)
    other = jobs.join("survey", 3, new, START + 5)
    assert other is not group
    assert other.number > group.number
    assert refusal(members[1]) == messages.Refused("replaced", "rank 1 of job survey has come anew")
    for one in (members[0], members[2]):
        assert said(one) == [messages.Left(1, "replaced")]
        assert line(one).is_closed
    assert end.is_closed
    assert [jobs.leave(group, one, "lost") for one in members] == [False] * 3
    assert said(new) == []
    assert jobs.groups == [other]
    assert not jobs.complete(other, START + 5)
    for rank in (0, 2):
        jobs.join("survey", 3, member(rank), START + 5)
    assert jobs.complete(other, START + 5)
    assert jobs.next_item(other, new) == 0
    assert jobs.connect(other, new, 0)
    with pytest.raises(Refused, match="nobody is to be relayed by this ticket"):
        jobs.attach("survey", 0, pair.number, pair.ticket or b"", Line())


# ---- Going ----


def test_the_first_that_is_lost_is_told_to_all_and_no_other() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 4)
    introduced(jobs, group, members[3], members[1])
    assert jobs.leave(group, members[2], "lost")
    assert [said(one) for one in members] == [[messages.Left(2, "lost")]] * 2 + [[], [messages.Left(2, "lost")]]
    assert jobs.leave(group, members[1], "lost")
    assert jobs.leave(group, members[0], "left")
    assert said(members[3]) == []
    assert not jobs.leave(group, members[2], "lost")
    assert jobs.groups == [group]
    assert jobs.leave(group, members[3], "left")
    assert jobs.groups == []


def test_that_a_rank_has_left_concerns_those_that_know_it_and_those_that_ask() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 4)
    introduced(jobs, group, members[0], members[1])
    introduced(jobs, group, members[2], members[0])
    assert jobs.leave(group, members[0], "left")
    assert [said(one) for one in members] == [[], [messages.Left(0, "left")], [messages.Left(0, "left")], []]
    assert jobs.connect(group, members[3], 0) is None
    assert said(members[3]) == [messages.Left(0, "left")]


def test_a_rank_that_goes_before_all_are_there_may_come_again() -> None:
    jobs = Jobs(Limits())
    old, other = member(0), member(1)
    group = jobs.join("survey", 2, old, START)
    assert jobs.leave(group, old, "lost")
    assert jobs.groups == []
    group = jobs.join("survey", 2, other, START)
    first = member(0)
    jobs.join("survey", 2, first, START)
    assert jobs.leave(group, first, "lost")
    assert said(other) == []
    jobs.join("survey", 2, member(0), START)
    assert jobs.complete(group, START)


# ---- Expiring ----


def test_ranks_do_not_wait_for_ever_and_hear_who_is_missing() -> None:
    jobs = Jobs(Limits(wait=60))
    waiting = [member(rank) for rank in (0, 3)]
    group = jobs.join("survey", 20, waiting[0], START)
    jobs.join("survey", 20, waiting[1], START + 59)
    together(jobs, 1, "other")
    assert jobs.expire(START + 59.9) == []
    assert jobs.expire(START + 60) == [group]
    missing = "1, 2, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more"
    sentence = f"job survey waited 60 s for all 20 ranks; missing {missing}"
    assert [refusal(one) for one in waiting] == [messages.Refused("expired", sentence)] * 2
    assert [len(line(one).said) for one in waiting] == [1, 1]
    assert [jobs.leave(group, one, "lost") for one in waiting] == [False, False]
    assert [one.job for one in jobs.groups] == ["other"]


def test_few_that_are_missing_are_all_named() -> None:
    jobs = Jobs(Limits(wait=0.5))
    one = member(1)
    jobs.join("survey", 3, one, START)
    jobs.expire(START + 0.5)
    assert refusal(one).why == "job survey waited 0.5 s for all 3 ranks; missing 0, 2"


def test_a_job_ends_at_its_deadline_with_its_relays() -> None:
    jobs = Jobs(Limits(wait=60, deadline=3600))
    group, members = together(jobs, 2)
    pair = relayed(jobs, group, *members)
    ends = [Line(), Line()]
    for rank in (0, 1):
        jobs.attach("survey", rank, pair.number, pair.ticket or b"", ends[rank])
    assert jobs.expire(START + 3599) == []
    assert jobs.expire(START + 3600) == [group]
    sentence = "job survey has taken 3600 s, all that it may"
    assert [refusal(one) for one in members] == [messages.Refused("deadline", sentence)] * 2
    assert [end.is_closed for end in ends] == [True, True]
    assert jobs.groups == []
    assert jobs.expire(START + 3600) == []


def test_the_longest_names_give_sentences_that_fit() -> None:
    jobs = Jobs(Limits(wait=60, relays=1, relayed_bytes=1))
    job, size = "ü" * 127, 4096
    waiting = member(0)
    jobs.join(job, size, waiting, START)
    with pytest.raises(Refused) as refused:
        jobs.join(job, size - 1, member(1), START)
    encode(messages.Refused(refused.value.code, str(refused.value)))
    jobs.expire(START + 60)
    assert len(line(waiting).said) == 1


# ---- Counting ----


def test_each_number_is_given_once() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 3)
    assert [jobs.next_item(group, members[number % 3]) for number in range(7)] == list(range(7))


def test_nobody_counts_before_all_are_there() -> None:
    jobs = Jobs(Limits())
    one = member(1)
    group = jobs.join("survey", 2, one, START)
    with pytest.raises(Refused, match="rank 1 of 2 counts before all have come") as refused:
        jobs.next_item(group, one)
    assert refused.value.code == "order"
    jobs.join("survey", 2, member(0), START)
    jobs.complete(group, START)
    assert jobs.next_item(group, one) == 0


# ---- Pairs ----


def test_both_of_a_pair_learn_of_each_other_once() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 3)
    pair = jobs.connect(group, members[2], 0)
    assert pair
    assert (pair.low, pair.high) == (members[0], members[2])
    (one,), (other,), nobody = (said(members[rank]) for rank in (0, 2, 1))
    assert isinstance(one, messages.Start)
    assert one == messages.Start(pair.number, 2, one.nonce, ("192.0.2.1", 5002), ("10.0.0.1", 5002), 0.0)
    assert other == messages.Start(pair.number, 0, one.nonce, ("192.0.2.1", 5000), ("10.0.0.1", 5000), 0.0)
    assert nobody == []
    assert jobs.connect(group, members[2], 0) is None
    assert jobs.connect(group, members[0], 2) is None
    assert [said(own) for own in members] == [[], [], []]
    another = jobs.connect(group, members[0], 1)
    assert another
    assert another.number != pair.number
    (second,) = said(members[0])
    assert isinstance(second, messages.Start)
    assert second.nonce != one.nonce


def test_the_nearer_of_a_pair_begins_later() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 3, round_trips=(0.010, 0.110, 0.110))
    for one, other in ((0, 1), (1, 2)):
        jobs.connect(group, members[one], other)
    after = {
        (rank, start.peer): start.after
        for rank, one in enumerate(members)
        for start in said(one)
        if isinstance(start, messages.Start)
    }
    assert after == {(0, 1): pytest.approx(0.05), (1, 0): 0.0, (1, 2): 0.0, (2, 1): 0.0}


@pytest.mark.parametrize("peer", [1, 2, 3, 2**62])
def test_a_rank_that_cannot_be_is_no_peer(peer: int) -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 2)
    with pytest.raises(Refused, match=f"rank 1 of 2 asks for rank {peer}, which cannot be") as refused:
        jobs.connect(group, members[1], peer)
    assert refused.value.code == "order"


def test_nobody_is_introduced_before_all_are_there() -> None:
    jobs = Jobs(Limits())
    one = member(0)
    group = jobs.join("survey", 3, one, START)
    jobs.join("survey", 3, member(1), START)
    with pytest.raises(Refused, match="asks for rank 1, which cannot be"):
        jobs.connect(group, one, 1)


# ---- Relays ----


def test_both_ends_get_one_ticket_and_each_may_come_once() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 3)
    pair = introduced(jobs, group, members[2], members[1])
    assert jobs.relay(group, members[1], pair.number) is pair
    (one,), (other,) = said(members[1]), said(members[2])
    assert one == other == messages.Relay(pair.number, pair.ticket or b"")
    assert isinstance(one, messages.Relay)
    assert jobs.attach("survey", 2, pair.number, one.ticket, Line()) == (group, pair)
    for rank in (2, 0, 7):
        with pytest.raises(Refused, match=f"rank {rank} is not to be relayed by this ticket, or no more") as refused:
            jobs.attach("survey", rank, pair.number, one.ticket, Line())
        assert refused.value.code == "ticket"
    assert jobs.attach("survey", 1, pair.number, one.ticket, Line()) == (group, pair)


def test_a_ticket_is_of_one_job_and_pair() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 3)
    others, _ = together(jobs, 2, "other")
    pair, another = relayed(jobs, group, members[0], members[1]), relayed(jobs, group, members[0], members[2])
    waiting = introduced(jobs, group, members[1], members[2])
    ticket = pair.ticket or b""
    wrong = [
        ("survey", 0, pair.number, bytes(16)),
        ("survey", 0, pair.number, another.ticket or b""),
        ("survey", 0, another.number, ticket),
        ("survey", 1, waiting.number, ticket),
        ("survey", 0, 999, ticket),
        (others.job, 0, pair.number, ticket),
        ("no job", 0, pair.number, ticket),
    ]
    for job, rank, number, shown in wrong:
        with pytest.raises(Refused, match="nobody is to be relayed by this ticket") as refused:
            jobs.attach(job, rank, number, shown, Line())
        assert refused.value.code == "ticket"
    assert jobs.attach("survey", 0, pair.number, ticket, Line()) == (group, pair)


def test_only_the_lower_rank_asks_for_a_relay_and_once() -> None:
    jobs = Jobs(Limits())
    group, members = together(jobs, 3)
    pair = introduced(jobs, group, members[0], members[1])
    for one, number in ((members[1], pair.number), (members[2], pair.number), (members[0], pair.number + 1)):
        with pytest.raises(Refused, match=f"rank {one.rank} speaks of pair {number}, which is not its") as refused:
            jobs.relay(group, one, number)
        assert refused.value.code == "order"
    assert jobs.relay(group, members[0], pair.number)
    with pytest.raises(Refused, match="rank 0 asks again"):
        jobs.relay(group, members[0], pair.number)


def test_a_job_has_so_many_relays_and_no_more() -> None:
    jobs = Jobs(Limits(relays=2))
    group, members = together(jobs, 4)
    for rank in (1, 2):
        relayed(jobs, group, members[0], members[rank])
    pair = introduced(jobs, group, members[0], members[3])
    assert jobs.relay(group, members[0], pair.number) is None
    failed = messages.Failed(pair.number, "job survey has used up what this server relays for one job")
    assert said(members[0]) == said(members[3]) == [failed]
    other, others = together(jobs, 2, "other")
    relayed(jobs, other, *others)


def test_a_job_that_has_used_up_its_bytes_gets_no_further_relay() -> None:
    jobs = Jobs(Limits(relayed_bytes=1000))
    group, members = together(jobs, 3)
    relayed(jobs, group, members[0], members[1])
    group.relayed_bytes = 1000
    pair = introduced(jobs, group, members[0], members[2])
    assert jobs.relay(group, members[0], pair.number) is None
    assert [type(one) for one in said(members[2])] == [messages.Failed]
