"""Who may talk: proofs that a rank, the server and a peer know a job's token, of which none is ever sent.

HMAC-SHA256 (RFC 2104) throughout, each proof over a label of its own and a nonce that the verifier has just made.
"""

from __future__ import annotations

import hmac
import secrets
import struct

from .messages import NONCE, Address, packed

PEER = struct.Struct(">QI")  # pair, rank of who proves


def nonce() -> bytes:
    """Bytes that were never used before."""
    return secrets.token_bytes(NONCE)


def job_token(secret: bytes, job: str) -> bytes:
    """What the ranks of one job know: enough for that job, and for no other. Without a secret anybody knows it."""
    return _mac(secret, b"job", job.encode())


def join_proof(token: bytes, challenge: bytes, job: str, rank: int, size: int, private: Address, own: bytes) -> bytes:
    """A rank's, for JOIN."""
    return _mac(token, b"join", challenge + packed(job, rank, size, private, own))


def welcome_proof(token: bytes, challenge: bytes, own: bytes) -> bytes:
    """The server's, for WELCOME: to the rank's nonce (`challenge`), with the server's `own`."""
    return _mac(token, b"welcome", challenge + own)


def attach_proof(token: bytes, challenge: bytes, job: str, rank: int, pair: int, ticket: bytes) -> bytes:
    """A rank's, for ATTACH."""
    return _mac(token, b"attach", challenge + packed(job, rank, pair, ticket))


def peer_proof(token: bytes, challenge: bytes, pair: int, rank: int) -> bytes:
    """A rank's to its peer; the nonce is the pair's, which the server made."""
    return _mac(token, b"peer", challenge + PEER.pack(pair, rank))


def same(one: bytes, other: bytes) -> bool:
    """Whether two proofs are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def _mac(key: bytes, label: bytes, text: bytes) -> bytes:
    return hmac.digest(key, b"FMI/1 " + label + b"\0" + text, "sha256")
