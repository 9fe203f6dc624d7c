"""The messages between a rank and the rendezvous server, and how they are framed. PROTOCOL.md has every byte."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from ipaddress import ip_address
from typing import Any, get_type_hints

import msgpack

MAGIC, VERSION = b"FM", 1
HEADER = struct.Struct(">2sBBI")  # magic, version, type, bytes of the body
MAX_BODY = 2048  # bytes; the longest message is a REFUSED, of less than 1,300
MAX_NAME, MAX_TEXT = 255, 1024  # bytes of UTF-8: of a job, an address, a code; of a sentence
NONCE, PROOF = 16, 32  # bytes
ROUTES = ("private", "punched", "relay")  # how two ranks are connected
MOST_FIELDS = 8  # of a message

Address = tuple[str, int]  # a numeric IPv4 or IPv6 address and a port


class ProtocolError(Exception):
    """Bytes that are no message of this protocol."""


@dataclass(frozen=True)
class Hello:
    """Server, first: a challenge, whether a secret is needed, whom it sees, and its clock (seconds since 1970)."""

    nonce: bytes
    needs_secret: bool
    public: Address
    time: float


@dataclass(frozen=True)
class Join:
    """Client: wants to be this rank of this job; `private` is the client's own address, `proof` that of the token."""

    job: str
    rank: int
    size: int
    private: Address
    nonce: bytes
    proof: bytes


@dataclass(frozen=True)
class Welcome:
    """Server: the rank is in this group of the job, of which others may still be missing; the server's own proof."""

    group: int
    proof: bytes


@dataclass(frozen=True)
class Ready:
    """Server: all ranks have come."""


@dataclass(frozen=True)
class Connect:
    """Client: wants a connection to a rank."""

    peer: int


@dataclass(frozen=True)
class Start:
    """Server, to both of a pair: where the other may be reached, and after how many seconds to begin."""

    pair: int
    peer: int
    nonce: bytes
    public: Address
    private: Address
    after: float


@dataclass(frozen=True)
class Connected:
    """Client, the lower rank of a pair: they talk, and how ("private", "punched" or "relay")."""

    pair: int
    how: str


@dataclass(frozen=True)
class Unreached:
    """Client, the lower rank of a pair: no address of the other worked."""

    pair: int


@dataclass(frozen=True)
class Relay:
    """Server, to both of a pair: connect to me anew, and show this ticket."""

    pair: int
    ticket: bytes


@dataclass(frozen=True)
class Attach:
    """Client, first on a new connection: this end of a pair wants to be relayed to the other end."""

    job: str
    rank: int
    pair: int
    ticket: bytes
    proof: bytes


@dataclass(frozen=True)
class Attached:
    """Server: both ends are there; what follows is the other end's."""


@dataclass(frozen=True)
class Failed:
    """Server, to both of a pair: they cannot, or can no longer, be connected, and why."""

    pair: int
    why: str


@dataclass(frozen=True)
class Next:
    """Client: wants the next number of the job's counter; the answer has the same `request`."""

    request: int


@dataclass(frozen=True)
class Number:
    """Server: a number that nobody else gets."""

    request: int
    number: int


@dataclass(frozen=True)
class Ping:
    """Client: is here; wants to know whether the server is."""

    echo: int


@dataclass(frozen=True)
class Pong:
    """Server: the answer."""

    echo: int


@dataclass(frozen=True)
class Left:
    """Server: a rank is gone; `why` is "left", "lost" or "replaced"."""

    rank: int
    why: str


@dataclass(frozen=True)
class Leave:
    """Client: goes, having done all."""


@dataclass(frozen=True)
class Refused:
    """Server, last: a code in one word, and a sentence for the user."""

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
_HINTS = {kind: get_type_hints(kind) for kind in TYPES}


def encode(message: Message) -> bytes:
    """The frame of a message: header, then its fields as a msgpack array. Raises ProtocolError if a field is wrong."""
    kind = type(message)
    values = [getattr(message, field.name) for field in fields(message)]
    _check(kind, values)
    body = packed(*values)
    return HEADER.pack(MAGIC, VERSION, _CODES[kind], len(body)) + body


def packed(*values: Any) -> bytes:
    """Values as a msgpack array; what is proved by a token is written the same way."""
    return bytes(msgpack.packb(list(values)))


def body_size(header: bytes) -> int:
    """How many bytes follow a header. Raises ProtocolError if it is none, of another version, or announces too many."""
    magic, version, code, size = HEADER.unpack(header)
    if magic != MAGIC:
        raise ProtocolError(f"the first bytes are {magic.hex()}; expected {MAGIC.hex()}")
    if version != VERSION:
        raise ProtocolError(f"the message is of version {version} of the protocol; expected {VERSION}")
    if not 1 <= code <= len(TYPES):
        raise ProtocolError(f"there is no message of type {code}")
    if size > MAX_BODY:
        raise ProtocolError(f"the message announces {size} bytes; expected at most {MAX_BODY}")
    return int(size)


def decode(header: bytes, body: bytes) -> Message:
    """The message of a frame. Raises ProtocolError if a field is missing, too many, too large or of another type."""
    if len(body) != body_size(header):
        raise ProtocolError(f"the message announces {body_size(header)} bytes and has {len(body)}")
    kind = TYPES[header[3] - 1]
    try:
        values = msgpack.unpackb(
            body,
            use_list=False,
            max_str_len=MAX_TEXT,
            max_bin_len=PROOF,
            max_array_len=MOST_FIELDS,
            max_map_len=0,
            max_ext_len=0,
        )
    except ValueError as error:
        raise ProtocolError(f"the body of {kind.__name__} is no msgpack ({error})") from None
    if not isinstance(values, tuple) or len(values) != len(fields(kind)):
        raise ProtocolError(f"the body of {kind.__name__} is no array of {len(fields(kind))}")
    _check(kind, values)
    return kind(*values)


def _check(kind: type[Message], values: Sequence[Any]) -> None:
    for (name, hint), value in zip(_HINTS[kind].items(), values, strict=True):
        if not _fits(name, value, hint):
            raise ProtocolError(f"{kind.__name__} has a {name} that is none")


def _fits(name: str, value: Any, kind: Any) -> bool:
    if kind == Address:
        return (
            type(value) is tuple and len(value) == 2 and _fits("host", value[0], str) and _fits("port", value[1], int)
        )
    if type(value) is not kind:
        return False
    if kind is bytes:
        return len(value) == (PROOF if name == "proof" else NONCE)
    if kind is str:
        return len(value.encode()) <= (MAX_TEXT if name == "why" else MAX_NAME) and (name != "host" or _is_ip(value))
    if kind is int:
        return bool(0 <= value < (2**16 if name == "port" else 2**63))
    if kind is float:
        return math.isfinite(value) and value >= 0
    return True


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
