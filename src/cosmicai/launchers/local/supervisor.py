"""Ranks as supervised processes of this machine: a rank may die, hang or be killed, and no work is lost."""

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

from ...console import notify
from ...console.progress import show_progress
from ...errors import describe_os_errors
from ...ranks.environment import Rank
from ...runs.plan import WorkItem
from ...runs.store import RunFolder
from ...storage.s3 import is_s3
from ...worker.interrupts import defer_interrupts
from ...worker.supervisor_socket import SOCKET_VARIABLE
from ..base import RankRequest
from ..lock import remove_lock_if_dead, run_lock
from .resources import local_ranks
from .scheduler import MAX_CRASHES, WorkScheduler

POLL_INTERVAL = 0.25  # seconds
TERMINATION_GRACE = 4.0  # seconds between SIGTERM and SIGKILL
KILL_GRACE = 2.0  # seconds for a killed process to disappear
LOG_LINES = 5


def supervise(run: RunFolder, request: RankRequest) -> None:
    """Run the ranks until nothing is left to do, and show their common progress.

    A rank that dies, or sends nothing for `rank_timeout` seconds, is reported with the end of its log. It is started
    again while restarts are left, and other ranks do the items that it held. A work item that crashes two ranks is
    recorded in failures/ and skipped. When this process is interrupted, it stops all ranks first. Raises InputError if
    another launcher is at work on the run.
    """
    plan, done = run.plan(), run.parts()
    missing = [item for item in plan.items if item not in done]
    if not missing:
        remove_lock_if_dead(run)
        return
    with ExitStack() as stack:
        check_interrupts = stack.enter_context(defer_interrupts())
        heartbeat = stack.enter_context(run_lock(run, notify))
        # The logs of a run on S3 are kept in a temporary folder.
        logs = RunFolder(stack.enter_context(TemporaryDirectory())) if is_s3(run.uri) else run
        supervisor = Supervisor(run, logs, request, missing)
        stack.callback(supervisor.stop)
        supervisor.advance = stack.enter_context(show_progress(plan.galaxies, plan.galaxies_of(done)))
        supervisor.start_all()
        while supervisor.workers:
            check_interrupts()
            heartbeat()
            supervisor.poll()


@dataclass
class _Worker:
    """The process of a rank, and this side of its socket."""

    rank: Rank
    variables: dict[str, str]
    process: subprocess.Popen[bytes]
    connection: socket.socket
    log_start: int  # position in the log file at which the output of this process begins
    last_message: float
    unread: bytes = b""
    is_waiting: bool = False
    is_dismissed: bool = False  # it has received the message that there are no more items


@dataclass
class Supervisor:
    """The worker processes of a run, and the items assigned to them."""

    run: RunFolder
    logs: RunFolder
    request: RankRequest
    missing: list[WorkItem]
    advance: Callable[[int], None] = lambda _: None
    workers: dict[int, _Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._scheduler = WorkScheduler(self.missing, self.request.ranks, self.request.schedule)
        self._restarts = self.request.max_restarts
        self._selector = selectors.DefaultSelector()

    def start_all(self) -> None:
        """Start every rank."""
        for rank, variables in local_ranks(self.request, f"{os.uname().nodename}-{os.getpid()}"):
            self._start(rank, variables)

    def poll(self) -> None:
        """Wait briefly for messages, handle them, and handle workers that have ended or time out."""
        for key, _ in self._selector.select(POLL_INTERVAL):
            self._receive(key.data)
        now = time.monotonic()
        for worker in list(self.workers.values()):
            is_busy = not worker.is_waiting or self._scheduler.held_by(worker.rank.rank)
            if worker.process.poll() is not None:
                self._receive(worker)  # messages that it sent before it ended
                self._handle_exit(worker, _describe_exit(worker.process.returncode))
            elif is_busy and now - worker.last_message > self.request.rank_timeout:
                worker.process.kill()
                with suppress(subprocess.TimeoutExpired):  # it hangs in the kernel; its results would do no harm
                    worker.process.wait(KILL_GRACE)
                self._handle_exit(worker, f"was silent for {self.request.rank_timeout:g} s and was killed")
        for worker in self.workers.values():
            # Without a connection it is about to end, and must not be suspected of an item.
            if worker.is_waiting and worker.connection.fileno() >= 0:
                self._assign_item(worker)

    def stop(self) -> None:
        """Terminate all workers, and kill those that do not end in time."""
        for worker in self.workers.values():
            with suppress(OSError):
                worker.connection.shutdown(socket.SHUT_RDWR)
            worker.process.terminate()
        deadline = time.monotonic() + TERMINATION_GRACE
        for worker in self.workers.values():
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
        for worker in self.workers.values():
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(KILL_GRACE)
        self._selector.close()

    def _start(self, rank: Rank, variables: dict[str, str]) -> None:
        path = Path(self.logs.log_path(rank.rank))
        ours, theirs = socket.socketpair()
        with describe_os_errors(str(path), "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            log = path.open("ab")
        with log, theirs:
            log_start = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "cosmicai", "work", self.run.uri],
                env=os.environ | variables | {SOCKET_VARIABLE: str(theirs.fileno())}, pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the ranks
            )  # fmt: skip
        ours.setblocking(False)
        worker = self.workers[rank.rank] = _Worker(rank, variables, process, ours, log_start, time.monotonic())
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _receive(self, worker: _Worker) -> None:
        """Handle all messages of a worker; disconnect from one that has closed its side."""
        if worker.connection.fileno() < 0:
            return
        with suppress(BlockingIOError, ConnectionError):
            while data := worker.connection.recv(2**16):
                worker.last_message = time.monotonic()
                *lines, worker.unread = (worker.unread + data).split(b"\n")
                for line in lines:
                    self._handle_message(worker, *line.decode("ascii").split())
            self._disconnect(worker)

    def _handle_message(self, worker: _Worker, message: str, name: str = "") -> None:
        if message == "next":
            worker.is_waiting = True
            self._assign_item(worker)
        elif (item := WorkItem.from_name(name)) is not None:
            self._scheduler.item_finished(worker.rank.rank, item)
            if message == "finished":
                self.advance(item.galaxies)

    def _assign_item(self, worker: _Worker) -> None:
        item = self._scheduler.next_item(worker.rank.rank)
        if item is None and not self._scheduler.is_done:
            return
        worker.is_waiting, worker.is_dismissed, worker.last_message = False, item is None, time.monotonic()
        with suppress(OSError):  # it has just died, which the next poll handles
            worker.connection.sendall(f"{item.name if item else ''}\n".encode("ascii"))

    def _disconnect(self, worker: _Worker) -> None:
        with suppress(KeyError, ValueError):  # it was disconnected before
            self._selector.unregister(worker.connection)
        worker.connection.close()

    def _handle_exit(self, worker: _Worker, failure: str | None) -> None:
        rank = worker.rank.rank
        del self.workers[rank]
        self._disconnect(worker)
        if failure is None and worker.is_dismissed:
            return
        for item in list(self._scheduler.held_by(rank)):
            if self.run.has_part(item):  # written, but the rank died before it could report so
                self._scheduler.item_finished(rank, item)
                self.advance(item.galaxies)
        failure, unfinished = failure or "ended before its work was done", len(self._scheduler.held_by(rank))
        log_end = last_lines(Path(self.logs.log_path(rank)), worker.log_start)
        for item in self._scheduler.rank_lost(rank):
            self.run.write_failure(item, rank, f"it crashed {MAX_CRASHES} ranks; the last one {failure}")
            unfinished -= 1
        restarts = self._restarts > 0 and not self._scheduler.is_done
        then = "it is started again" if restarts else "the others go on" if self.workers else "no rank is left"
        notify(f"rank {rank} {failure} with {unfinished} items unfinished; {then}", *log_end)
        if restarts:
            self._restarts -= 1
            self._start(worker.rank, worker.variables)
        else:
            self._scheduler.rank_retired(rank)


def _describe_exit(code: int) -> str | None:
    """Return how a process failed; None if it ended successfully."""
    if code == 0:
        return None
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def last_lines(log: Path, start: int = 0) -> list[str]:
    """Return the last lines of a log file from a position on."""
    return log.read_bytes()[start:].decode(errors="replace").splitlines()[-LOG_LINES:]
