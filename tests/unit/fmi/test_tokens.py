"""Proofs of authentication, compared with an independent HMAC and with known test vectors."""

from __future__ import annotations

import hashlib
import re
import struct
from itertools import combinations
from pathlib import Path

import pytest

import fmi
from fmi import tokens

SECRET, TOKEN = b"correct horse", bytes.fromhex("fef0c81036864e353f6205b28f32efb7e810a274cbcdc7284b22cf99777ae67f")
CHALLENGE, NONCE, PAIR, TICKET = (bytes(range(start, start + 16)) for start in (0, 16, 32, 48))
PRIVATE = ("10.0.0.5", 50000)
JOIN_FIELDS = CHALLENGE + b"\x95\xa6survey\0\x02\x92\xa810.0.0.5\xcd\xc3\x50\xc4\x10" + NONCE
ATTACH_FIELDS = CHALLENGE + b"\x94\xa6survey\0\x09\xc4\x10" + TICKET


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """Return the HMAC as RFC 2104 defines it, without a library."""
    if len(key) > 64:
        key = hashlib.sha256(key).digest()
    key = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + text).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()


@pytest.mark.parametrize(
    ("key", "text", "digest"),
    [  # RFC 4231, test cases 1, 2, 3, 4, 6, 7
        (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
        (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
        (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
        (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
        (
            b"\xaa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First",
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
        ),
        (
            b"\xaa" * 131,
            b"This is a test using a larger than block-size key and a larger than block-size data. "
            b"The key needs to be hashed before being used by the HMAC algorithm.",
            "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
        ),
    ],
)  # fmt: skip
def test_the_independent_hmac_is_correct(key: bytes, text: bytes, digest: str) -> None:
    assert hmac_sha256(key, text).hex() == digest


def test_the_token_of_a_job() -> None:
    assert tokens.job_token(SECRET, "survey") == TOKEN == hmac_sha256(SECRET, b"FMI/1 job\0survey")
    assert tokens.job_token(b"", "ü") == hmac_sha256(b"", b"FMI/1 job\0\xc3\xbc")
    long = b"k" * 100
    assert tokens.job_token(long, "survey") == hmac_sha256(long, b"FMI/1 job\0survey")


def test_all_proofs_are_those_in_the_documentation() -> None:
    proofs = {
        "join": tokens.join_proof(TOKEN, CHALLENGE, "survey", 0, 2, PRIVATE, NONCE),
        "welcome": tokens.welcome_proof(TOKEN, NONCE, CHALLENGE),
        "attach": tokens.attach_proof(TOKEN, CHALLENGE, "survey", 0, 9, TICKET),
        "peer": tokens.peer_proof(TOKEN, PAIR, 9, 0),
        "other": tokens.peer_proof(TOKEN, PAIR, 9, 1),
    }
    assert proofs == {
        "join": hmac_sha256(TOKEN, b"FMI/1 join\0" + JOIN_FIELDS),
        "welcome": hmac_sha256(TOKEN, b"FMI/1 welcome\0" + NONCE + CHALLENGE),
        "attach": hmac_sha256(TOKEN, b"FMI/1 attach\0" + ATTACH_FIELDS),
        "peer": hmac_sha256(TOKEN, b"FMI/1 peer\0" + PAIR + struct.pack(">QI", 9, 0)),
        "other": hmac_sha256(TOKEN, b"FMI/1 peer\0" + PAIR + b"\0\0\0\0\0\0\0\x09\0\0\0\x01"),
    }
    documentation = (Path(fmi.__path__[0]) / "PROTOCOL.md").read_text()
    table = documentation[
        documentation.index("| value | definition | example |") : documentation.index("msgpack is written in")
    ]
    assert re.findall(r"`([0-9a-f]{64})`", table) == [proof.hex() for proof in (TOKEN, *proofs.values())]


def test_a_proof_is_valid_for_one_job_rank_size_address_and_connection_only() -> None:
    other = bytes(16)
    proofs = [
        tokens.join_proof(TOKEN, CHALLENGE, "survey", 0, 2, PRIVATE, NONCE),
        tokens.join_proof(tokens.job_token(SECRET, "other"), CHALLENGE, "survey", 0, 2, PRIVATE, NONCE),
        tokens.join_proof(tokens.job_token(b"wrong horse", "survey"), CHALLENGE, "survey", 0, 2, PRIVATE, NONCE),
        tokens.join_proof(TOKEN, other, "survey", 0, 2, PRIVATE, NONCE),
        tokens.join_proof(TOKEN, CHALLENGE, "other", 0, 2, PRIVATE, NONCE),
        tokens.join_proof(TOKEN, CHALLENGE, "survey", 1, 2, PRIVATE, NONCE),
        tokens.join_proof(TOKEN, CHALLENGE, "survey", 0, 3, PRIVATE, NONCE),
        tokens.join_proof(TOKEN, CHALLENGE, "survey", 0, 2, ("10.0.0.5", 50001), NONCE),
        tokens.join_proof(TOKEN, CHALLENGE, "survey", 0, 2, ("10.0.0.6", 50000), NONCE),
        tokens.join_proof(TOKEN, CHALLENGE, "survey", 0, 2, PRIVATE, other),
        tokens.welcome_proof(TOKEN, CHALLENGE, NONCE),
        tokens.welcome_proof(TOKEN, NONCE, CHALLENGE),
        tokens.attach_proof(TOKEN, CHALLENGE, "survey", 0, 9, TICKET),
        tokens.attach_proof(TOKEN, CHALLENGE, "survey", 1, 9, TICKET),
        tokens.attach_proof(TOKEN, CHALLENGE, "survey", 0, 8, TICKET),
        tokens.attach_proof(TOKEN, CHALLENGE, "survey", 0, 9, other),
        tokens.peer_proof(TOKEN, PAIR, 9, 0),
        tokens.peer_proof(TOKEN, PAIR, 9, 1),
        tokens.peer_proof(TOKEN, PAIR, 8, 0),
        tokens.peer_proof(TOKEN, other, 9, 0),
    ]
    assert {len(proof) for proof in proofs} == {32}
    assert not any(tokens.is_equal(one, another) for one, another in combinations(proofs, 2))
    assert all(tokens.is_equal(proof, bytes(bytearray(proof))) for proof in proofs)


def test_nonces_are_unique() -> None:
    nonces = {tokens.new_nonce() for _ in range(1000)}
    assert len(nonces) == 1000
    assert {len(one) for one in nonces} == {16}
