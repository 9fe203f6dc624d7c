"""Which process this is, so that another one can find out whether it is still alive."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from contextlib import suppress
from functools import cache
from pathlib import Path

_NAME = re.compile(r"([0-9a-f]{8})-(\d{1,10})-(\d{1,20})")


def process_start_time(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None if no such process is alive."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if state in "ZX" else numbers[18]  # a zombie remains where its parent does not wait for it


def process_name() -> str:
    """Return a name of this process, `SYSTEM-PID-START`, that no other one has, also on other machines."""
    pid = os.getpid()  # not cached: a process that forks has another name than its child
    return f"{_system()}-{pid}-{process_start_time(pid) or 0}"


def has_ended(name: str) -> bool | None:
    """Return whether the process with this name has ended; None if that cannot be seen from here."""
    match = _NAME.fullmatch(name)
    if not match or match[1] != _system() or match[3] == "0":
        return None
    return process_start_time(int(match[2])) != match[3]


@cache
def _system() -> str:
    """Return a name of this boot of this machine and of the numbering of its processes, which a container may have."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]
