"""Ranks as processes of this machine, watched over: a rank may die, hang or be killed, and nothing is lost."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from ...console.progress import progress
from ...errors import explained
from ...ranks.environment import Rank
from ...runs.plan import WorkItem
from ...runs.store import RunFolder
from ...storage.s3 import is_s3
from ...worker.interrupts import deferred
from ...worker.supervised import DESCRIPTOR
from ..lock import claimed
from ..request import Request, ranks_of
from .scheduler import DEADLY, Dealer

LOOK_EVERY = 0.25  # seconds between looks at the ranks
GRACE = 4.0  # seconds between SIGTERM and SIGKILL
REAP = 2.0  # seconds for a killed process to be gone
LOG_LINES = 5


def launch(run: RunFolder, request: Request) -> RunFolder:
    """Runs the ranks until everything is done, and shows their common progress.

    A rank that dies, or says nothing for `rank_timeout` seconds, is named with the end of its log; it is started again
    while restarts are left, and what it held is done by whoever is free. An item that ends two ranks is noted as one
    that cannot be done. When this process is interrupted, all ranks are stopped first. Raises InputError if another
    launcher is at work on the run.
    """
    plan, done = run.plan(), run.parts()
    missing = [item for item in plan.items if item not in done]
    if not missing:
        return run
    with ExitStack() as stack:
        check = stack.enter_context(deferred())
        beat = stack.enter_context(claimed(run, lambda notice: click.echo(notice, err=True)))
        # A run on S3 keeps its ranks' output in a temporary folder.
        logs = RunFolder(stack.enter_context(TemporaryDirectory())) if is_s3(run.uri) else run
        watch = Watch(run, logs, request, missing)
        stack.callback(watch.stop)
        watch.advance = stack.enter_context(progress(plan.galaxies, plan.galaxies_of(done)))
        watch.start_all()
        while watch.ranks:
            check()
            beat()
            watch.look()
    return run


@dataclass
class _Process:
    rank: Rank
    variables: dict[str, str]
    process: subprocess.Popen[bytes]
    line: socket.socket
    log_from: int  # where in the log its own begins
    heard: float
    unread: bytes = b""
    is_waiting: bool = False
    is_told: bool = False  # that there is nothing more


@dataclass
class Watch:
    """The processes of a run and what they are told."""

    run: RunFolder
    logs: RunFolder
    request: Request
    missing: list[WorkItem]
    advance: Callable[[int], None] = lambda _: None
    ranks: dict[int, _Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._dealer = Dealer(self.missing, self.request.ranks, self.request.schedule)
        self._restarts = self.request.max_restarts
        self._selector = selectors.DefaultSelector()

    def start_all(self) -> None:
        """Starts every rank."""
        for rank, variables in ranks_of(self.request, f"{os.uname().nodename}-{os.getpid()}"):
            self._start(rank, variables)

    def look(self) -> None:
        """Waits a moment for what ranks say, answers them, and sees to those that ended or are silent."""
        for key, _ in self._selector.select(LOOK_EVERY):
            self._listen(key.data)
        now = time.monotonic()
        for own in list(self.ranks.values()):
            works = not own.is_waiting or self._dealer.held(own.rank.rank)
            if own.process.poll() is not None:
                self._listen(own)  # its last words
                self._bury(own, _how(own.process.returncode))
            elif works and now - own.heard > self.request.rank_timeout:
                own.process.kill()
                with suppress(subprocess.TimeoutExpired):  # it hangs in the system, and its results would do no harm
                    own.process.wait(REAP)
                self._bury(own, f"was silent for {self.request.rank_timeout:g} s and was killed")
        for own in self.ranks.values():
            if own.is_waiting and own.line.fileno() >= 0:  # else it ends, and is not to be suspected of an item
                self._answer(own)

    def stop(self) -> None:
        """Ends all processes, those that do not end in time by force."""
        for own in self.ranks.values():
            with suppress(OSError):
                own.line.shutdown(socket.SHUT_RDWR)
            own.process.terminate()
        deadline = time.monotonic() + GRACE
        for own in self.ranks.values():
            try:
                own.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                own.process.kill()
        for own in self.ranks.values():
            with suppress(subprocess.TimeoutExpired):
                own.process.wait(REAP)
        self._selector.close()

    def _start(self, rank: Rank, variables: dict[str, str]) -> None:
        path = Path(self.logs.log_path(rank.rank))
        ours, its = socket.socketpair()
        with explained(str(path), "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = path.open("ab")
        with log, its:
            begin = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "cosmicai", "work", self.run.uri],
                env=os.environ | variables | {DESCRIPTOR: str(its.fileno())}, pass_fds=[its.fileno()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the ranks
            )  # fmt: skip
        ours.setblocking(False)
        own = self.ranks[rank.rank] = _Process(rank, variables, process, ours, begin, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, own)

    def _listen(self, own: _Process) -> None:
        """Takes in all that a rank has said. One that hung up has said all: it ends, or has ended."""
        if own.line.fileno() < 0:
            return
        with suppress(BlockingIOError, ConnectionError):
            while said := own.line.recv(2**16):
                own.heard = time.monotonic()
                *lines, own.unread = (own.unread + said).split(b"\n")
                for line in lines:
                    self._heed(own, *line.decode("ascii").split())
            self._hang_up(own)

    def _heed(self, own: _Process, word: str, name: str = "") -> None:
        if word == "next":
            own.is_waiting = True
            self._answer(own)
        elif (item := WorkItem.from_name(name)) is not None:
            self._dealer.finished(own.rank.rank, item)
            if word == "finished":
                self.advance(item.galaxies)

    def _answer(self, own: _Process) -> None:
        item = self._dealer.next_for(own.rank.rank)
        if item is None and not self._dealer.is_done:
            return
        own.is_waiting, own.is_told, own.heard = False, item is None, time.monotonic()
        with suppress(OSError):  # it has just died, as we shall see
            own.line.sendall(f"{item.name if item else ''}\n".encode("ascii"))

    def _hang_up(self, own: _Process) -> None:
        with suppress(KeyError, ValueError):  # done before
            self._selector.unregister(own.line)
        own.line.close()

    def _bury(self, own: _Process, how: str | None) -> None:
        number = own.rank.rank
        del self.ranks[number]
        self._hang_up(own)
        if how is None and own.is_told:
            return
        for item in list(self._dealer.held(number)):
            if self.run.has_part(item):  # written, though the rank died before it could say so
                self._dealer.finished(number, item)
                self.advance(item.galaxies)
        how, held = how or "ended before its work was done", len(self._dealer.held(number))
        end = last_lines(Path(self.logs.log_path(number)), own.log_from)
        for item in self._dealer.died(number):
            reason = f"{DEADLY} ranks died of it; the last one {how}"
            self.run.write_failure(item, number, reason)
            held -= 1
        again = self._restarts > 0 and not self._dealer.is_done
        then = "it is started again" if again else "the others go on" if self.ranks else "nobody is left to go on"
        click.echo("\n  ".join([f"rank {number} {how} with {held} items unfinished; {then}", *end]), err=True)
        if again:
            self._restarts -= 1
            self._start(own.rank, own.variables)
        else:
            self._dealer.leave(number)


def _how(code: int) -> str | None:
    """How a process ended; None if it ended well."""
    if code == 0:
        return None
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def last_lines(log: Path, begin: int = 0) -> list[str]:
    """The end of what a log holds from this byte on."""
    return log.read_bytes()[begin:].decode(errors="replace").splitlines()[-LOG_LINES:]
