"""Faults that a test injects into deliveries to functions: files in a folder, each of which takes effect once.

A fault is one of the words below, for some of them followed by `: ` and a detail.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

ALWAYS = "always"
LAMBDA_FAULTS = frozenset({"throttle", "twice", "lose the answer"})  # injected by pipeline_server.py
FUNCTION_FAULTS = frozenset(  # injected by faulty_functions.py
    {"raise", "sleep", "hurry", "run late", "kill", "kill midway", "kill after", "delete first", "truncate first",
     "also", "forget the items"}
)  # fmt: skip


def add_fault(folder: Path, function: str, event: str, what: str, times: int | None) -> None:
    """Inject a fault into the next `times` deliveries (None: all) of an event, named as by `event_name`."""
    assert _word(what) in LAMBDA_FAULTS | FUNCTION_FAULTS, what
    own = folder / function / event
    own.mkdir(parents=True, exist_ok=True)
    if times is None:
        (own / ALWAYS).write_text(what)
        return
    first = sum(1 for _ in own.iterdir())
    for number in range(first, first + times):
        (own / f"{number:04}").write_text(what)


def cancel_faults(folder: Path, function: str, event: str) -> None:
    """Cancel the faults of an event."""
    for path in (folder / function / event).iterdir():
        path.unlink(missing_ok=True)


def take_fault(folder: Path, function: str, event: dict[str, Any], allowed: frozenset[str]) -> str | None:
    """Return the fault of this delivery, if it is one of those allowed. Of several callers only one gets it."""
    own = folder / function / event_name(event)
    for path in sorted(own.iterdir()) if own.is_dir() else []:
        what = path.read_text() if path.exists() else ""
        if _word(what) in allowed and (path.name == ALWAYS or _is_mine(path)):
            return what
    return None


def list_remaining(folder: Path) -> list[str]:
    """Return the faults that did not take effect, except those for all deliveries."""
    return [str(path.relative_to(folder)) for path in folder.glob("*/*/*") if path.name != ALWAYS]


def event_name(event: dict[str, Any]) -> str:
    """Return the name of an event: its run and, for infer, its rank."""
    if "RANK" in event:
        return run_name(event["RESULT_PATH"], int(event["RANK"]))
    return run_name(event["execution"]["Input"].get("result_path", ""), None)


def run_name(result_path: str, rank: int | None) -> str:
    """Return the name of the event of a run and rank."""
    return f"run={quote(result_path, safe='')}" + ("" if rank is None else f",{rank}")


def _word(what: str) -> str:
    return what.partition(": ")[0]


def _is_mine(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
