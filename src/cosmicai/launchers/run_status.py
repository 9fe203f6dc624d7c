"""How a run stands, from its folder alone: coverage, launcher, ranks, and the nodes on which they are."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import time

from ..processes import process_start_time
from ..runs.record import RECENT, Failure, Record
from ..runs.store import RunFolder
from ..runs.summary import count_coverage
from ..storage import natural_key
from ..storage.s3 import is_s3
from .lock import LauncherLock, is_dead, read_lock


@dataclass(frozen=True)
class RankStatus:
    """How one attempt of a rank stands; `silent_seconds` is the time since it wrote its record.

    `is_at_work` is only true of the last attempt of a rank: it is running and wrote within RECENT seconds.
    """

    rank: int
    attempt: int
    state: str
    host: str
    items: int
    galaxies: int
    galaxies_per_second: float
    silent_seconds: float
    is_at_work: bool = False


@dataclass(frozen=True)
class NodeStatus:
    """How the ranks of one node stand together.

    Its ranks, each by its last attempt, are `running`, `ended`, or `silent`: not finished, and not at work as far as is
    known. `galaxies` are those of all attempts, the rate is that of the ranks at work, and `heartbeat_age` is the
    longest time in seconds since one of these wrote its record, None if none is at work.
    """

    node: str
    running: int
    silent: int
    ended: int
    galaxies: int
    galaxies_per_second: float
    heartbeat_age: float | None


@dataclass(frozen=True)
class RunStatus:
    """How a run stands: numbers of galaxies, the rate of the ranks at work, the launcher, and every attempt of a rank.

    `launcher` is None if there is none or it has died, and `launcher_state` says how it is known to be alive.
    `seconds_left` is None if no rank is at work. `may_continue` says whether a launcher or a rank is at work, or ranks
    that have not begun may still come. `problems` names damaged files, which are left out.
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
    may_continue: bool
    failures: tuple[Failure, ...]
    problems: tuple[str, ...]
    ranks: tuple[RankStatus, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every galaxy of the plan is done."""
        return self.completed == self.planned

    @property
    def latest(self) -> tuple[RankStatus, ...]:
        """The last attempt of each rank."""
        return tuple({rank.rank: rank for rank in self.ranks}.values())


@dataclass(frozen=True)
class UnplannedRun:
    """A run that was submitted and has no plan yet; `next_step` says what will make one."""

    run: str
    next_step: str

    @property
    def is_complete(self) -> bool:
        """Never, without a plan."""
        return False


def run_status(run: RunFolder) -> RunStatus:
    """Return how a run with a plan stands.

    A rank is at work if its last attempt has not finished and wrote within RECENT seconds, and on this machine if it
    has a process. Rates are by the ranks' own clocks; only the time since a rank wrote compares its clock with this
    machine's. Raises InputError if the run has no plan.
    """
    problems: list[str] = []
    plan, parts, failures = run.plan(), run.parts(), run.failures(problems.append)
    coverage, lock = count_coverage(plan, parts), read_lock(run)
    dead = lock is not None and is_dead(lock)
    records = sorted(run.records(problems.append).values(), key=lambda record: (record.rank, record.attempt))
    latest = {record.rank: record for record in records}
    at_work = set() if dead else {record.name for record in latest.values() if _is_at_work(record)}
    ranks = tuple(_rank_status(record, record.name in at_work) for record in records)
    rate = sum((rank.galaxies_per_second for rank in ranks if rank.is_at_work), 0.0)
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
        at_work=len(at_work),
        may_continue=bool(lock or at_work or _may_begin(run, tuple(latest.values()))) and not dead,
        failures=tuple(failures),
        problems=tuple(problems),
        ranks=ranks,
    )


def node_statuses(ranks: Iterable[RankStatus]) -> tuple[NodeStatus, ...]:
    """Return how the nodes stand on which attempts of ranks ran, in natural order of their names."""
    by_node: dict[str, list[RankStatus]] = {}
    last: dict[int, RankStatus] = {}
    for rank in ranks:
        by_node.setdefault(rank.host, []).append(rank)
        last[rank.rank] = rank
    found = []
    for node in sorted(by_node, key=natural_key):
        here = [rank for rank in by_node[node] if last[rank.rank] is rank]
        working = [rank for rank in here if rank.is_at_work]
        ended = sum(rank.state == "finished" for rank in here)
        found.append(
            NodeStatus(
                node=node,
                running=len(working),
                silent=len(here) - len(working) - ended,
                ended=ended,
                galaxies=sum(rank.galaxies for rank in by_node[node]),
                galaxies_per_second=sum((rank.galaxies_per_second for rank in working), 0.0),
                heartbeat_age=max((rank.silent_seconds for rank in working), default=None),
            )
        )
    return tuple(found)


def _is_at_work(record: Record) -> bool:
    return record.state == "running" and record.silent_seconds() < RECENT and not _has_died(record)


def _has_died(record: Record) -> bool:
    """Return whether a rank of this machine ended without finishing; of other machines that cannot be seen."""
    is_here = record.host == platform.node() and record.pid > 0  # older records have no process
    return record.state == "running" and is_here and process_start_time(record.pid) is None


def _may_begin(run: RunFolder, latest: Sequence[Record]) -> bool:
    """Return whether ranks that have not written yet may still come, since the run's folder changed a moment ago."""
    silent = [record.silent_seconds() for record in latest]
    if latest:
        newest = min(latest, key=Record.silent_seconds)
        if sum(record.state == "finished" or _has_died(record) for record in latest) >= newest.world_size:
            return False
    elif not is_s3(run.uri):
        silent = [time() - Path(run.plan_path).stat().st_mtime]
    return min(silent, default=RECENT) < RECENT


def _rank_status(record: Record, is_at_work: bool) -> RankStatus:
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
        is_at_work=is_at_work,
    )
