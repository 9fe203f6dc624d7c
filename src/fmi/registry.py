"""The registry of jobs and ranks: everything that the rendezvous server knows, without any network code.

The ranks that have joined a job are its group. It is complete when all have joined, and ends when all have left. If a
rank joins a complete group again, that group has ended: the new process does not know what was sent before, and is
the first member of the job's next group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from . import messages, tokens
from .errors import RequestRefused
from .limits import Limits
from .messages import Address, Message

MAX_NAMED = 10  # missing ranks that a sentence names


class Connection(Protocol):
    """A rank's connection to the server."""

    def send(self, message: Message) -> None:
        """Send a message, or close the connection if that is not possible at once; never wait and never raise."""

    def close(self) -> None:
        """Close the connection, and end the task that serves it."""


@dataclass(eq=False)
class Member:
    """A rank of a group. `round_trip` is that of its connection in seconds, `peers` the ranks it is paired with."""

    rank: int
    connection: Connection
    public: Address
    private: Address
    round_trip: float = 0.0
    peers: set[int] = field(default_factory=set)


@dataclass
class Pair:
    """Two ranks to be connected. `ends` are the connections of those that have attached to their relay, by rank."""

    number: int
    low: Member
    high: Member
    ticket: bytes | None = None
    ends: dict[int, Connection] = field(default_factory=dict)

    def send(self, message: Message) -> None:
        """Send a message to both ranks."""
        self.low.connection.send(message)
        self.high.connection.send(message)


@dataclass
class RegisteredGroup:
    """The ranks of a job. `began` is when the first one joined or, once it `is_complete`, when the last one did."""

    job: str
    size: int
    number: int
    began: float
    members: dict[int, Member] = field(default_factory=dict)
    is_complete: bool = False
    has_lost_rank: bool = False
    pairs: dict[int, Pair] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=count)
    relays: int = 0
    relayed_bytes: int = 0


class Registry:
    """All groups by the names of their jobs. Times are in seconds of any monotonic clock."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._groups: dict[str, RegisteredGroup] = {}
        self._group_numbers, self._pair_numbers = count(1), count(1)

    @property
    def groups(self) -> list[RegisteredGroup]:
        """The groups that are complete or waiting for ranks."""
        return list(self._groups.values())

    def join(self, job: str, size: int, member: Member, now: float) -> RegisteredGroup:
        """Add a rank to its job's group, and return the group. Raises RequestRefused if that is not possible."""
        if not 0 <= member.rank < size <= self._limits.ranks:
            allowed = self._limits.ranks
            raise RequestRefused("rank", f"there is no rank {member.rank} of {size}; a job has 1 to {allowed} ranks")
        group = self._groups.get(job)
        if group and group.size != size:
            problem = f"job {job} has {group.size} ranks and this one states {size}; start all ranks with the same size"
            raise RequestRefused("size", problem)
        replaced = RequestRefused("replaced", f"rank {member.rank} of job {job} has joined again")
        if group and group.is_complete:
            self._end_group(group, replaced, replaced_rank=member.rank)
            group = None
        if group is None:
            if len(self._groups) >= self._limits.jobs:
                raise RequestRefused("busy", f"this server has {len(self._groups)} jobs already; try again later")
            group = self._groups[job] = RegisteredGroup(job, size, next(self._group_numbers), now)
        elif previous := group.members.get(member.rank):
            previous.connection.send(_refused(replaced))
            previous.connection.close()
        group.members[member.rank] = member
        return group

    def complete(self, group: RegisteredGroup, now: float) -> bool:
        """Mark a group as complete and send READY once all ranks have joined; return whether this was done now."""
        if group.is_complete or len(group.members) < group.size:
            return False
        group.is_complete, group.began = True, now
        for member in group.members.values():
            member.connection.send(messages.Ready())
        return True

    def _end_group(self, group: RegisteredGroup, refusal: RequestRefused, replaced_rank: int | None = None) -> None:
        """Remove a group, and close the connections of its ranks and relays.

        All ranks receive REFUSED; if one is replaced by a new client, only that one does, and the others receive LEFT.
        """
        del self._groups[group.job]
        for member in group.members.values():
            if replaced_rank is None or replaced_rank == member.rank:
                member.connection.send(_refused(refusal))
            else:
                member.connection.send(messages.Left(replaced_rank, "replaced"))
            member.connection.close()
        group.members.clear()
        for pair in group.pairs.values():
            for end in pair.ends.values():
                end.close()

    def leave(self, group: RegisteredGroup, member: Member, reason: str) -> bool:
        """Remove a rank that has "left" or is "lost"; return False if it was removed before.

        The first lost rank ends the work of a complete group: all ranks are notified of it, and of no other one. If a
        rank has left, only its peers are notified; ranks that request a connection later are notified then.
        """
        if group.members.get(member.rank) is not member:
            return False
        del group.members[member.rank]
        if group.is_complete and not group.has_lost_rank:
            group.has_lost_rank = reason == "lost"
            for other in group.members.values():
                if group.has_lost_rank or other.rank in member.peers:
                    other.connection.send(messages.Left(member.rank, reason))
        if not group.members:
            del self._groups[group.job]
        return True

    def next_item(self, group: RegisteredGroup, member: Member) -> int:
        """Return the next number of a group's counter. Raises RequestRefused if the group is not complete."""
        if not group.is_complete:
            problem = f"rank {member.rank} of {group.size} requests an item before all ranks have joined"
            raise RequestRefused("order", problem)
        return next(group.counter)

    def connect(self, group: RegisteredGroup, member: Member, peer: int) -> Pair | None:
        """Announce two ranks to each other, unless that was done before; return the new pair.

        Raises RequestRefused if the group is not complete, or if there is no such peer.
        """
        if not group.is_complete or not 0 <= peer < group.size or peer == member.rank:
            problem = f"rank {member.rank} of {group.size} requests a connection to rank {peer}, which is not possible"
            raise RequestRefused("order", problem)
        if peer in member.peers:
            return None
        other = group.members.get(peer)
        if other is None:
            member.connection.send(messages.Left(peer, "left"))
            return None
        member.peers.add(peer)
        other.peers.add(member.rank)
        low, high = (member, other) if member.rank < peer else (other, member)
        number, nonce = next(self._pair_numbers), tokens.new_nonce()
        pair = group.pairs[number] = Pair(number, low, high)
        # START takes half a round trip to arrive; the nearer rank waits for the difference.
        longest = max(low.round_trip, high.round_trip)
        for one, two in ((low, high), (high, low)):
            after = (longest - one.round_trip) / 2
            one.connection.send(messages.Start(number, two.rank, nonce, two.public, two.private, after))
        return pair

    def find_led_pair(self, group: RegisteredGroup, member: Member, number: int) -> Pair:
        """Return a pair of which this is the lower rank. Raises RequestRefused if it is not."""
        pair = group.pairs.get(number)
        if pair is None or pair.low is not member:
            raise RequestRefused("order", f"rank {member.rank} is not the lower rank of pair {number}")
        return pair

    def start_relay(self, group: RegisteredGroup, member: Member, number: int) -> Pair | None:
        """Send both ranks of a pair a ticket for a relay, or FAILED if the job has reached its limits.

        Raises RequestRefused if this is not the lower rank, or has requested the relay before.
        """
        pair = self.find_led_pair(group, member, number)
        if pair.ticket is not None:
            raise RequestRefused("order", f"rank {member.rank} has requested a relay of pair {number} before")
        if group.relays >= self._limits.relays or group.relayed_bytes >= self._limits.relayed_bytes:
            pair.send(messages.Failed(number, f"job {group.job} has reached this server's relay limit"))
            return None
        group.relays += 1
        pair.ticket = tokens.new_nonce()
        pair.send(messages.Relay(number, pair.ticket))
        return pair

    def attach(self, job: str, rank: int, number: int, ticket: bytes, end: Connection) -> tuple[RegisteredGroup, Pair]:
        """Attach one end of a pair to its relay; `end` is its new connection. Raises RequestRefused if it may not."""
        group = self._groups.get(job)
        pair = group.pairs.get(number) if group else None
        if not group or not pair or pair.ticket is None or not tokens.is_equal(pair.ticket, ticket):
            raise RequestRefused("ticket", "this ticket is not valid for a relay")
        if rank not in (pair.low.rank, pair.high.rank) or rank in pair.ends:
            raise RequestRefused("ticket", f"this ticket is not valid for rank {rank}, or was used before")
        pair.ends[rank] = end
        return group, pair

    def expire(self, now: float) -> list[RegisteredGroup]:
        """End the groups whose ranks did not all join in time, or whose deadline has passed; return them."""
        expired = []
        for group in self.groups:
            if now - group.began >= (self._limits.deadline if group.is_complete else self._limits.wait):
                self._end_group(group, self._expiry(group))
                expired.append(group)
        return expired

    def clear(self) -> None:
        """Remove all groups without notifying their ranks, whose connections with each other outlive the server."""
        for group in self.groups:
            group.members.clear()
        self._groups.clear()

    def _expiry(self, group: RegisteredGroup) -> RequestRefused:
        if group.is_complete:
            problem = f"job {group.job} has reached its time limit of {self._limits.deadline:g} s"
            return RequestRefused("deadline", problem)
        missing = [str(rank) for rank in range(group.size) if rank not in group.members]
        more = f" and {len(missing) - MAX_NAMED} more" * (len(missing) > MAX_NAMED)
        waited = f"job {group.job} waited {self._limits.wait:g} s for all {group.size} ranks"
        return RequestRefused("expired", f"{waited}; missing {', '.join(missing[:MAX_NAMED])}{more}")


def _refused(refusal: RequestRefused) -> messages.Refused:
    return messages.Refused(refusal.code, str(refusal))
