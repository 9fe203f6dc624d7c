"""The cores that this process may use: its CPU affinity, and the quota of its control groups (containers, SLURM)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

MEMBERSHIP, MOUNT_POINT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_cores() -> int:
    """Return the number of cores that affinity and control groups allow (a quota is rounded up); at least 1."""
    allowed = len(allowed_cores()) or os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cgroup_quota())))


def allowed_cores() -> list[int]:
    """Return the numbers of the cores that this process may run on; empty where the system cannot tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin_to_cores(environment: Mapping[str, str]) -> None:
    """Bind this process to the cores that COSMICAI_CORES lists, if the launcher has set it."""
    if listed := environment.get("COSMICAI_CORES"):
        os.sched_setaffinity(0, {int(core) for core in listed.split(",")})


def cgroup_quota(membership: Path = MEMBERSHIP, mount_point: Path = MOUNT_POINT) -> float:
    """Return the cores that the control groups (version 1 or 2) allow this process; infinite without a limit."""
    quotas = {1: _quota_version_1, 2: _quota_version_2}
    groups = control_groups("cpu", membership, mount_point)
    return min((quota for version, folder in groups for quota in quotas[version](folder)), default=math.inf)


def control_groups(
    controller: str, membership: Path = MEMBERSHIP, mount_point: Path = MOUNT_POINT
) -> Iterator[tuple[int, Path]]:
    """Yield version and folder of every control group that may limit this process: its own and all its parents.

    A folder may not exist, since a container does not always see its own path.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = mount_point / controller if controllers else mount_point  # version 1 mounts each controller by itself
        for group in (Path(own), *Path(own).parents):
            yield (1 if controllers else 2), root / str(group).lstrip("/")


def _quota_version_2(folder: Path) -> Iterator[float]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return
    if quota != "max":
        yield int(quota) / int(period)


def _quota_version_1(folder: Path) -> Iterator[float]:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return
    if quota > 0:
        yield quota / period
