"""The scripts of jobs/ and slurm/: what they say, how they end, and the container they run in; no SLURM is needed."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.scripts import NO_APPTAINER, NO_SHELLCHECK, PROJECT, Box, environment_of, executable, run_script

SUBMITTED = ["infer_array", "infer_gpus", "infer_mpi"]
COMMANDS = ["slurm/container.sh", "jobs/sweep.sh", *(f"jobs/{name}.sh" for name in SUBMITTED)]
SOURCED = ["slurm/job.sh", "slurm/master.sh"]


@pytest.mark.parametrize("script", COMMANDS + SOURCED)
def test_shellcheck_finds_nothing(script: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip(NO_SHELLCHECK)
    checked = subprocess.run(["shellcheck", "--external-sources", script], cwd=PROJECT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", COMMANDS + SOURCED)
def test_scripts_are_short_and_name_no_machine(script: str) -> None:
    text = (PROJECT / script).read_text()
    assert len(text.splitlines()) <= 80 and max(map(len, text.splitlines())) <= 120
    assert not re.search(r"/(home|scratch|sfs|project|standard|work|root|opt)\b", text)
    if script in COMMANDS:
        assert text.startswith("#!/usr/bin/env bash\n# ") and "\nset -euo pipefail\n" in text
        assert os.access(PROJECT / script, os.X_OK)


@pytest.mark.parametrize("script", COMMANDS)
def test_help_is_the_head_comment(script: str, tmp_path: Path) -> None:
    printed = run_script([PROJECT / script, "--help"], tmp_path)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert script in printed.stdout and "COSMICAI_IMAGE " in printed.stdout
    assert "#" not in printed.stdout and "set -e" not in printed.stdout and "SBATCH " not in printed.stdout


class Pretended:
    """A copy of the scripts, with a `cosmicai` and SLURM's commands that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.project, self.bin, self.calls = folder / "project", folder / "bin", folder / "calls"
        for part in ("jobs", "slurm"):
            (self.project / part).mkdir(parents=True)
            for script in (PROJECT / part).glob("*.sh"):
                shutil.copy(script, self.project / part)
        (self.project / "survey").mkdir()
        self.program("scontrol", 'if [ "$1 $2" = "show hostnames" ]; then echo localhost; echo n2; fi')
        self.program("sbatch", 'cat >/dev/null; echo "$(wc -l <"$CALLS");cluster"')
        self.program("srun", 'while [[ $1 = --* ]]; do shift; done; exec "$@"')
        self.worker("exit 0")

    def program(self, name: str, text: str) -> None:
        executable(self.bin / name, f'echo "{name}${{MASTER_PORT+ met}}" "$@" >>"$CALLS"\n{text}')

    def worker(self, text: str) -> None:
        """What the worker does, in bash."""
        executable(self.project / ".venv/bin/cosmicai", f'echo "cosmicai $*" >>"$CALLS"\n{text}')

    @property
    def called(self) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if not line.startswith(("scontrol show", "scontrol met show"))]

    def environment(self, **more: object) -> dict[str, str]:
        job = {"SLURM_JOB_ID": 70, "SLURM_NTASKS": 4, "SLURM_CPUS_PER_TASK": 1, "SLURM_JOB_NODELIST": "n[1-2]"}
        where = {"PATH": f"{self.bin}:{os.environ['PATH']}", "CALLS": self.calls, "SLURM_SUBMIT_DIR": self.project}
        return environment_of(where | job | more)

    def run(self, job: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        return run_script([self.project / f"jobs/{job}.sh", *arguments], self.project, **self.environment(**more))

    @contextlib.contextmanager
    def started(self, job: str, **more: object) -> Iterator[subprocess.Popen[str]]:
        """A job whose worker is at work."""
        command: list[str | Path] = [self.project / f"jobs/{job}.sh", "survey", "run", "w"]
        pipe, environment = subprocess.PIPE, self.environment(**more)
        with subprocess.Popen(
            command, cwd=self.project, env=environment, stdout=pipe, stderr=pipe, text=True
        ) as process:
            waited(lambda: (self.project / "working").exists())
            yield process


def waited(until: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def pretended(tmp_path: Path) -> Pretended:
    return Pretended(tmp_path)


ARRAY = {"SLURM_ARRAY_JOB_ID": 70, "SLURM_ARRAY_TASK_ID": 3, "SLURM_JOB_ID": 73}


def test_a_task_of_an_array_infers(pretended: Pretended) -> None:
    there = pretended.project
    done = pretended.run("infer_array", **ARRAY)
    assert (done.returncode, done.stderr) == (0, "")
    assert pretended.called == [f"cosmicai infer demo --weights demo --out {there}/runs/infer_array-70 --resume"]
    pretended.calls.unlink()
    options = "--precision int8 --accept-precision-loss"
    done = pretended.run("infer_array", "survey", "s3://b/r", "/w.safetensors", COSMICAI_INFER_OPTIONS=options)
    assert done.returncode == 0
    expected = f"infer {there}/survey --weights /w.safetensors --out s3://b/r --resume {options}"
    assert pretended.called == [f"cosmicai {expected}"]


def test_what_a_job_prints_is_moved_into_the_run_folder(pretended: Pretended) -> None:
    """From where SLURM put it, also for a requeued job; another --output, or a run on S3, leaves it where it is."""
    pretended.worker("echo done")

    def printed(output: str, run: str, **more: object) -> None:
        command = [str(pretended.project / "jobs/infer_array.sh"), "survey", run, "w"]
        with (pretended.project / output).open("wb") as stream:
            environment = pretended.environment(**ARRAY, **more)
            subprocess.run(command, cwd=pretended.project, env=environment, stdout=stream, stderr=stream, check=True)

    printed("slurm-70_3.out", "here")
    printed("slurm-70_3.out", "here", SLURM_RESTART_COUNT=1)
    logs = pretended.project / "here/logs"
    assert sorted(path.name for path in logs.iterdir()) == ["slurm-70_3-restart-1.out", "slurm-70_3.out"]
    for path in logs.iterdir():
        assert path.read_text().splitlines()[0].startswith("infer_array: survey ")
        assert path.read_text().splitlines()[-1] == "done"
    assert not list(pretended.project.glob("*.out"))
    printed("mine.out", "there")
    printed("slurm-71.out", "s3://bucket/run")
    assert sorted(path.name for path in pretended.project.glob("*.out")) == ["mine.out", "slurm-71.out"]
    assert not (pretended.project / "there").exists()


@pytest.mark.parametrize(("job", "kind", "met"), [("infer_gpus", "none", " met"), ("infer_mpi", "pmix", "")])
def test_several_ranks_work_on_a_plan(pretended: Pretended, job: str, kind: str, met: str) -> None:
    there = pretended.project
    done = pretended.run(job, "survey", "run a", "w", COSMICAI_INFER_OPTIONS="--device cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert pretended.called == [
        f"cosmicai plan {there}/survey --weights {there}/w --out {there}/run a --resume --ranks 4 --device cpu",
        f"srun{met} --mpi={kind} --cpus-per-task=1 --kill-on-bad-exit=1 "
        f"{there}/slurm/container.sh cosmicai work {there}/run a",
        f"cosmicai work {there}/run a",
    ]


def test_no_rank_works_without_a_plan(pretended: Pretended) -> None:
    pretended.worker("exit 2")
    assert pretended.run("infer_mpi").returncode == 2
    assert len(pretended.called) == 1


WRONG = {
    "not submitted": ({"SLURM_JOB_ID": ""}, ["survey"], "this is a job; submit it with sbatch"),
    "too many words": ({}, ["a", "b", "c", "d"], "expected SURVEY, RUN and WEIGHTS at most, not 4 arguments"),
    "no weights": ({}, ["survey", "run"], "WEIGHTS are missing; give SURVEY, RUN and WEIGHTS"),
    "from elsewhere": ({"SLURM_SUBMIT_DIR": "/nowhere"}, [], "submit from the project's folder or set COSMICAI_ROOT"),
    "no image": ({"COSMICAI_IMAGE": "a.sif"}, [], "COSMICAI_IMAGE=a.sif does not exist"),
}


@pytest.mark.parametrize("job", SUBMITTED)
@pytest.mark.parametrize(("variables", "words", "why"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_in_a_sentence(
    pretended: Pretended, job: str, variables: dict[str, str], words: list[str], why: str
) -> None:
    done = pretended.run(job, *words, **variables)
    assert done.returncode == 2
    assert why in done.stderr and len(done.stderr.splitlines()) == 1
    assert pretended.called == []


def test_the_project_may_be_elsewhere(pretended: Pretended, tmp_path: Path) -> None:
    done = pretended.run(
        "infer_array", "survey", "run", "w", SLURM_SUBMIT_DIR=tmp_path, COSMICAI_ROOT=pretended.project
    )
    assert done.returncode == 0
    assert pretended.called == [
        f"cosmicai infer {tmp_path}/survey --weights {tmp_path}/w --out {tmp_path}/run --resume"
    ]


AT_WORK = """
trap 'echo signalled >>"$CALLS"; exit {code}' TERM
touch working
for ((i = 0; i < 400; i++)); do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("variables", "id"), [({}, "70"), (ARRAY, "70_3"), (ARRAY | {"SLURM_JOB_ID": 70, "SLURM_RESTART_COUNT": 9}, "70_3")]
)
def test_out_of_time_the_worker_puts_down_its_work_and_the_job_is_requeued(
    pretended: Pretended, variables: dict[str, object], id: str
) -> None:
    pretended.worker(AT_WORK.format(code=130))
    with pretended.started("infer_array", **variables) as job:
        job.send_signal(signal.SIGUSR1)
        assert job.wait(10) == 0
    assert pretended.called[1:] == ["signalled", f"scontrol requeue {id}"]


ENDS = {
    "it was done just then": (0, {}, signal.SIGUSR1, 0),
    "the run is not complete": (3, {}, signal.SIGUSR1, 3),
    "it got nowhere": (130, {"SLURM_RESTART_COUNT": 2, "COSMICAI_MAX_REQUEUES": 2}, signal.SIGUSR1, 1),
    "it is cancelled": (130, {}, signal.SIGTERM, 143),
}


@pytest.mark.parametrize(("code", "variables", "number", "expected"), ENDS.values(), ids=ENDS)
def test_no_job_is_requeued_when(
    pretended: Pretended, code: int, variables: dict[str, object], number: signal.Signals, expected: int
) -> None:
    pretended.worker(AT_WORK.format(code=code))
    with pretended.started("infer_array", **variables) as job:
        job.send_signal(number)
        assert job.wait(10) == expected
        assert ("requeued 2 times already" in job.stderr.read()) == (expected == 1)  # type: ignore[union-attr]
    assert pretended.called[1:] == ["signalled"]


def test_out_of_time_while_planning_no_rank_is_started(pretended: Pretended) -> None:
    pretended.worker(AT_WORK.format(code=0))
    with pretended.started("infer_mpi") as job:
        job.send_signal(signal.SIGUSR1)
        assert job.wait(10) == 0
    assert [line.split()[0] for line in pretended.called] == ["cosmicai", "signalled", "scontrol"]


def test_the_tasks_of_srun_are_signalled_by_slurm(pretended: Pretended) -> None:
    pretended.worker(f'[ "$1" = work ] || exit 0\n{AT_WORK.format(code=130)}')
    pretended.program("scancel", 'kill -TERM "$(cat pid)"')
    pretended.program("srun", 'while [[ $1 = --* ]]; do shift; done; echo $$ >pid; exec "$@"')
    with pretended.started("infer_mpi") as job:
        job.send_signal(signal.SIGUSR1)
        assert job.wait(10) == 0
    assert pretended.called[-3:] == ["scancel --signal=TERM 70", "signalled", "scontrol requeue 70"]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1"])
def test_ranks_meet_at_a_port_that_is_free(pretended: Pretended, address: str) -> None:
    for job in range(7000, 9000, 13):
        first = 20000 + job
        # Other programs of this machine listen where they like.
        if meeting(pretended, SLURM_JOB_ID=job) != ("localhost", first):
            continue
        if meeting(pretended, SLURM_JOB_ID=job + 1) != ("localhost", first + 1):
            continue
        with contextlib.suppress(OSError), listening(address, first):
            assert meeting(pretended, SLURM_JOB_ID=12000 + job) == ("localhost", first + 1)
            assert meeting(pretended, SLURM_JOB_ID=job, MASTER_PORT=7) == ("localhost", 7)
            return
    pytest.fail("no port is free")


def listening(address: str, port: int) -> contextlib.AbstractContextManager:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return contextlib.closing(socket.create_server((address, port), family=family))


def meeting(pretended: Pretended, **variables: object) -> tuple[str, int]:
    script = "set -euo pipefail; . slurm/master.sh; env | grep ^MASTER_ | sort | cut -d = -f 2"
    done = run_script(["bash", "-c", script], pretended.project, **pretended.environment(**variables))
    assert done.returncode == 0, done.stderr
    address, port = done.stdout.split()
    return address, int(port)


def test_a_node_without_a_name_is_met_at_its_address(pretended: Pretended) -> None:
    answers = 'case $2 in hostnames) echo node.invalid ;; node) echo "   NodeAddr=192.0.2.7 NodeHostName=x" ;; esac'
    pretended.program("scontrol", answers)
    pretended.program("getent", '[ "$2" != node.invalid ]')
    assert meeting(pretended)[0] == "192.0.2.7"


def test_a_sweep_is_a_chain_of_jobs(pretended: Pretended) -> None:
    lists = {"PARTITION_MB": "10,25", "BATCH_SIZES": "64", "WORLD_SIZES": "8,16", "REPEATS": 1}
    done = pretended.run("sweep", "survey", "swéep t", "/w.safetensors", **lists)
    assert (done.returncode, done.stderr) == (0, "")
    out = pretended.project / "swéep t"
    calls = pretended.called
    assert [re.findall(r"--dependency=(\S+)", call) for call in calls] == [
        [], ["afterany:1"], ["afterany:2"], ["afterany:3"], ["afterany:4"],
    ]  # fmt: skip
    assert all(f"--output={out}/logs/" in call for call in calls)
    assert f"results in {out}/sweep.json when job 5 has ended" in done.stdout.splitlines()[-1]
    assert (out / "logs").is_dir()


def test_a_job_of_a_sweep_measures_one_point(pretended: Pretended) -> None:
    pretended.program("sbatch", 'script=$(mktemp -p .); cat >"$script"; bash "$script"; cat "$script" >&2; echo 1')
    done = pretended.run("sweep", "survey", "swéep t", "/it's.safetensors", BATCH_SIZES="64,128", WORLD_SIZES="2,16")
    assert done.returncode == 0
    out, there = pretended.project / "swéep t", pretended.project
    printed = [call for call in pretended.called if call.startswith("cosmicai")]
    start = f"cosmicai bench sweep {there}/survey --out {out} --weights /it's.safetensors --partition-mb"
    assert len(printed) == 9 and printed[1] == f"{start} 25 --batch-sizes 64 --world-sizes 16 --repeats 3"
    assert printed[-1] == f"{start} 25,100 --batch-sizes 64,128 --world-sizes 2,16 --repeats 3"
    assert done.stderr.count("--cpus-per-task=16 ") == 9


def test_without_a_container_the_command_is_looked_for_first_here(pretended: Pretended) -> None:
    container = pretended.project / "slurm/container.sh"
    executable(pretended.bin / "cosmicai", "echo elsewhere")
    executable(pretended.project / ".venv/bin/cosmicai", 'echo here "$@"; exit 5')
    done = run_script([container, "cosmicai", "a b", ""], pretended.project, **pretended.environment())
    assert (done.returncode, done.stdout) == (5, "here a b \n")
    shutil.rmtree(pretended.project / ".venv")
    assert run_script([container, "cosmicai"], pretended.project, **pretended.environment()).stdout == "elsewhere\n"
    done = run_script([container, "nothing-of-this-name"], pretended.project, **pretended.environment())
    assert done.returncode == 2
    assert "there is no nothing-of-this-name; run `make install`" in done.stderr and done.stderr.count("\n") == 1


def test_without_apptainer_its_module_is_loaded_or_required(pretended: Pretended, tmp_path: Path) -> None:
    container = pretended.project / "slurm/container.sh"
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "dirname", "realpath", "grep", "id", "sh"):
        (tools / name).symlink_to(shutil.which(name) or "")
    modules = executable(tmp_path / "modules/apptainer", "exit 0").parent
    image = {"COSMICAI_IMAGE": tmp_path, "PATH": tools, "MODULES": modules}
    done = run_script([container, "true"], tmp_path, **image)
    assert done.returncode == 2
    assert "there is no apptainer here" in done.stderr and done.stderr.count("\n") == 1
    module = '() { [ "$1 $2" = "load apptainer" ] && false; : $unset; PATH=$PATH:$MODULES; }'
    done = run_script([container, "true"], tmp_path, **image | {"BASH_FUNC_module%%": module})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def box(tmp_path: Path) -> Box:
    if not shutil.which("apptainer"):
        pytest.skip(NO_APPTAINER)
    return Box(tmp_path)


def test_a_container_sees_the_variables_that_it_needs_and_no_others(box: Box) -> None:
    passed = {
        "SLURM_JOB_ID": "7", "PMI_RANK": "1", "PMIX_RANK": "1", "PMIX_SERVER_URI41": "pmix;tcp4://127.0.0.1:9",
        "OMPI_COMM_WORLD_RANK": "1", "MASTER_ADDR": "n1", "COSMICAI_THREADS": "3", "CUDA_VISIBLE_DEVICES": "NoDevFiles",
        "AWS_SECRET_ACCESS_KEY": 'a,b="c" $HOME `id` \\n\n second ü line', "SLURM_TASKS_PER_NODE": "2(x2),1",
        "TMPDIR": box.data, "COSMICAI_EMPTY": "",
    }  # fmt: skip
    kept = dict.fromkeys(["SECRET", "PYTHONPATH", "SLURMD_NODENAME", "MY_SLURM_X", "XTMPDIR", "TMPDIRX"], "1")
    done = box.run("env", "-0", **passed, **kept, APPTAINERENV_NCCL_DEBUG="INFO")
    assert done.returncode == 0, done.stderr
    found = dict(variable.split("=", 1) for variable in done.stdout.split("\0") if variable)
    assert {name: found.get(name) for name in passed} == {name: str(value) for name, value in passed.items()}
    assert found["NCCL_DEBUG"] == "INFO"
    its_own = r"(APPTAINER|SINGULARITY)_.*|HOME|LANG|LD_LIBRARY_PATH|OLDPWD|PATH|PROMPT_COMMAND|PS1|PWD|SHLVL|TERM|_"
    expected = {*passed, "NCCL_DEBUG", "COSMICAI_IMAGE", "COSMICAI_BIND"}
    assert {name for name in found if not re.fullmatch(its_own, name)} == expected


def test_a_container_sees_the_folders_that_are_named_and_no_others(box: Box, tmp_path: Path) -> None:
    names = ('argument, "é": x', "variable é", "bound é", "second", "unseen", "behind a link")
    folders = {name: tmp_path / name for name in names}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "in").write_text(name)
    (box.data / "here").write_text("here")
    (box.data / "link").symlink_to(folders["behind a link"])
    out = folders['argument, "é": x'] / "new/deep"
    script = 'pwd; cat here "$@" "${COSMICAI_CACHE%/not/yet}/in"; mkdir -p "$0"; echo written >"$0/out"; touch beside'
    done = box.run(
        "sh", "-c", script, out, *(folder / "in" for folder in folders.values() if folder.name in names[:1]),
        box.data / "link/in", "link/in",
        COSMICAI_CACHE=folders["variable é"] / "not/yet", COSMICAI_BIND=f"{folders['bound é']}:{folders['second']}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{box.data}\nhere{names[0]}behind a linkbehind a linkvariable é"
    assert (out / "out").read_text() == "written\n" and (box.data / "beside").exists()
    shown = f"{folders['bound é']}:{folders['second']}"
    done = box.run("sh", "-c", 'cd ..; for f in */in; do echo "$f"; done', COSMICAI_BIND=shown)
    assert done.stdout.splitlines() == ["bound é/in", "second/in"]


def test_a_command_in_a_container_ends_as_it_would_outside(box: Box) -> None:
    assert box.run("sh", "-c", "exit 3").returncode == 3
    assert box.run("no-such-program").returncode == 127
    assert box.run("printf", "%s|", "a b", "", '"$x"', "é").stdout == 'a b||"$x"|é|'


AWAITED = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(signal.getsignal(signal.SIGUSR1) == signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN, flush=True)
time.sleep(20)
"""


@pytest.mark.parametrize("contained", [False, True])
def test_only_the_signal_to_end_reaches_the_worker(box: Box, contained: bool) -> None:
    python = Path(sys.executable).resolve()
    environment = box.environment | {"COSMICAI_BIND": f"{box.environment['COSMICAI_BIND']}:{python.parents[1]}"}
    if not contained:
        environment = {}
    words = [str(word) for word in box.command(python, "-c", AWAITED)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, cwd=box.data, env=environment_of(environment), stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "True\n"
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)
        assert wait_for_exit_code(process) == 7


def wait_for_exit_code(process: subprocess.Popen[str]) -> int:
    """The exit code of a process that is terminated again and again: Apptainer forgets signals that come faster than
    it passes them on."""
    for _ in range(10):
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(1)
    return process.wait(0)


@pytest.mark.parametrize(
    ("visible", "driver", "expected"),
    [("0,1", True, True), ("", True, False), ("NoDevFiles", True, False), (None, True, False), ("0", False, False)],
)
def test_a_container_gets_the_driver_with_a_gpu(
    pretended: Pretended, visible: str | None, driver: bool, expected: bool
) -> None:
    # Apptainer only prints its options, and the driver is elsewhere.
    executable(pretended.bin / "apptainer", 'printf "%s\\n" "$@"')
    container, device = pretended.project / "slurm/container.sh", pretended.project / "nvidiactl"
    if driver:
        device.touch()
    container.write_text(container.read_text().replace("/dev/nvidiactl", str(device)))
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    done = run_script([container, "true"], device.parent, **pretended.environment(COSMICAI_IMAGE=".", **variables))
    assert done.returncode == 0
    assert ("--nv" in done.stdout.splitlines()) == expected
    assert ("--no-privs" in done.stdout.splitlines()) == (os.getuid() == 0)
