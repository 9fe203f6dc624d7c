"""How much memory is free for us, and how much ranks were measured to need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .cores import control_groups

# MB (2^20 bytes) of the first rank of a machine, and of each more: see `cosmicai bench ranks` in the README.
MEASURED_MB = {"openvino": (300.0, 200.0)}


def memory_of_ranks_mb(engine: str, ranks: int) -> float | None:
    """What so many ranks of one machine need, in MB; None for an engine that was not measured."""
    if engine not in MEASURED_MB:
        return None
    first, more = MEASURED_MB[engine]
    return first + more * (ranks - 1)


def available_memory_mb(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory that the system and our control groups would still give, in MB; None where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        return None
    return min([free, *_granted_mb()])


def _granted_mb() -> Iterator[float]:
    """What each of our control groups has left; what it caches of files can be had back."""
    for version, folder in control_groups("memory"):
        limit, used = ("memory.max", "memory.current") if version == 2 else (
            "memory.limit_in_bytes", "memory.usage_in_bytes"
        )  # fmt: skip
        try:
            statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
            yield (int((folder / limit).read_text()) - int((folder / used).read_text()) + cached) / 2**20
        except (OSError, ValueError):  # no such group here, or "max"
            continue
