"""How a run stands, from its folder alone: on any machine, also while others work on it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..console import make_console, printable_line
from ..errors import StorageError
from ..runs.record import RECENT, Failure, Record
from ..runs.store import RunFolder
from ..runs.summary import count_coverage
from .base import Launcher, RemoteStatus
from .lock import LauncherLock, is_dead, read_lock
from .registry import launchers_of

REFRESH_INTERVAL = 2.0  # seconds
REMOTE_INTERVAL = 10.0  # seconds between requests to SLURM or AWS
MAX_FAILURES = 30  # one after the other, of a storage that does not answer: a minute


@dataclass(frozen=True)
class RankStatus:
    """How one attempt of a rank stands; `silent_seconds` is the time since it wrote its record."""

    rank: int
    attempt: int
    state: str
    host: str
    items: int
    galaxies: int
    galaxies_per_second: float
    silent_seconds: float


@dataclass(frozen=True)
class RunStatus:
    """How a run stands: numbers of galaxies, the rate of the ranks at work, the launcher, and every attempt of a rank.

    `launcher` is None if there is none or it has died, and `launcher_state` says how it is known to be alive.
    `seconds_left` is None if no rank is at work. `problems` names damaged files, which are left out.
    """

    run: str
    planned: int
    completed: int
    missing: int
    failed: int
    galaxies_per_second: float
    seconds_left: float | None
    launcher: LauncherLock | None
    launcher_state: str
    at_work: int
    failures: tuple[Failure, ...]
    problems: tuple[str, ...]
    ranks: tuple[RankStatus, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every galaxy of the plan is done."""
        return self.completed == self.planned


@dataclass(frozen=True)
class UnplannedRun:
    """A run that was submitted and has no plan yet; `next_step` says what will make one."""

    run: str
    next_step: str

    @property
    def is_complete(self) -> bool:
        """Never, without a plan."""
        return False


def show_status(run: RunFolder, watch: bool) -> int:
    """Print how a run stands and return the exit code: 0 if it is complete, else 3.

    With `watch` this goes on until the run is complete, or its execution in the cloud has ended. Raises InputError if
    there is no plan, nor a job in SLURM's queue or an execution that will write one.
    """
    console = make_console()
    launchers = launchers_of(run)
    remote = remote_status(run, launchers)
    status = _read_status(run, remote)
    if not watch:
        console.print(render_status(status, remote))
        return 0 if status.is_complete else 3
    requested_at, failures = time.monotonic(), 0
    with Live(render_status(status, remote), console=console, auto_refresh=False) as live:
        while remote.working if remote.is_exclusive else not status.is_complete:
            time.sleep(REFRESH_INTERVAL)
            is_due = time.monotonic() - requested_at > REMOTE_INTERVAL
            try:
                if is_due or (remote.is_exclusive and status.is_complete):
                    remote, requested_at = remote_status(run, launchers), time.monotonic()
                status, failures = _read_status(run, remote), 0
            except StorageError:  # which may pass
                if (failures := failures + 1) == MAX_FAILURES:
                    raise
                continue
            live.update(render_status(status, remote), refresh=True)
        live.update(render_status(status, remote_status(run, launchers)), refresh=True)
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
    )


def run_status(run: RunFolder) -> RunStatus:
    """Return how a run with a plan stands.

    A rank is at work if its last attempt has not finished and wrote within RECENT seconds. Rates are by the ranks' own
    clocks; only the time since a rank wrote compares its clock with this machine's. Raises InputError if the run has no
    plan.
    """
    problems: list[str] = []
    plan, parts, failures = run.plan(), run.parts(), run.failures(problems.append)
    coverage, lock = count_coverage(plan, parts), read_lock(run)
    dead = lock is not None and is_dead(lock)
    records = sorted(run.records(problems.append).values(), key=lambda record: (record.rank, record.attempt))
    ranks = tuple(_rank_status(record) for record in records)
    latest = {rank.rank: rank for rank in ranks}.values()
    working = [rank for rank in latest if rank.state == "running" and rank.silent_seconds < RECENT and not dead]
    rate = sum((rank.galaxies_per_second for rank in working), 0.0)
    failed = {failure.item for failure in failures}
    return RunStatus(
        run=run.uri,
        planned=coverage.planned,
        completed=coverage.completed,
        missing=coverage.missing,
        failed=sum(item.galaxies for item in plan.items if item.name in failed),
        galaxies_per_second=rate,
        seconds_left=coverage.missing / rate if rate else None,
        launcher=None if dead else lock,
        launcher_state="" if dead or lock is None else "at work" if dead is False else "on another machine",
        at_work=len(working),
        failures=tuple(failures),
        problems=tuple(problems),
        ranks=ranks,
    )


def render_status(status: RunStatus | UnplannedRun, remote: RemoteStatus) -> RenderableType:
    """Return the status of a run as lines and a table, with those of remote work; all words are shown as they are."""
    if isinstance(status, UnplannedRun):
        lines = [f"{status.run}: not begun; {status.next_step}", *remote.working, *remote.ended]
        return Group(*_texts(lines))
    lock = status.launcher
    lines = [
        f"{status.run}: {'complete' if status.is_complete else 'not complete'}",
        f"{status.completed:,} of {status.planned:,} galaxies done, {status.missing:,} missing"
        + (f", {status.failed:,} of them failed" if status.missing else ""),
    ]
    if lock:
        lines.append(f"launcher: process {lock.pid} on {lock.host}, since {lock.started_at}")
    elif status.at_work:
        ranks = "1 rank" if status.at_work == 1 else f"{status.at_work} ranks"
        lines.append(f"no launcher; {ranks} wrote in the last {RECENT:g} s")
    elif not status.is_complete and not remote.working:
        lines.append(f"no rank is at work; finish the run with `python -m launch resume {status.run}`")
    if status.seconds_left is not None and not status.is_complete:
        left = timedelta(seconds=round(status.seconds_left))
        lines.append(f"{status.galaxies_per_second:,.0f} galaxies/s, {left} left")
    lines += [*remote.working, *remote.ended]
    lines += [f"failed: {failure.item}: {failure.reason}" for failure in status.failures]
    lines += [f"left out: {problem}" for problem in status.problems]
    return Group(*_texts(lines), _rank_table(status.ranks)) if status.ranks else Group(*_texts(lines))


def _read_status(run: RunFolder, remote: RemoteStatus) -> RunStatus | UnplannedRun:
    """Return the status of a run; a job or an execution may still have to write its plan."""
    folder = remote.run or run
    is_over = remote.is_exclusive and not remote.working
    if not folder.has_plan() and remote.writer:
        resume = f"finish it with `python -m launch resume {run.uri}`"
        return UnplannedRun(run.uri, resume if is_over else f"{remote.writer} writes the plan")
    status = replace(run_status(folder), run=run.uri)
    # Whatever was written last: without an execution no rank is at work.
    return replace(status, at_work=0, seconds_left=None) if is_over else status


def _rank_table(ranks: Iterable[RankStatus]) -> Table:
    table = Table()
    for heading in ("rank", "attempt", "state", "host", "items", "galaxies", "galaxies/s", "last wrote"):
        table.add_column(heading, justify="left" if heading in ("state", "host") else "right")
    for rank in ranks:
        cells = (
            str(rank.rank), str(rank.attempt), rank.state, rank.host, str(rank.items), f"{rank.galaxies:,}",
            f"{rank.galaxies_per_second:,.0f}", f"{rank.silent_seconds:,.0f} s ago",
        )  # fmt: skip
        table.add_row(*_texts(cells))
    return table


def _texts(lines: Iterable[str]) -> list[Text]:
    return [Text(printable_line(line)) for line in lines]


def _rank_status(record: Record) -> RankStatus:
    begin, wrote = (datetime.fromisoformat(time) for time in (record.working_at, record.updated_at))
    working = (wrote - begin).total_seconds()
    return RankStatus(
        rank=record.rank,
        attempt=record.attempt,
        state=record.state,
        host=record.host,
        items=record.items,
        galaxies=record.galaxies,
        galaxies_per_second=record.galaxies / working if working > 0 else 0.0,
        silent_seconds=max(0.0, record.silent_seconds()),
    )
