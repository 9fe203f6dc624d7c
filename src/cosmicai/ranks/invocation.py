"""One invocation of a function on AWS Lambda: its identity, its memory and storage, and the time that it has left."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import msgspec

ARCHITECTURES = ("x86_64", "arm64")  # of functions

_calls = count()  # of this process


class InvocationRecord(msgspec.Struct, frozen=True):
    """An invocation as the record of a rank or the note of a function holds it; `seconds` is its duration so far.

    Memory and storage are in MB (2^20 bytes).
    """

    request_id: str
    function: str
    memory_mb: int
    ephemeral_mb: int
    region: str
    architecture: str
    cold_start: bool
    seconds: float


@dataclass(frozen=True)
class Invocation:
    """An invocation in progress. `began` is a time of time.perf_counter; memory and storage are in MB (2^20 bytes).

    A cold invocation began with its process; Lambda starts another process whenever all are busy.
    """

    request_id: str
    function: str
    memory_mb: int
    ephemeral_mb: int
    region: str
    architecture: str
    cold_start: bool
    began: float
    seconds_left: Callable[[], float]

    @staticmethod
    def from_context(context: Any, age: float) -> Invocation:
        """Return the invocation that Lambda's context object describes, in a process that is `age` seconds old."""
        environment = os.environ
        is_cold = not next(_calls)
        return Invocation(
            context.aws_request_id,
            context.function_name,
            int(context.memory_limit_in_mb),
            int(environment.get("COSMICAI_EPHEMERAL_MB", "512")),
            environment.get("AWS_REGION", ""),
            {"aarch64": "arm64"}.get(platform.machine(), platform.machine()),
            is_cold,
            time.perf_counter() - (age if is_cold else 0.0),
            lambda: context.get_remaining_time_in_millis() / 1000,
        )

    def record(self) -> InvocationRecord:
        """Return what a record says of the call, with its seconds so far."""
        return InvocationRecord(
            self.request_id, self.function, self.memory_mb, self.ephemeral_mb, self.region, self.architecture,
            self.cold_start, time.perf_counter() - self.began,
        )  # fmt: skip
