"""Who am I: the one mapping from environment variables to rank and world size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import InputError
from .cores import available_cores


@dataclass(frozen=True)
class Rank:
    """One worker among `world_size`; `threads` are the cores that are its own."""

    rank: int = 0
    world_size: int = 1
    platform: str = "alone"
    threads: int = 1


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> Rank:
    """This process's place. `python -m launch` sets COSMICAI_RANK, COSMICAI_WORLD_SIZE and COSMICAI_THREADS.

    Raises InputError if one of them is set without the others or is no sensible number.
    """
    names = ("COSMICAI_RANK", "COSMICAI_WORLD_SIZE", "COSMICAI_THREADS")
    values = [environment.get(name) for name in names]
    if values == [None, None, None]:
        return Rank(threads=available_cores())
    try:
        rank, world_size, threads = (int(value or "") for value in values)
    except ValueError:
        shown = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        raise InputError(f"the environment has {shown}; expected three whole numbers, or none of them set") from None
    if not 0 <= rank < world_size or threads < 1:
        raise InputError(f"rank {rank} of {world_size} with {threads} threads is impossible; unset {', '.join(names)}")
    return Rank(rank, world_size, "local", threads)


def environment_for(rank: Rank) -> dict[str, str]:
    """The variables from which `rank_from_environment` gives this rank back."""
    return {
        "COSMICAI_RANK": str(rank.rank),
        "COSMICAI_WORLD_SIZE": str(rank.world_size),
        "COSMICAI_THREADS": str(rank.threads),
    }
