"""One call of a function on AWS Lambda: which it is, what it may use, and how long it has."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

_calls = count()  # of this process


@dataclass(frozen=True)
class Invocation:
    """A call of a function. `began` is of time.perf_counter; memory and storage are in MB (2^20 bytes).

    A cold one began with its process, of which Lambda starts another whenever all are busy.
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
    def of(context: Any, age: float) -> Invocation:
        """The call that Lambda's context object describes, in a process of so many seconds."""
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

    def record(self) -> dict[str, Any]:
        """What a record says of it; `seconds` are those so far, of a cold one from the start of its process."""
        return {
            "request_id": self.request_id,
            "function": self.function,
            "memory_mb": self.memory_mb,
            "ephemeral_mb": self.ephemeral_mb,
            "region": self.region,
            "architecture": self.architecture,
            "cold_start": self.cold_start,
            "seconds": time.perf_counter() - self.began,
        }
