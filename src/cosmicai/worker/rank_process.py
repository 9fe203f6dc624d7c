"""A process as one rank of a run: set up cores, GPU, log and communication, work, and summarize at the end."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

from ..console import echo
from ..console.command_line import COMPLETE, INCOMPLETE
from ..console.progress import poll_progress
from ..ranks.connect import connect
from ..ranks.cores import pin_to_cores
from ..ranks.environment import Rank
from ..ranks.gpus import own_gpu
from ..runs.record import Record
from ..runs.store import RunFolder
from . import loop
from .sources import select_source
from .supervisor_socket import supervisor_from_environment

# Folder for what the ranks print, set by a launcher that does not supervise each rank. Such a launcher shows the
# progress and summarizes the run.
LOG_FOLDER_VARIABLE = "COSMICAI_LOGS"


def run_rank(run: RunFolder, rank: Rank, schedule: str) -> int:
    """Run one rank of a run in this process and return the exit code.

    If the ranks can communicate, they end together: rank 0 shows the progress of all and summarizes the run at the end.
    If they cannot, the last rank summarizes it, and one that leaves items which no other rank is at work on returns 3.
    Where a launcher watches the ranks, it summarizes the run. Raises InputError as `loop.run` does.
    """
    pin_to_cores(os.environ)
    plan = run.plan()
    os.environ.update(own_gpu(rank.local_rank, os.environ))
    with ExitStack() as stack:
        if logs := os.environ.get(LOG_FOLDER_VARIABLE):
            _redirect_output(Path(logs, f"{rank.rank}.log"))
        supervisor = supervisor_from_environment(os.environ)
        communicator = None if supervisor else stack.enter_context(connect(rank, os.environ, plan.device))
        leads = communicator is not None and rank.rank == 0 and not logs
        with ExitStack() as display:
            if leads:
                display.enter_context(poll_progress(plan.galaxies, lambda: plan.galaxies_of(run.parts())))
            record = loop.run(run, rank, supervisor or select_source(run, rank, schedule, communicator))
            if communicator is not None:
                communicator.barrier()
        echo(f"rank {rank.rank} of {rank.world_size}: {record.galaxies} galaxies in {record.items} items")
        if supervisor or logs:
            return 0
        if communicator is None:
            return _summarize_if_last(run, rank, record)
        return int(communicator.broadcast(_summarize(run) if leads else None))


def _summarize_if_last(run: RunFolder, rank: Rank, record: Record) -> int:
    """Summarize the run if no other rank has anything left to do; two ranks that end at once write the same."""
    plan, done = run.plan(), run.parts()
    failed = {failure.item for failure in run.failures() if failure.submission == rank.submission}
    left = [item for item in plan.items if item not in done and item.name not in failed]
    if left:
        galaxies = sum(item.galaxies for item in left)
        watch = f"`python -m launch status {run.uri}` shows their progress"
        # In this order: a claimant that ended in between has left a part or a failure.
        if all(
            run.is_held(item, rank) or run.has_part(item) or run.has_failed_in(rank.submission, item) for item in left
        ):
            echo(f"{galaxies} galaxies are left to other ranks, which are at work; {watch}")
            return COMPLETE
        echo(f"incomplete: {galaxies} galaxies are left to other ranks, which may not have started; {watch}", err=True)
        return INCOMPLETE
    if not record.items and run.complete_summary():
        return 0
    return _summarize(run)


def _summarize(run: RunFolder) -> int:
    # Imported only by the rank that summarizes: tables and plots would slow down the start of every rank.
    from ..runs.summarize import summarize
    from ..runs.summary_text import print_summary

    run.remove_leftovers()
    return print_summary(summarize(run))


def _redirect_output(path: Path) -> None:
    """Append what this process and its libraries print to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())
