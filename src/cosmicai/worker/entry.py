"""A process as one rank of a run: where it stands, what it may use, whom it talks to; then it works."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from ..console.progress import polled
from ..ranks.communicator import connect
from ..ranks.cores import pin
from ..ranks.environment import Rank
from ..ranks.gpus import own_gpu
from ..runs.store import RunFolder
from .loop import work
from .supervised import launcher_of

# Set by a launcher that cannot watch over each rank: the folder for what they print. It shows progress and concludes.
LOGS = "COSMICAI_LOGS"


def run_rank(run: RunFolder, rank: Rank, schedule: str) -> int:
    """Does one rank's part of a run and returns the exit code.

    Ranks that talk to each other end together: rank 0, which shows the progress of all, then summarizes the run. Of
    those of one submission that do not, the last one does. Raises InputError as `work` does.
    """
    pin(os.environ)
    plan = run.plan()
    os.environ.update(own_gpu(rank.local_rank, os.environ))
    with ExitStack() as stack:
        if logs := os.environ.get(LOGS):
            _log_to(Path(logs, f"{rank.rank}.log"))
        launcher = launcher_of(os.environ)
        talking = None if launcher else stack.enter_context(connect(rank, os.environ, plan.device))
        leads = talking is not None and rank.rank == 0 and not logs
        with ExitStack() as showing:
            if leads:
                showing.enter_context(polled(plan.galaxies, lambda: plan.galaxies_of(run.parts())))
            record = work(run, rank, communicator=talking, launcher=launcher, schedule=schedule)
            if talking is not None:
                talking.barrier()
        click.echo(f"rank {rank.rank} of {rank.world_size}: {record['galaxies']} galaxies in {record['items']} items")
        if talking is None and rank.submission:
            return _concluded_by_the_last(run, record)
        if talking is None or logs:
            return 0
        return int(talking.broadcast(_concluded(run) if leads else None))


def _concluded_by_the_last(run: RunFolder, record: dict[str, Any]) -> int:
    """Summarizes the run if nothing is left that another rank may still do; two that end at once write the same."""
    plan, done = run.plan(), run.parts()
    failed = {failure["item"] for failure in run.failures()}
    left = sum(item.galaxies for item in plan.items if item not in done and item.name not in failed)
    if left:
        click.echo(f"{left} galaxies are left to other ranks; `python -m launch status {run.uri}` tells how it stands")
        return 0
    if not record["items"] and run.complete_summary():
        return 0
    return _concluded(run)


def _concluded(run: RunFolder) -> int:
    from ..runs.summary import summarize
    from ..runs.summary_text import conclude

    return conclude(summarize(run))


def _log_to(path: Path) -> None:
    """Sends what this process and its libraries print to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
