"""The limits of one rendezvous server, each with its default and the help text of its option."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _limit(default: float, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass(frozen=True)
class Limits:
    """What a server allows. Times are in seconds."""

    connections: int = _limit(4096, "Simultaneous connections.")
    jobs: int = _limit(1000, "Simultaneous jobs.")
    ranks: int = _limit(4096, "Ranks per job.")
    wait: float = _limit(600.0, "Seconds until all ranks of a job must have joined.")
    deadline: float = _limit(86400.0, "Seconds that a job may take once all ranks have joined.")
    first: float = _limit(10.0, "Seconds for the first message of a client, and to complete any message it begins.")
    silence: float = _limit(20.0, "Seconds without a message from a rank, which sends PING every 5, or on a relay.")
    meeting: float = _limit(15.0, "Seconds for the second end of a relay to connect.")
    relays: int = _limit(256, "Relays per job.")
    relayed_bytes: int = _limit(10 * 2**30, "Bytes relayed per job.")
