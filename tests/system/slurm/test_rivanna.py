"""The profile of Rivanna on a real Slurm with its partitions, GPUs, features, accounts and limits."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmicai.runs.store import RunFolder
from support.processes import run, wait_until
from support.slurm_cluster import Cluster
from support.slurm_cluster import cluster as cluster

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).parents[3]
GALAXIES = 4096  # of the demo's survey


@pytest.fixture(autouse=True)
def free(cluster: Cluster) -> Iterator[None]:
    """Every test leaves the nodes free, and all partitions up."""
    yield
    cluster.run("scontrol", "update", "partitionname=gpu", "state=up")
    cluster.cancel_all()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rivanna's file, but for its GPUs, which are stand-ins here, and a folder for large files that exists."""
    text = (ROOT / "slurm" / "rivanna.toml").read_text()
    text = re.sub(r"(?m)^(\[gpus\..*)$", r"\1\ncomputes = false", text).replace("/scratch/$USER", "/tmp")
    path = tmp_path_factory.mktemp("site") / "rivanna.toml"
    path.write_text(text)
    return path


class Login:
    """The launcher on a login node of such a cluster."""

    def __init__(self, cluster: Cluster, site: Path, folder: Path) -> None:
        self.cluster, self.out = cluster, folder / "run"
        self.options = ["--slurm", "--site", str(site), "--account", "stars", "--memory-mb", "1000"]

    def launch(self, *arguments: str, **settings: Any) -> tuple[int, str, str]:
        environment = {"COSMICAI_CACHE": os.environ["COSMICAI_CACHE"], "PYTHONPATH": ""}
        done = run(*arguments, module="launch", **(self.cluster.environment | environment | settings))
        return done.returncode, done.stdout, done.stderr

    def submit(self, *options: str) -> list[str]:
        """Submit the demo's survey and return the numbers of the jobs."""
        survey = ("demo", "--weights", "demo", "--out", str(self.out))
        code, printed, errors = self.launch(*self.options, *options, *survey)
        assert code == 0, errors
        return printed.removeprefix("submitted job ").partition(";")[0].split(", ")

    def require_complete(self) -> None:
        summary = json.loads((self.out / "summary.json").read_text())
        assert summary["complete"] and summary["coverage"]["done"] == GALAXIES

    def show(self, job: str) -> dict[str, str]:
        """What scontrol says of a job's first task."""
        text = self.cluster.run("scontrol", "show", "job", job).stdout.split("\n\n")[0]
        return dict(word.partition("=")[::2] for word in text.split())


@pytest.fixture
def login(cluster: Cluster, site: Path, tmp_path: Path) -> Login:
    return Login(cluster, site, tmp_path)


@pytest.mark.parametrize(
    ("kind", "partition", "gres", "features"),
    [
        ("mig", "gpu-mig", "gres:gpu:1g.24gb:1", "(null)"),
        ("mig_a100", "gpu-mig", "gres:gpu:1g.10gb:1", "(null)"),
        ("mig_rtxpro6000", "gpu-mig", "gres:gpu:1", "rtxpro6000"),
        ("v100", "gpu", "gres:gpu:v100:1", "(null)"),
        ("a40", "gpu", "gres:gpu:a40:1", "(null)"),
        ("a6000", "gpu", "gres:gpu:a6000:1", "(null)"),
        ("a100", "gpu", "gres:gpu:a100:1", "(null)"),
        ("a100_80gb", "gpu", "gres:gpu:a100:1", "a100_80gb"),
        ("pod", "gpu", "gres:gpu:a100:1", "gpupod"),
        ("rtx2080", "interactive", "gres:gpu:rtx2080:1", "(null)"),
        ("rtx3090", "interactive", "gres:gpu:rtx3090:1", "(null)"),
    ],
)
def test_slurm_accepts_a_job_for_every_kind_of_gpu(login, kind, partition, gres, features):
    (job,) = login.submit("--gpus", "1", "--gpu-kind", kind, "--sbatch", "hold")
    shown = login.show(job)
    assert (shown["Partition"], shown["Account"], shown["JobState"]) == (partition, "stars", "PENDING")
    assert (shown["TresPerNode"], shown["Features"]) == (gres, features)


def test_the_first_kind_to_start_does_the_work_and_jobs_for_the_others_cancel_themselves(login):
    """Two of three kinds never start, since their partition is down."""
    assert login.cluster.run("scontrol", "update", "partitionname=gpu", "state=down").returncode == 0
    jobs = login.submit("--array", "2", "--gpus", "1", "--gpu-kind", "v100,a6000,mig", "--cores", "1")
    assert len(jobs) == 3
    for job in jobs:
        login.cluster.wait(job)
    assert [login.cluster.state(job) for job in jobs] == ["CANCELLED", "CANCELLED", "COMPLETED"]
    login.require_complete()
    records = RunFolder(str(login.out)).records().values()
    assert {record.world_size for record in records} == {6} and {record.rank for record in records} <= {4, 5}
    assert sum(record.galaxies for record in records) == GALAXIES


def test_without_a_kind_a_job_goes_where_it_is_free_of_charge(login):
    code, printed, errors = login.launch(
        *login.options, "--array", "4", "--gpus", "1", "demo", "--out", str(login.out), "--dry-run"
    )
    assert code == 0, errors
    assert "GPUs of kind mig are the cheapest of rivanna that take the job: 0.00 service units an hour" in errors
    assert "#SBATCH --partition=gpu-mig\n" in printed and "#SBATCH --gres=gpu:1g.24gb:1\n" in printed
    assert "0.00 service units, if all of the time limit is used" in printed


def test_mail_dependency_nodes_and_priority_are_those_of_the_job(login):
    first = login.cluster.sbatch("--hold", "--wrap=true")
    options = ("--mail-user", "me@example.edu", "--dependency", f"afterany:{first}", "--exclude", "n2", "--nice", "77")
    (job,) = login.submit("--partition", "standard", *options)
    shown = login.show(job)
    assert (shown["MailUser"], shown["MailType"]) == ("me@example.edu", "END,FAIL")
    assert (shown["ExcNodeList"], shown["Nice"]) == ("n2", "77")
    assert shown["Dependency"].startswith(f"afterany:{first}")
    login.cluster.run("scontrol", "release", first)
    assert login.cluster.wait(job) == "COMPLETED"
    login.require_complete()


def test_a_job_that_slurm_refuses_is_one_sentence_and_leaves_nothing(login):
    options = [word.replace("stars", "nobody") for word in login.options]
    code, _, errors = login.launch(*options, "--partition", "standard", "demo", "--out", str(login.out))
    assert code == 2 and "Invalid account" in errors and len(errors.strip().splitlines()) == 1
    assert not (login.out / "submissions").exists()


def test_two_clusters_run_at_a_time(cluster, tmp_path):
    """Each in its own folder, with its own jobs; `down` stops only its own."""
    from support.slurm_cluster import down, up

    second = up(tmp_path / "second")
    try:
        job = second.sbatch("--output=/dev/null", "--wrap=exec sleep 100")
        wait_until(lambda: second.state(job) == "RUNNING")
        assert cluster.run("squeue", "--noheader").stdout == ""
    finally:
        assert down(tmp_path / "second").returncode == 0
    assert cluster.run("srun", "hostname").returncode == 0
