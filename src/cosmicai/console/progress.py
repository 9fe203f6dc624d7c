"""Progress of a run: a live bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import InputError
from . import make_console

PLAIN_INTERVAL = 5.0  # seconds between plain lines
POLL_INTERVAL = 2.0  # seconds between counts, at least
POLL_FACTOR = 20  # pause after a count, relative to the time that the count took


@contextmanager
def show_progress(total: int, done: int = 0, unit: str = "galaxies") -> Iterator[Callable[[int], None]]:
    """Show progress on standard error; yield a function to call with the number of newly completed units.

    `done` units were completed before and do not count for the speed.
    """
    if not sys.stderr.isatty():
        yield _plain(total, done, unit)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=make_console(stderr=True), refresh_per_second=4) as bar:
        task = bar.add_task(unit, total=total, completed=done, rate="")
        begin, since = time.monotonic(), 0

        def advance(count: int) -> None:
            nonlocal since
            since += count
            bar.update(task, advance=count, rate=f"{since / (time.monotonic() - begin):,.0f} {unit}/s")

        yield advance


def _plain(total: int, done: int, unit: str) -> Callable[[int], None]:
    begin = last = time.monotonic()
    since = 0

    def advance(count: int) -> None:
        nonlocal last, since
        since += count
        now = time.monotonic()
        finished = 0 < total <= done + since  # a download of unknown size has a total of 0
        if now - last < PLAIN_INTERVAL and not finished:
            return
        last = now
        rate = since / max(now - begin, 1e-9)
        left = (total - done - since) / rate if rate else float("inf")
        print(
            f"{done + since} of {total} {unit}, {rate:,.0f} {unit}/s, {left:,.0f} s left", file=sys.stderr, flush=True
        )

    return advance


@contextmanager
def poll_progress(total: int, count: Callable[[], int], unit: str = "galaxies") -> Iterator[None]:
    """Show the progress of other processes by counting what they have completed, periodically and at the end."""
    done = count()
    stopped = threading.Event()

    def follow(advance: Callable[[int], None]) -> None:
        shown, pause = done, POLL_INTERVAL
        while not stopped.wait(pause):
            begin, now = time.monotonic(), shown
            with suppress(InputError):  # of a storage that does not answer for the moment
                now = count()
            advance(now - shown)
            shown, pause = now, max(POLL_INTERVAL, POLL_FACTOR * (time.monotonic() - begin))
        with suppress(InputError):
            advance(count() - shown)

    with show_progress(total, done, unit) as advance:
        thread = threading.Thread(target=follow, args=(advance,), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()
