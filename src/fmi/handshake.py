"""What two ranks say first to each other: each proves that it is the one that the other was told of."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from . import messages, tokens

GREETING = struct.Struct(">4sB3xQI4x32s")  # magic, version, pair, rank of who greets, proof
MAGIC = b"FMIP"


@dataclass(frozen=True)
class Meeting:
    """Two ranks that the server told of each other; `nonce` is the pair's."""

    pair: int
    own: int
    peer: int
    nonce: bytes
    token: bytes

    @property
    def leads(self) -> bool:
        """Whether this end selects the connection."""
        return self.own < self.peer

    def greeting(self) -> bytes:
        """What this end says first."""
        proof = tokens.peer_proof(self.token, self.nonce, self.pair, self.own)
        return GREETING.pack(MAGIC, messages.VERSION, self.pair, self.own, proof)

    def is_from_peer(self, greeting: bytes) -> bool:
        """Whether it is the peer who greets, and not somebody else, or this end's own greeting thrown back."""
        magic, version, pair, rank, proof = GREETING.unpack(greeting)
        expected = tokens.peer_proof(self.token, self.nonce, self.pair, self.peer)
        is_right = (magic, version, pair, rank) == (MAGIC, messages.VERSION, self.pair, self.peer)
        return is_right and tokens.same(proof, expected)


def pair_of(greeting: bytes) -> int | None:
    """The number of the pair that a greeting is for; None if it is no greeting."""
    magic, version, pair, _, _ = GREETING.unpack(greeting)
    return int(pair) if (magic, version) == (MAGIC, messages.VERSION) else None
