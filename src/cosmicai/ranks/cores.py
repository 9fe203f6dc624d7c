"""How many cores are really ours: the processors we may run on, and the share of them that a container grants."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

MEMBERSHIP, MOUNTED = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Cores that this process may use, by its cpuset and its cgroup's quota (rounded up); at least 1."""
    allowed = len(allowed_cores()) or os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cgroup_quota())))


def allowed_cores() -> list[int]:
    """Numbers of the cores that this process may run on; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(environment: Mapping[str, str]) -> None:
    """Binds this process to the cores that COSMICAI_CORES lists, as `launch` sets it."""
    if listed := environment.get("COSMICAI_CORES"):
        os.sched_setaffinity(0, {int(core) for core in listed.split(",")})


def cgroup_quota(membership: Path = MEMBERSHIP, mounted: Path = MOUNTED) -> float:
    """Cores that the kernel's control groups (version 2 or 1) grant this process; infinite where they set no limit."""
    quotas = {1: _version_1, 2: _version_2}
    groups = control_groups("cpu", membership, mounted)
    return min((quota for version, folder in groups for quota in quotas[version](folder)), default=math.inf)


def control_groups(
    controller: str, membership: Path = MEMBERSHIP, mounted: Path = MOUNTED
) -> Iterator[tuple[int, Path]]:
    """Version and folder of every control group that may limit this process, its own and those above.

    Inside a container our own path may not be visible, so a folder need not exist.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mounted / controller if controllers else mounted  # version 1 mounts each controller apart
        for group in (Path(own), *Path(own).parents):
            yield (1 if controllers else 2), root / str(group).lstrip("/")


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
