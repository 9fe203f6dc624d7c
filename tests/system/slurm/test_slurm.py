"""Jobs on a real Slurm: what happens to them changes neither the catalogue nor that there is one."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmicai import storage
from cosmicai.runs.record import Record
from cosmicai.runs.store import RunFolder
from support.documentation import read_blocks
from support.helpers import make_survey, random_galaxies, tiny_weights
from support.processes import SLOW, digest, run, wait_until
from support.s3 import bucket_fixture as bucket_fixture
from support.scripts import NO_APPTAINER, Box
from support.slurm_cluster import Cluster
from support.slurm_cluster import cluster as cluster

pytestmark = pytest.mark.xdist_group("slurm")
ROOT = Path(__file__).parents[3]
GALAXIES, PER_SHARD = 3000, 1000

# Python runs this before anything else of a worker.
SABOTAGE = """
import os, pathlib, signal, sys, time

if {"work", "infer"} & set(sys.orig_argv):
    from cosmicai.worker import loop

    predict_chunk = loop.predict_chunk
    glutton = os.environ.get("TEST_GLUTTON") == os.environ.get("SLURM_ARRAY_TASK_ID", "-")

    calm = "TEST_SLOW_ONCE" in os.environ and "SLURM_RESTART_COUNT" in os.environ

    begun = pathlib.Path(os.environ.get("TEST_GLUTTON_BEGUN", "/"))

    def sabotaged(engine, plan, chunk):
        time.sleep(0 if calm else float(os.environ.get("TEST_SLOW", 0)))
        if glutton:
            begun.touch()
        while glutton:
            loop.hoard = getattr(loop, "hoard", b"") + b"x" * 100_000_000
        while not begun.exists():  # else the others may leave it nothing to do
            time.sleep(0.05)
        return predict_chunk(engine, plan, chunk)

    loop.predict_chunk = sabotaged
"""


class Jobs:
    """Survey, weights, the digest of the laptop's catalogue, and a cluster to get the same from."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.survey = make_survey(folder / "survey", random_galaxies(GALAXIES), PER_SHARD).uri
        self.weights = tiny_weights(folder / "w.safetensors")
        (folder / "sitecustomize.py").write_text(SABOTAGE)
        assert (
            run("infer", self.survey, "--weights", self.weights, "--out", str(folder / "calm"), *SLOW).returncode == 0
        )
        self.digest = digest(folder / "calm")

    @property
    def environment(self) -> dict[str, Any]:
        return {
            "PYTHONPATH": str(self.folder), "COSMICAI_PYTHONPATH": str(self.folder), "COSMICAI_ROOT": str(ROOT),
            "COSMICAI_INFER_OPTIONS": shlex.join(SLOW), "COSMICAI_CACHE": os.environ["COSMICAI_CACHE"],
            "TEST_SLOW": "0.01",
        }  # fmt: skip

    def sbatch(self, script: str, out: Path, *options: str, **settings: str) -> str:
        """Submits a script of jobs/ and returns the job's number."""
        arguments = (*options, str(ROOT / "jobs" / script), self.survey, str(out), self.weights)
        return self.cluster.sbatch(*arguments, **(self.environment | settings))

    def launch(self, *arguments: str, **settings: str) -> tuple[int, str, str]:
        """`python -m launch ARGUMENTS` on the login node."""
        done = run(*arguments, module="launch", **(self.cluster.environment | self.environment | settings))
        return done.returncode, done.stdout, done.stderr

    def submit(self, out: Path, *options: str, **settings: str) -> str:
        """Submits a run with `launch --slurm` and returns the job's number."""
        arguments = ("--slurm", self.survey, "--weights", self.weights, "--out", str(out), *SLOW, *options)
        code, printed, errors = self.launch(*arguments, **settings)
        assert code == 0, errors
        return printed.removeprefix("submitted job ").partition(";")[0]

    def until_parts(self, out: Path, least: int = 1) -> None:
        """Waits until so many items are done."""
        wait_until(lambda: len(list((out / "parts").glob("*.h5"))) >= least)

    def require_complete(self, out: Path) -> list[Record]:
        """The run is complete and its catalogue the laptop's; returns the records."""
        summary = json.loads((out / "summary.json").read_text())
        assert summary["complete"] and summary["failures"] == []
        assert summary["catalogue_sha256"] == self.digest
        return list(RunFolder(str(out)).records().values())

    def printed(self, out: Path) -> str:
        """What the jobs of a run have printed so far."""
        return "\n".join(path.read_text() for path in sorted((out / "logs").glob("slurm-*.out")))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"), cluster)


@pytest.fixture(autouse=True)
def no_jobs_left(cluster: Cluster) -> Iterator[None]:
    """Leaves the cluster without jobs to the next test."""
    yield
    cluster.cancel_all()


def galaxies_of(records: list[Record]) -> int:
    return sum(record.galaxies for record in records)


def test_one_sbatch_without_arguments_gives_the_demos_catalogue(tmp_path, cluster):
    job = cluster.sbatch(str(ROOT / "jobs" / "infer_array.sh"), COSMICAI_ROOT=str(ROOT))
    assert cluster.wait(job) == "COMPLETED"
    [out] = (cluster.folder / "runs").glob(f"infer_array-{job}")
    assert run("demo", "--out", str(tmp_path / "demo")).returncode == 0
    assert digest(out) == digest(tmp_path / "demo" / "run")
    assert json.loads((out / "summary.json").read_text())["coverage"]["done"] == 4096


def test_the_documented_trial_of_a_cluster_works(tmp_path, cluster):
    texts = [block.text for block in read_blocks(ROOT / "docs/platforms/slurm.md") if block.language == "sh"]
    [commands] = [text[text.index("eval ") :] for text in texts if "testcluster/up" in text]  # after the installation
    for name in ("jobs", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {name: value for name, value in cluster.environment.items() if name != "SLURM_CONF"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail"], input=commands, cwd=tmp_path, capture_output=True, text=True,
        env=environment | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "runs" / "array") == digest(tmp_path / "runs" / "gpus")
    assert "coverage     4096/4096" in done.stdout and "SLURM's account of 4 tasks: " in done.stdout


@pytest.mark.parametrize("tasks", ["0-3", "0,3,7-9", "5", "10-16:2%2"])
def test_any_array_shares_the_work(tmp_path, jobs, tasks):
    out = tmp_path / "run"
    job = jobs.sbatch("infer_array.sh", out, f"--array={tasks}", TEST_SLOW="0")
    assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    assert galaxies_of(records) == GALAXIES
    assert {record.job.partition("_")[0] for record in records} == {job}
    assert {record.platform for record in records} == {"slurm-array"}
    assert {(record.site, record.cluster) for record in records} == {(None, "test")}  # without a launcher


def test_a_killed_task_is_made_up_for_by_the_others(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.sbatch("infer_array.sh", out, "--array=0-2")
    jobs.until_parts(out, 5)
    assert jobs.cluster.run("scancel", "--signal=KILL", "--full", f"{job}_1").returncode == 0
    assert jobs.cluster.wait(job) == "CANCELLED,COMPLETED"
    jobs.require_complete(out)


def test_a_requeued_task_goes_on(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.sbatch("infer_array.sh", out, "--array=0")
    jobs.until_parts(out)
    assert jobs.cluster.run("scontrol", "requeue", f"{job}_0").returncode == 0
    assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    assert sorted(record.restarts for record in records) == [0, 1]
    assert galaxies_of(records) == GALAXIES and all(record.galaxies for record in records)


def test_a_warned_task_puts_its_work_down_and_is_requeued(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.sbatch("infer_array.sh", out, "--array=0-1")
    jobs.until_parts(out, 5)
    assert jobs.cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_1").returncode == 0
    assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    assert galaxies_of(records) == GALAXIES
    assert max(record.restarts for record in records) == 1
    assert "infer_array: out of time, requeued to continue" in jobs.printed(out)


def test_a_task_that_never_gets_anywhere_is_not_requeued_for_ever(tmp_path, jobs):
    out = tmp_path / "run"
    settings = {"COSMICAI_MAX_REQUEUES": "1", "TEST_SLOW": "0.05"}
    job = jobs.sbatch("infer_array.sh", out, "--array=0", **settings)
    for restarts in (0, 1):
        jobs.until_parts(out, 1)
        wait_until(
            lambda restarts=restarts: restarts in {record.restarts for record in RunFolder(str(out)).records().values()}  # type: ignore[misc]
        )
        assert jobs.cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_0").returncode == 0
    assert jobs.cluster.wait(job) == "FAILED"
    assert "infer_array: out of time, and requeued 1 times already; submit it again to continue\n" in jobs.printed(out)
    again = jobs.sbatch("infer_array.sh", out, "--array=0", TEST_SLOW="0")
    assert jobs.cluster.wait(again) == "COMPLETED"
    jobs.require_complete(out)


def test_tasks_of_a_node_that_is_lost_go_on_elsewhere(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.sbatch("infer_array.sh", out, "--array=0-3")
    jobs.until_parts(out, 5)
    try:
        assert jobs.cluster.run("scontrol", "update", "nodename=n1", "state=down", "reason=test").returncode == 0
        assert jobs.cluster.wait(job) == "COMPLETED"
    finally:
        jobs.cluster.run("scontrol", "update", "nodename=n1", "state=resume")
    jobs.require_complete(out)


def test_a_task_that_takes_too_much_memory_is_made_up_for_and_named(tmp_path, jobs):
    out = tmp_path / "run"
    glutton = {"TEST_GLUTTON": "2", "TEST_GLUTTON_BEGUN": str(tmp_path / "begun")}
    job = jobs.sbatch("infer_array.sh", out, "--array=0-2", "--mem=1000M", **glutton)
    jobs.cluster.wait(job)
    jobs.cluster.wait_for_accounts(job)
    jobs.require_complete(out)
    _, printed, _ = jobs.launch("status", str(out))
    # Without control groups, as here, SLURM kills such a task and says no more in its accounting.
    assert "2 completed, 1 failed" in printed and "exceeded memory limit" in jobs.printed(out)


def test_a_task_whose_time_is_over_goes_on_later(tmp_path, jobs):
    out = tmp_path / "run"
    limit = ("--array=0", "--time=1", "--signal=B:USR1@1")  # SLURM counts in minutes
    job = jobs.sbatch("infer_array.sh", out, *limit, TEST_SLOW="0.3", TEST_SLOW_ONCE="1")
    assert jobs.cluster.wait(job, timeout=200) == "COMPLETED"
    records = jobs.require_complete(out)
    assert {record.restarts for record in records} == {0, 1}
    assert galaxies_of(records) == GALAXIES


def test_two_arrays_on_one_run_do_no_harm(tmp_path, jobs):
    out = tmp_path / "run"
    both = [jobs.sbatch("infer_array.sh", out, "--array=0-1") for _ in range(2)]
    assert [jobs.cluster.wait(job) for job in both] == ["COMPLETED", "COMPLETED"]
    assert galaxies_of(jobs.require_complete(out)) == GALAXIES


def test_a_subset_of_an_array_that_is_submitted_again_finishes_the_run(tmp_path, jobs):
    out = tmp_path / "run"
    first = jobs.sbatch("infer_array.sh", out, "--array=0-3")
    jobs.until_parts(out, 3)
    assert jobs.cluster.run("scancel", "--signal=KILL", "--full", first).returncode == 0
    assert jobs.cluster.wait(first) == "CANCELLED"
    assert not (out / "summary.json").exists()
    again = jobs.sbatch("infer_array.sh", out, "--array=1,3", TEST_SLOW="0")
    assert jobs.cluster.wait(again) == "COMPLETED"
    assert galaxies_of(jobs.require_complete(out)) == GALAXIES


def test_a_path_may_have_spaces_and_letters_of_any_alphabet(tmp_path, jobs):
    out = tmp_path / "série nº 1" / "Läufe"
    job = jobs.sbatch("infer_array.sh", out, "--array=0-1", TEST_SLOW="0")
    assert jobs.cluster.wait(job) == "COMPLETED"
    jobs.require_complete(out)
    other = tmp_path / "série nº 2"
    job = jobs.submit(other, "--procs", "2", TEST_SLOW="0")
    assert jobs.cluster.wait(job) == "COMPLETED"
    jobs.require_complete(other)


def test_ranks_of_mpi_over_two_nodes_give_the_same(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.sbatch("infer_mpi.sh", out, "--nodes=2", "--ntasks=4", TEST_SLOW="0")
    assert jobs.cluster.wait(job) == "COMPLETED", jobs.printed(out)
    records = jobs.require_complete(out)
    assert sorted((record.rank, record.world_size, record.platform) for record in records) == [
        (rank, 4, "mpi") for rank in range(4)
    ]
    assert galaxies_of(records) == GALAXIES


def test_ranks_of_torch_over_two_nodes_give_the_same_though_the_port_is_taken(tmp_path, jobs):
    out = tmp_path / "run"
    last = int(jobs.cluster.sbatch("--wrap=true"))
    jobs.cluster.wait(str(last))
    with socket.create_server(("127.0.0.1", 20000 + (last + 1) % 12000)):
        options = ("--nodes=2", "--ntasks-per-node=2", "--mem-per-cpu=500M", "--gres=gpu:a100:2")
        more = f"{shlex.join(SLOW)} --device cpu"
        job = jobs.sbatch("infer_gpus.sh", out, *options, TEST_SLOW="0", COSMICAI_INFER_OPTIONS=more)
        assert int(job) == last + 1
        assert jobs.cluster.wait(job) == "COMPLETED", jobs.printed(out)
    records = jobs.require_complete(out)
    seen = sorted((record.rank, record.local_rank, record.cuda_visible_devices) for record in records)
    assert seen == [(0, 0, "0"), (1, 1, "1"), (2, 0, "0"), (3, 1, "1")]
    assert galaxies_of(records) == GALAXIES


def test_workers_in_a_container_give_the_same(tmp_path, jobs):
    if not shutil.which("apptainer"):
        pytest.skip(NO_APPTAINER)
    (tmp_path / "box").mkdir()
    box = Box(tmp_path / "box")
    folders = [box.environment["COSMICAI_BIND"], sys.prefix, sys.base_prefix, ROOT, jobs.cluster.folder]
    settings = {
        "COSMICAI_IMAGE": str(box.image), "COSMICAI_BIND": ":".join(map(str, folders)), "APPTAINER_CONTAIN": "1",
        "APPTAINERENV_PREPEND_PATH": str(Path(sys.executable).parent),
    }  # fmt: skip
    submitted = {
        "array": jobs.sbatch("infer_array.sh", tmp_path / "array", "--array=0-1", **settings),
        "mpi": jobs.sbatch("infer_mpi.sh", tmp_path / "mpi", "--nodes=2", "--ntasks=2", **settings),
        "launched": jobs.submit(tmp_path / "launched", "--procs", "2", "--nodes", "2", **settings),
    }
    for name, job in submitted.items():
        assert jobs.cluster.wait(job) == "COMPLETED", jobs.printed(tmp_path / name)
        records = jobs.require_complete(tmp_path / name)
        assert sorted(record.rank for record in records) == [0, 1]
        assert {record.world_size for record in records} == {2}


def test_a_sweep_is_a_chain_of_jobs_and_one_report(tmp_path, jobs):
    settings = {"PARTITION_MB": "10", "BATCH_SIZES": "64", "WORLD_SIZES": "1,2", "REPEATS": "1"}
    done = jobs.cluster.run(
        str(ROOT / "jobs" / "sweep.sh"), jobs.survey, str(tmp_path / "sweep"), jobs.weights,
        **(jobs.environment | settings | {"TEST_SLOW": "0"}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chain = re.findall(r"^job (\d+): (.*)$", done.stdout, re.M)
    assert [name for _, name in chain] == [
        "partition-10MB-batch-64-world-1", "partition-10MB-batch-64-world-2", "all"
    ]  # fmt: skip
    assert {jobs.cluster.wait(job) for job, _ in chain} == {"COMPLETED"}
    report = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["world_size"] for row in report["rows"]] == [1, 2]


def test_a_submitted_run_uses_nodes_and_gpus_as_requested(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.submit(out, "--nodes", "2", "--gpus", "4", TEST_SLOW="0")
    assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    seen = sorted(
        (record.rank, record.world_size, record.local_rank, record.cuda_visible_devices) for record in records
    )
    assert seen == [(0, 4, 0, "0"), (1, 4, 1, "1"), (2, 4, 0, "0"), (3, 4, 1, "1")]
    assert {(record.device, record.engine) for record in records} == {("cpu", "openvino")}
    assert galaxies_of(records) == GALAXIES


def test_a_preempted_submission_resumes(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.submit(out, "--procs", "2")
    jobs.until_parts(out, 5)
    assert jobs.cluster.run("scancel", "--signal=USR2", job).returncode == 0
    assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    assert {record.restarts for record in records} == {0, 1}
    assert galaxies_of(records) == GALAXIES


@pytest.mark.parametrize("way", ["sbatch", "launch"])
def test_a_job_that_a_more_urgent_one_displaces_comes_back(tmp_path, jobs, way):
    out = tmp_path / "run"
    job = jobs.sbatch("infer_array.sh", out, "--array=0") if way == "sbatch" else jobs.submit(out)
    jobs.until_parts(out)
    urgent = jobs.cluster.sbatch("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true")
    assert jobs.cluster.wait(urgent) == "COMPLETED"
    assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    assert {record.restarts for record in records} == {0, 1}


def test_what_sbatch_would_get_is_what_it_gets(tmp_path, jobs):
    out = tmp_path / "run"
    options = ("--slurm", jobs.survey, "--weights", jobs.weights, "--out", str(out), *SLOW, "--array", "3")
    code, printed, errors = jobs.launch(*options, "--dry-run")
    assert code == 0, errors
    assert not out.exists()
    code, printed_again, errors = jobs.launch(*options, TEST_SLOW="0")
    assert code == 0, errors
    [folder] = [path for path in (out / "submissions").iterdir() if path.is_dir()]
    [script] = {path.resolve() for path in folder.glob("*_submission.sh")}
    text, _, estimate = printed.partition(f"\n{GALAXIES:,} galaxies of")
    assert text.strip().replace("DRY-RUN", folder.name) == script.read_text().strip()
    assert "for 3 ranks of 4 cores" in estimate and "at most 12.00 core-hours" in estimate
    job = printed_again.removeprefix("submitted job ").partition(";")[0]
    assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    assert {record.job for record in records} == {f"{job}_{task}" for task in range(3)}
    assert {(record.site, record.cluster) for record in records} == {("local", "test")}


def test_an_array_beyond_the_sites_largest_is_split_and_shares_the_work(tmp_path, jobs):
    out, site = tmp_path / "run", tmp_path / "small.toml"
    site.write_text((ROOT / "slurm" / "local.toml").read_text().replace("largest_array = 1000", "largest_array = 2"))
    submitted = jobs.submit(out, "--array", "5", "--cores", "1", "--site", str(site))
    arrays = submitted.split(", ")
    assert len(arrays) == 3
    for job in arrays:
        assert jobs.cluster.wait(job) == "COMPLETED"
    records = jobs.require_complete(out)
    assert sorted(record.rank for record in records) == list(range(5))
    assert {record.world_size for record in records} == {5}
    assert galaxies_of(records) == GALAXIES


def test_a_thousand_tasks_are_one_sbatch(tmp_path, jobs):
    out, seen = tmp_path / "run", tmp_path / "sbatch"
    (tmp_path / "bin").mkdir()
    spy = tmp_path / "bin" / "sbatch"
    spy.write_text(
        f'#!/bin/sh\necho once >>{seen}\nexec {jobs.cluster.run("which", "sbatch").stdout.strip()} --hold "$@"\n'
    )
    spy.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), jobs.cluster.environment["PATH"]])
    job = jobs.submit(out, "--array", "1000", "--cores", "1", PATH=path)
    assert seen.read_text() == "once\n"
    waiting = jobs.cluster.run("squeue", "--noheader", "--array", f"--jobs={job}").stdout
    assert len(waiting.splitlines()) == 1000


def test_a_run_that_waits_is_seen_cancelled_and_resumed_from_its_folder(tmp_path, jobs):
    out = tmp_path / "run"
    blocker = jobs.cluster.sbatch("--nodes=2", "--exclusive", "--wrap=sleep 1000")
    job = jobs.submit(out, "--procs", "2")
    code, printed, _ = jobs.launch("status", str(out))
    assert code == 3
    assert printed.splitlines()[0] == f"{out}: not begun; the first of its ranks writes the plan"
    assert printed.splitlines()[1].startswith(f"job {job}: PENDING (")
    code, _, errors = jobs.launch("resume", str(out))
    assert code == 2
    assert errors == (
        f"launch: job {job} (PENDING) is at work on {out}; stop it with `python -m launch cancel {out}` or watch it "
        f"with `python -m launch status --watch {out}`\n"
    )
    assert jobs.launch("cancel", str(out))[:2] == (0, f"stopped job {job}\n")
    assert jobs.launch("cancel", str(out))[:2] == (0, f"nothing is at work on {out}\n")
    jobs.cluster.run("scancel", blocker)
    (out / "accounting.json").unlink()  # sacct is called once a minute
    code, printed, errors = jobs.launch("resume", str(out), "--wait", TEST_SLOW="0")
    assert code == 0, errors
    assert f"coverage     {GALAXIES}/{GALAXIES}" in printed
    jobs.require_complete(out)
    account = json.loads((out / "summary.json").read_text())["slurm"]
    assert (account["tasks"], account["completed"], account["cancelled"]) == (2, 1, 1)
    reported = [record.slurm for record in RunFolder(str(out)).records().values()]
    assert {(slurm["state"], slurm["exit_code"]) for slurm in reported} == {("COMPLETED", 0)}  # type: ignore[index]


def test_a_cancelled_run_is_resumed_on_the_laptop(tmp_path, jobs):
    out = tmp_path / "run"
    job = jobs.submit(out, "--procs", "2")
    jobs.until_parts(out, 3)
    assert jobs.launch("cancel", str(out))[:2] == (0, f"stopped job {job}\n")
    assert jobs.cluster.wait(job) == "CANCELLED"
    assert jobs.launch("resume", str(out), "--procs", "1", TEST_SLOW="0")[0] == 0
    jobs.require_complete(out)


def test_a_run_on_s3_gives_the_same(tmp_path, jobs, bucket):
    site = tmp_path / "scratch.toml"
    text = (ROOT / "slurm" / "local.toml").read_text()
    site.write_text(text.replace('scratch = "/tmp"', f'scratch = "{tmp_path}"'))
    names = ("ENDPOINT_URL", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "DEFAULT_REGION")
    settings = {f"AWS_{name}": os.environ[f"AWS_{name}"] for name in names}
    arguments = ("--slurm", jobs.survey, "--weights", jobs.weights, "--out", f"{bucket}/run", *SLOW, "--procs", "2")
    code, printed, errors = jobs.launch(*arguments, "--site", str(site), "--wait", TEST_SLOW="0", **settings)
    assert code == 0, errors
    assert f"coverage     {GALAXIES}/{GALAXIES}" in printed
    summary = json.loads(storage.read_bytes(f"{bucket}/run/summary.json"))
    assert summary["catalogue_sha256"] == jobs.digest
    assert list((tmp_path / "cosmicai-submissions").glob("*/*_submission.sh"))


def test_what_a_site_refuses_is_one_sentence(tmp_path, jobs):
    common = ("--slurm", jobs.survey, "--weights", jobs.weights, "--out", str(tmp_path / "run"))
    site = tmp_path / "other.toml"
    site.write_text(
        (ROOT / "slurm" / "local.toml").read_text().replace("[partitions.standard]", "[partitions.nowhere]")
    )
    for options, sentence in {
        ("--nodes", "3", "--procs", "3"): "no partition of local takes this job: ",
        ("--gpus", "5"): "no kind of GPU of local takes this job (a100: a node of local has 2 GPUs of kind a100 and ",
        ("--site", "elsewhere"): "--site elsewhere: there is no such site; use local, rivanna or the path of a .toml",
        ("--site", "rivanna"): "rivanna charges jobs to an account; name yours with --account",
        ("--image", "none.sif"): "--image none.sif does not exist; ",
        ("--time", "soon"): "'soon' is not a time limit; ",
        ("--site", str(site)): "sbatch refused: ",
    }.items():
        code, printed, errors = jobs.launch(*common, *options, USER="somebody")
        assert (code, printed) == (2, "")
        *notices, last = errors.splitlines()
        assert last.startswith(f"launch: {sentence}"), errors
        # Before anything is submitted the survey, which is noise here, is checked.
        assert not notices or (sentence == "sbatch refused: " and notices[0].startswith("WARNING: ")), errors
    assert not list((tmp_path / "run").rglob("*.*"))
