"""Runs with MPI: mpirun starts the ranks, on the nodes that it knows of."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ..console import notify
from ..console.progress import poll_progress
from ..errors import InputError
from ..ranks.cores import available_cores
from ..runs.plan import Plan
from ..runs.store import RunFolder
from ..storage.s3 import is_s3
from ..worker.interrupts import defer_interrupts
from ..worker.rank_process import LOG_FOLDER_VARIABLE
from .base import RankRequest
from .local.launcher import LocalLauncher
from .local.resources import resolve_device
from .local.supervisor import POLL_INTERVAL, TERMINATION_GRACE, last_lines
from .lock import run_lock


class MpiLauncher(LocalLauncher):
    """Starts all ranks by one mpirun and waits for it; a run is planned, locked and cancelled as a local one."""

    name = "mpi"

    def _require_resources(self, ranks: RankRequest, plan: Plan) -> None:
        resolve_device(ranks, plan)
        find_mpirun()
        super()._require_resources(ranks, plan)

    def _run_ranks(self, run: RunFolder, ranks: RankRequest) -> None:
        run_with_mpirun(run, ranks)


def run_with_mpirun(run: RunFolder, request: RankRequest) -> None:
    """Run the ranks with mpirun until everything is done.

    Where one rank dies MPI ends them all; while restarts are left, all are then started again for what is missing.
    Raises InputError if there is no mpirun, or if another launcher is at work on the run.
    """
    plan = run.plan()
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory()) if is_s3(run.uri) else run.path("logs"))
        logs.mkdir(parents=True, exist_ok=True)
        command, variables = mpi_command(run, request, logs)
        check_interrupts = stack.enter_context(defer_interrupts())
        heartbeat = stack.enter_context(run_lock(run, notify))
        stack.enter_context(poll_progress(plan.galaxies, lambda: plan.galaxies_of(run.parts())))
        for restarts_left in range(request.max_restarts, -1, -1):
            if plan.galaxies_of(run.parts()) == plan.galaxies:
                break
            with (logs / "mpirun.log").open("ab") as log:
                log_start = log.tell()
                process = subprocess.Popen(
                    command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            try:
                while process.poll() is None:
                    check_interrupts()
                    heartbeat()
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_INTERVAL)
            finally:
                _stop(process)
            if process.returncode == 0:
                break
            then = "it is started again" if restarts_left else "no restart is left"
            log_end = last_lines(logs / "mpirun.log", log_start)
            notify(f"mpirun ended with exit code {process.returncode}; {then}", *log_end)


def mpi_command(run: RunFolder, request: RankRequest, logs: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command line that starts all ranks, and environment variables for mpirun itself.

    Raises InputError if there is no mpirun.
    """
    settings = {"COSMICAI_WORLD_SIZE": str(request.ranks), LOG_FOLDER_VARIABLE: str(logs)}
    variables = {}
    if request.nodes == 1:
        threads = max(1, available_cores() // request.ranks)
        settings["COSMICAI_THREADS"] = str(threads)
        # Open MPI would not start more ranks than there are cores, and would bind a rank of several threads to one.
        variables = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
    if os.getuid() == 0:
        variables |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    placement = ["-N", str(request.per_node)] if request.nodes > 1 else []
    worker = [sys.executable, "-m", "cosmicai", "work", run.uri, "--schedule", request.schedule]
    # Through env, since every MPI has its own option for variables that go to other nodes.
    assignments = [f"{name}={value}" for name, value in settings.items()]
    return [find_mpirun(), "-n", str(request.ranks), *placement, "env", *assignments, *worker], variables


def find_mpirun() -> str:
    """Return the path of the program that starts MPI's ranks. Raises InputError if it is not installed."""
    mpirun = shutil.which("mpirun") or shutil.which("mpiexec")
    if mpirun is None:
        raise InputError(
            "there is no mpirun here; install Open MPI (on Debian: apt-get install openmpi-bin) or load the cluster's "
            "module, or leave --mpi out"
        )
    return mpirun


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate mpirun, which ends its ranks; kill them all if that takes too long."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(TERMINATION_GRACE)
    with suppress(ProcessLookupError):  # also what mpirun may have left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
