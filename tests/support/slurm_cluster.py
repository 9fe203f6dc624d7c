"""A real Slurm for the tests of one process (slurm/testcluster). It starts with the first test that uses the fixture:

from support.slurm_cluster import cluster as cluster  # "as": for ruff, which takes an argument for no use of it
pytestmark = pytest.mark.xdist_group("slurm")
"""

from __future__ import annotations

import functools
import getpass
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTCLUSTER = Path(__file__).parents[2] / "slurm" / "testcluster"
NO_SLURM = "Slurm is not installed (Debian: slurm-wlm slurmdbd munge mariadb-server)"
# Variables that tests inherit from a job in which they run.
FOREIGN = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_", "PMI", "OMPI_")


@dataclass(frozen=True)
class Cluster:
    """Two nodes of 4 CPUs, 16000 MB and 2 simulated GPUs. Commands run in its folder, which is removed with it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command that uses the cluster."""
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment | environment, cwd=cwd or self.folder
        )

    def sbatch(self, *arguments: str, cwd: Path | None = None, **environment: str) -> str:
        """Submit a job and return its number."""
        done = self.run("sbatch", "--parsable", *arguments, cwd=cwd, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str | None:
        """Return the state of a job (N) or an array task (N_M); for an array those of all its tasks: COMPLETED,FAILED.

        Accounting, which lags by up to 5 s, is queried only for jobs that the controller has forgotten.
        """
        known = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%T", f"--jobs={job}")
        if not known.stdout:
            known = self.run("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}")
        return ",".join(sorted({line.split()[0] for line in known.stdout.splitlines()})) or None

    def wait(self, job: str, timeout: float = 120) -> str | None:
        """Wait until a job and all its array tasks have left the queue, and return its state."""
        deadline = time.monotonic() + timeout
        while not self._has_left(job):
            assert time.monotonic() < deadline, (
                f"job {job} is still in the queue after {timeout:.0f} s\n{self._report()}"
            )
            time.sleep(0.1)
        return self.state(job)

    def wait_for_accounts(self, job: str, timeout: float = 60) -> None:
        """Wait until accounting, which lags by up to 5 s, knows that a job and all its array tasks have ended."""
        deadline = time.monotonic() + timeout
        command = ("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}")
        while not (states := self.run(*command).stdout.split()) or {"PENDING", "RUNNING"} & set(states):
            assert time.monotonic() < deadline, f"of job {job} accounting says {states}\n{self._report()}"
            time.sleep(0.1)

    def cancel_all(self) -> None:
        """End all jobs and wait until the nodes are free."""
        self.run("scancel", f"--user={getpass.getuser()}", "--state=PENDING")
        self.run("scancel", f"--user={getpass.getuser()}", "--signal=KILL", "--full")
        deadline = time.monotonic() + 60
        while (queue := self.run("squeue", "--noheader")).stdout or queue.returncode:
            assert time.monotonic() < deadline, f"jobs do not end\n{self._report()}"
            time.sleep(0.1)

    def _has_left(self, job: str) -> bool:
        queue = self.run("squeue", "--noheader", f"--jobs={job}")
        return not queue.stdout if queue.returncode == 0 else "Invalid job id" in queue.stderr

    def _report(self) -> str:
        logs = [self.folder / "log" / name for name in ("slurmctld", "n1", "n2")]
        return "\n".join(
            [self.run("squeue", "--long").stdout, self.run("sinfo", "--long", "--Node").stdout]
            + [f"{log.name}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-20:]) for log in logs]
        )


def surroundings() -> dict[str, str]:
    """Return this process's environment without a job's variables; `cosmicai` and `python3` are those of the tests."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return ours | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), ours["PATH"]])}


def installed() -> bool:
    """Return whether a cluster can be started here."""
    return shutil.which("slurmctld", path=os.environ["PATH"] + ":/usr/sbin:/sbin") is not None


def up(folder: Path) -> Cluster:
    """Start a cluster, or find the one that runs in this folder."""
    started = subprocess.run([TESTCLUSTER / "up", folder], capture_output=True, text=True, env=surroundings())
    assert started.returncode == 0, started.stderr
    exports = dict(shlex.split(line)[1].split("=", 1) for line in started.stdout.splitlines())
    return Cluster(folder, surroundings() | exports)


def down(folder: Path) -> subprocess.CompletedProcess[str]:
    """Stop the cluster in this folder, if there is one."""
    return subprocess.run([TESTCLUSTER / "down", folder], capture_output=True, text=True, env=surroundings())


@functools.cache  # pytest has a fixture of its own for each module that imports `cluster`
def _shared() -> Cluster:
    return up(Path(tempfile.mkdtemp(prefix="slurm-")))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of this process's tests."""
    if not installed():
        pytest.skip(NO_SLURM)
    shared = _shared()
    yield shared
    stopped = down(shared.folder)
    assert stopped.returncode == 0, stopped.stderr
