"""The registry of jobs and ranks, without any network."""

from __future__ import annotations

import pytest

from fmi import messages
from fmi.errors import RequestRefused
from fmi.limits import Limits
from fmi.messages import Message, encode
from fmi.registry import Member, Pair, RegisteredGroup, Registry

START = 1000.0  # of the clock, in seconds


class RecordedConnection:
    """A connection that records the messages sent on it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.is_closed = False

    def send(self, message: Message) -> None:
        encode(message)  # every message must be valid
        self.sent.append(message)

    def close(self) -> None:
        self.is_closed = True


def member(rank: int, round_trip: float = 0.0) -> Member:
    return Member(rank, RecordedConnection(), ("192.0.2.1", 5000 + rank), ("10.0.0.1", 5000 + rank), round_trip)


def connection_of(one: Member) -> RecordedConnection:
    assert isinstance(one.connection, RecordedConnection)
    return one.connection


def take_sent(one: Member) -> list[Message]:
    """Return the messages sent to a rank since the last call."""
    sent = connection_of(one).sent[:]
    connection_of(one).sent.clear()
    return sent


def complete_group(
    registry: Registry, size: int, job: str = "survey", *, round_trips: tuple[float, ...] = ()
) -> tuple[RegisteredGroup, list[Member]]:
    """Return a complete group and its members, which have received READY."""
    members = [member(rank, round_trips[rank] if round_trips else 0.0) for rank in range(size)]
    for one in members:
        group = registry.join(job, size, one, START)
        registry.complete(group, START)
    for one in members:
        assert take_sent(one) == [messages.Ready()]
    return group, members


def refusal_of(one: Member) -> messages.Refused:
    """Return the REFUSED that a rank has received as its last message."""
    *_, last = connection_of(one).sent
    assert isinstance(last, messages.Refused)
    assert connection_of(one).is_closed
    return last


def create_pair(registry: Registry, group: RegisteredGroup, one: Member, other: Member) -> Pair:
    pair = registry.connect(group, one, other.rank)
    assert pair
    take_sent(one), take_sent(other)
    return pair


def create_relay(registry: Registry, group: RegisteredGroup, one: Member, other: Member) -> Pair:
    pair = create_pair(registry, group, one, other)
    assert registry.start_relay(group, pair.low, pair.number) is pair
    take_sent(one), take_sent(other)
    return pair


# ---- Joining ----


def test_a_group_is_complete_when_all_ranks_have_joined_and_not_before() -> None:
    registry = Registry(Limits())
    members = [member(rank) for rank in (2, 0, 1)]
    groups = []
    for one in members[:2]:
        groups.append(registry.join("survey", 3, one, START))
        assert not registry.complete(groups[-1], START)
        assert take_sent(one) == []
    groups.append(registry.join("survey", 3, members[2], START + 5))
    assert registry.complete(groups[2], START + 5)
    assert groups[0] is groups[1] is groups[2]
    assert [take_sent(one) for one in members] == [[messages.Ready()]] * 3
    assert not registry.complete(groups[2], START + 6)
    assert [take_sent(one) for one in members] == [[]] * 3
    assert groups[0].began == START + 5


def test_a_single_rank_is_a_group() -> None:
    group, _ = complete_group(Registry(Limits()), 1)
    assert group.is_complete


def test_two_jobs_with_the_same_ranks_are_independent() -> None:
    registry = Registry(Limits())
    one, ones = complete_group(registry, 2, "one")
    two, twos = complete_group(registry, 2, "two")
    assert one.number != two.number
    requests = [(one, ones[0]), (two, twos[0]), (one, ones[1])]
    assert [registry.next_item(*request) for request in requests] == [0, 0, 1]
    registry.connect(one, ones[0], 1)
    assert [len(take_sent(own)) for own in (*ones, *twos)] == [1, 1, 0, 0]
    assert registry.leave(one, ones[0], "lost")
    assert [take_sent(own) for own in (*ones, *twos)] == [[], [messages.Left(0, "lost")], [], []]
    assert registry.groups == [one, two]


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (3, 2), (0, 0), (0, 9), (8, 9)])
def test_an_invalid_rank_is_refused(rank: int, size: int) -> None:
    registry = Registry(Limits(ranks=8))
    with pytest.raises(RequestRefused, match=f"no rank {rank} of {size}; a job has 1 to 8 ranks") as refused:
        registry.join("survey", size, member(rank), START)
    assert refused.value.code == "rank"
    assert registry.groups == []


@pytest.mark.parametrize("is_complete", [False, True])
def test_ranks_of_another_size_are_refused_without_harm_to_others(is_complete: bool) -> None:
    registry = Registry(Limits())
    members = [member(0), member(1)]
    for one in members[: 2 if is_complete else 1]:
        group = registry.join("survey", 2, one, START)
    assert registry.complete(group, START) == is_complete
    for one in members:
        take_sent(one)
    with pytest.raises(
        RequestRefused, match="job survey has 2 ranks and this one states 3; start all ranks with the same size"
    ) as refused:
        registry.join("survey", 3, member(0), START)
    assert refused.value.code == "size"
    assert group.members[0] is members[0]
    assert [take_sent(one) for one in members] == [[], []]
    assert registry.groups == [group]


def test_the_number_of_jobs_is_limited() -> None:
    registry = Registry(Limits(jobs=2))
    first, members = complete_group(registry, 1, "a")
    complete_group(registry, 1, "b")
    with pytest.raises(RequestRefused, match="this server has 2 jobs already; try again later") as refused:
        registry.join("c", 1, member(0), START)
    assert refused.value.code == "busy"
    registry.join("b", 1, member(0), START)  # ends the group with this name
    registry.leave(first, members[0], "left")
    registry.join("c", 1, member(0), START)


# ---- Joining again ----


def test_a_rank_that_joins_an_incomplete_group_again_replaces_the_former() -> None:
    registry = Registry(Limits())
    old, new, other = member(0), member(0), member(1)
    group = registry.join("survey", 2, old, START)
    assert registry.join("survey", 2, new, START) is group
    assert refusal_of(old) == messages.Refused("replaced", "rank 0 of job survey has joined again")
    assert not registry.leave(group, old, "lost")
    assert not registry.complete(group, START)
    registry.join("survey", 2, other, START)
    assert registry.complete(group, START)
    assert take_sent(new) == take_sent(other) == [messages.Ready()]
    assert len(connection_of(old).sent) == 1


def test_a_rank_that_joins_a_complete_group_again_ends_it_and_begins_another() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 3)
    assert registry.next_item(group, members[0]) == 0
    pair = create_relay(registry, group, members[0], members[2])
    end = RecordedConnection()
    registry.attach("survey", 2, pair.number, pair.ticket or b"", end)
    new = member(1)
    other = registry.join("survey", 3, new, START + 5)
    assert other is not group
    assert other.number > group.number
    assert refusal_of(members[1]) == messages.Refused("replaced", "rank 1 of job survey has joined again")
    for one in (members[0], members[2]):
        assert take_sent(one) == [messages.Left(1, "replaced")]
        assert connection_of(one).is_closed
    assert end.is_closed
    assert [registry.leave(group, one, "lost") for one in members] == [False] * 3
    assert take_sent(new) == []
    assert registry.groups == [other]
    assert not registry.complete(other, START + 5)
    for rank in (0, 2):
        registry.join("survey", 3, member(rank), START + 5)
    assert registry.complete(other, START + 5)
    assert registry.next_item(other, new) == 0
    assert registry.connect(other, new, 0)
    with pytest.raises(RequestRefused, match="this ticket is not valid for a relay"):
        registry.attach("survey", 0, pair.number, pair.ticket or b"", RecordedConnection())


# ---- Leaving ----


def test_all_ranks_are_notified_of_the_first_lost_rank_only() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 4)
    create_pair(registry, group, members[3], members[1])
    assert registry.leave(group, members[2], "lost")
    assert [take_sent(one) for one in members] == [[messages.Left(2, "lost")]] * 2 + [[], [messages.Left(2, "lost")]]
    assert registry.leave(group, members[1], "lost")
    assert registry.leave(group, members[0], "left")
    assert take_sent(members[3]) == []
    assert not registry.leave(group, members[2], "lost")
    assert registry.groups == [group]
    assert registry.leave(group, members[3], "left")
    assert registry.groups == []


def test_only_peers_and_later_requests_are_notified_that_a_rank_has_left() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 4)
    create_pair(registry, group, members[0], members[1])
    create_pair(registry, group, members[2], members[0])
    assert registry.leave(group, members[0], "left")
    assert [take_sent(one) for one in members] == [[], [messages.Left(0, "left")], [messages.Left(0, "left")], []]
    assert registry.connect(group, members[3], 0) is None
    assert take_sent(members[3]) == [messages.Left(0, "left")]


def test_a_rank_that_leaves_an_incomplete_group_may_join_again() -> None:
    registry = Registry(Limits())
    old, other = member(0), member(1)
    group = registry.join("survey", 2, old, START)
    assert registry.leave(group, old, "lost")
    assert registry.groups == []
    group = registry.join("survey", 2, other, START)
    first = member(0)
    registry.join("survey", 2, first, START)
    assert registry.leave(group, first, "lost")
    assert take_sent(other) == []
    registry.join("survey", 2, member(0), START)
    assert registry.complete(group, START)


# ---- Expiring ----


def test_waiting_ranks_are_refused_in_the_end_and_the_missing_ones_named() -> None:
    registry = Registry(Limits(wait=60))
    waiting = [member(rank) for rank in (0, 3)]
    group = registry.join("survey", 20, waiting[0], START)
    registry.join("survey", 20, waiting[1], START + 59)
    complete_group(registry, 1, "other")
    assert registry.expire(START + 59.9) == []
    assert registry.expire(START + 60) == [group]
    missing = "1, 2, 4, 5, 6, 7, 8, 9, 10, 11 and 8 more"
    sentence = f"job survey waited 60 s for all 20 ranks; missing {missing}"
    assert [refusal_of(one) for one in waiting] == [messages.Refused("expired", sentence)] * 2
    assert [len(connection_of(one).sent) for one in waiting] == [1, 1]
    assert [registry.leave(group, one, "lost") for one in waiting] == [False, False]
    assert [one.job for one in registry.groups] == ["other"]


def test_a_few_missing_ranks_are_all_named() -> None:
    registry = Registry(Limits(wait=0.5))
    one = member(1)
    registry.join("survey", 3, one, START)
    registry.expire(START + 0.5)
    assert refusal_of(one).why == "job survey waited 0.5 s for all 3 ranks; missing 0, 2"


def test_a_job_and_its_relays_end_at_the_deadline() -> None:
    registry = Registry(Limits(wait=60, deadline=3600))
    group, members = complete_group(registry, 2)
    pair = create_relay(registry, group, *members)
    ends = [RecordedConnection(), RecordedConnection()]
    for rank in (0, 1):
        registry.attach("survey", rank, pair.number, pair.ticket or b"", ends[rank])
    assert registry.expire(START + 3599) == []
    assert registry.expire(START + 3600) == [group]
    sentence = "job survey has reached its time limit of 3600 s"
    assert [refusal_of(one) for one in members] == [messages.Refused("deadline", sentence)] * 2
    assert [end.is_closed for end in ends] == [True, True]
    assert registry.groups == []
    assert registry.expire(START + 3600) == []


def test_sentences_with_the_longest_names_fit_into_messages() -> None:
    registry = Registry(Limits(wait=60, relays=1, relayed_bytes=1))
    job, size = "ü" * 127, 4096
    waiting = member(0)
    registry.join(job, size, waiting, START)
    with pytest.raises(RequestRefused) as refused:
        registry.join(job, size - 1, member(1), START)
    encode(messages.Refused(refused.value.code, str(refused.value)))
    registry.expire(START + 60)
    assert len(connection_of(waiting).sent) == 1


# ---- The counter ----


def test_each_number_is_returned_once() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 3)
    assert [registry.next_item(group, members[number % 3]) for number in range(7)] == list(range(7))


def test_the_counter_needs_a_complete_group() -> None:
    registry = Registry(Limits())
    one = member(1)
    group = registry.join("survey", 2, one, START)
    with pytest.raises(RequestRefused, match="rank 1 of 2 requests an item before all ranks have joined") as refused:
        registry.next_item(group, one)
    assert refused.value.code == "order"
    registry.join("survey", 2, member(0), START)
    registry.complete(group, START)
    assert registry.next_item(group, one) == 0


# ---- Pairs ----


def test_both_ranks_of_a_pair_are_announced_to_each_other_once() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 3)
    pair = registry.connect(group, members[2], 0)
    assert pair
    assert (pair.low, pair.high) == (members[0], members[2])
    (one,), (other,), bystander = (take_sent(members[rank]) for rank in (0, 2, 1))
    assert isinstance(one, messages.Start)
    assert one == messages.Start(pair.number, 2, one.nonce, ("192.0.2.1", 5002), ("10.0.0.1", 5002), 0.0)
    assert other == messages.Start(pair.number, 0, one.nonce, ("192.0.2.1", 5000), ("10.0.0.1", 5000), 0.0)
    assert bystander == []
    assert registry.connect(group, members[2], 0) is None
    assert registry.connect(group, members[0], 2) is None
    assert [take_sent(own) for own in members] == [[], [], []]
    another = registry.connect(group, members[0], 1)
    assert another
    assert another.number != pair.number
    (second,) = take_sent(members[0])
    assert isinstance(second, messages.Start)
    assert second.nonce != one.nonce


def test_the_nearer_rank_of_a_pair_waits() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 3, round_trips=(0.010, 0.110, 0.110))
    for one, other in ((0, 1), (1, 2)):
        registry.connect(group, members[one], other)
    after = {
        (rank, start.peer): start.after
        for rank, one in enumerate(members)
        for start in take_sent(one)
        if isinstance(start, messages.Start)
    }
    assert after == {(0, 1): pytest.approx(0.05), (1, 0): 0.0, (1, 2): 0.0, (2, 1): 0.0}


@pytest.mark.parametrize("peer", [1, 2, 3, 2**62])
def test_an_invalid_peer_is_refused(peer: int) -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 2)
    with pytest.raises(
        RequestRefused, match=f"rank 1 of 2 requests a connection to rank {peer}, which is not possible"
    ) as refused:
        registry.connect(group, members[1], peer)
    assert refused.value.code == "order"


def test_a_pair_needs_a_complete_group() -> None:
    registry = Registry(Limits())
    one = member(0)
    group = registry.join("survey", 3, one, START)
    registry.join("survey", 3, member(1), START)
    with pytest.raises(RequestRefused, match="requests a connection to rank 1, which is not possible"):
        registry.connect(group, one, 1)


# ---- Relays ----


def test_both_ends_receive_one_ticket_that_each_may_use_once() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 3)
    pair = create_pair(registry, group, members[2], members[1])
    assert registry.start_relay(group, members[1], pair.number) is pair
    (one,), (other,) = take_sent(members[1]), take_sent(members[2])
    assert one == other == messages.Relay(pair.number, pair.ticket or b"")
    assert isinstance(one, messages.Relay)
    assert registry.attach("survey", 2, pair.number, one.ticket, RecordedConnection()) == (group, pair)
    for rank in (2, 0, 7):
        with pytest.raises(
            RequestRefused, match=f"this ticket is not valid for rank {rank}, or was used before"
        ) as refused:
            registry.attach("survey", rank, pair.number, one.ticket, RecordedConnection())
        assert refused.value.code == "ticket"
    assert registry.attach("survey", 1, pair.number, one.ticket, RecordedConnection()) == (group, pair)


def test_a_ticket_is_valid_for_one_job_and_pair() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 3)
    others, _ = complete_group(registry, 2, "other")
    pair, another = (create_relay(registry, group, members[0], members[rank]) for rank in (1, 2))
    waiting = create_pair(registry, group, members[1], members[2])
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
    for job, rank, number, presented in wrong:
        with pytest.raises(RequestRefused, match="this ticket is not valid for a relay") as refused:
            registry.attach(job, rank, number, presented, RecordedConnection())
        assert refused.value.code == "ticket"
    assert registry.attach("survey", 0, pair.number, ticket, RecordedConnection()) == (group, pair)


def test_only_the_lower_rank_requests_a_relay_and_only_once() -> None:
    registry = Registry(Limits())
    group, members = complete_group(registry, 3)
    pair = create_pair(registry, group, members[0], members[1])
    for one, number in ((members[1], pair.number), (members[2], pair.number), (members[0], pair.number + 1)):
        with pytest.raises(RequestRefused, match=f"rank {one.rank} is not the lower rank of pair {number}") as refused:
            registry.start_relay(group, one, number)
        assert refused.value.code == "order"
    assert registry.start_relay(group, members[0], pair.number)
    with pytest.raises(RequestRefused, match="rank 0 has requested a relay of pair 1 before"):
        registry.start_relay(group, members[0], pair.number)


def test_the_number_of_relays_of_a_job_is_limited() -> None:
    registry = Registry(Limits(relays=2))
    group, members = complete_group(registry, 4)
    for rank in (1, 2):
        create_relay(registry, group, members[0], members[rank])
    pair = create_pair(registry, group, members[0], members[3])
    assert registry.start_relay(group, members[0], pair.number) is None
    failed = messages.Failed(pair.number, "job survey has reached this server's relay limit")
    assert take_sent(members[0]) == take_sent(members[3]) == [failed]
    other, others = complete_group(registry, 2, "other")
    create_relay(registry, other, *others)


def test_a_job_that_has_relayed_its_limit_of_bytes_gets_no_further_relay() -> None:
    registry = Registry(Limits(relayed_bytes=1000))
    group, members = complete_group(registry, 3)
    create_relay(registry, group, members[0], members[1])
    group.relayed_bytes = 1000
    pair = create_pair(registry, group, members[0], members[2])
    assert registry.start_relay(group, members[0], pair.number) is None
    assert [type(one) for one in take_sent(members[2])] == [messages.Failed]
