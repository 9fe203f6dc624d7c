"""Check the instructions of a pickle before any of them is carried out.

A pickle is a program for a small machine with a stack and a memo. Even one that may only build lists, tuples and
dictionaries can crash a process (the hash of a deep tuple), occupy it for ever (the hash of a tuple that holds itself
twice on 60 levels) or fill its memory (an instruction of 12 bytes that creates 3 GB). The scan goes through the
instructions once and builds nothing: it knows of each value on the stack only whether it is text, an integer or
something else, and how deep it is.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from ..errors import InputError, UnsafePickleError


@dataclass(frozen=True)
class PickleLimits:
    """What a pickle may need: bytes, instructions, values within values, on the stack and in the memo."""

    size: int
    instructions: int
    depth: int
    stack: int
    memo: int


PARTITION_LIMITS = PickleLimits(size=2**16, instructions=2**14, depth=32, stack=512, memo=4096)  # used: 365 bytes
CHECKPOINT_LIMITS = PickleLimits(size=2**22, instructions=2**20, depth=500, stack=10_000, memo=2**18)  # used: 134 KiB

# A value on the stack is its text, _INTEGER, _OTHER, _MARK, or, if it can hold values, a list of one number: its depth.
_INTEGER: Final = 0
_OTHER: Final = None
_MARK: Final = object()

_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})
_TEXTS = frozenset({"BINUNICODE", "SHORT_BINUNICODE"})
_INTEGERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1"})
_OTHERS = frozenset({"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "EMPTY_TUPLE"})
_HOLDERS = {"EMPTY_LIST": 0, "EMPTY_DICT": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2,
            "BINPERSID": 1}  # a new value that holds this number of values  # fmt: skip


def check_pickle(uri: str, data: bytes, allowed: Iterable[str], limits: PickleLimits) -> None:
    """Check all instructions of a pickle, of which none is carried out.

    Raises UnsafePickleError if it names a global that is not `allowed`, InputError if it has an instruction that no
    file of torch.save needs, a dictionary with keys other than text and integers, more than the limits, or is damaged.
    """
    if len(data) > limits.size:
        raise _too_large(uri, "bytes", limits.size)
    scan = _Scan(uri, frozenset(allowed), limits)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number >= limits.instructions:
                raise _too_large(uri, "instructions", limits.instructions)
            scan.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, ValueError) as error:  # genops raises ValueError
        raise damaged_pickle(uri, error) from None


def damaged_pickle(uri: str, error: Exception) -> InputError:
    """Return the error for a pickle that does not describe what it should; `error` says why, at any length."""
    return InputError(f"{uri} is damaged: its pickle cannot be read ({str(error)[:200]}); copy it again")


def unsafe_global(uri: str, name: str) -> UnsafePickleError:
    """Return the error for a pickle that names a global that it may not."""
    return UnsafePickleError(
        f"{uri} names {name}, which is not among the globals such a file needs; "
        "nothing of it was executed, and it must not be trusted"
    )


def _too_large(uri: str, what: str, limit: int) -> InputError:
    return InputError(
        f"{uri} is refused: its pickle has more than {limit} {what}, and no model or partition needs as many; "
        "save it again with torch.save"
    )


class _Scan:
    """The kinds of the values on the stack and in the memo."""

    def __init__(self, uri: str, allowed: frozenset[str], limits: PickleLimits) -> None:
        self.uri, self.allowed, self.limits = uri, allowed, limits
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.others: dict[str, Callable[[], object]] = {
            "MARK": lambda: self.stack.append(_MARK),
            "TUPLE": lambda: self.push_holder(self.pop_to_mark()),
            "APPEND": lambda: self.put_into(self.pop(1)),
            "APPENDS": lambda: self.put_into(self.pop_to_mark()),
            "BUILD": lambda: self.put_into(self.pop(1)),
            "SETITEM": lambda: self.set_items(self.pop(2)),
            "SETITEMS": lambda: self.set_items(self.pop_to_mark()),
            "STACK_GLOBAL": lambda: self.push_global(*self.pop(2)),
            "MEMOIZE": lambda: self.remember(len(self.memo)),
            "POP": self.stack.pop,
            "POP_MARK": self.pop_to_mark,
        }

    def step(self, name: str, argument: Any) -> None:
        """Take account of one instruction."""
        if name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.remember(argument)
        elif name in _HOLDERS:
            self.push_holder(self.pop(_HOLDERS[name]))
        elif name in _OTHERS:
            self.stack.append(_OTHER)
        elif name in _TEXTS:
            self.stack.append(argument)
        elif name in _INTEGERS:
            if argument.bit_length() > 128:
                raise _too_large(self.uri, "bits in a number", 128)
            self.stack.append(_INTEGER)
        elif name == "GLOBAL":
            self.push_global(*argument.split(" ", 1))
        elif name in self.others:
            self.others[name]()
        elif name not in _NOTHING:
            raise InputError(
                f"{self.uri} is refused: its pickle holds the instruction {name}, which no file of torch.save needs; "
                "save it again with torch.save and its own pickle protocol, 2"
            )
        if len(self.stack) > self.limits.stack:
            raise _too_large(self.uri, "values on its stack", self.limits.stack)

    def pop(self, count: int) -> list[Any]:
        """Remove values from the stack and return them."""
        values = self.stack[len(self.stack) - count :] if count else []
        if len(values) < count or any(value is _MARK for value in values):
            raise ValueError("its stack is too short")
        del self.stack[len(self.stack) - count :]
        return values

    def pop_to_mark(self) -> list[Any]:
        """Remove the values down to the last mark, and the mark; return the values."""
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def push_holder(self, values: list[Any]) -> None:
        """Push a new value that holds these."""
        self.stack.append([self.depth_around(values)])

    def put_into(self, values: list[Any]) -> None:
        """Put values into the one that is on top, which may become deeper by that."""
        top = self.stack[-1]
        if not isinstance(top, list):
            raise ValueError("it puts values into something that cannot hold any")
        # What holds the top already is not counted as deeper; nothing in this program goes down into such values.
        top[0] = max(top[0], self.depth_around(values))

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values in turn into the dictionary on top."""
        if not all(isinstance(key, str) or key is _INTEGER for key in items[::2]):
            raise InputError(
                f"{self.uri} is refused: its pickle has a dictionary with keys other than text and integers, which "
                "no model or partition needs; save it again with torch.save"
            )
        self.put_into(items)

    def depth_around(self, values: list[Any]) -> int:
        """Return the depth of a value that holds these. Raises InputError if it is above the limit."""
        depth: int = 1 + max((value[0] for value in values if isinstance(value, list)), default=0)
        if depth > self.limits.depth:
            raise _too_large(self.uri, "levels of values within values", self.limits.depth)
        return depth

    def push_global(self, module: object, name: object) -> None:
        """Push a global, which must be an allowed one."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("the name of a global is not text")
        if f"{module}.{name}" not in self.allowed:
            raise unsafe_global(self.uri, f"{module}.{name}")
        self.push_holder([])

    def remember(self, index: int) -> None:
        """Put the value on top into the memo."""
        if index >= self.limits.memo:
            raise _too_large(self.uri, "values in its memo", self.limits.memo)
        self.memo[index] = self.stack[-1]
