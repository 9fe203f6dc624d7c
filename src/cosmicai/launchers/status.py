"""How a run stands, from its folder alone: on any machine, also while others work on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from ..runs.store import RunFolder
from ..runs.summary import count_coverage
from .lock import current_launcher, is_dead
from .slurm.accounting import KINDS, account
from .slurm.queue import queued
from .submission import CloudRun, cloud_run, jobs_of, submissions

LOOK_EVERY = 2.0  # seconds
ASK_EVERY = 10.0  # seconds between questions to SLURM or AWS
RECENT = 120.0  # seconds
PLAIN_WIDTH = 140  # characters of a table that goes to no terminal


def show_status(run: RunFolder, watch: bool) -> int:
    """Prints the state of a run, with `watch` until it is complete or its execution in the cloud has ended; returns 0
    if it is complete, else 3.

    Raises InputError if there is no plan, nor a job in SLURM's queue or an execution that will write one.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    cloud = cloud_run(run)
    if cloud and run.complete_summary():
        cloud = None  # all is in the folder, and nobody need be asked
    look = _watcher(run, cloud)
    others = look()
    state = _state(run, cloud, others)
    if not watch:
        console.print(rendered(state, others))
        return 0 if state["complete"] else 3
    asked = time.monotonic()
    with Live(rendered(state, others), console=console, auto_refresh=False) as live:
        while others.working if cloud else not state["complete"]:
            time.sleep(LOOK_EVERY)
            if time.monotonic() - asked > ASK_EVERY or (cloud and state["complete"]):
                others, asked = look(), time.monotonic()
            state = _state(run, cloud, others)
            live.update(rendered(state, others), refresh=True)
        live.update(rendered(state, look()), refresh=True)
    return 0 if state["complete"] else 3


@dataclass(frozen=True)
class Elsewhere:
    """Lines about who works on a run in SLURM or in the cloud or waits for that, and about what became of others."""

    working: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


def _watcher(run: RunFolder, cloud: CloudRun | None) -> Callable[[], Elsewhere]:
    """What looks elsewhere."""
    if cloud is None:
        return lambda: _slurm_state(run)
    from .aws.launcher import watcher  # which imports what AWS needs

    return watcher(run, cloud)


def _state(run: RunFolder, cloud: CloudRun | None, others: Elsewhere) -> dict[str, Any]:
    """The state of a run, of which a job or an execution may still have to write the plan. In the cloud nobody is at
    work when no execution is, whatever was written last."""
    there = RunFolder(cloud.run) if cloud else run
    if not there.has_plan() and (cloud or submissions(run)):
        first = "its execution" if cloud else "the first of its ranks"
        over = cloud and not others.working
        begins = f"go on with `python -m launch resume {run.uri}`" if over else f"{first} writes the plan"
        return {"run": run.uri, "complete": False, "begins": begins}
    state = run_status(there) | {"run": run.uri}
    return state | {"at_work": 0, "seconds_left": None} if cloud and not others.working else state


def _slurm_state(run: RunFolder) -> Elsewhere:
    jobs = jobs_of(run)
    waiting = queued(jobs) or []
    queue = [f"job {job.number}: {job.state}" + f" ({job.reason})" * (job.state == "PENDING") for job in waiting]
    if not (told := account(run, jobs)):
        return Elsewhere(tuple(queue))
    counted = [f"{told[kind]} {kind.replace('_', ' ')}" for kind in dict.fromkeys(KINDS.values()) if told[kind]]
    wall = "" if told["wall_seconds"] is None else f", {timedelta(seconds=told['wall_seconds'])} from start to end"
    memory = "" if told["max_rss_mb"] is None else f", up to {told['max_rss_mb']:,.0f} MB"
    line = (
        f"SLURM's account of {told['tasks']} tasks: {', '.join(counted)}{wall}, "
        f"{told['core_seconds'] / 3600:,.2f} core-hours{memory}"
    )
    return Elsewhere(tuple(queue), (line,))


def run_status(run: RunFolder) -> dict[str, Any]:
    """Galaxies asked, done, missing and failed, the rate of those ranks that are at work, seconds left, the launcher,
    and a row for every attempt of every rank.

    A rank is at work if its last attempt has not finished and wrote within RECENT seconds. Rates are of the ranks' own
    clocks; only how long ago one wrote compares a clock with ours.
    """
    plan, parts, failures = run.plan(), run.parts(), run.failures()
    coverage, launcher = count_coverage(plan, parts), current_launcher(run)
    dead = launcher is not None and is_dead(launcher)
    if launcher is not None:
        launcher = None if dead else launcher | {"state": "at work" if dead is False else "on another machine"}
    now = datetime.now(UTC)
    ranks = [_rank_row(record, now) for record in sorted(run.records().values(), key=_order)]
    latest = {row["rank"]: row for row in ranks}.values()
    working = [row for row in latest if row["state"] == "running" and row["silent_seconds"] < RECENT and not dead]
    rate = sum(row["galaxies_per_second"] for row in working)
    failed = {failure["item"] for failure in failures}
    return {
        "run": run.uri,
        "complete": coverage["done"] == coverage["asked"],
        "asked": coverage["asked"],
        "done": coverage["done"],
        "missing": coverage["missing"],
        "failed": sum(item.galaxies for item in plan.items if item.name in failed),
        "galaxies_per_second": rate,
        "seconds_left": coverage["missing"] / rate if rate else None,
        "launcher": launcher,
        "at_work": len(working),
        "failures": failures,
        "ranks": ranks,
    }


def rendered(state: dict[str, Any], others: Elsewhere) -> RenderableType:
    """The state as lines and a table, with what SLURM says of its jobs or AWS of an execution."""
    if "asked" not in state:
        return Group(f"{state['run']}: not begun; {state['begins']}", *others.working, *others.ended)
    left, launcher = state["seconds_left"], state["launcher"]
    lines = [
        f"{state['run']}: {'complete' if state['complete'] else 'not complete'}",
        f"{state['done']:,} of {state['asked']:,} galaxies done, {state['missing']:,} missing, "
        f"{state['failed']:,} of them failed",
    ]
    if launcher:
        lines.append(f"launcher: process {launcher['pid']} on {launcher['host']}, since {launcher['started_at']}")
    elif state["at_work"]:
        lines.append(f"no launcher of ours; {state['at_work']} ranks wrote in the last {RECENT:g} s")
    elif not state["complete"] and not others.working:
        lines.append(f"nobody is seen at work; go on with `python -m launch resume {state['run']}`")
    if left is not None and not state["complete"]:
        lines.append(f"{state['galaxies_per_second']:,.0f} galaxies/s, {timedelta(seconds=round(left))} left")
    lines += [*others.working, *others.ended]
    lines += [f"failed: {failure['item']}: {failure['reason']}" for failure in state["failures"]]
    table = Table()
    headings = ("rank", "attempt", "state", "host", "items", "galaxies", "galaxies/s", "last wrote")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("state", "host") else "right")
    for row in state["ranks"]:
        table.add_row(
            str(row["rank"]), str(row["attempt"]), row["state"], row["host"], str(row["items"]),
            f"{row['galaxies']:,}", f"{row['galaxies_per_second']:,.0f}", f"{row['silent_seconds']:,.0f} s ago",
        )  # fmt: skip
    return Group(*lines, table) if state["ranks"] else Group(*lines)


def _order(record: dict[str, Any]) -> tuple[int, int]:
    return record["rank"], record["attempt"]


def _rank_row(record: dict[str, Any], now: datetime) -> dict[str, Any]:
    begun, wrote = (datetime.fromisoformat(record[name]) for name in ("working_at", "updated_at"))
    working = (wrote - begun).total_seconds()
    return {
        "rank": record["rank"],
        "attempt": record["attempt"],
        "state": record["state"],
        "host": record["host"],
        "items": record["items"],
        "galaxies": record["galaxies"],
        "galaxies_per_second": record["galaxies"] / working if working > 0 else 0.0,
        "silent_seconds": max(0.0, (now - wrote).total_seconds()),
    }
