"""The image's functions on AWS Lambda."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.ranks.environment import rank_from_environment
from cosmicai.run.folder import RunFolder
from cosmicai.run.work import work


def infer(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Does one rank's share of a run and returns its record.

    The event has `run`, a run folder that holds a plan (`cosmicai plan`), and the rank's number `rank` among
    `world_size`. Raises InputError, by which the invocation fails, as `work` does or if the event is another.
    """
    run, rank, world_size = (event.get(name) for name in ("run", "rank", "world_size"))
    if not isinstance(run, str) or type(rank) is not int or type(world_size) is not int or not 0 <= rank < world_size:
        expected = '{"run": "s3://BUCKET/RUN", "rank": 0, "world_size": 8}'
        raise InputError(f"the event {event} is not one rank's share of a run; expected one such as {expected}")
    here = replace(rank_from_environment(), rank=rank, world_size=world_size)
    return work(RunFolder(storage.absolute(run)), here, schedule="static")
