"""The bytes of the protocol: those documented in PROTOCOL.md are produced, and no others are accepted."""

from __future__ import annotations

import re
import struct
import tracemalloc
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import msgpack
import pytest

import fmi
from fmi import messages
from fmi.channel import BEAT, BYE, DATA, FRAME, SELECT, SELECTED
from fmi.handshake import HANDSHAKE, Handshake
from fmi.messages import MAX_BODY, MAX_NAME, MAX_TEXT, TYPES, Message, ProtocolError, body_size, decode, encode

SOURCES = Path(fmi.__path__[0])
DOCUMENTATION = (SOURCES / "PROTOCOL.md").read_text()
TOKEN = bytes.fromhex("fef0c81036864e353f6205b28f32efb7e810a274cbcdc7284b22cf99777ae67f")
CHALLENGE, NONCE, PAIR, TICKET = (bytes(range(start, start + 16)) for start in (0, 16, 32, 48))
JOIN_PROOF = bytes.fromhex("0391e66bdabb58f34000ac9cd07698b583f32772ae884b4064fc2abadcac7a5c")
WELCOME_PROOF = bytes.fromhex("e4233c96dbe9d26ee5e841ce9958695fe6fb25814a78a145526653061411793b")
ATTACH_PROOF = bytes.fromhex("f2a58d59527d503da152199109ac778881acffa5397a96200a226a3a8983b231")

EXAMPLES: list[tuple[Message, bytes]] = [
    (
        messages.Hello(CHALLENGE, True, ("192.0.2.7", 61001), 1.75e9),
        b"FM\x01\x01\0\0\0\x2b\x94\xc4\x10" + CHALLENGE
        + b"\xc3\x92\xa9192.0.2.7\xcd\xee\x49\xcb\x41\xda\x13\xb8\x60\0\0\0",
    ),
    (
        messages.Join("survey", 0, 2, ("10.0.0.5", 50000), NONCE, JOIN_PROOF),
        b"FM\x01\x02\0\0\0\x4b\x96\xa6survey\0\x02\x92\xa810.0.0.5\xcd\xc3\x50\xc4\x10" + NONCE
        + b"\xc4\x20" + JOIN_PROOF,
    ),
    (messages.Welcome(3, WELCOME_PROOF), b"FM\x01\x03\0\0\0\x24\x92\x03\xc4\x20" + WELCOME_PROOF),
    (messages.Ready(), b"FM\x01\x04\0\0\0\x01\x90"),
    (messages.Connect(1), b"FM\x01\x05\0\0\0\x02\x91\x01"),
    (
        messages.Start(9, 1, PAIR, ("198.51.100.4", 40002), ("10.0.0.6", 50001), 0.0125),
        b"FM\x01\x06\0\0\0\x3c\x96\x09\x01\xc4\x10" + PAIR
        + b"\x92\xac198.51.100.4\xcd\x9c\x42\x92\xa810.0.0.6\xcd\xc3\x51\xcb\x3f\x89\x99\x99\x99\x99\x99\x9a",
    ),
    (messages.Connected(9, "punched"), b"FM\x01\x07\0\0\0\x0a\x92\x09\xa7punched"),
    (messages.Unreached(9), b"FM\x01\x08\0\0\0\x02\x91\x09"),
    (messages.Relay(9, TICKET), b"FM\x01\x09\0\0\0\x14\x92\x09\xc4\x10" + TICKET),
    (
        messages.Attach("survey", 0, 9, TICKET, ATTACH_PROOF),
        b"FM\x01\x0a\0\0\0\x3e\x95\xa6survey\0\x09\xc4\x10" + TICKET + b"\xc4\x20" + ATTACH_PROOF,
    ),
    (messages.Attached(), b"FM\x01\x0b\0\0\0\x01\x90"),
    (messages.Failed(9, "no way"), b"FM\x01\x0c\0\0\0\x09\x92\x09\xa6no way"),
    (messages.Next(300), b"FM\x01\x0d\0\0\0\x04\x91\xcd\x01\x2c"),
    (messages.Number(300, 70000), b"FM\x01\x0e\0\0\0\x09\x92\xcd\x01\x2c\xce\0\x01\x11\x70"),
    (messages.Ping(5), b"FM\x01\x0f\0\0\0\x02\x91\x05"),
    (messages.Pong(5), b"FM\x01\x10\0\0\0\x02\x91\x05"),
    (messages.Left(1, "lost"), b"FM\x01\x11\0\0\0\x07\x92\x01\xa4lost"),
    (messages.Leave(), b"FM\x01\x12\0\0\0\x01\x90"),
    (messages.Refused("size", "sizes differ"), b"FM\x01\x13\0\0\0\x13\x92\xa4size\xacsizes differ"),
]  # fmt: skip
NAMES = [type(message).__name__ for message, _ in EXAMPLES]
INVALID_VALUES: dict[Any, list[Any]] = {
    int: [-1, 2**63, 1.0, True, "1", None, [1]],
    float: [1, -0.5, float("nan"), float("inf"), True, None],
    bool: [0, 1, None, "true"],
    str: ["x" * (MAX_TEXT + 1), b"x", 1, None],
    bytes: [b"", b"x" * 15, b"x" * 17, b"x" * 31, b"x" * 33, "x" * 16, None],
    messages.Address: [
        [], ["10.0.0.1"], ["10.0.0.1", 1, 1], ["10.0.0.1", 2**16], ["10.0.0.1", -1], ["10.0.0.1", "1"], ["", 1],
        ["localhost", 1], ["10.0.0", 1], ["10.0.0.1 ", 1], [b"10.0.0.1", 1], [1, 1], "10.0.0.1", None,
    ],
}  # fmt: skip


def decode_frame(frame: bytes) -> Message:
    return decode(frame[:8], frame[8:])


def make_frame(code: int, body: bytes) -> bytes:
    return b"FM\x01" + bytes([code]) + struct.pack(">I", len(body)) + body


def section(number: int) -> str:
    match = re.search(rf"^### {number} .*?(?=^##)", DOCUMENTATION, re.MULTILINE | re.DOTALL)
    assert match
    return match[0]


def test_every_message_has_an_example() -> None:
    assert [type(message) for message, _ in EXAMPLES] == list(TYPES)
    assert [frame[3] for _, frame in EXAMPLES] == list(range(1, len(TYPES) + 1))


@pytest.mark.parametrize(("message", "frame"), EXAMPLES, ids=NAMES)
def test_a_message_has_the_documented_bytes(message: Message, frame: bytes) -> None:
    assert encode(message) == frame
    assert decode_frame(frame) == message
    documented = section(frame[3])
    assert documented.startswith(f"### {frame[3]} {type(message).__name__.upper()} (")
    assert re.findall(r"```\n([0-9a-f]+)\n```", documented) == [frame.hex()]


@pytest.mark.parametrize("kind", TYPES, ids=NAMES)
def test_every_field_is_documented(kind: type[Message]) -> None:
    rows = re.findall(r"^\| (\w+) \| (\w+) \|", section(TYPES.index(kind) + 1), re.MULTILINE)
    documented = [row for row in rows if row not in (("field", "type"), ("code", "when"))]
    words = {"int": "int", "float": "float", "bool": "bool", "str": "text", "Address": "address", "bytes": "nonce"}
    binary = {"proof": "proof", "ticket": "ticket"}
    expected = [(field.name, binary.get(field.name, words[str(field.type)])) for field in fields(kind)]
    assert documented == expected


def test_every_error_code_is_documented() -> None:
    documented = re.findall(r"^\| `(\w+)` \|", DOCUMENTATION, re.MULTILINE)
    used = {
        code
        for source in ("registry", "rendezvous")
        for code in re.findall(r"RequestRefused\(\s*\"(\w+)\"", (SOURCES / f"{source}.py").read_text())
    }
    assert documented == sorted(documented)
    assert set(documented) == used


def test_frames_and_handshakes_between_ranks_have_the_documented_bytes() -> None:
    frames = {DATA: (0x01000007, 3), BEAT: (0, 0), BYE: (0, 0), SELECT: (0, 0), SELECTED: (0, 0)}
    packed = [FRAME.pack(kind, *rest).hex() for kind, rest in frames.items()]
    assert packed[0] == "01000000010000070000000000000003"
    assert re.findall(r"^\| [1-5] \| \w+ \|.*`([0-9a-f]{32})`", DOCUMENTATION, re.MULTILINE) == packed
    one, other = (Handshake(9, rank, 1 - rank, PAIR, TOKEN) for rank in (0, 1))
    assert one.message()[:24] == b"FMIP\x01\0\0\0" + b"\0" * 7 + b"\x09" + b"\0" * 4 + b"\0" * 4
    assert other.message()[:24] == b"FMIP\x01\0\0\0" + b"\0" * 7 + b"\x09" + b"\0\0\0\x01" + b"\0" * 4
    assert f"```\n{one.message().hex()}\n{other.message().hex()}\n```" in DOCUMENTATION
    assert len(one.message()) == HANDSHAKE.size == 56
    assert one.is_from_peer(other.message())
    assert not one.is_from_peer(one.message())


@pytest.mark.parametrize(("message", "frame"), EXAMPLES, ids=NAMES)
def test_a_truncated_or_extended_message_is_invalid(message: Message, frame: bytes) -> None:
    header, body = frame[:8], frame[8:]
    for size in range(len(body)):
        with pytest.raises(ProtocolError):
            decode(header, body[:size])
        with pytest.raises(ProtocolError):
            decode_frame(make_frame(frame[3], body[:size]))
    for more in (b"\0", b"\xc0", body):
        with pytest.raises(ProtocolError):
            decode(header, body + more)
        with pytest.raises(ProtocolError):
            decode_frame(make_frame(frame[3], body + more))


@pytest.mark.parametrize(("message", "frame"), EXAMPLES, ids=NAMES)
def test_a_wrong_number_of_fields_is_invalid(message: Message, frame: bytes) -> None:
    values = msgpack.unpackb(frame[8:])
    wrong = [[*values, 0], [*values, None], {"fields": values}, None, 1, "x", b"x", [values]]
    for body in [*wrong, *([values[:-1]] if values else [])]:
        with pytest.raises(ProtocolError):
            decode_frame(make_frame(frame[3], msgpack.packb(body)))


@pytest.mark.parametrize(("message", "frame"), EXAMPLES, ids=NAMES)
def test_a_field_of_another_type_or_out_of_range_is_invalid(message: Message, frame: bytes) -> None:
    values = msgpack.unpackb(frame[8:])
    for place, (name, kind) in enumerate(get_type_hints(type(message)).items()):
        for wrong in INVALID_VALUES[kind]:
            if isinstance(wrong, int) and wrong == 2**63:
                wrong = struct.pack(">BQ", 0xCF, wrong)
                body = bytes([0x90 + len(values)])
                body += b"".join(wrong if at == place else msgpack.packb(value) for at, value in enumerate(values))
            else:
                body = msgpack.packb([wrong if at == place else value for at, value in enumerate(values)])
            with pytest.raises(ProtocolError, match=type(message).__name__):
                decode_frame(make_frame(frame[3], body))
        if kind is not bool:
            with pytest.raises(ProtocolError, match=name):
                encode(type(message)(**(vars(message) | {name: None})))


@pytest.mark.parametrize("at", range(5))
def test_a_wrong_byte_of_a_header_is_reported(at: int) -> None:
    frame = encode(messages.Ping(5))
    sentences = ["first bytes are", "first bytes are", "of version", "unknown type", "announces"]
    values = {3: [0, len(TYPES) + 1, 255]}.get(at, [value for value in range(256) if value != frame[at]])
    for value in values:
        header = frame[:at] + bytes([value]) + frame[at + 1 : 8]
        with pytest.raises(ProtocolError, match=sentences[at]):
            body_size(header)
        with pytest.raises(ProtocolError, match=sentences[at]):
            decode(header, frame[8:])


def test_a_body_of_another_type_of_message_is_invalid() -> None:
    with pytest.raises(ProtocolError, match="the body of Ready is not an array of 0 fields"):
        decode_frame(make_frame(4, b"\x91\x05"))


def test_the_announced_size_is_limited() -> None:
    assert body_size(b"FM\x01\x13" + struct.pack(">I", MAX_BODY)) == MAX_BODY
    for size in (MAX_BODY + 1, 2**31, 2**32 - 1):
        with pytest.raises(ProtocolError, match=f"announces {size} bytes; expected at most {MAX_BODY}"):
            body_size(b"FM\x01\x13" + struct.pack(">I", size))


def test_the_length_of_texts_in_bytes_is_limited() -> None:
    longest = messages.Refused("x" * MAX_NAME, "ü" * (MAX_TEXT // 2))
    assert decode_frame(encode(longest)) == longest
    assert len(encode(longest)) < 1300
    join = messages.Join("ü" * (MAX_NAME // 2) + "x", 0, 2, ("fe80::1%eth0", 0), NONCE, JOIN_PROOF)
    assert decode_frame(encode(join)) == join
    for wrong in (
        messages.Refused("x" * (MAX_NAME + 1), ""),
        messages.Refused("x", "ü" * (MAX_TEXT // 2) + "x"),
        messages.Join("ü" * 128, 0, 2, ("10.0.0.5", 1), NONCE, JOIN_PROOF),
    ):
        with pytest.raises(ProtocolError):
            encode(wrong)
        with pytest.raises(ProtocolError):
            decode_frame(make_frame(TYPES.index(type(wrong)) + 1, msgpack.packb(list(vars(wrong).values()))))


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",  # never used by msgpack
        b"\x91\xa2\xff\xfe",  # not UTF-8
        b"\x91\xd6\xff\0\0\0\0",  # a timestamp
        b"\x91\xd4\x05\0",  # an extension
        b"\x91\x80",  # a map
        b"\x91\xdf\xff\xff\xff\xff",  # a map of 4 billion
        b"\xdd\xff\xff\xff\xff",  # an array of 4 billion
        b"\x91" * MAX_BODY,  # an array in an array in an array
        b"\xdc\x01\xff" * (MAX_BODY // 3),  # the same, with 511 elements each
        b"\x91\xdb\xff\xff\xff\xff",  # a text of 4 billion
        b"\x91\xc6\xff\xff\xff\xff",  # 4 billion bytes
    ],
)
def test_invalid_data_is_rejected_without_using_memory(body: bytes) -> None:
    tracemalloc.start()
    try:
        for code in range(1, len(TYPES) + 1):
            with pytest.raises(ProtocolError):
                decode_frame(make_frame(code, body[:MAX_BODY]))
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()
