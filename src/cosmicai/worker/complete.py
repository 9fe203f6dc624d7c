"""Do what is missing of a run in this process alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ..ranks.environment import Rank
from ..runs.store import RunFolder
from ..runs.summary import Summary
from . import loop
from .sources import select_source

Progress = Callable[[int, int], AbstractContextManager[Callable[[int], None]]]


def no_progress(total: int, completed: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show nothing."""
    return nullcontext(lambda galaxies: None)


def complete_run(run: RunFolder, rank: Rank, progress: Progress = no_progress) -> Summary:
    """Do what is missing of a run, write catalogue and summary, and return the summary.

    `progress` is called with the number of galaxies and of those that are done already; the function that it yields is
    called with the number of galaxies of each prediction. Raises InputError as `loop.run` and `summarize`.
    """
    plan = run.plan()
    completed = plan.galaxies_of(run.parts())
    if completed < plan.galaxies:
        with progress(plan.galaxies, completed) as advance:
            loop.run(run, rank, select_source(run, rank), loop.WorkerOptions(advance))
    # Imported after the engine has released its memory, since tables and plots need 50 MB of code.
    from ..runs.summarize import summarize

    return summarize(run)
