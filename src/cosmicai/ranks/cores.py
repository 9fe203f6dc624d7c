"""How many cores are really ours: the processors we may run on, and the share of them that a container grants."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may use, by its cpuset and its cgroup's quota (rounded up); at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cgroup_quota())))


def cgroup_quota(membership: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that the kernel's control groups (version 2 or 1) grant this process; infinite where they set no limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return math.inf
    return min((quota for line in lines for quota in _quotas(line, mounted)), default=math.inf)


def _quotas(line: str, mounted: Path) -> Iterator[float]:
    _, controllers, own = line.split(":", 2)
    if controllers and "cpu" not in controllers.split(","):
        return
    root = mounted / "cpu" if controllers else mounted  # version 1 mounts each controller apart
    # Every group above ours limits us too; inside a container our own path may not be visible.
    for group in (Path(own), *Path(own).parents):
        folder = root / str(group).lstrip("/")
        yield from _version_1(folder) if controllers else _version_2(folder)


def _version_2(folder: Path) -> Iterator[float]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return
    if quota != "max":
        yield int(quota) / int(period)


def _version_1(folder: Path) -> Iterator[float]:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return
    if quota > 0:
        yield quota / period
