"""A run by the plan of another run folder, repeated in new folders to measure it."""

from __future__ import annotations

from ..ranks.environment import Rank
from ..runs.record import Record
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from ..worker import loop
from ..worker.sources import select_source


def repeat_run(planned: RunFolder, run: RunFolder, threads: int) -> Record:
    """Do the work of a planned run in another, empty folder with one rank in this process, and return its record."""
    plan = planned.plan()
    run.write_plan(plan)
    if name := plan.quantized:
        run.write_quantized(planned.read_quantized(name))
    rank = Rank(threads=threads)
    return loop.run(run, rank, select_source(run, rank))


def drop_file_cache(survey: Survey) -> None:
    """Let the system forget what it has read of the survey, so that the next run reads it from the disk."""
    for entry in survey.shards:
        with survey.open(entry) as shard:
            shard.drop_cached(0, shard.galaxies)
