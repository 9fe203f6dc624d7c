"""Runs of a sweep, which lie in folders that say what was varied: partition-25MB/batch-512/world-2/1."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from ..tables import Measured

_RUN = re.compile(r"(.*/)?partition-([0-9.]+)MB/batch-([0-9]+)/world-([0-9]+)/([0-9]+)")


def with_studies(measured: Sequence[Measured]) -> list[Measured]:
    """The runs, those of sweeps with their partition, their repeat and their study.

    All runs of a sweep are of one study, that they can be compared: `world size` if that was varied, else `batch size`
    if that was, else `data size`.
    """
    found = {at: match for at, one in enumerate(measured) if (match := _match(one))}
    varied: defaultdict[str | None, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for match in found.values():
        batch_sizes, world_sizes = varied[match[1]]
        batch_sizes.add(match[3])
        world_sizes.add(match[4])
    runs = list(measured)
    for at, match in found.items():
        batch_sizes, world_sizes = varied[match[1]]
        told = {
            "study": "world size" if len(world_sizes) > 1 else "batch size" if len(batch_sizes) > 1 else "data size",
            "partition_mb": float(match[2]),
            "repeat": int(match[5]),
        }
        runs[at] = Measured({**runs[at].run, **told}, runs[at].ranks)
    return runs


def _match(one: Measured) -> re.Match[str] | None:
    return _RUN.fullmatch(one.run["source"]) if one.run["kind"] == "run" else None
