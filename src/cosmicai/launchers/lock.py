"""A lock for the run folder: one launcher at a time, since two would do everything twice, to the same result."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from .. import storage
from ..errors import InputError
from ..processes import process_start_time
from ..records import decode_json
from ..runs.store import RunFolder

HEARTBEAT_SECONDS = 10.0
MISSED_HEARTBEATS = 3  # after which a launcher on another machine is considered dead


class LauncherLock(msgspec.Struct, frozen=True):
    """The process that holds the lock, as `launcher.json` describes it.

    `process_start` is when the process started, as the system counts it: process numbers are used again.
    """

    host: str
    pid: Annotated[int, msgspec.Meta(ge=1)]
    process_start: str | None = msgspec.field(name="born")
    started_at: str
    beats: int = 0

    def to_json(self) -> bytes:
        """Return the content of `launcher.json`."""
        return (json.dumps(msgspec.to_builtins(self), indent=1) + "\n").encode()


@contextmanager
def run_lock(run: RunFolder, notify: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold the lock of a run, and yield a function to be called again and again, which writes a heartbeat when due.

    The lock of a dead launcher is taken over: on this machine at once, from another machine after MISSED_HEARTBEATS
    without a heartbeat by this machine's clock. Raises InputError if another launcher is alive.
    """
    pid = os.getpid()
    lock = LauncherLock(platform.node(), pid, process_start_time(pid), datetime.now(UTC).isoformat())
    written = time.monotonic()
    while not storage.create_bytes(run.launcher_path, lock.to_json()):
        _remove_dead_lock(run, notify)

    def heartbeat() -> None:
        nonlocal lock, written
        if time.monotonic() - written > HEARTBEAT_SECONDS:
            lock, written = msgspec.structs.replace(lock, beats=lock.beats + 1), time.monotonic()
            storage.write_bytes(run.launcher_path, lock.to_json())

    try:
        yield heartbeat
    finally:
        storage.remove(run.launcher_path)


def read_lock(run: RunFolder) -> LauncherLock | None:
    """Return the lock of a run, whose launcher may have died; None if there is none.

    Raises InputError if its file is damaged.
    """
    data = storage.read_if_exists(run.launcher_path)
    if data is None:
        return None
    remedy = "remove it if no launcher is at work on the run"
    return decode_json(data, LauncherLock, where=run.launcher_path, remedy=remedy)


def is_dead(lock: LauncherLock) -> bool | None:
    """Return whether a launcher has ended; None if it ran on another machine, where that cannot be seen."""
    if lock.host != platform.node():
        return None
    return process_start_time(lock.pid) != lock.process_start


def remove_lock_if_dead(run: RunFolder) -> None:
    """Remove the lock of a launcher that was killed on this machine, if there is one."""
    lock = read_lock(run)
    if lock is not None and is_dead(lock):
        storage.remove(run.launcher_path)


def _remove_dead_lock(run: RunFolder, notify: Callable[[str], None]) -> None:
    """Remove the lock of a dead launcher. Raises InputError if the launcher is alive."""
    first = now = read_lock(run)
    if first is None:
        return
    dead, wait = is_dead(first), MISSED_HEARTBEATS * HEARTBEAT_SECONDS
    deadline = time.monotonic() + wait
    if dead is None:
        notify(f"a launcher on {first.host} may be at work on this run; waiting {wait:g} s for its heartbeat")
    while dead is None and now == first and time.monotonic() < deadline:
        time.sleep(HEARTBEAT_SECONDS / 10)
        now = read_lock(run)
    if dead is False or now not in (first, None):
        raise InputError(
            f"a launcher is at work on {run.uri} (process {first.pid} on {first.host}, since {first.started_at}); "
            f"watch it with `python -m launch status --watch {run.uri}`"
        )
    if now is not None:
        storage.remove(run.launcher_path)
