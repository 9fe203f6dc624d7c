"""Jobs that are submitted from within other jobs, or without the user's environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.helpers import make_survey, random_galaxies, tiny_weights
from support.processes import digest, run
from support.slurm_cluster import cluster as cluster

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).parents[3]
LAUNCH = ("python", "-m", "launch", "--slurm", "--time", "5:00", "--cores", "1", "--wait")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Survey, weights, and the digest of the catalogue that one process makes of them."""
    folder = tmp_path_factory.mktemp("inputs")
    survey = make_survey(folder / "survey", random_galaxies(600), 200).uri
    weights = tiny_weights(folder / "w.safetensors")
    assert run("infer", survey, "--weights", weights, "--out", str(folder / "alone")).returncode == 0
    return survey, weights, digest(folder / "alone")


@pytest.mark.parametrize(
    "outer",
    [
        ("salloc", "-Q", "--mem-per-cpu=300", "-n1", "--time=5"),
        ("srun", "-Q", "--mem=800", "--gres=gpu:1", "-n1", "-c1", "--time=5"),
    ],
)
def test_the_launcher_submits_from_within_an_allocation(tmp_path, cluster, inputs, outer):
    survey, weights, catalogue = inputs
    out = tmp_path / "run"
    done = cluster.run(*outer, *LAUNCH, "--array", "2", survey, "--weights", weights, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert digest(out) == catalogue


@pytest.mark.parametrize(
    ("script", "options"), [("infer_array.sh", ("--array=0-1",)), ("infer_mpi.sh", ("--ntasks=2",))]
)
def test_the_scripts_work_without_the_users_environment_and_within_an_allocation(
    tmp_path, cluster, inputs, script, options
):
    survey, weights, catalogue = inputs
    sbatch = ("sbatch", "--wait", f"--output={tmp_path}/%j.txt", *options)
    for name, before, more in (("none", (), ("--export=NONE",)), ("inner", ("salloc", "-Q", "--mem=2000", "-n1"), ())):
        out = tmp_path / name
        command = (*before, *sbatch, *more, f"jobs/{script}", survey, str(out), weights)
        done = cluster.run(*command, cwd=ROOT)
        assert done.returncode == 0, [path.read_text() for path in tmp_path.glob("*.txt")]
        assert digest(out) == catalogue


def test_the_launcher_submits_without_the_users_environment(tmp_path, cluster, inputs):
    survey, weights, catalogue = inputs
    command = (*LAUNCH, "--nodes", "2", "--procs", "4", survey, "--weights", weights, "--out", str(tmp_path / "run"))
    done = cluster.run(*command, SBATCH_EXPORT="NONE", SBATCH_PARTITION="gpu", SBATCH_TIMELIMIT="2")
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "run") == catalogue
    job = done.stdout.removeprefix("submitted job ").partition(";")[0]
    cluster.wait_for_accounts(job)
    accounted = cluster.run("sacct", "-X", "-n", "-P", "--format=partition,timelimit", f"--jobs={job}").stdout
    assert accounted.split() == ["standard|00:05:00"]
