"""The messages between a rank and the rendezvous server, and their encoding. PROTOCOL.md documents every byte."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address
from typing import Any, get_type_hints

import msgpack

MAGIC, VERSION = b"FM", 1
HEADER = struct.Struct(">2sBBI")  # magic, version, type, size of the body in bytes
MAX_BODY = 2048  # bytes; the longest message is a REFUSED of less than 1,300
MAX_NAME, MAX_TEXT = 255, 1024  # bytes of UTF-8: of a job, an address or a code; of a sentence
NONCE, PROOF = 16, 32  # bytes
ROUTES = ("private", "punched", "relay")  # of the connection between two ranks
MAX_FIELDS = 8  # of a message

Address = tuple[str, int]  # a numeric IPv4 or IPv6 address and a port


class ProtocolError(Exception):
    """The bytes are not a message of this protocol."""


@dataclass(frozen=True)
class Hello:
    """Server, first: challenge, whether a secret is needed, the client's public address, seconds since 1970."""

    nonce: bytes
    needs_secret: bool
    public: Address
    time: float


@dataclass(frozen=True)
class Join:
    """Client: request to be a rank of a job; `private` is the client's own address, `proof` that of the token."""

    job: str
    rank: int
    size: int
    private: Address
    nonce: bytes
    proof: bytes


@dataclass(frozen=True)
class Welcome:
    """Server: the rank is in this group of the job, which may still be incomplete; `proof` is the server's."""

    group: int
    proof: bytes


@dataclass(frozen=True)
class Ready:
    """Server: all ranks have joined."""


@dataclass(frozen=True)
class Connect:
    """Client: request for a connection to a rank."""

    peer: int


@dataclass(frozen=True)
class Start:
    """Server, to both ranks of a pair: the peer's addresses, and the seconds to wait before connecting."""

    pair: int
    peer: int
    nonce: bytes
    public: Address
    private: Address
    after: float


@dataclass(frozen=True)
class Connected:
    """Client, the lower rank of a pair: the pair is connected; `how` is the route."""

    pair: int
    how: str


@dataclass(frozen=True)
class Unreached:
    """Client, the lower rank of a pair: no direct connection succeeded."""

    pair: int


@dataclass(frozen=True)
class Relay:
    """Server, to both ranks of a pair: open a new connection to the server and present this ticket."""

    pair: int
    ticket: bytes


@dataclass(frozen=True)
class Attach:
    """Client, first on a new connection: request to relay this end of a pair to the other end."""

    job: str
    rank: int
    pair: int
    ticket: bytes
    proof: bytes


@dataclass(frozen=True)
class Attached:
    """Server: both ends are connected; all following bytes are those of the other end."""


@dataclass(frozen=True)
class Failed:
    """Server, to both ranks of a pair: why they cannot, or can no longer, be connected."""

    pair: int
    why: str


@dataclass(frozen=True)
class Next:
    """Client: request for the next number of the job's counter."""

    request: int


@dataclass(frozen=True)
class Number:
    """Server: answer to NEXT, a number that is sent once."""

    request: int
    number: int


@dataclass(frozen=True)
class Ping:
    """Client: heartbeat, to be answered by the server."""

    echo: int


@dataclass(frozen=True)
class Pong:
    """Server: answer to PING."""

    echo: int


@dataclass(frozen=True)
class Left:
    """Server: a rank has left the group; `why` is "left", "lost" or "replaced"."""

    rank: int
    why: str


@dataclass(frozen=True)
class Leave:
    """Client: the rank has completed its work and leaves."""


@dataclass(frozen=True)
class Refused:
    """Server, last: an error code, and a sentence for the user."""

    code: str
    why: str


Message = (
    Hello | Join | Welcome | Ready | Connect | Start | Connected | Unreached | Relay | Attach | Attached | Failed
    | Next | Number | Ping | Pong | Left | Leave | Refused
)  # fmt: skip
TYPES: tuple[type[Message], ...] = (
    Hello, Join, Welcome, Ready, Connect, Start, Connected, Unreached, Relay, Attach, Attached, Failed,
    Next, Number, Ping, Pong, Left, Leave, Refused,
)  # fmt: skip
_CODES = {kind: code for code, kind in enumerate(TYPES, start=1)}
_FIELD_TYPES = {kind: get_type_hints(kind) for kind in TYPES}


def encode(message: Message) -> bytes:
    """Return the frame of a message: header, then its fields as a msgpack array.

    Raises ProtocolError if a field is invalid.
    """
    kind = type(message)
    values = [getattr(message, field.name) for field in fields(message)]
    _check_fields(kind, values)
    body = pack(*values)
    return HEADER.pack(MAGIC, VERSION, _CODES[kind], len(body)) + body


def pack(*values: Any) -> bytes:
    """Return values as a msgpack array, which is also the form in which proofs contain them."""
    return bytes(msgpack.packb(list(values)))


def body_size(header: bytes) -> int:
    """Return the size in bytes of the body that follows a header.

    Raises ProtocolError if it is not a header, of another version, or announces too large a body.
    """
    magic, version, code, size = HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(f"the first bytes are {magic.hex()}; expected {MAGIC.hex()}")
    if version != VERSION:
        raise ProtocolError(f"the message is of version {version} of the protocol; expected {VERSION}")
    if not 1 <= code <= len(TYPES):
        raise ProtocolError(f"the message is of the unknown type {code}; expected 1 to {len(TYPES)}")
    if size > MAX_BODY:
        raise ProtocolError(f"the message announces {size} bytes; expected at most {MAX_BODY}")
    return int(size)


def decode(header: bytes, body: bytes) -> Message:
    """Return the message of a frame. Raises ProtocolError if its fields are not exactly as documented."""
    if len(body) != body_size(header):
        raise ProtocolError(f"the message announces {body_size(header)} bytes and has {len(body)}")
    kind = TYPES[header[3] - 1]
    try:
        values = msgpack.unpackb(
            body,
            use_list=False,
            max_str_len=MAX_TEXT,
            max_bin_len=PROOF,
            max_array_len=MAX_FIELDS,
            max_map_len=0,
            max_ext_len=0,
        )
    except ValueError as error:
        raise ProtocolError(f"the body of {kind.__name__} is not valid msgpack ({error})") from None
    if not isinstance(values, tuple) or len(values) != len(fields(kind)):
        raise ProtocolError(f"the body of {kind.__name__} is not an array of {len(fields(kind))} fields")
    _check_fields(kind, values)
    return kind(*values)


def _check_fields(kind: type[Message], values: Sequence[Any]) -> None:
    for (name, field_type), value in zip(_FIELD_TYPES[kind].items(), values, strict=True):
        if not _is_valid(name, value, field_type):
            raise ProtocolError(f"{kind.__name__} has an invalid {name}")


def _is_valid(name: str, value: Any, kind: Any) -> bool:
    if kind == Address:
        is_pair = type(value) is tuple and len(value) == 2
        return is_pair and _is_valid("host", value[0], str) and _is_valid("port", value[1], int)
    if type(value) is not kind:
        return False
    if kind is bytes:
        return len(value) == (PROOF if name == "proof" else NONCE)
    if kind is str:
        max_size = MAX_TEXT if name == "why" else MAX_NAME
        return len(value.encode()) <= max_size and (name != "host" or _is_ip_address(value))
    if kind is int:
        return bool(0 <= value < (2**16 if name == "port" else 2**63))
    if kind is float:
        return math.isfinite(value) and value >= 0
    return True


def _is_ip_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
