"""Recognize runs of a sweep by their folders, which name what was varied: partition-25MB/batch-512/world-2/1."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..tables import MeasuredRun

_RUN = re.compile(r"(.*/)?partition-([0-9]{1,9}(?:\.[0-9]{1,9})?)MB/batch-([0-9]+)/world-([0-9]+)/([0-9]{1,9})")


def assign_studies(measured: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs, those of sweeps with their partition, repeat and study.

    All runs of a sweep get the same study so that they can be compared: `world size` if that was varied, else
    `batch size` if that was, else `data size`.
    """
    found = {place: match for place, one in enumerate(measured) if (match := _match_folder(one))}
    varied: defaultdict[str | None, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for match in found.values():
        batch_sizes, world_sizes = varied[match[1]]
        batch_sizes.add(match[3])
        world_sizes.add(match[4])
    runs = list(measured)
    for place, match in found.items():
        batch_sizes, world_sizes = varied[match[1]]
        settings = {
            "study": "world size" if len(world_sizes) > 1 else "batch size" if len(batch_sizes) > 1 else "data size",
            "partition_mb": float(match[2]) or None,
            "repeat": int(match[5]),
        }
        runs[place] = replace(runs[place], run={**runs[place].run, **settings})
    return runs


def _match_folder(one: MeasuredRun) -> re.Match[str] | None:
    return _RUN.fullmatch(one.run["source"]) if one.run["kind"] == "run" else None
