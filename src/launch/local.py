"""Ranks as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from cosmicai import storage
from cosmicai.progress import progress
from cosmicai.ranks.environment import Rank, available_cores, environment_for
from cosmicai.run.folder import RunFolder

LOOK_EVERY = 0.25  # seconds between looks at the ranks
COUNT_EVERY = 2.0  # seconds between counts of finished parts
GRACE = 4.0  # seconds between SIGTERM and SIGKILL
LOG_LINES = 5


def launch(run: RunFolder, procs: int) -> RunFolder:
    """Runs `procs` ranks until all have ended, and shows their common progress.

    A rank that fails is named with its exit code or signal and the end of its log; the others go on. When this
    process is interrupted, all ranks are stopped first.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end in KeyboardInterrupt, which stops the ranks
    plan = run.plan()
    done = plan.galaxies_of(run.parts())
    if done == plan.galaxies:
        return run
    threads = max(1, available_cores() // procs)
    with ExitStack() as stack:
        logs = _log_folder(run, stack)
        ranks: dict[int, subprocess.Popen[bytes]] = {}
        stack.callback(lambda: _stop(list(ranks.values())))
        for rank in range(procs):
            ranks[rank] = _start(run, Rank(rank, procs, "local", threads), Path(logs, f"{rank}.log"))
        advance = stack.enter_context(progress(plan.galaxies, done))
        counted = time.monotonic()
        while ranks:
            time.sleep(LOOK_EVERY)
            for rank in [rank for rank, process in ranks.items() if process.poll() is not None]:
                _explain(rank, ranks.pop(rank).returncode, Path(logs, f"{rank}.log"))
            if not ranks or time.monotonic() - counted > COUNT_EVERY:
                now, counted = plan.galaxies_of(run.parts()), time.monotonic()
                advance(now - done)
                done = now
    return run


def _log_folder(run: RunFolder, stack: ExitStack) -> str:
    """Where the ranks' output goes: into the run folder, or to a temporary folder for a run on S3."""
    if storage.is_s3(run.uri):
        return stack.enter_context(TemporaryDirectory())
    folder = Path(run.log_path(0)).parent
    with storage.explained(str(folder), "write"):
        folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _start(run: RunFolder, rank: Rank, log: Path) -> subprocess.Popen[bytes]:
    with storage.explained(str(log), "write"), log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cosmicai", "work", run.uri],
            env=os.environ | environment_for(rank), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the ranks
        )  # fmt: skip


def _explain(rank: int, code: int, log: Path) -> None:
    if code == 0:
        return
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    end = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    click.echo("\n  ".join([f"rank {rank} {how}; the others go on", *end]), err=True)


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
