"""What `python aws/deploy.py` shows: changes, a stack, and the doctor's findings."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ..launchers.aws.change_sets import Change
from ..launchers.aws.doctor import Check

PLAIN_WIDTH = 160  # characters of a table that goes to no terminal


def show_changes(changes: Sequence[Change]) -> None:
    """Prints what happens to each resource."""
    rows = [(one.action, one.resource, one.kind, one.replacement) for one in changes]
    if rows:
        _show(("action", "resource", "type", "replacement"), rows)
    else:
        _console().print("no resource changes, only what the stack says of itself")


def show_stack(name: str, state: str, outputs: dict[str, str], names: Sequence[str]) -> None:
    """Prints a stack's state, its outputs, and the names of the runs that are going on."""
    rows = [("state", state), *sorted(outputs.items()), ("runs going on", ", ".join(names) or "none")]
    _show((f"stack {name}", ""), rows)


def show_checks(found: Sequence[Check]) -> None:
    """Prints a line for each check: whether it passed, what was seen, and what to do about it."""
    console = _console()
    for one in found:
        word = "failed" if not one.passed else "warning" if one.mend else "ok"
        console.print(f"{word:<9}{one.name:<16}{one.said}{'; ' * bool(one.mend)}{one.mend}", soft_wrap=True)


def _show(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console
