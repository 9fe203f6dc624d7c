"""How a run stands, as lines and tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..console import printable_line
from ..runs.record import RECENT
from .base import RemoteStatus
from .run_status import NodeStatus, RankStatus, RunStatus, UnplannedRun, node_statuses

MAX_RANK_ROWS = 32  # more ranks than these are shown by node


def render_status(status: RunStatus | UnplannedRun, remote: RemoteStatus, every_rank: bool = False) -> RenderableType:
    """Return the status of a run as lines and a table, with those of remote work; all words are shown as they are.

    Of more than MAX_RANK_ROWS ranks the table has a row for each node, unless `every_rank` is wanted.
    """
    lines = [*_status_lines(status, remote), *(remote.usage.lines() if remote.usage else ())]
    if isinstance(status, UnplannedRun) or not status.ranks:
        return Group(*_texts(lines))
    if every_rank or len(status.latest) <= MAX_RANK_ROWS:
        return Group(*_texts(lines), _rank_table(status.ranks))
    note = f"{len(status.latest)} ranks by node; --ranks shows each of them"
    return Group(*_texts([*lines, note]), _node_table(node_statuses(status.ranks)))


def _status_lines(status: RunStatus | UnplannedRun, remote: RemoteStatus) -> list[str]:
    if isinstance(status, UnplannedRun):
        return [f"{status.run}: not begun; {status.next_step}", *remote.working, *remote.ended]
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
    return [*lines, *(f"left out: {problem}" for problem in status.problems)]


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


def _node_table(nodes: Iterable[NodeStatus]) -> Table:
    table = Table()
    for heading in ("node", "running", "silent", "ended", "galaxies", "galaxies/s", "oldest heartbeat"):
        table.add_column(heading, justify="left" if heading == "node" else "right")
    for node in nodes:
        age = "" if node.heartbeat_age is None else f"{node.heartbeat_age:,.0f} s ago"
        counts = (str(count) for count in (node.running, node.silent, node.ended))
        table.add_row(*_texts((node.node, *counts, f"{node.galaxies:,}", f"{node.galaxies_per_second:,.0f}", age)))
    return table


def _texts(lines: Iterable[str]) -> list[Text]:
    return [Text(printable_line(line)) for line in lines]
