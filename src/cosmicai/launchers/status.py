"""`python -m launch status`: show how a run stands, once or until it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import click
import msgspec
from rich.console import Console
from rich.live import Live

from ..console import make_console
from ..errors import StorageError
from ..runs.store import RunFolder
from .base import Launcher, RemoteStatus
from .lock import HEARTBEAT_SECONDS, MISSED_HEARTBEATS
from .registry import launchers_of
from .run_status import RunStatus, UnplannedRun, run_status
from .status_document import encode_document, status_document
from .status_text import render_status

REFRESH_INTERVAL = 2.0  # seconds
REMOTE_INTERVAL = 10.0  # seconds between requests to SLURM or AWS
MAX_FAILURES = 30  # one after the other, of a storage that does not answer: a minute

Show = Callable[[RunStatus | UnplannedRun, RemoteStatus], None]


def show_status(run: RunFolder, watch: bool, every_rank: bool = False, metrics: str | None = None) -> int:
    """Print how a run stands and return the exit code: 0 if it is complete, else 3.

    With `watch` this goes on until the run has ended: it is complete, or nothing is at work on it and nothing will be.
    A terminal shows the newest state in place; other output gets a block for every state that differs from the last
    one. Raises InputError if there is no plan, nor a job in SLURM's queue or an execution that will write one.
    """
    console, launchers = make_console(), launchers_of(run)
    remote = remote_status(run, launchers)
    status = _read_status(run, remote)
    if not watch:
        _write_metrics(metrics, status)
        console.print(render_status(status, remote, every_rank))
        return 0 if status.is_complete else 3
    with _live_display(console, every_rank) as show_on_console:

        def show(status: RunStatus | UnplannedRun, remote: RemoteStatus) -> None:
            _write_metrics(metrics, status)
            show_on_console(status, remote)

        status = _watch(run, launchers, status, remote, show)
    return 0 if status.is_complete else 3


def print_status_document(run: RunFolder, metrics: str | None = None) -> int:
    """Print how a run stands as a JSON document; else as `show_status`."""
    remote = remote_status(run, launchers_of(run))
    status = _read_status(run, remote)
    _write_metrics(metrics, status)
    click.echo(encode_document(status_document(status, remote)))
    return 0 if status.is_complete else 3


def remote_status(run: RunFolder, launchers: Iterable[Launcher]) -> RemoteStatus:
    """Return how the work of all launchers on a run stands together."""
    found = [launcher.status(run) for launcher in launchers]
    return RemoteStatus(
        working=tuple(line for status in found for line in status.working),
        ended=tuple(line for status in found for line in status.ended),
        writer=next((status.writer for status in found if status.writer), None),
        run=next((status.run for status in found if status.run), None),
        is_exclusive=any(status.is_exclusive for status in found),
        usage=next((status.usage for status in found if status.usage), None),
    )


def _write_metrics(path: str | None, status: RunStatus | UnplannedRun) -> None:
    if path is not None:
        from .metrics import write_metrics  # which needs prometheus_client

        write_metrics(path, status)


def _watch(
    run: RunFolder, launchers: Iterable[Launcher], status: RunStatus | UnplannedRun, remote: RemoteStatus, show: Show
) -> RunStatus | UnplannedRun:
    """Show how a run stands until it has ended, and return its last state.

    Whether it has ended is decided with what SLURM or AWS say at that moment.
    """
    requested_at, failures, is_new = time.monotonic(), 0, True
    heartbeat = _LauncherHeartbeat()
    while True:
        status = heartbeat.check(status)
        ended = _has_ended(status, remote)
        if ended and is_new:
            break
        if not ended:
            show(status, remote)
        if not ended or failures:
            time.sleep(REFRESH_INTERVAL)
        is_due = ended or time.monotonic() - requested_at > REMOTE_INTERVAL
        try:
            if is_due:
                remote, requested_at = remote_status(run, launchers), time.monotonic()
            status, failures, is_new = _read_status(run, remote), 0, is_due
        except StorageError:  # which may pass
            is_new = False
            if (failures := failures + 1) == MAX_FAILURES:
                raise
    show(status, remote)
    return status


def _has_ended(status: RunStatus | UnplannedRun, remote: RemoteStatus) -> bool:
    """Return whether nothing is at work on a run, and nothing is known that will be."""
    if remote.working or (isinstance(status, RunStatus) and status.may_continue and not remote.is_exclusive):
        return status.is_complete and not remote.is_exclusive
    return True


class _LauncherHeartbeat:
    """Whether a launcher on another machine is alive: it changes its lock, by the clock of this machine."""

    def __init__(self) -> None:
        self._last: tuple[object, float] = (None, 0.0)

    def check(self, status: RunStatus | UnplannedRun) -> RunStatus | UnplannedRun:
        """Return a status without its launcher if that has missed too many heartbeats."""
        if isinstance(status, UnplannedRun) or status.launcher_state != "on another machine":
            return status
        lock, since = self._last
        if lock != status.launcher:
            self._last = (status.launcher, time.monotonic())
        elif time.monotonic() - since > MISSED_HEARTBEATS * HEARTBEAT_SECONDS:
            return replace(status, launcher=None, launcher_state="", may_continue=status.at_work > 0)
        return status


@contextmanager
def _live_display(console: Console, every_rank: bool) -> Iterator[Show]:
    """Yield a function that shows a state in place on a terminal, and as one more block elsewhere if it is new."""
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda status, remote: live.update(render_status(status, remote, every_rank), refresh=True)
        return
    shown: list[tuple[RunStatus | UnplannedRun, RemoteStatus]] = []

    def show(status: RunStatus | UnplannedRun, remote: RemoteStatus) -> None:
        state = (_without_clocks(status), remote)
        if shown[-1:] == [state]:
            return
        if shown:
            console.print()
        console.print(render_status(status, remote, every_rank))
        shown[:] = [state]

    yield show


def _without_clocks(status: RunStatus | UnplannedRun) -> RunStatus | UnplannedRun:
    """Return a status without what changes although nothing happens: ages and heartbeats."""
    if isinstance(status, UnplannedRun):
        return status
    ranks = tuple(replace(rank, silent_seconds=0.0) for rank in status.ranks)
    launcher = status.launcher and msgspec.structs.replace(status.launcher, beats=0)
    return replace(status, ranks=ranks, launcher=launcher)


def _read_status(run: RunFolder, remote: RemoteStatus) -> RunStatus | UnplannedRun:
    """Return the status of a run; a job or an execution may still have to write its plan."""
    folder = remote.run or run
    is_over = remote.is_exclusive and not remote.working
    if not folder.has_plan() and remote.writer:
        resume = f"finish it with `python -m launch resume {run.uri}`"
        return UnplannedRun(run.uri, resume if is_over else f"{remote.writer} writes the plan")
    status = replace(run_status(folder), run=run.uri)
    if not is_over:
        return status
    # Whatever was written last: without an execution no rank is at work.
    ranks = tuple(replace(rank, is_at_work=False) for rank in status.ranks)
    return replace(status, at_work=0, seconds_left=None, may_continue=False, ranks=ranks)
