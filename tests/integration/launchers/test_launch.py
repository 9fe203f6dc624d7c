"""`python -m launch` and the other ways to start ranks: one result, and one sentence where there can be none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cosmicai.errors import InputError
from cosmicai.launchers.base import RankRequest
from cosmicai.launchers.local import resources
from cosmicai.launchers.local.resources import local_ranks, require_memory
from cosmicai.ranks.cores import available_cores
from cosmicai.runs.plan import Plan
from cosmicai.runs.store import RunFolder
from support.helpers import make_survey, random_galaxies, tiny_weights
from support.processes import SLOW, digest, run
from support.rank_launchers import NO_MPI

GALAXIES = 3000
# Open MPI refuses root, and more ranks than there are cores.
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """Survey, weights, and the digest of the catalogue that `cosmicai infer` makes."""
    folder = tmp_path_factory.mktemp("job")
    survey = make_survey(folder / "survey", random_galaxies(GALAXIES), 1100).uri
    weights = tiny_weights(folder / "w.safetensors")
    assert run("infer", survey, "--weights", weights, "--out", str(folder / "alone"), *SLOW).returncode == 0
    return survey, weights, digest(folder / "alone")


def require_complete(out: Path, expected: str, records: list[str]) -> None:
    """The catalogue has every galaxy once, bit by bit as expected, and every rank has left its record."""
    summary = json.loads((out / "summary.json").read_text())
    assert summary["complete"] and summary["failures"] == []
    assert summary["catalogue_sha256"] == expected
    objid = pq.read_table(out / "catalogue.parquet")["objid"].to_numpy()
    assert np.array_equal(objid, np.arange(1000, 1000 + GALAXIES))
    found = RunFolder(str(out)).records()
    assert sorted(found) == records
    assert {record.state for record in found.values()} == {"finished"}
    assert sum(record.galaxies for record in found.values()) == GALAXIES
    assert not (out / "launcher.json").exists()


def require_one_sentence(code: int, printed: str, errors: str) -> None:
    assert (code, printed) == (2, "")
    assert len(errors.splitlines()) == 1 and errors.startswith("launch: "), errors


@pytest.mark.parametrize("options", [("--procs", "1"), ("--procs", "3"), ("--procs", "3", "--schedule", "static")])
def test_any_number_of_ranks_gives_one_result(tmp_path, job, options):
    survey, weights, expected = job
    out = tmp_path / "run"
    done = run(survey, "--weights", weights, "--out", str(out), *SLOW, *options, module="launch")
    assert done.returncode == 0, done.stderr
    ranks = [str(rank) for rank in range(int(options[1]))]
    require_complete(out, expected, ranks)
    assert sorted(path.name for path in (out / "logs").iterdir()) == [f"{rank}.log" for rank in ranks]
    assert {record.platform for record in RunFolder(str(out)).records().values()} == {"local"}
    assert done.stderr.splitlines()[-1].startswith(f"{GALAXIES} of {GALAXIES} galaxies, ")


def planned(tmp_path: Path, job: tuple[str, str, str], ranks: int) -> Path:
    survey, weights, _ = job
    out = tmp_path / "run"
    done = run("plan", survey, "--weights", weights, "--out", str(out), *SLOW, "--ranks", str(ranks))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.skipif(not shutil.which("mpirun"), reason=NO_MPI)
def test_ranks_of_mpirun_give_the_same(tmp_path, job):
    out = planned(tmp_path, job, 4)
    done = run("work", str(out), through=("mpirun", "-n", "4"), **OPEN_MPI)
    assert done.returncode == 0, done.stderr
    require_complete(out, job[2], ["0", "1", "2", "3"])
    assert done.stdout.count("coverage     3000/3000") == 1


def test_ranks_of_torchrun_give_the_same(tmp_path, job):
    out = planned(tmp_path, job, 4)
    options = ("--standalone", "--nproc-per-node", "4", "-m", "cosmicai", "work", str(out))
    done = run(*options, module="torch.distributed.run")
    assert done.returncode == 0, done.stderr
    require_complete(out, job[2], ["0", "1", "2", "3"])
    assert done.stdout.count("coverage     3000/3000") == 1


@pytest.mark.skipif(not shutil.which("mpirun"), reason=NO_MPI)
def test_ranks_that_we_start_with_mpirun_give_the_same(tmp_path, job):
    survey, weights, expected = job
    out = tmp_path / "run"
    done = run(survey, "--weights", weights, "--out", str(out), *SLOW, "--mpi", "--procs", "3", module="launch")
    assert done.returncode == 0, done.stderr
    require_complete(out, expected, ["0", "1", "2"])
    assert {path.name for path in (out / "logs").iterdir()} == {"0.log", "1.log", "2.log", "mpirun.log"}
    assert {record.platform for record in RunFolder(str(out)).records().values()} == {"mpi"}


def test_gpus_that_are_not_there_are_one_sentence(tmp_path, job):
    out = tmp_path / "run"
    arguments = (job[0], "--weights", job[1], "--out", str(out), "--gpus", "4")
    done = run(*arguments, module="launch", CUDA_VISIBLE_DEVICES="")
    require_one_sentence(done.returncode, done.stdout, done.stderr)
    assert done.stderr == (
        f"launch: --gpus 4: this machine shows no GPUs; run on its {available_cores()} CPU cores with --procs N\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    "options, sentence",
    [
        (
            ("--procs", "2", "--gpus", "1"),
            "--procs is for ranks on CPUs and --gpus for ranks on GPUs; use one of them",
        ),
        (("--nodes", "2"), "--nodes 2 needs --mpi or --slurm; without them all ranks run on this machine"),
        (
            ("--procs", "3", "--nodes", "2", "--mpi"),
            "--procs 3 is for all nodes together and cannot be shared evenly by --nodes 2",
        ),
        (
            ("--mpi", "--slurm"),
            "--mpi and --slurm both start ranks; use one of them (jobs/infer_mpi.sh is MPI in SLURM)",
        ),
        (("--gpu-kind", "a100"), "--gpu-kind is for jobs of --slurm"),
        (("--array", "4"), "--array is for jobs of --slurm"),
        (("--wait",), "--wait is for jobs of --slurm"),
        (("--time", "10"), "--time is for jobs of --slurm"),
        (("--image", "cosmicai.sif"), "--image is for jobs of --slurm"),
        (("--procs", "2", "--device", "cuda"), "--procs and --device cuda contradict each other"),
        (("--gpus", "2", "--nodes", "2", "--mpi", "--device", "cpu"), "--gpus and --device cpu contradict each other"),
    ],
)
def test_options_that_contradict_each_other_are_one_sentence(tmp_path, job, options, sentence):
    out = tmp_path / "run"
    done = run(job[0], "--weights", job[1], "--out", str(out), *options, module="launch")
    require_one_sentence(done.returncode, done.stdout, done.stderr)
    assert done.stderr == f"launch: {sentence}\n"
    assert not out.exists()


def test_a_dry_run_prints_an_estimate_and_leaves_nothing_behind(tmp_path, job):
    survey, weights, _ = job
    out, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    arguments = (survey, "--weights", weights, "--out", str(out), *SLOW, "--procs", "2", "--dry-run")
    done = run(*arguments, module="launch", TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"3,000 galaxies of {survey} in 3 shards"
    assert lines[1].endswith(" work items, the largest of 72 galaxies, schedule dynamic")
    assert lines[2] == f"engine openvino, float32, batches of 4, weights {weights}"
    assert [line.partition(":")[0] for line in lines[3:5]] == ["rank 0 of each node", "rank 1 of each node"]
    assert lines[5].startswith("about 0:00:0") and lines[5].endswith(
        " galaxies/s, 2 times what one such rank alone was measured"
    )
    assert lines[6].startswith("about ") and " MB of memory of each node; " in lines[6] and len(lines) == 7
    assert not out.exists() and not any(temporary.iterdir())


def test_resume_finishes_what_is_missing_with_any_number_of_ranks(tmp_path, job):
    out = planned(tmp_path, job, 2)
    done = run("resume", str(out), "--procs", "3", module="launch")
    assert done.returncode == 0, done.stderr
    require_complete(out, job[2], ["0", "1", "2"])
    removed = sorted((out / "parts").iterdir())[::7]
    kept = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir() if path not in removed}
    for part in removed:
        part.unlink()
    done = run("resume", out.name, module="launch", cwd=out.parent)
    assert done.returncode == 0, done.stderr
    assert digest(out) == job[2]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert RunFolder(str(out)).records()["0-2"].items == len(removed)
    done = run("resume", str(out), module="launch")
    assert done.returncode == 0, "a run that is complete is nothing to complain of"
    assert digest(out) == job[2] and "0-3" not in RunFolder(str(out)).records()


def test_the_same_command_goes_on_with_resume_alone(tmp_path, job):
    out = planned(tmp_path, job, 2)
    arguments = (job[0], "--weights", job[1], "--out", str(out), *SLOW, "--procs", "2")
    done = run(*arguments, module="launch")
    assert done.returncode == 2
    assert done.stderr == f"launch: {out} already holds this run; finish it with --resume or choose another --out\n"
    assert run(*arguments, "--resume", module="launch").returncode == 0
    require_complete(out, job[2], ["0", "1"])


def test_resume_of_something_else_is_one_sentence(tmp_path):
    done = run("resume", str(tmp_path), module="launch")
    require_one_sentence(done.returncode, done.stdout, done.stderr)
    assert done.stderr == (
        f"launch: {tmp_path} is not a run folder (it has no plan.json); start one with `cosmicai infer`\n"
    )
    assert not any(tmp_path.iterdir())


def test_ranks_on_gpus_do_not_go_on_with_a_plan_for_cpus(tmp_path, job):
    out = planned(tmp_path, job, 2)
    done = run("resume", str(out), "--gpus", "2", "--nodes", "2", "--mpi", module="launch")
    require_one_sentence(done.returncode, done.stdout, done.stderr)
    assert done.stderr == "launch: the run's plan is for cpu; use --procs\n"


def test_no_mpirun_is_one_sentence(tmp_path, job):
    out = planned(tmp_path, job, 2)
    done = run("resume", str(out), "--mpi", "--procs", "2", module="launch", PATH=str(tmp_path))
    require_one_sentence(done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("launch: there is no mpirun here; install Open MPI")


def on_cpus(engine: str) -> Plan:
    return Plan("survey", (), "weights", "", engine, "float32", "cpu", 512, 64, None, None, ())


def test_a_launch_that_is_refused_leaves_no_plan(tmp_path, job):
    survey, weights, _ = job
    out = tmp_path / "run"
    refused = run(
        survey, "--weights", weights, "--out", str(out), "--engine", "openvino", "--procs", "4096", module="launch"
    )
    require_one_sentence(refused.returncode, refused.stdout, refused.stderr)
    assert "4096 ranks need about" in refused.stderr and not out.exists()


def test_too_many_ranks_for_the_memory_are_refused_with_how_many_fit(monkeypatch):
    monkeypatch.setattr(resources, "memory_of_ranks_mb", lambda engine, ranks: 300.0 + 100.0 * ranks)
    monkeypatch.setattr(resources, "available_cores", lambda: 8)
    for free, fitting in ((1100.0, "use --procs 8"), (1099.9, "use --procs 7"), (399.0, "free some memory")):
        monkeypatch.setattr(resources, "available_memory_mb", lambda free=free: free)
        with pytest.raises(InputError) as refused:
            require_memory(RankRequest(procs=9), on_cpus("openvino"))
        assert str(refused.value) == (
            f"this machine has 8 cores for 9 ranks, and 9 ranks need about 1,200 MB and {free:,.0f} MB are free on "
            f"this machine; {fitting}"
        )
    monkeypatch.setattr(resources, "available_memory_mb", lambda: 1200.0)
    require_memory(RankRequest(procs=9), on_cpus("openvino"))
    monkeypatch.setattr(resources, "available_memory_mb", lambda: None)
    require_memory(RankRequest(procs=9), on_cpus("openvino"))


def test_an_engine_that_was_not_measured_is_not_refused(monkeypatch):
    monkeypatch.setattr(resources, "available_memory_mb", lambda: 1.0)
    require_memory(RankRequest(procs=100), on_cpus("reference"))
    with pytest.raises(InputError, match="free some memory"):
        require_memory(RankRequest(), on_cpus("openvino"))


@pytest.mark.parametrize(
    "ranks, threads, cores",
    [
        (1, "7", ["2,3,4,5,8,9,11"]),
        (2, "3", ["2,3,4", "5,8,9"]),
        (3, "2", ["2,3", "4,5", "8,9"]),
        (7, "1", ["2", "3", "4", "5", "8", "9", "11"]),
        (8, "1", [None] * 8),
    ],
)
def test_cores_are_divided_among_ranks(monkeypatch, ranks, threads, cores):
    monkeypatch.setattr(resources, "allowed_cores", lambda: [2, 3, 4, 5, 8, 9, 11])
    monkeypatch.setattr(resources, "available_cores", lambda: 7)
    found = local_ranks(RankRequest(ranks), "job")
    assert [variables.get("COSMICAI_CORES") for _, variables in found] == cores
    assert [rank.rank for rank, _ in found] == list(range(ranks))
    assert {rank.threads for rank, _ in found} == {int(threads)}
    for number, (_, variables) in enumerate(found):
        assert {name: value for name, value in variables.items() if name != "COSMICAI_CORES"} == {
            "COSMICAI_RANK": str(number),
            "COSMICAI_WORLD_SIZE": str(ranks),
            "COSMICAI_THREADS": threads,
            "COSMICAI_LOCAL_RANK": str(number),
            "COSMICAI_LOCAL_SIZE": str(ranks),
            "COSMICAI_JOB": "job",
        }


def test_no_rank_has_more_threads_than_a_container_grants_cores(monkeypatch):
    monkeypatch.setattr(resources, "allowed_cores", lambda: list(range(64)))
    monkeypatch.setattr(resources, "available_cores", lambda: 4)
    found = local_ranks(RankRequest(2), "job")
    assert [variables["COSMICAI_CORES"] for _, variables in found] == ["0,1", "2,3"]
    assert {variables["COSMICAI_THREADS"] for _, variables in found} == {"2"}


def test_where_the_system_names_no_cores_none_are_bound(monkeypatch):
    monkeypatch.setattr(resources, "allowed_cores", list)
    monkeypatch.setattr(resources, "available_cores", lambda: 4)
    assert not any("COSMICAI_CORES" in variables for _, variables in local_ranks(RankRequest(2), "job"))


def test_every_rank_sees_its_own_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5,7")
    found = local_ranks(RankRequest(gpus=2), "job")
    assert [variables["CUDA_VISIBLE_DEVICES"] for _, variables in found] == ["3", "GPU-5"]
    assert not any("CUDA_VISIBLE_DEVICES" in variables for _, variables in local_ranks(RankRequest(procs=2), "job"))


def test_ranks_on_the_machines_of_a_cluster_are_counted_for_all_of_them():
    assert (RankRequest(procs=12, nodes=4).ranks, RankRequest(procs=12, nodes=4).per_node) == (12, 3)
    assert (RankRequest(nodes=4).ranks, RankRequest(nodes=4).per_node) == (4, 1)
    with pytest.raises(
        InputError, match=r"^--gpus 5 is for all nodes together and cannot be shared evenly by --nodes 2$"
    ):
        _ = RankRequest(gpus=5, nodes=2).per_node
    assert RankRequest().ranks == 1
