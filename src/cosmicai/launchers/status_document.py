"""How a run stands, as a JSON document for programs: `python -m launch status --json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import msgspec

from .base import RemoteStatus
from .run_status import RunStatus, UnplannedRun, node_statuses
from .slurm.usage import JobUsage


class GalaxyCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of galaxies; the failed ones are among the missing ones."""

    planned: int
    done: int
    missing: int
    failed: int


class LauncherEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The launcher that is at work; `state` is `at work` or `on another machine`, where it may have died."""

    host: str
    pid: int
    started_at: str
    state: str


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The ranks of a node together, see `NodeStatus`."""

    node: str
    running: int
    silent: int
    ended: int
    galaxies: int
    galaxies_per_second: float
    heartbeat_age: float | None


class RankEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a rank, see `RankStatus`."""

    rank: int
    attempt: int
    state: str
    host: str
    items: int
    galaxies: int
    galaxies_per_second: float
    silent_seconds: float
    is_at_work: bool


class FailureEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A work item that could not be done, and how often it was tried."""

    item: str
    reason: str
    rank: int
    count: int


class StatusDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What `status --json` prints; without a plan there are no galaxies, and `next_step` says what will make one.

    `working` are lines on what is at work or waits in SLURM's queue or on AWS, and `ended` on what has ended there.
    """

    format: Literal["cosmicai-status/1"] = "cosmicai-status/1"
    run: str
    complete: bool
    next_step: str | None = None
    galaxies: GalaxyCounts | None = None
    galaxies_per_second: float = 0.0
    seconds_left: float | None = None
    ranks_at_work: int = 0
    launcher: LauncherEntry | None = None
    working: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    nodes: tuple[NodeEntry, ...] = ()
    ranks: tuple[RankEntry, ...] = ()
    failures: tuple[FailureEntry, ...] = ()
    problems: tuple[str, ...] = ()
    usage: JobUsage | None = None


def status_document(status: RunStatus | UnplannedRun, remote: RemoteStatus) -> StatusDocument:
    """Return the document that says how a run stands."""
    common: dict[str, Any] = {
        "run": status.run, "complete": status.is_complete, "working": remote.working, "ended": remote.ended,
        "usage": remote.usage,
    }  # fmt: skip
    if isinstance(status, UnplannedRun):
        return StatusDocument(next_step=status.next_step, **common)
    lock = status.launcher
    return StatusDocument(
        galaxies=GalaxyCounts(
            planned=status.planned, done=status.completed, missing=status.missing, failed=status.failed
        ),
        galaxies_per_second=status.galaxies_per_second,
        seconds_left=status.seconds_left,
        ranks_at_work=status.at_work,
        launcher=(
            LauncherEntry(host=lock.host, pid=lock.pid, started_at=lock.started_at, state=status.launcher_state)
            if lock
            else None
        ),
        nodes=tuple(NodeEntry(**asdict(node)) for node in node_statuses(status.ranks)),
        ranks=tuple(RankEntry(**asdict(rank)) for rank in status.ranks),
        failures=tuple(
            FailureEntry(item=one.item, reason=one.reason, rank=one.rank, count=one.count) for one in status.failures
        ),
        problems=status.problems,
        **common,
    )


def encode_document(document: StatusDocument) -> str:
    """Return a document as indented JSON, in which every key is present."""
    return msgspec.json.format(msgspec.json.encode(document), indent=1).decode()
