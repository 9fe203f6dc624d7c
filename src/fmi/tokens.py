"""Authentication: a rank, the server and a peer prove that they know a job's token, which itself is never sent.

All proofs are HMAC-SHA256 (RFC 2104) over a label of their own and a nonce that the verifier has just created.
"""

from __future__ import annotations

import hmac
import secrets
import struct

from .messages import NONCE, Address, pack

PEER_PROOF = struct.Struct(">QI")  # pair, proving rank


def new_nonce() -> bytes:
    """Return random bytes that were never used before."""
    return secrets.token_bytes(NONCE)


def job_token(secret: bytes, job: str) -> bytes:
    """Return the token of a job, which grants access to that job and to no other.

    Without a secret (an empty byte string) any process can compute it.
    """
    return _mac(secret, b"job", job.encode())


def join_proof(token: bytes, challenge: bytes, job: str, rank: int, size: int, private: Address, nonce: bytes) -> bytes:
    """Return a rank's proof for JOIN, with the server's challenge and the rank's own nonce."""
    return _mac(token, b"join", challenge + pack(job, rank, size, private, nonce))


def welcome_proof(token: bytes, challenge: bytes, server_nonce: bytes) -> bytes:
    """Return the server's proof for WELCOME; the challenge is the nonce of the rank's JOIN."""
    return _mac(token, b"welcome", challenge + server_nonce)


def attach_proof(token: bytes, challenge: bytes, job: str, rank: int, pair: int, ticket: bytes) -> bytes:
    """Return a rank's proof for ATTACH."""
    return _mac(token, b"attach", challenge + pack(job, rank, pair, ticket))


def peer_proof(token: bytes, challenge: bytes, pair: int, rank: int) -> bytes:
    """Return a rank's proof for its peer; the challenge is the pair's nonce, which the server has created."""
    return _mac(token, b"peer", challenge + PEER_PROOF.pack(pair, rank))


def is_equal(one: bytes, other: bytes) -> bool:
    """Return whether two proofs are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(one, other)


def _mac(key: bytes, label: bytes, text: bytes) -> bytes:
    return hmac.digest(key, b"FMI/1 " + label + b"\0" + text, "sha256")
