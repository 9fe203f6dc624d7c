"""The errors of communication between ranks. Each message is one sentence for the user."""

from __future__ import annotations


class FMIError(Exception):
    """Base class: ranks cannot, or can no longer, communicate."""


class RequestRefused(FMIError):
    """The rendezvous server refuses a request; `code` is one of the error codes in PROTOCOL.md."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class ServerLost(FMIError):
    """The rendezvous server cannot be reached or no longer answers."""


class PeerLost(FMIError):
    """The rank `rank` has terminated, has left the group, or cannot be reached."""

    def __init__(self, rank: int, sentence: str) -> None:
        super().__init__(sentence)
        self.rank = rank


class DeadlinePassed(FMIError):
    """An operation was not completed in the time allowed."""


class CollectiveMismatch(FMIError):
    """Two ranks call different collective operations, or the same one with different arguments."""
