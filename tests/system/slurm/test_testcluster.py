"""The Slurm of the tests is a real one: it starts, hands out GPUs and memory, requeues, keeps accounts, and goes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.slurm_cluster import NO_SLURM, TESTCLUSTER, Cluster, down, installed, surroundings, up
from support.slurm_cluster import cluster as cluster

pytestmark = pytest.mark.xdist_group("slurm")
needs_slurm = pytest.mark.skipif(not installed(), reason=NO_SLURM)


@pytest.fixture(autouse=True)
def free(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the nodes free."""
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").cancel_all()


def until(met: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Polls until a condition is met."""
    deadline = time.monotonic() + timeout
    while not met():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:.0f} s"
        time.sleep(0.1)


def mentioning(text: str) -> list[str]:
    """The commands of the processes that have this in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if text.encode() in command + (process / "environ").read_bytes():
                found.append(command.replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is another user's
            continue
    return found


def test_two_nodes_of_four_cpus_and_two_gpus(cluster: Cluster) -> None:
    nodes = cluster.run("sinfo", "--noheader", "--Node", "--partition=standard", "--format=%N %T %c %m %G").stdout
    assert nodes.splitlines() == ["n1 idle 4 16000 gpu:a100:2", "n2 idle 4 16000 gpu:a100:2"]
    partitions = cluster.run("sinfo", "--noheader", "--summarize", "--format=%P").stdout.split()
    assert partitions == ["standard*", "parallel", "gpu", "interactive", "gpu-mig", "urgent"]


def test_a_user_has_fourteen_slices_of_gpus_at_a_time(cluster: Cluster) -> None:
    slices = ("--partition=gpu-mig", "--gres=gpu:1g.24gb:1", "--cpus-per-task=2", "--mem=30000", "--account=stars")
    cluster.sbatch("--array=0-19", *slices, "--output=/dev/null", "--wrap=exec sleep 100")

    def states() -> list[str]:
        queue = cluster.run("squeue", "--noheader", "--array", "--format=%T %r").stdout
        return sorted(queue.splitlines())

    until(lambda: states() == ["PENDING QOSMaxJobsPerUserLimit"] * 6 + ["RUNNING None"] * 14, "14 of 20 tasks run")


def test_a_job_with_an_account_that_does_not_exist_is_refused(cluster: Cluster) -> None:
    refused = cluster.run("sbatch", "--account=nobody", "--wrap=true")
    assert refused.returncode == 1 and "Invalid account" in refused.stderr


def test_a_step_runs_on_both_nodes(cluster: Cluster) -> None:
    both = cluster.run("srun", "--nodes=2", "--label", "printenv", "SLURMD_NODENAME")
    assert sorted(both.stdout.splitlines()) == ["0: n1", "1: n2"], both.stderr


def test_the_tasks_of_a_job_see_its_gpus(cluster: Cluster) -> None:
    see = ("printenv", "CUDA_VISIBLE_DEVICES")
    both = cluster.run("srun", "--ntasks=2", "--gres=gpu:a100:2", *see)
    assert both.stdout.splitlines() == ["0,1", "0,1"], both.stderr
    each = cluster.run("srun", "--nodes=2", "--ntasks=4", "--gpus-per-task=1", *see)
    assert sorted(each.stdout.splitlines()) == ["0", "0", "1", "1"], each.stderr


def test_two_jobs_get_different_gpus_and_a_third_waits(cluster: Cluster, tmp_path: Path) -> None:
    script = "printenv CUDA_VISIBLE_DEVICES && exec sleep 100"
    one = ("--nodelist=n1", "--gres=gpu:a100:1", f"--output={tmp_path}/%j", f"--wrap={script}")
    first, second, third = (cluster.sbatch(*one) for _ in range(3))
    files = [tmp_path / first, tmp_path / second]
    until(lambda: all(file.exists() and file.read_text() for file in files), "the GPUs of two jobs")
    assert {file.read_text() for file in files} == {"0\n", "1\n"}
    assert cluster.state(third) == "PENDING"


def test_a_finished_job_is_in_the_accounts_with_its_memory(cluster: Cluster) -> None:
    job = cluster.sbatch("--wrap=python3 -c 'hold = bytearray(200 << 20); import time; time.sleep(2.5)'")
    assert cluster.wait(job) == "COMPLETED"

    def memory() -> int:
        rows = cluster.run("sacct", "--noheader", "--parsable2", "--format=State,MaxRSS", f"--jobs={job}.batch").stdout
        kilobytes = re.search(r"COMPLETED\|(\d+)K", rows)
        return int(kilobytes[1]) if kilobytes else 0

    until(memory, "sacct's MaxRSS")
    assert 200 << 10 < memory() < 300 << 10


def test_a_job_with_too_much_memory_is_killed(cluster: Cluster, tmp_path: Path) -> None:
    hold = "python3 -c 'hold = bytearray(400 << 20); import time; time.sleep(100)'"
    job = cluster.sbatch("--mem=100", f"--output={tmp_path}/out", f"--wrap={hold}")
    assert cluster.wait(job) == "FAILED"  # OUT_OF_MEMORY takes control groups
    assert "ExitCode=0:9" in cluster.run("scontrol", "show", "job", job).stdout
    assert "memory limit" in (tmp_path / "out").read_text()


def test_memory_is_handed_out(cluster: Cluster) -> None:
    jobs = [cluster.sbatch("--nodelist=n2", "--mem=9000", "--wrap=sleep 100") for _ in range(2)]
    until(lambda: cluster.state(jobs[0]) == "RUNNING", "the first job")
    assert cluster.state(jobs[1]) == "PENDING"


def test_a_requeued_job_starts_again_within_seconds(cluster: Cluster, tmp_path: Path) -> None:
    script = 'echo "start ${SLURM_RESTART_COUNT:-0}" && exec sleep 100'
    job = cluster.sbatch("--requeue", "--open-mode=append", f"--output={tmp_path}/out", f"--wrap={script}")
    until(lambda: (tmp_path / "out").exists() and "start 0" in (tmp_path / "out").read_text(), "the first start")
    cluster.run("scontrol", "requeue", job)
    until(lambda: "start 1" in (tmp_path / "out").read_text(), "the second start", 30)


def test_an_urgent_job_takes_the_place_of_another_which_is_requeued(cluster: Cluster) -> None:
    job = cluster.sbatch("--nodes=2", "--exclusive", "--wrap=sleep 100")
    until(lambda: cluster.state(job) == "RUNNING", "the job")
    urgent = cluster.sbatch("--partition=urgent", "--nodes=2", "--wrap=true")
    assert cluster.wait(urgent, 30) == "COMPLETED"
    until(lambda: cluster.state(job) == "RUNNING", "the job again", 30)
    assert "Restarts=1" in cluster.run("scontrol", "show", "job", job).stdout


def test_an_array_is_waited_for_as_a_whole(cluster: Cluster) -> None:
    job = cluster.sbatch("--array=0-3", "--wrap=exit $((SLURM_ARRAY_TASK_ID == 2))")
    assert cluster.wait(job) == "COMPLETED,FAILED"
    assert cluster.state(f"{job}_2") == "FAILED"
    assert cluster.state("999999") is None


def test_a_wait_that_ends_says_why(cluster: Cluster) -> None:
    job = cluster.sbatch("--wrap=sleep 100")
    with pytest.raises(AssertionError, match=rf"(?s)job {job} is still in the queue.* wrap .*slurmctld:.*n1:.*n2:"):
        cluster.wait(job, 0.5)


def test_up_twice_is_the_same_cluster(cluster: Cluster) -> None:
    again = up(cluster.folder)
    assert again.environment["SLURM_CONF"] == cluster.environment["SLURM_CONF"]
    assert again.environment["COSMICAI_SITE"] == "local"


def test_down_leaves_nothing_of_a_second_cluster_with_stubborn_jobs(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / ("a name that is too long for a socket and has spaces " * 2).strip()
    second = up(folder)
    try:
        plain = Path(second.environment["SLURM_CONF"]).parent
        second.sbatch("--output=/dev/null", "--wrap=trap '' TERM; setsid sleep 1001 & sleep 1002; sleep 1003")
        until(lambda: {"sleep 1001 ", "sleep 1002 "} <= set(mentioning(str(plain))), "the job's processes")
    finally:
        stopped = down(folder)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert mentioning(str(plain)) == mentioning(str(folder)) == []
    assert not folder.exists() and not plain.is_symlink()
    again = down(folder)
    assert again.returncode == 0 and "there is no test cluster" in again.stderr
    assert cluster.run("srun", "true").returncode == 0


@needs_slurm
def test_nobody_needs_to_be_root() -> None:
    with tempfile.TemporaryDirectory() as name:  # a folder of pytest is its own user's alone
        own = Path(name)
        shutil.copytree(TESTCLUSTER, own / "testcluster")
        nobody: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": ()} if os.getuid() == 0 else {}
        if nobody:
            os.chown(own, 65534, 65534)
        script = 'eval "$(testcluster/up cluster)"; srun id --user; testcluster/down cluster'
        done = subprocess.run(
            ["bash", "-euc", script], cwd=own, capture_output=True, text=True, env=surroundings() | {"HOME": name},
            **nobody,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, f"{65534 if nobody else os.getuid()}\n"), done.stderr
        assert not (own / "cluster").exists()


@needs_slurm
def test_folders_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "thesis").touch()
    for script in ("up", "down"):
        refused = subprocess.run([TESTCLUSTER / script, tmp_path], capture_output=True, text=True, env=surroundings())
        assert refused.returncode == 2 and str(tmp_path) in refused.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis"]


def test_a_missing_program_is_named_with_its_package() -> None:
    bare = subprocess.run(["/bin/bash", TESTCLUSTER / "up"], capture_output=True, text=True, env={"PATH": "/nowhere"})
    assert bare.returncode == 2
    assert re.search(r"there is no [\w-]+; install Debian's slurm-wlm", bare.stderr)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_scripts_are_sound() -> None:
    checked = subprocess.run(["shellcheck", TESTCLUSTER / "up", TESTCLUSTER / "down"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
