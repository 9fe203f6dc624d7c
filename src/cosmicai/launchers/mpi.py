"""Ranks that mpirun starts, on the nodes that it knows of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from ..console.progress import polled
from ..ranks.cores import available_cores
from ..runs.store import RunFolder
from ..storage.s3 import is_s3
from ..worker.entry import LOGS
from ..worker.interrupts import deferred
from .local.supervisor import GRACE, LOOK_EVERY, last_lines
from .lock import claimed
from .request import Request, find_mpirun


def launch(run: RunFolder, request: Request) -> RunFolder:
    """Runs the ranks under mpirun until everything is done. Where one dies MPI ends them all; they are then started
    again for what is missing, while restarts are left.

    Raises InputError if there is no mpirun, or another launcher is at work on the run.
    """
    plan = run.plan()
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory()) if is_s3(run.uri) else run.path("logs"))
        logs.mkdir(parents=True, exist_ok=True)
        command, variables = mpi_command(run, request, logs)
        check = stack.enter_context(deferred())
        beat = stack.enter_context(claimed(run, lambda notice: click.echo(notice, err=True)))
        stack.enter_context(polled(plan.galaxies, lambda: plan.galaxies_of(run.parts())))
        for left in range(request.max_restarts, -1, -1):
            if plan.galaxies_of(run.parts()) == plan.galaxies:
                break
            with (logs / "mpirun.log").open("ab") as log:
                begin = log.tell()
                process = subprocess.Popen(
                    command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            try:
                while process.poll() is None:
                    check()
                    beat()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(LOOK_EVERY)
            finally:
                _stop(process)
            if process.returncode == 0:
                break
            then = "it is started again" if left else "no restart is left"
            end = last_lines(logs / "mpirun.log", begin)
            click.echo("\n  ".join([f"mpirun ended with exit code {process.returncode}; {then}", *end]), err=True)
    return run


def mpi_command(run: RunFolder, request: Request, logs: Path) -> tuple[list[str], dict[str, str]]:
    """The command line of all ranks, and the variables of mpirun itself. Raises InputError if there is no mpirun."""
    own = {"COSMICAI_WORLD_SIZE": str(request.ranks), LOGS: str(logs)}
    variables = {}
    if request.nodes == 1:
        threads = max(1, available_cores() // request.ranks)
        own["COSMICAI_THREADS"] = str(threads)
        # Open MPI would not start more ranks than there are cores, and would bind a rank of several threads to one.
        variables = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
    if os.getuid() == 0:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    places = ["-N", str(request.per_node)] if request.nodes > 1 else []
    # Through env, since every MPI has its own option for variables that go to other nodes.
    worker = [sys.executable, "-m", "cosmicai", "work", run.uri, "--schedule", request.schedule]
    settings = [f"{name}={value}" for name, value in own.items()]
    return [find_mpirun(), "-n", str(request.ranks), *places, "env", *settings, *worker], variables


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends mpirun, which ends its ranks; by force if it takes too long."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):  # also what mpirun may have left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
