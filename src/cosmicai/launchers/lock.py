"""One launcher at a time: two would do everything twice, to the same result."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import storage
from ..errors import InputError
from ..runs.store import RunFolder

BEAT_EVERY = 10.0  # seconds
MISSED = 3  # beats after which a launcher on another machine is taken for dead


@contextmanager
def claimed(run: RunFolder, tell: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Makes this process the run's launcher; gives a function to call again and again as a sign of life.

    What a dead launcher left is taken over: one of this machine at once, one of another machine when it has given no
    sign for MISSED beats, told by our own clock alone. Raises InputError if the run has a living launcher.
    """
    mine = {
        "host": platform.node(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "started_at": datetime.now(UTC).isoformat(),
    }
    beats, last = 0, time.monotonic()
    while not storage.create_bytes(run.launcher_path, _text(mine, beats)):
        _remove_dead(run, tell)

    def beat() -> None:
        nonlocal beats, last
        if time.monotonic() - last > BEAT_EVERY:
            beats, last = beats + 1, time.monotonic()
            storage.write_bytes(run.launcher_path, _text(mine, beats))

    try:
        yield beat
    finally:
        storage.remove(run.launcher_path)


def current_launcher(run: RunFolder) -> dict[str, Any] | None:
    """Host, pid and start of the launcher that is, or was when it died, at work on the run."""
    found = storage.read_if_there(run.launcher_path)
    return None if found is None else dict(json.loads(found))


def is_dead(launcher: dict[str, Any]) -> bool | None:
    """Whether a launcher is gone; None if it was on another machine, where we cannot look."""
    if launcher["host"] != platform.node():
        return None
    return bool(_born(launcher["pid"]) != launcher["born"])


def _remove_dead(run: RunFolder, tell: Callable[[str], None]) -> None:
    """Removes what a dead launcher left. Raises InputError if it lives."""
    other = now = current_launcher(run)
    if other is None:
        return
    dead, deadline = is_dead(other), time.monotonic() + MISSED * BEAT_EVERY
    if dead is None:
        tell(f"a launcher on {other['host']} may be at work on this run; looking for {MISSED * BEAT_EVERY:g} s")
    while dead is None and now == other and time.monotonic() < deadline:
        time.sleep(BEAT_EVERY / 10)
        now = current_launcher(run)
    if dead is False or now not in (other, None):
        raise InputError(
            f"a launcher is at work on {run.uri} (process {other['pid']} on {other['host']}, since "
            f"{other['started_at']}); watch it with `python -m launch status --watch {run.uri}`"
        )
    if now is not None:
        storage.remove(run.launcher_path)


def _born(pid: int) -> str | None:
    """When a process was started, in the system's own count; None if there is none of this number, or it has ended."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if state in "ZX" else numbers[18]  # a zombie stays where nobody asks how it ended


def _text(launcher: dict[str, Any], beats: int) -> bytes:
    return (json.dumps(launcher | {"beats": beats}, indent=1) + "\n").encode()
