"""The container image of this commit (`make image sif`) on every platform where it runs, with equal redshifts."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cosmicai.bench.lambda_emulator import run_emulator
from cosmicai.engines.native.library import find_problem
from cosmicai.runs.provenance import git_commit
from cosmicai.runs.record import Record
from cosmicai.runs.store import RunFolder
from support.built_image import ARCHIVE, ROOT, Image, read_labels, read_manifest
from support.built_image import image as image
from support.emulator import EMULATOR, NO_EMULATOR
from support.helpers import make_survey, random_galaxies, run, tiny_weights
from support.image_registry import NO_REGISTRY, fetch_manifest, serve_registry
from support.image_registry import is_available as registry_installed
from support.locks import read_lock
from support.processes import digest
from support.rendezvous import SECRET, rendezvous_server
from support.s3 import bucket_fixture as bucket_fixture
from support.slurm_cluster import Cluster, surroundings
from support.slurm_cluster import cluster as cluster

IN_IMAGE = Path("/opt/cosmicai")
GALAXIES, PER_SHARD = 1500, 500


def read_complete_run(out: Path, image: Image, ranks: int) -> list[Record]:
    """Return the records of a run, after checking that it is complete and that all ranks ran in the image."""
    summary, records = json.loads((out / "summary.json").read_text()), list(RunFolder(str(out)).records().values())
    assert summary["complete"] and summary["failures"] == []
    assert sorted(record.rank for record in records) == list(range(ranks))
    assert {(record.world_size, record.image_digest) for record in records} == {(ranks, image.digest)}
    assert {record.git_commit for record in records} == {git_commit()}
    return records


def test_archive_registry_sif_and_record_name_one_digest(image, tmp_path):
    if not registry_installed():
        pytest.skip(NO_REGISTRY)
    name, archived = read_manifest()
    assert name == image.digest == f"sha256:{hashlib.sha256(archived).hexdigest()}"
    assert {layer["mediaType"] for layer in json.loads(archived)["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar+gzip"
    }
    pulled = tmp_path / "pulled.sif"
    with serve_registry(tmp_path) as host:
        copied = ["skopeo", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
        subprocess.run([*copied, f"oci-archive:{ARCHIVE}", f"docker://{host}/cosmicai:1"], check=True)
        assert fetch_manifest(host, "cosmicai", name) == archived
        # Faster to build, though larger.
        fast = {"APPTAINER_NOHTTPS": "1", "APPTAINER_MKSQUASHFS_ARGS": "-comp lz4", "TMPDIR": str(tmp_path)}
        made = subprocess.run(
            [ROOT / "containers/sif.sh", f"docker://{host}/cosmicai@{name}", pulled],
            capture_output=True, text=True, env=os.environ | fast,
        )  # fmt: skip
        assert (made.returncode, made.stdout) == (0, f"{name}\n"), made.stderr
    for number, sif in enumerate((image.sif, pulled)):
        assert read_labels(sif)["cosmicai.image-digest"] == name
        out = tmp_path / str(number)
        # A variable of the host is ignored.
        done = Image(sif, name).run(
            "cosmicai", "demo", "--out", out, "--galaxies", 100, COSMICAI_IMAGE_DIGEST="sha256:0"
        )
        assert done.returncode == 0, done.stderr
        [record] = read_complete_run(out / "run", image, 1)
        assert record.image_digest == name
    pulled.unlink()


def test_labels_describe_the_image(image):
    labels = read_labels(image.sif)
    assert labels["org.opencontainers.image.title"] == "Cosmic AI"
    assert labels["org.opencontainers.image.version"] == "0.1.0"
    assert labels["org.opencontainers.image.revision"] == git_commit()
    assert "org.opencontainers.image.source" in labels
    assert labels["cosmicai.variant"] == "cpu"
    assert image.run("cosmicai", "--version").stdout == "cosmicai, version 0.1.0\n"


def test_it_contains_the_locked_packages_and_a_list_of_all_packages(image):
    parts = json.loads(image.run("cat", IN_IMAGE / "sbom.cdx.json").stdout)
    assert (parts["bomFormat"], parts["specVersion"]) == ("CycloneDX", "1.5")
    python = {
        re.sub("[-_.]+", "-", own["name"]).lower(): own["version"].partition("+")[0]
        for own in parts["components"] if own["purl"].startswith("pkg:pypi/")
    }  # fmt: skip
    locked = read_lock(ROOT / "requirements.lock") | read_lock(ROOT / "containers/requirements.lock")
    assert locked.items() <= python.items() and {"nncf", "awslambdaric"} <= locked.keys()
    assert python.keys() - locked.keys() == {"cosmicai", "torch"}
    listed = {(own["name"], own["version"]) for own in parts["components"] if own["purl"].startswith("pkg:deb/")}
    installed = image.run("dpkg-query", "--show", "--showformat=${Package} ${Version}\n").stdout.split("\n")[:-1]
    assert listed == {tuple(line.split(" ")) for line in installed} and len(listed) > 80


def test_it_runs_as_a_user_without_privileges(image):
    config = json.loads(read_manifest()[1])["config"]["digest"]
    with tarfile.open(ARCHIVE) as archive:
        blob = archive.extractfile(f"blobs/{config.replace(':', '/')}").read()  # type: ignore[union-attr]
    assert json.loads(blob)["config"]["User"] == "1000:1000"


def test_python_files_in_it_are_compiled(image):
    code = """
import json, pathlib
flags = {}
for path in [*pathlib.Path("/usr/lib/python3.11").rglob("*.pyc"), *pathlib.Path("/opt/cosmicai").rglob("*.pyc")]:
    kind = int.from_bytes(path.open("rb").read(8)[4:], "little")
    flags[kind] = flags.get(kind, 0) + 1
import importlib.util, sys, torch, openvino, cosmicai.cli.main
sources = [m.__file__ for m in sys.modules.values() if (getattr(m, "__file__", None) or "").endswith(".py")]
bare = [s for s in sources if s[0] == "/" and not pathlib.Path(importlib.util.cache_from_source(s)).exists()]
print(json.dumps([flags, bare]))
"""
    flags, bare = image.python(code)
    assert list(flags) == ["1"] and flags["1"] > 5000  # valid whatever their source's time is (PEP 552)
    assert bare == []


def test_every_engine_in_it_passes_the_selftest(image):
    own = ["--no-privs"] if os.getuid() == 0 else []
    done = subprocess.run(["apptainer", "test", *own, image.sif], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"(openvino|native|reference|cuda) (\w+) .* (yes|no) ", done.stdout)
    assert {(engine, precision) for engine, precision, _ in rows} >= {("openvino", "float32"), ("reference", "float32")}
    assert {passed for *_, passed in rows} == {"yes"}
    left_out = re.findall(r"^(\w+) (\w+) is left out", done.stderr, re.MULTILINE)
    assert len(rows) + len(left_out) == 10
    assert (
        find_problem("float32") or ("native", "float32", "yes") in rows
    )  # the image has it for processors that can run it
    assert image.digest in done.stdout


def test_published_galaxies_get_the_same_redshifts_inside_as_outside(image, tmp_path, shared):
    weights, galaxies = tmp_path / "w.safetensors", shared / "upstream/partition_512.pt"
    seen = ("--bind", tmp_path, "--bind", shared)
    done = image.run("cosmicai", "weights", "import", shared / "upstream/checkpoint.pt", weights, options=seen)
    assert done.returncode == 0, done.stderr
    # The inner batch, which decides the last bits, is else found by a measurement.
    options = ("--weights", str(weights), "--batch-size", "64", "--engine", "openvino")
    done = image.run("cosmicai", "infer", galaxies, *options, "--out", tmp_path / "in", options=seen)
    assert done.returncode == 0, done.stderr
    assert run("infer", str(galaxies), *options, "--out", str(tmp_path / "out")).returncode == 0
    assert digest(tmp_path / "in") == digest(tmp_path / "out")
    expected = np.load(shared / "upstream/expected.npz")["z_float32"]
    found = np.concatenate([RunFolder(str(tmp_path / "in")).read_part(plan, item).redshift_phot
                            for plan in [RunFolder(str(tmp_path / "in")).plan()] for item in plan.items])  # fmt: skip
    assert len(found) == 512 and np.abs(found - expected).max() < 1e-5


AS_NOBODY = """
set -e
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""  # Apptainer's own tools open /dev/fuse, which may be root's alone


ALONE = """
id -u
[ ! -e "$HOME" ] && ! touch /opt/cosmicai/x /usr/x /x /var/tmp/x 2>/dev/null && echo read-only
tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '
python -c 'import socket; socket.create_connection(("192.0.2.1", 80), 1)' 2>&1 | tail -n 1
cosmicai demo --out /own/demo --galaxies 300
cosmicai catalogue /own/demo/run --to fits >/dev/null
cosmicai infer /own/demo/survey --weights demo --out /own/int8 --precision int8 --accept-precision-loss >/dev/null
find /tmp /dev/shm -type f
"""


def test_it_needs_no_home_network_or_certain_user_and_writes_to_tmpdir_alone(image, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    own = tmp_path / "tmp"
    own.mkdir()
    own.chmod(0o777)
    options = ("--containall", "--no-home", "--net", "--network", "none", "--bind", f"{own}:/own")
    command = image.command("sh", "-ec", ALONE, options=options)
    # SLURM's TMPDIR reaches a container as one of APPTAINERENV_..., after which nothing of the image's is run.
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(own), "APPTAINERENV_TMPDIR": "/own", "HOME": "/nowhere"}
    if os.getuid() == 0:
        command.remove("--no-privs")
        command = ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", str(tmp_path), *command]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[:3] == ["65534" if os.getuid() == 0 else str(os.getuid()), "read-only", "lo"]
    assert told[3] == "OSError: [Errno 101] Network is unreachable"
    assert told[4] == "coverage     300/300" and any(line.startswith("plot ") for line in told)
    assert (own / "demo/run/catalogue.fits").exists() and (own / "int8/catalogue.parquet").exists()
    assert {path.suffix for path in next(own.glob("cosmicai-*")).iterdir()} == {".blob", ".json", ""}


def test_nothing_is_written_to_the_home(image, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    options = ("--contain", "--home", home, "--bind", tmp_path)
    done = image.run("cosmicai", "demo", "--out", tmp_path / "demo", "--galaxies", "100", options=options)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []


def test_a_rank_on_a_cpu_imports_no_torch(image, tmp_path):
    done = image.run(
        "python", "-X", "importtime", "-m", "cosmicai", "demo", "--out", tmp_path / "demo", options=("--bind", tmp_path)
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "openvino" in imported and not imported & {"torch", "nncf", "scipy", "pandas"}


CONTAINER = ROOT / "slurm" / "container.sh"


def test_a_job_in_it_sees_the_allowed_variables_and_those_of_the_image(image, tmp_path):
    passed = {
        "SLURM_PROCID": "1", "PMIX_RANK": "1", "PMI_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "MASTER_ADDR": "n1",
        "MASTER_PORT": "7", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(tmp_path), "COSMICAI_WORLD_SIZE": "2",
        "AWS_REGION": "us-east-1",
    }  # fmt: skip
    stopped = {
        "SECRET": "x", "PYTHONPATH": "/x", "LD_PRELOAD_": "x", "CONDA_PREFIX": "/x",
        "COSMICAI_IMAGE_DIGEST": "sha256:0", "COSMICAI_GIT_COMMIT": "0",
        "COSMICAI_GRAPHS": "/x", "COSMICAI_IMAGE_VARIANT": "cuda",
    }  # fmt: skip
    given = {"PATH": os.environ["PATH"], "HOME": "/", "COSMICAI_IMAGE": str(image.sif)}
    done = subprocess.run(
        [CONTAINER, "env", "-0"], capture_output=True, text=True, cwd=tmp_path, env=given | passed | stopped
    )
    assert done.returncode == 0, done.stderr
    found = dict(own.split("=", 1) for own in done.stdout.split("\0")[:-1])
    assert passed.items() <= found.items()
    assert not {"SECRET", "PYTHONPATH", "LD_PRELOAD_", "CONDA_PREFIX"} & found.keys()
    facts = {name: found[name] for name in stopped if name.startswith("COSMICAI_")}
    assert facts == {
        "COSMICAI_IMAGE_DIGEST": image.digest, "COSMICAI_GIT_COMMIT": git_commit(),
        "COSMICAI_GRAPHS": "/opt/cosmicai/graphs", "COSMICAI_IMAGE_VARIANT": "cpu",
    }  # fmt: skip


def test_a_checkout_of_another_commit_is_reported(image, tmp_path):
    (tmp_path / "slurm").mkdir()
    shutil.copy(CONTAINER, tmp_path / "slurm")
    committed = "git init -q; git add .; git -c user.name=x -c user.email=x commit -qm x; git rev-parse HEAD"
    other = subprocess.run(
        ["sh", "-ec", committed], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.strip()
    given = {"PATH": os.environ["PATH"], "HOME": "/", "COSMICAI_IMAGE": str(image.sif)}
    told = (
        f"was built from commit {git_commit()} and the code outside is of {other}; build the image anew, or check its"
    )
    command = [tmp_path / "slurm/container.sh", "true"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=given)
    assert done.returncode == 0
    assert done.stderr == f"container.sh: {image.sif} {told} commit out\n"
    done = subprocess.run([CONTAINER, "true"], capture_output=True, text=True, cwd=tmp_path, env=given)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a survey, weights, and `expected`, a run by one process outside the image."""
    folder = tmp_path_factory.mktemp("survey")
    make_survey(folder / "survey", random_galaxies(GALAXIES), PER_SHARD)
    tiny_weights(folder / "w.safetensors")
    options = ("--weights", str(folder / "w.safetensors"), "--batch-size", "64")
    done = run("infer", str(folder / "survey"), *options, "--out", str(folder / "expected"))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def jobs(image: Image, cluster: Cluster, survey: Path) -> Iterator[Cluster]:
    yield cluster
    cluster.cancel_all()


def settings(image: Image, cluster: Cluster) -> dict[str, str]:
    return {
        "COSMICAI_IMAGE": str(image.sif), "COSMICAI_ROOT": str(ROOT), "COSMICAI_INFER_OPTIONS": "--batch-size 64",
        "COSMICAI_BIND": str(cluster.folder),
    }  # fmt: skip


@pytest.mark.xdist_group("slurm")
@pytest.mark.parametrize(
    ("script", "options", "ranks", "platform"),
    [
        ("infer_array.sh", ("--array=0-2",), 3, "slurm-array"),
        ("infer_mpi.sh", ("--nodes=2", "--ntasks=4"), 4, "mpi"),
        ("infer_gpus.sh", ("--ntasks-per-node=2", "--gres=gpu:2"), 2, "slurm"),
    ],
)
def test_jobs_in_it_have_all_their_ranks_and_the_same_catalogue(
    image, jobs, survey, tmp_path, script, options, ranks, platform
):
    arguments = [ROOT / "jobs" / script, survey / "survey", tmp_path / "run", survey / "w.safetensors"]
    job = jobs.sbatch(*options, *map(str, arguments), **settings(image, jobs))
    assert jobs.wait(job) == "COMPLETED", [log.read_text() for log in (tmp_path / "run/logs").glob("*.out")]
    assert {record.platform for record in read_complete_run(tmp_path / "run", image, ranks)} == {platform}
    assert digest(tmp_path / "run") == digest(survey / "expected")


@pytest.mark.xdist_group("slurm")
def test_the_launcher_outside_starts_ranks_inside(image, jobs, survey, tmp_path):
    options = ("--slurm", "--array", "2", "--image", str(image.sif), "--wait", "--batch-size", "64")
    done = run(
        *options, str(survey / "survey"), "--weights", str(survey / "w.safetensors"), "--out", str(tmp_path / "run"),
        module="launch", **(jobs.environment | settings(image, jobs)),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "was built from commit" not in done.stderr
    read_complete_run(tmp_path / "run", image, 2)
    assert digest(tmp_path / "run") == digest(survey / "expected")


@pytest.mark.xdist_group("slurm")
def test_an_unsuitable_image_is_refused_before_submission(image, jobs, survey, tmp_path):
    site = tmp_path / "site.toml"
    text = (ROOT / "slurm/local.toml").read_text()
    site.write_text(text.replace("computes = false", "computes = true"))
    assert site.read_text() != text
    no_image = tmp_path / "x.sif"
    no_image.write_bytes(b"no image")
    weights = ("--weights", str(survey / "w.safetensors"))
    asked = ("--slurm", str(survey / "survey"), *weights, "--out", str(tmp_path / "run"), "--site", str(site))
    for image_file, why in (
        (image.sif, "was built without CUDA and --gpus 1 asks for GPUs; build another with "),
        (no_image, "is not an image of Apptainer; make one with containers/sif.sh"),
    ):
        done = run(*asked, "--gpus", "1", "--image", str(image_file), module="launch", **jobs.environment)
        assert done.returncode == 2
        assert f"--image {image_file} {why}" in done.stderr and done.stderr.count("\n") == 1
    commit = {"COSMICAI_GIT_COMMIT": "0" * 40}
    done = run(*asked, "--dry-run", "--image", str(image.sif), module="launch", **(jobs.environment | commit))
    assert done.returncode == 0, done.stderr
    assert f"{image.sif} was built from commit {git_commit()} and the code outside is of {'0' * 40}; " in done.stderr


def test_the_launcher_works_inside_the_image(image, survey, tmp_path):
    command = ["python", "-m", "launch", "--procs", 2, survey / "survey", "--weights", survey / "w.safetensors"]
    options = ("--bind", survey, "--bind", tmp_path)
    done = image.run(*command, "--out", tmp_path / "run", "--batch-size", 64, options=options)
    assert done.returncode == 0, done.stderr
    read_complete_run(tmp_path / "run", image, 2)
    assert digest(tmp_path / "run") == digest(survey / "expected")


def plan_run(survey: Path, out: Path, ranks: int) -> None:
    options = ("--weights", str(survey / "w.safetensors"), "--batch-size", "64", "--ranks", str(ranks))
    done = run("plan", str(survey / "survey"), "--out", str(out), *options)
    assert done.returncode == 0, done.stderr


@pytest.mark.xdist_group("slurm")
def test_the_hosts_mpirun_connects_ranks_in_containers(image, survey, tmp_path):
    plan_run(survey, tmp_path / "run", 2)
    mpirun = ["mpirun", "-n", "2", "--oversubscribe", *(["--allow-run-as-root"] if os.getuid() == 0 else [])]
    own = {"COSMICAI_IMAGE": str(image.sif), "COSMICAI_BIND": str(survey), "COSMICAI_WORLD_SIZE": "2"}
    command = [*mpirun, CONTAINER, "cosmicai", "work", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=surroundings() | own)
    assert done.returncode == 0, done.stderr
    assert {record.platform for record in read_complete_run(tmp_path / "run", image, 2)} == {"mpi"}
    assert digest(tmp_path / "run") == digest(survey / "expected")


def test_its_own_mpirun_connects_ranks(image, survey, tmp_path):
    plan_run(survey, tmp_path / "run", 2)
    seen = ("--bind", survey, "--bind", tmp_path)
    work = ("python", "-m", "cosmicai", "work", tmp_path / "run")
    done = image.run("mpirun", "-n", 2, "--oversubscribe", *work, options=seen, COSMICAI_WORLD_SIZE="2")
    assert done.returncode == 0, done.stderr
    assert {record.platform for record in read_complete_run(tmp_path / "run", image, 2)} == {"mpi"}
    assert digest(tmp_path / "run") == digest(survey / "expected")


@pytest.mark.xdist_group("slurm")
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (
            "pmi2",
            "this rank was started through PMI, as by MPICH, Intel MPI or `srun --mpi=pmi2`, and mpi4py uses Open MPI",
        ),
        ("none", "2 ranks were requested (COSMICAI_WORLD_SIZE) and this rank finds that it is alone"),
    ],
)
def test_an_incompatible_mpi_of_the_host_is_reported_in_a_sentence(image, jobs, survey, tmp_path, kind, why):
    plan_run(survey, tmp_path / "run", 2)
    more = settings(image, jobs) | {"COSMICAI_WORLD_SIZE": "2"}
    # Without SLURM's variables each container would run as the only rank.
    command = [str(CONTAINER), "cosmicai", "work", str(tmp_path / "run")]
    if kind == "none":
        kept = ["--cleanenv", "--env", "COSMICAI_WORLD_SIZE=2", "--bind", str(tmp_path), "--bind", str(survey)]
        command = image.command("cosmicai", "work", tmp_path / "run", options=tuple(kept))
    done = jobs.run("srun", f"--mpi={kind}", "--ntasks=2", *command, cwd=tmp_path, **more)
    assert done.returncode != 0
    assert done.stderr.count(why) == 2 and "Traceback" not in done.stderr
    assert not list((tmp_path / "run/parts").glob("*"))


def test_the_image_is_a_lambda_function(image, survey, tmp_path, bucket, monkeypatch):
    if not EMULATOR.exists():
        pytest.skip(NO_EMULATOR)
    options = ("--weights", str(survey / "w.safetensors"), "--batch-size", "64", "--ranks", "2")
    done = run("plan", str(survey / "survey"), "--out", f"{bucket}/run", *options)
    assert done.returncode == 0, done.stderr
    # As on Lambda: nothing but /tmp to write to, no home. The survey and the weights are files in this test alone.
    command = ["apptainer", "run", "--contain", "--no-home", "--pwd", "/", "--bind", str(survey)]
    own = ["--no-privs"] if os.getuid() == 0 else []
    log = tmp_path / "log"
    with run_emulator(EMULATOR, [*command, *own, str(image.sif), "handlers.infer"], surroundings(), log) as function:
        records = [function({"run": f"{bucket}/run", "rank": rank, "world_size": 2}) for rank in range(2)]
        refused = function({"run": f"{bucket}/run"})
    assert [record["rank"] for record in records] == [0, 1], log.read_text()
    assert {record["platform"] for record in records} == {"lambda"}
    assert {record["image_digest"] for record in records} == {image.digest}
    assert sum(record["galaxies"] for record in records) == GALAXIES and all(own["galaxies"] for own in records)
    assert refused["errorType"] == "InputError" and "expected one rank of a run, such as" in refused["errorMessage"]
    done = run("summarize", f"{bucket}/run")
    assert (done.returncode, f"coverage     {GALAXIES}/{GALAXIES}" in done.stdout) == (0, True), done.stderr
    copied, expected = RunFolder(f"{bucket}/run").complete_summary(), RunFolder(str(survey / "expected")).summary()
    assert copied and expected and copied.catalogue_sha256 == expected.catalogue_sha256


def test_the_image_is_a_rendezvous_server_that_the_doctor_reaches(image):
    """As on ECS: no writable folder, no home, and only the network of the host."""
    bare = ("--contain", "--no-home", "--pwd", "/", "--env", f"FMI_SECRET={SECRET.decode()}")

    def popen(command: list[str], **arguments: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(image.command("python", *command[1:], options=bare), **arguments)

    with rendezvous_server(popen=popen) as server:
        health = image.run("python", "-m", "fmi", "health", "--port", server.health_port, options=bare)
        assert (health.returncode, json.loads(health.stdout)["status"]) == (0, "ok")
        doctor = image.run("python", "-m", "fmi", "doctor", server.endpoint, options=bare)
        assert doctor.returncode == 0, doctor.stdout
        assert [line.split()[-1] for line in doctor.stdout.splitlines()[-2:]] == ["MB/s", "MB/s"]


def test_bench_container_compares_the_image_with_plain_python(image):
    if not EMULATOR.exists():
        pytest.skip(NO_EMULATOR)
    options = ("--galaxies", "128", "--repeats", "1", "--emulator", str(EMULATOR), "--json")
    done = run("bench", "container", str(image.sif), *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows] == ["Python", "image", "image, Lambda's emulator"]
    assert all(row["first_seconds_min"] <= row["first_seconds"] <= row["first_seconds_max"] for row in rows)
    assert [row["command_ratio"] is None for row in rows] == [False, False, True]
    assert rows[0]["command_ratio"] == rows[0]["rate_ratio"] == 1
    assert all(row["cold_first_seconds"] > 0 for row in rows)


def test_bench_container_refuses_an_image_that_does_not_exist(tmp_path):
    done = run("bench", "container", str(tmp_path / "x.sif"))
    assert done.returncode == 2
    assert "x.sif does not exist; build it with containers/sif.sh" in done.stderr
