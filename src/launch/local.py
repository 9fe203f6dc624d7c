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

from cosmicai.errors import explained
from cosmicai.progress import progress
from cosmicai.ranks.cores import available_cores
from cosmicai.ranks.environment import Rank, environment_for
from cosmicai.run.folder import RunFolder
from cosmicai.s3 import is_s3

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
        # A run on S3 keeps its ranks' output in a temporary folder.
        logs = RunFolder(stack.enter_context(TemporaryDirectory())) if is_s3(run.uri) else run
        ranks: dict[int, subprocess.Popen[bytes]] = {}
        stack.callback(lambda: _stop(list(ranks.values())))
        for rank in range(procs):
            ranks[rank] = _start(run, Rank(rank, procs, "local", threads), Path(logs.log_path(rank)))
        advance = stack.enter_context(progress(plan.galaxies, done))
        counted = time.monotonic()
        while ranks:
            time.sleep(LOOK_EVERY)
            for rank in [rank for rank, process in ranks.items() if process.poll() is not None]:
                _explain(rank, ranks.pop(rank).returncode, Path(logs.log_path(rank)))
            if not ranks or time.monotonic() - counted > COUNT_EVERY:
                now, counted = plan.galaxies_of(run.parts()), time.monotonic()
                advance(now - done)
                done = now
    return run


def _start(run: RunFolder, rank: Rank, log: Path) -> subprocess.Popen[bytes]:
    with explained(str(log), "write"):
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("wb")
    with output:
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
