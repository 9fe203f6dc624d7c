"""What can go wrong between ranks. Each message is one sentence."""

from __future__ import annotations


class FMIError(Exception):
    """Ranks cannot, or can no longer, talk to each other."""


class Refused(FMIError):
    """The rendezvous server refuses, for the reason that `code` is one word for (see PROTOCOL.md)."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class ServerLost(FMIError):
    """The rendezvous server cannot be reached, or no longer answers."""


class PeerLost(FMIError):
    """A rank has died, has left, or cannot be reached."""

    def __init__(self, rank: int, sentence: str) -> None:
        super().__init__(sentence)
        self.rank = rank


class DeadlinePassed(FMIError):
    """Something was not done in the time that it was given."""


class Disagreement(FMIError):
    """Two ranks are not in the same collective operation."""
