"""Which ranks are there, and who shall be connected to whom: all that the server knows, without any network.

A job's ranks are a group. It is complete when all have come, and ends when all have gone. If a rank of a complete
group comes anew the group has ended for the others, since what they have said to each other the newcomer does not
know; the newcomer is then the first of the job's next group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

from . import messages, tokens
from .errors import Refused
from .messages import Address, Message

SHOWN = 10  # ranks that a sentence names


def _limit(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Limits:
    """What one server allows. Times are in seconds."""

    connections: int = _limit(4096, "Connections at once.")
    jobs: int = _limit(1000, "Jobs at once.")
    ranks: int = _limit(4096, "Ranks of a job.")
    wait: float = _limit(600.0, "Seconds for all ranks of a job to come.")
    deadline: float = _limit(86400.0, "Seconds of a job, once all ranks are there.")
    first: float = _limit(10.0, "Seconds for a client's first message, and for the rest of one that has begun.")
    silence: float = _limit(20.0, "Seconds without a word from a rank, which says PING every 5, or on a relay.")
    meeting: float = _limit(15.0, "Seconds for the second end of a relay to come.")
    relays: int = _limit(256, "Relays of a job.")
    relayed_bytes: int = _limit(10 * 2**30, "Bytes that are relayed for a job.")


class Connection(Protocol):
    """A rank's connection to the server."""

    def send(self, message: Message) -> None:
        """Sends, or gives the client up; never waits and never raises."""

    def close(self) -> None:
        """Ends it, and with it what the server does for it."""


@dataclass(eq=False)
class Member:
    """A rank that is there. `round_trip` is that of its connection, in seconds; `introduced` are those it knows."""

    rank: int
    connection: Connection
    public: Address
    private: Address
    round_trip: float = 0.0
    introduced: set[int] = field(default_factory=set)


@dataclass
class Pair:
    """Two ranks that are to be connected. `ends` are the connections of those that have come to be relayed."""

    number: int
    low: Member
    high: Member
    ticket: bytes | None = None
    ends: dict[int, Connection] = field(default_factory=dict)

    def send(self, message: Message) -> None:
        """To both."""
        self.low.connection.send(message)
        self.high.connection.send(message)


@dataclass
class Group:
    """The ranks of a job. `began` is when the first came or, once it `is_complete`, when the last did."""

    job: str
    size: int
    number: int
    began: float
    members: dict[int, Member] = field(default_factory=dict)
    is_complete: bool = False
    has_lost: bool = False
    pairs: dict[int, Pair] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=count)
    relays: int = 0
    relayed_bytes: int = 0


class Jobs:
    """All groups by their jobs' names. Times are seconds of any clock that never goes back."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._groups: dict[str, Group] = {}
        self._numbers, self._pairs = count(1), count(1)

    @property
    def groups(self) -> list[Group]:
        """Those that wait for ranks or are complete."""
        return list(self._groups.values())

    def join(self, job: str, size: int, member: Member, now: float) -> Group:
        """Takes a rank into its job's group, which this may complete. Raises Refused if it cannot belong to it."""
        if not 0 <= member.rank < size <= self._limits.ranks:
            allowed = self._limits.ranks
            raise Refused("rank", f"there is no rank {member.rank} of {size}; a job has 1 to {allowed} ranks")
        group = self._groups.get(job)
        if group and group.size != size:
            raise Refused("size", f"job {job} has {group.size} ranks and this one says {size}; start all of them alike")
        anew = Refused("replaced", f"rank {member.rank} of job {job} has come anew")
        if group and group.is_complete:
            self._end(group, anew, newcomer=member.rank)
            group = None
        if group is None:
            if len(self._groups) >= self._limits.jobs:
                raise Refused("busy", f"there are {len(self._groups)} jobs already; try again later")
            group = self._groups[job] = Group(job, size, next(self._numbers), now)
        elif before := group.members.get(member.rank):
            before.connection.send(_refusal(anew))
            before.connection.close()
        group.members[member.rank] = member
        return group

    def complete(self, group: Group, now: float) -> bool:
        """Tells all ranks that they are all there, once they are; says whether this was just now."""
        if group.is_complete or len(group.members) < group.size:
            return False
        group.is_complete, group.began = True, now
        for member in group.members.values():
            member.connection.send(messages.Ready())
        return True

    def _end(self, group: Group, refused: Refused, newcomer: int | None = None) -> None:
        """Forgets a group, and ends the connections of its ranks and relays.

        They are refused; if there is a newcomer, this is only for whom it replaces, and the others learn of it.
        """
        del self._groups[group.job]
        for member in group.members.values():
            if newcomer is None or newcomer == member.rank:
                member.connection.send(_refusal(refused))
            else:
                member.connection.send(messages.Left(newcomer, "replaced"))
            member.connection.close()
        group.members.clear()
        for pair in group.pairs.values():
            for end in pair.ends.values():
                end.close()

    def leave(self, group: Group, member: Member, why: str) -> bool:
        """Takes a rank out that has "left" or is "lost"; False if it was out already.

        The first that is lost ends the group's work, so all learn of it and of no other. That one has left concerns
        those who were told to connect to it; whoever asks for it later is told then.
        """
        if group.members.get(member.rank) is not member:
            return False
        del group.members[member.rank]
        if group.is_complete and not group.has_lost:
            group.has_lost = why == "lost"
            for other in group.members.values():
                if group.has_lost or other.rank in member.introduced:
                    other.connection.send(messages.Left(member.rank, why))
        if not group.members:
            del self._groups[group.job]
        return True

    def next_item(self, group: Group, member: Member) -> int:
        """The next number of a complete group's counter."""
        if not group.is_complete:
            raise Refused("order", f"rank {member.rank} of {group.size} counts before all have come")
        return next(group.counter)

    def connect(self, group: Group, member: Member, peer: int) -> Pair | None:
        """Tells two ranks of each other, unless that was done; returns the new pair."""
        if not group.is_complete or not 0 <= peer < group.size or peer == member.rank:
            raise Refused("order", f"rank {member.rank} of {group.size} asks for rank {peer}, which cannot be")
        if peer in member.introduced:
            return None
        other = group.members.get(peer)
        if other is None:
            member.connection.send(messages.Left(peer, "left"))
            return None
        member.introduced.add(peer)
        other.introduced.add(member.rank)
        low, high = (member, other) if member.rank < peer else (other, member)
        number, nonce = next(self._pairs), tokens.nonce()
        pair = group.pairs[number] = Pair(number, low, high)
        # Both get it after half of their round trip, so the nearer one begins later.
        latest = max(low.round_trip, high.round_trip)
        for one, two in ((low, high), (high, low)):
            after = (latest - one.round_trip) / 2
            one.connection.send(messages.Start(number, two.rank, nonce, two.public, two.private, after))
        return pair

    def led(self, group: Group, member: Member, number: int) -> Pair:
        """A pair of which this is the lower rank. Raises Refused if there is none."""
        pair = group.pairs.get(number)
        if pair is None or pair.low is not member:
            raise Refused("order", f"rank {member.rank} speaks of pair {number}, which is not its to speak of")
        return pair

    def relay(self, group: Group, member: Member, number: int) -> Pair | None:
        """Sends both ends of a pair to a relay, or tells them why not; only the lower rank asks for it, and once."""
        pair = self.led(group, member, number)
        if pair.ticket is not None:
            raise Refused("order", f"rank {member.rank} asks again for a relay of pair {number}")
        if group.relays >= self._limits.relays or group.relayed_bytes >= self._limits.relayed_bytes:
            pair.send(messages.Failed(number, f"job {group.job} has used up what this server relays for one job"))
            return None
        group.relays += 1
        pair.ticket = tokens.nonce()
        pair.send(messages.Relay(number, pair.ticket))
        return pair

    def attach(self, job: str, rank: int, number: int, ticket: bytes, end: Connection) -> tuple[Group, Pair]:
        """The pair of which this rank may come to a relay, on a connection of its own. Raises Refused if it may not."""
        group = self._groups.get(job)
        pair = group.pairs.get(number) if group else None
        if not group or not pair or pair.ticket is None or not tokens.same(pair.ticket, ticket):
            raise Refused("ticket", "nobody is to be relayed by this ticket")
        if rank not in (pair.low.rank, pair.high.rank) or rank in pair.ends:
            raise Refused("ticket", f"rank {rank} is not to be relayed by this ticket, or no more")
        pair.ends[rank] = end
        return group, pair

    def expire(self, now: float) -> list[Group]:
        """Ends groups whose ranks did not all come in time, or whose deadline has passed; returns them."""
        ended = []
        for group in self.groups:
            if now - group.began >= (self._limits.deadline if group.is_complete else self._limits.wait):
                self._end(group, self._expired(group))
                ended.append(group)
        return ended

    def forget(self) -> None:
        """Forgets all groups and tells nobody, since the server stops: what ranks have with each other goes on."""
        for group in self.groups:
            group.members.clear()
        self._groups.clear()

    def _expired(self, group: Group) -> Refused:
        if group.is_complete:
            return Refused("deadline", f"job {group.job} has taken {self._limits.deadline:g} s, all that it may")
        missing = [str(rank) for rank in range(group.size) if rank not in group.members]
        named = ", ".join(missing[:SHOWN]) + f" and {len(missing) - SHOWN} more" * (len(missing) > SHOWN)
        return Refused(
            "expired", f"job {group.job} waited {self._limits.wait:g} s for all {group.size} ranks; missing {named}"
        )


def _refusal(refused: Refused) -> messages.Refused:
    return messages.Refused(refused.code, str(refused))
