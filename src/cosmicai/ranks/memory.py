"""The memory that is available to this process, and the memory that ranks need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .cores import control_groups

# MB (2^20 bytes) of the first rank of a machine, and of each further one, as measured by `cosmicai bench ranks`.
MEASURED_MB = {"openvino": (300.0, 200.0)}


def memory_of_ranks_mb(engine: str, ranks: int) -> float | None:
    """Return the memory that ranks on one machine need, in MB; None for an engine that was not measured."""
    if engine not in MEASURED_MB:
        return None
    first, further = MEASURED_MB[engine]
    return first + further * (ranks - 1)


def available_memory_mb(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Return the memory that system and control groups leave to this process, in MB; None if that is unknown."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        return None
    return min([free, *_left_by_control_groups_mb()])


def _left_by_control_groups_mb() -> Iterator[float]:
    """Yield limit minus use of each control group; cached files do not count, since the kernel can evict them."""
    for version, folder in control_groups("memory"):
        limit, used = ("memory.max", "memory.current") if version == 2 else (
            "memory.limit_in_bytes", "memory.usage_in_bytes"
        )  # fmt: skip
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            yield (int((folder / limit).read_text()) - int((folder / used).read_text()) + cached) / 2**20
        except (OSError, ValueError):  # the group does not exist here, or its limit is "max"
            continue
