"""The output of `python aws/deploy.py`: changes, a stack, and the results of the doctor."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..console import make_console
from ..launchers.aws.change_sets import Change
from ..launchers.aws.doctor import Diagnosis


def show_changes(changes: Sequence[Change]) -> None:
    """Print what happens to each resource."""
    rows = [(change.action, change.resource, change.kind, change.replacement) for change in changes]
    if rows:
        _print_table(("action", "resource", "type", "replacement"), rows)
    else:
        make_console().print("no resource changes, only parameters, tags or outputs of the stack")


def show_stack(name: str, state: str, outputs: dict[str, str], names: Sequence[str]) -> None:
    """Print a stack's state, its outputs, and the names of the runs in progress."""
    rows = [("state", state), *sorted(outputs.items()), ("runs in progress", ", ".join(names) or "none")]
    _print_table((f"stack {name}", ""), rows)


def show_diagnoses(diagnoses: Sequence[Diagnosis]) -> None:
    """Print a line for each check: whether it passed, the finding, and what to do about it."""
    console = make_console()
    for one in diagnoses:
        state = "failed" if not one.passed else "warning" if one.remedy else "ok"
        console.print(f"{state:<9}{one.name:<16}{one.finding}{'; ' * bool(one.remedy)}{one.remedy}", soft_wrap=True)


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    make_console().print(table)
