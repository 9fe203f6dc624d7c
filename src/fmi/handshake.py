"""The first message between two ranks: each proves that it is the peer that the server announced."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from . import messages, tokens

HANDSHAKE = struct.Struct(">4sB3xQI4x32s")  # magic, version, pair, sending rank, proof
MAGIC = b"FMIP"


@dataclass(frozen=True)
class Handshake:
    """The handshake of one pair of ranks, as one of them sees it; `nonce` is the pair's, `token` the job's."""

    pair: int
    rank: int
    peer: int
    nonce: bytes
    token: bytes

    @property
    def is_leader(self) -> bool:
        """Whether this rank selects the connection: the lower rank does."""
        return self.rank < self.peer

    def message(self) -> bytes:
        """Return the handshake message of this rank."""
        proof = tokens.peer_proof(self.token, self.nonce, self.pair, self.rank)
        return HANDSHAKE.pack(MAGIC, messages.VERSION, self.pair, self.rank, proof)

    def is_from_peer(self, message: bytes) -> bool:
        """Return whether a message is the peer's, and not another process's or this rank's own sent back."""
        magic, version, pair, rank, proof = HANDSHAKE.unpack(message)
        expected = tokens.peer_proof(self.token, self.nonce, self.pair, self.peer)
        is_for_this_pair = (magic, version, pair, rank) == (MAGIC, messages.VERSION, self.pair, self.peer)
        return is_for_this_pair and tokens.is_equal(proof, expected)


def pair_number(message: bytes) -> int | None:
    """Return the number of the pair that a handshake message names; None if it is not a handshake message."""
    magic, version, pair, _, _ = HANDSHAKE.unpack(message)
    return int(pair) if (magic, version) == (MAGIC, messages.VERSION) else None
