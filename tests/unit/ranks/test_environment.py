"""The rank and world size that the variables of every launcher mean."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cosmicai.errors import InputError
from cosmicai.ranks import environment
from cosmicai.ranks.environment import MAX_RANKS, Rank, describe_ignored, environment_for, rank_from_environment
from support.rank_launchers import LAUNCHERS, NO_MPI, clean_environment

PROCESSORS, AVAILABLE = 16, 12  # of the machine, and for this process


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "available_cores", lambda: AVAILABLE)
    monkeypatch.setattr(environment, "os", SimpleNamespace(cpu_count=lambda: PROCESSORS))


def with_prefix(prefix: str, names: str, *values: object) -> dict[str, str]:
    return {f"{prefix}{name}": str(value) for name, value in zip(names.split(), values, strict=True)}


def torchrun(rank: int, world_size: int, local_rank: int, local_size: int) -> dict[str, str]:
    places = with_prefix("", "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE", rank, world_size, local_rank, local_size)
    return places | {"TORCHELASTIC_RUN_ID": "night", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def open_mpi(rank: int, world_size: int, local_rank: int, local_size: int) -> dict[str, str]:
    names = "RANK SIZE LOCAL_RANK LOCAL_SIZE"
    places = with_prefix("OMPI_COMM_WORLD_", names, rank, world_size, local_rank, local_size)
    return places | {"PMIX_NAMESPACE": "1466761217", "PMIX_RANK": str(rank)}


def mpich(rank: int, world_size: int, local_rank: int, local_size: int) -> dict[str, str]:
    places = with_prefix("MPI_", "LOCALRANKID LOCALNRANKS", local_rank, local_size)
    return with_prefix("PMI_", "RANK SIZE", rank, world_size) | places


def batch(tasks: int = 1, cores: int = 16) -> dict[str, str]:
    """The variables of a batch script, which runs on the first node as if it were a task."""
    names = "JOB_ID NTASKS CPUS_ON_NODE PROCID LOCALID NODEID"
    return with_prefix("SLURM_", names, 7, tasks, cores, 0, 0, 0)


def step(rank: int, world_size: int, local_rank: int, node: int, per_node: str, cores: int = 16) -> dict[str, str]:
    names = "STEP_ID STEP_NUM_TASKS PROCID LOCALID NODEID STEP_TASKS_PER_NODE"
    return batch(world_size, cores) | with_prefix("SLURM_", names, 0, world_size, rank, local_rank, node, per_node)


def array(task: int, first: int, last: int, stride: int, count: int) -> dict[str, str]:
    names = "TASK_ID TASK_MIN TASK_MAX TASK_STEP TASK_COUNT JOB_ID"
    return with_prefix("SLURM_ARRAY_", names, task, first, last, stride, count, 70)


LAUNCH_IN_FULL = with_prefix("COSMICAI_", "RANK WORLD_SIZE LOCAL_RANK LOCAL_SIZE THREADS JOB", 5, 8, 1, 4, 3, "fleet")
CASES = {
    "nothing": ({}, Rank(0, 1, "alone", 12, 0, 1)),
    "launch": ({"COSMICAI_RANK": "2", "COSMICAI_WORLD_SIZE": "4"}, Rank(2, 4, "local", 4, 2, 4)),
    "launch in full": (LAUNCH_IN_FULL, Rank(5, 8, "local", 3, 1, 4, "fleet")),
    "torchrun": (torchrun(5, 8, 1, 4), Rank(5, 8, "torchrun", 4, 1, 4, "night")),
    "torch's variables without torchrun": ({"RANK": "3", "WORLD_SIZE": "4"}, Rank(0, 1, "alone", 12, 0, 1)),
    "Open MPI": (open_mpi(5, 6, 1, 2), Rank(5, 6, "mpi", 8, 1, 2, "1466761217")),
    "Open MPI in SLURM": (batch(6) | open_mpi(5, 6, 1, 2), Rank(5, 6, "mpi", 8, 1, 2, "7")),
    "MPICH": (mpich(4, 5, 0, 1), Rank(4, 5, "mpi", 12, 0, 1)),
    "MPICH in SLURM": (batch(8) | mpich(3, 8, 3, 4), Rank(3, 8, "mpi", 4, 3, 4, "7")),
    "MPICH through srun": (step(1, 2, 0, 1, "1(x2)") | mpich(6, 8, 2, 4), Rank(6, 8, "mpi", 4, 2, 4, "7")),
    "srun --mpi=pmi2": (
        step(4, 5, 1, 2, "2,1,2") | with_prefix("PMI_", "RANK SIZE", 4, 5), Rank(4, 5, "mpi", 8, 1, 2, "7", 0, "7")
    ),
    "srun --mpi=pmix": (step(2, 7, 0, 1, "2(x3),1") | {"PMIX_RANK": "2"}, Rank(2, 7, "mpi", 8, 0, 2, "7", 0, "7")),
    "srun --mpi=pmix, last node": (
        step(6, 7, 0, 3, "2(x3),1") | {"PMIX_RANK": "6"}, Rank(6, 7, "mpi", 12, 0, 1, "7", 0, "7")
    ),
    "PMIx without SLURM": ({"PMIX_RANK": "2"}, Rank(0, 1, "alone", 12, 0, 1)),
    "srun": (step(9, 10, 3, 2, "3(x2),4"), Rank(9, 10, "slurm", 4, 3, 4, "7", 0, "7")),
    "srun, second node": (step(4, 10, 1, 1, "3(x2),4"), Rank(4, 10, "slurm", 5, 1, 3, "7", 0, "7")),
    "srun of one": (step(0, 1, 0, 0, "1"), Rank(0, 1, "slurm", 12, 0, 1, "7", 0, "7")),
    "srun with MASTER_ADDR": (step(1, 2, 1, 0, "2") | {"MASTER_ADDR": "n1"}, Rank(1, 2, "slurm", 8, 1, 2, "7", 0, "7")),
    "a batch script": (batch(cores=8), Rank(0, 1, "slurm", 8, 0, 1, "7", 0, "7")),
    "a batch script with the job id only": ({"SLURM_JOB_ID": "7"}, Rank(0, 1, "slurm", 12, 0, 1, "7", 0, "7")),
    "--array=0-9": (batch() | array(4, 0, 9, 1, 10), Rank(4, 10, "slurm-array", 12, 0, 1, "70_4", 0, "70")),
    "--array=5-8": (batch() | array(8, 5, 8, 1, 4), Rank(3, 4, "slurm-array", 12, 0, 1, "70_8", 0, "70")),
    "--array=0-9:3": (batch() | array(9, 0, 9, 3, 4), Rank(3, 4, "slurm-array", 12, 0, 1, "70_9", 0, "70")),
    "--array=0-10:3": (batch() | array(6, 0, 10, 3, 4), Rank(2, 4, "slurm-array", 12, 0, 1, "70_6", 0, "70")),
    "--array=0,3,7-9": (batch() | array(7, 0, 9, 1, 5), Rank(7, 10, "slurm-array", 12, 0, 1, "70_7", 0, "70")),
    "--array=4,14": (batch() | array(14, 4, 14, 10, 2), Rank(1, 2, "slurm-array", 12, 0, 1, "70_14", 0, "70")),
    "--array=4,14,15": (batch() | array(14, 4, 15, 10, 3), Rank(10, 12, "slurm-array", 12, 0, 1, "70_14", 0, "70")),
    "the second of two arrays": (
        batch() | array(4, 0, 9, 1, 10) | {"COSMICAI_ARRAYS": "10/20", "COSMICAI_SUBMISSION": "night"},
        Rank(14, 20, "slurm-array", 12, 0, 1, "70_4", 0, "night"),
    ),
    "the last of two arrays, of one task": (
        step(1, 2, 1, 0, "2") | {"COSMICAI_ARRAYS": "10/11", "COSMICAI_SUBMISSION": "night"},
        Rank(21, 22, "slurm-array", 8, 1, 2, "7", 0, "night"),
    ),
    "a task that was requeued": (
        batch() | array(4, 0, 9, 1, 10) | {"SLURM_RESTART_COUNT": "2"},
        Rank(4, 10, "slurm-array", 12, 0, 1, "70_4", 2, "70"),
    ),
    "--array=3": (batch() | array(3, 3, 3, 1, 1), Rank(0, 1, "slurm-array", 12, 0, 1, "70_3", 0, "70")),
    "an array of steps": (
        step(1, 4, 1, 0, "2(x2)") | array(7, 5, 8, 1, 4), Rank(9, 16, "slurm-array", 8, 1, 2, "70_7", 0, "70")
    ),
    "an array of --mpi=pmix": (
        step(1, 4, 1, 0, "2(x2)") | {"PMIX_RANK": "1"} | array(7, 5, 8, 1, 4),
        Rank(9, 16, "slurm-array", 8, 1, 2, "70_7", 0, "70"),
    ),
    "an array of --mpi=pmi2": (
        step(3, 4, 1, 1, "2(x2)") | with_prefix("PMI_", "RANK SIZE", 3, 4) | array(0, 0, 1, 1, 2),
        Rank(3, 8, "slurm-array", 8, 1, 2, "70_0", 0, "70"),
    ),
    "Lambda": ({"AWS_LAMBDA_FUNCTION_NAME": "redshifts"}, Rank(0, 1, "lambda", 12, 0, 1, "redshifts")),
    "launch in SLURM": (step(1, 2, 0, 1, "1(x2)") | LAUNCH_IN_FULL, Rank(5, 8, "local", 3, 1, 4, "fleet")),
    "launch in an array": (batch() | array(1, 0, 3, 1, 4) | LAUNCH_IN_FULL, Rank(5, 8, "local", 3, 1, 4, "fleet")),
    "launch below all others": (
        torchrun(0, 2, 0, 2) | open_mpi(1, 3, 1, 3) | LAUNCH_IN_FULL, Rank(5, 8, "local", 3, 1, 4, "fleet")
    ),
    "torchrun in srun": (step(1, 2, 0, 1, "1(x2)") | torchrun(7, 8, 3, 4), Rank(7, 8, "torchrun", 4, 3, 4, "night")),
    "torchrun in mpirun": (open_mpi(1, 2, 0, 1) | torchrun(7, 8, 3, 4), Rank(7, 8, "torchrun", 4, 3, 4, "night")),
    "mpirun in srun": (
        step(1, 2, 0, 1, "1(x2)") | {"PMI_RANK": "1", "PMI_SIZE": "2"} | open_mpi(5, 6, 2, 3),
        Rank(5, 6, "mpi", 5, 2, 3, "7"),
    ),
    "mpirun in an array": (batch() | array(1, 0, 3, 1, 4) | open_mpi(1, 2, 1, 2), Rank(1, 2, "mpi", 8, 1, 2, "70_1")),
    "as many as requested": (
        {"COSMICAI_WORLD_SIZE": "6"} | open_mpi(5, 6, 1, 2), Rank(5, 6, "mpi", 8, 1, 2, "1466761217")
    ),
    "one as requested": ({"COSMICAI_WORLD_SIZE": "1"}, Rank(0, 1, "alone", 12, 0, 1)),
}  # fmt: skip


@pytest.mark.parametrize(("variables", "expected"), CASES.values(), ids=CASES.keys())
def test_a_launchers_variables_give_the_rank(variables: dict[str, str], expected: Rank) -> None:
    assert rank_from_environment(variables) == expected


def test_the_largest_number_of_ranks_is_accepted() -> None:
    variables = {"COSMICAI_RANK": "0", "COSMICAI_WORLD_SIZE": str(MAX_RANKS)}
    assert rank_from_environment(variables).world_size == MAX_RANKS == 1_000_000


def test_all_ranks_of_an_array_of_steps_are_different() -> None:
    nodes, local = [0, 0, 1, 1, 2, 2, 3], [0, 1, 0, 1, 0, 1, 0]
    found = [
        rank_from_environment(step(rank, 7, local[rank], nodes[rank], "2(x3),1") | array(task, 2, 11, 3, 4))
        for task in (2, 5, 8, 11) for rank in range(7)
    ]  # fmt: skip
    assert [rank.rank for rank in found] == list(range(28))
    assert {rank.world_size for rank in found} == {28}
    assert [rank.local_size for rank in found[:7]] == [2, 2, 2, 2, 2, 2, 1]


THREADS = {
    "as requested": ({"COSMICAI_THREADS": "40"}, 40),
    "as requested, in Lambda": ({"COSMICAI_THREADS": "2", "AWS_LAMBDA_FUNCTION_NAME": "f"}, 2),
    "as requested, in a step": (step(0, 2, 0, 0, "2") | {"COSMICAI_THREADS": "3", "SLURM_CPUS_PER_TASK": "5"}, 3),
    "of a task": (step(0, 2, 0, 0, "2") | {"SLURM_CPUS_PER_TASK": "5"}, 5),
    "of a task with more than are available": (step(0, 2, 0, 0, "2") | {"SLURM_CPUS_PER_TASK": "32"}, 12),
    "of a batch script, whose tasks are not started yet": (batch(cores=10) | {"SLURM_CPUS_PER_TASK": "5"}, 10),
    "a share of the machine": (torchrun(0, 5, 0, 5), 3),
    "a share of the node's part that is the job's": (step(0, 3, 0, 0, "3", cores=7), 2),
    "no more than we have": (step(0, 1, 0, 0, "1", cores=64), 12),
    "at least one": (torchrun(0, 40, 0, 40), 1),
}


@pytest.mark.parametrize(("variables", "expected"), THREADS.values(), ids=THREADS.keys())
def test_threads_are_as_requested_or_a_fair_share(variables: dict[str, str], expected: int) -> None:
    assert rank_from_environment(variables).threads == expected


def test_threads_if_the_number_of_processors_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "os", SimpleNamespace(cpu_count=lambda: None))
    assert rank_from_environment({}).threads == 1


def mismatch(world_size: int, found: str) -> str:
    return (
        f"{world_size} ranks were requested (COSMICAI_WORLD_SIZE) and this rank finds {found}: its launcher's "
        "variables do not reach it; start it with srun, mpirun, torchrun or `python -m launch`, and let a container "
        "pass SLURM_*, PMI*, PMIX_*, OMPI_* and MASTER_*"
    )


def too_many(name: str, value: object, size: int) -> str:
    return (
        f"the environment has {name}={value}, which makes {size} ranks; expected at most {MAX_RANKS}, "
        "correct the variable or start fewer ranks"
    )


def impossible(rank: int, world_size: int, threads: int) -> str:
    return (
        f"the environment describes rank {rank} of {world_size} with {threads} threads; "
        "expected a rank from 0 to world size - 1 and at least one thread"
    )


def no_number(name: str, value: str = "") -> str:
    return f"the environment has {name}={value}; expected a whole number, as the launcher sets it"


def without(variables: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in variables.items() if key != name}


def without_srun(job: str, counter: str) -> str:
    return (
        f"job {job} has 4 tasks and this process was started without srun, so it could be one of 4 ranks or alone; "
        "start ranks on this machine with `python -m launch --procs N`, those of the job with "
        f"`srun python -m cosmicai work RUN`, or go on alone with `env -u {counter}` in front of the command"
    )


ERRORS = {
    "alone": ({"COSMICAI_WORLD_SIZE": "4"}, mismatch(4, "that it is alone")),
    "alone in Lambda": (
        {"COSMICAI_WORLD_SIZE": "4", "AWS_LAMBDA_FUNCTION_NAME": "f"}, mismatch(4, "that it is alone")
    ),
    "fewer": (open_mpi(0, 2, 0, 2) | {"COSMICAI_WORLD_SIZE": "4"}, mismatch(4, "2 (mpi)")),
    "more": (torchrun(0, 8, 0, 8) | {"COSMICAI_WORLD_SIZE": "1"}, mismatch(1, "8 (torchrun)")),
    "an array": (
        batch() | array(0, 0, 2, 1, 3) | {"COSMICAI_WORLD_SIZE": "4"}, mismatch(4, "3 (slurm-array)")
    ),
    "without srun": (batch(4), without_srun("7", "SLURM_NTASKS")),
    "an array without srun": (batch(4) | array(0, 0, 1, 1, 2), without_srun("70_0", "SLURM_NTASKS")),
    "the shell of srun --pty": (
        step(0, 4, 0, 0, "4") | {"SLURM_PTY_PORT": "4711"}, without_srun("7", "SLURM_STEP_NUM_TASKS")
    ),
    "no number of ranks": ({"COSMICAI_RANK": "0"}, no_number("COSMICAI_WORLD_SIZE")),
    "an empty rank": ({"COSMICAI_RANK": "", "COSMICAI_WORLD_SIZE": "2"}, no_number("COSMICAI_RANK")),
    "a word": ({"COSMICAI_WORLD_SIZE": "many"}, no_number("COSMICAI_WORLD_SIZE", "many")),
    "half a thread": ({"COSMICAI_THREADS": "0.5"}, no_number("COSMICAI_THREADS", "0.5")),
    "torchrun": (without(torchrun(0, 2, 0, 2), "LOCAL_WORLD_SIZE"), no_number("LOCAL_WORLD_SIZE")),
    "Open MPI": (without(open_mpi(0, 2, 0, 2), "OMPI_COMM_WORLD_SIZE"), no_number("OMPI_COMM_WORLD_SIZE")),
    "MPICH": (without(mpich(0, 2, 0, 2), "MPI_LOCALRANKID"), no_number("MPI_LOCALRANKID")),
    "pmix": (
        without(step(0, 2, 0, 0, "2"), "SLURM_STEP_NUM_TASKS") | {"PMIX_RANK": "0"}, no_number("SLURM_STEP_NUM_TASKS")
    ),
    "srun": (step(0, 2, 0, 0, "2") | {"SLURM_PROCID": "one"}, no_number("SLURM_PROCID", "one")),
    "an array without its end": (
        without(batch() | array(0, 0, 2, 1, 3), "SLURM_ARRAY_TASK_MAX"), no_number("SLURM_ARRAY_TASK_MAX")
    ),
    "arrays before this one": (
        batch() | array(0, 0, 2, 1, 3) | {"COSMICAI_ARRAYS": "10"},
        "the environment has COSMICAI_ARRAYS=10; expected FIRST/ALL, such as 1000/5000, as the launcher sets it",
    ),
    "a rank beyond the world size": (
        {"COSMICAI_RANK": "4", "COSMICAI_WORLD_SIZE": "4"}, impossible(4, 4, 4)
    ),
    "a negative rank": (torchrun(-1, 4, 0, 4), impossible(-1, 4, 4)),
    "too many ranks": (
        {"COSMICAI_RANK": "0", "COSMICAI_WORLD_SIZE": "999999999"},
        too_many("COSMICAI_WORLD_SIZE", 999999999, 999999999),
    ),
    "too many requested": (
        {"COSMICAI_WORLD_SIZE": "1000001"}, too_many("COSMICAI_WORLD_SIZE", 1000001, 1000001)
    ),
    "too many of torchrun": (torchrun(0, 10**9, 0, 1), too_many("WORLD_SIZE", 10**9, 10**9)),
    "too many of Open MPI": (open_mpi(0, 10**9, 0, 1), too_many("OMPI_COMM_WORLD_SIZE", 10**9, 10**9)),
    "too many of MPICH": (mpich(0, 10**9, 0, 1), too_many("PMI_SIZE", 10**9, 10**9)),
    "too many of srun": (
        step(0, 10**9, 0, 0, "1(x1000000000)"), too_many("SLURM_STEP_NUM_TASKS", 10**9, 10**9)
    ),
    "too many of an array": (
        batch() | array(0, 0, 10**9 - 1, 1, 10**9), too_many("SLURM_ARRAY_TASK_MAX", 10**9 - 1, 10**9)
    ),
    "too many of an array of steps": (
        step(0, 1000, 0, 0, "1000") | array(0, 0, 1000, 1, 1001), too_many("SLURM_ARRAY_TASK_MAX", 1000, 1001000)
    ),
    "too many of several arrays": (
        batch() | array(0, 0, 9, 1, 10) | {"COSMICAI_ARRAYS": "0/1000001"},
        too_many("COSMICAI_ARRAYS", "0/1000001", 1000001),
    ),
    "no list of tasks": (
        step(0, 2, 0, 0, "2(xx)"),
        "the environment has SLURM_STEP_TASKS_PER_NODE=2(xx); expected a list such as 2(x3),1, as SLURM sets it",
    ),
    "too many threads": (
        {"COSMICAI_THREADS": "4097"},
        "the environment has COSMICAI_THREADS=4097; expected at most 4096, the number of cores for this rank",
    ),
    "no thread": ({"COSMICAI_THREADS": "0"}, impossible(0, 1, 0)),
}  # fmt: skip


@pytest.mark.parametrize(("variables", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_an_invalid_environment_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as error:
        rank_from_environment(variables)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "rank",
    [Rank(0, 1, "local", 1), Rank(3, 4, "local", 2, 3, 4), Rank(9, 16, "local", 40, 1, 2, "fleet")],
)
@pytest.mark.parametrize("outer", [{}, step(1, 2, 0, 1, "1(x2)"), torchrun(1, 3, 1, 3), LAUNCH_IN_FULL])
def test_a_rank_is_recovered_from_its_variables(rank: Rank, outer: dict[str, str]) -> None:
    inherited = without(outer, "COSMICAI_JOB")
    assert rank_from_environment(inherited | environment_for(rank)) == rank


WRITE_RANK = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from cosmicai.ranks.environment import rank_from_environment
rank = rank_from_environment()
Path(sys.argv[1], f"{rank.rank}.json").write_text(json.dumps(asdict(rank)))
"""


@pytest.mark.parametrize("kind", ["mpi", "torchrun"])
def test_the_variables_of_a_real_launcher_give_the_rank(tmp_path: Path, kind: str) -> None:
    if kind == "mpi" and not shutil.which("mpirun"):
        pytest.skip(NO_MPI)
    program, results = tmp_path / "write_rank.py", tmp_path / "ranks"
    program.write_text(WRITE_RANK)
    results.mkdir()
    command = [*LAUNCHERS[kind](3), str(program), str(results)]
    environment = clean_environment() | {"COSMICAI_WORLD_SIZE": "3", "COSMICAI_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in sorted(results.iterdir())]
    jobs = {rank.pop("job") for rank in found}
    absent = ("restarts", "submission", "site", "cluster")
    assert [[rank.pop(name) for name in absent] for rank in found] == [[0, None, None, None]] * 3
    assert len(jobs) == 1 and all(jobs)
    assert found == [
        {"rank": rank, "world_size": 3, "platform": kind, "threads": 2, "local_rank": rank, "local_size": 3}
        for rank in range(3)
    ]


def test_a_process_without_launcher_is_alone() -> None:
    code = (
        "import os; from cosmicai.ranks.environment import *; "
        "print(rank_from_environment() == Rank(threads=min(os.cpu_count(), available_cores())))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment())
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("environment", "site", "cluster"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "test", "COSMICAI_SITE_NAME": "local"}, "local", "test"),
        ({"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "test"}, None, "test"),
        ({"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "", "COSMICAI_SITE_NAME": ""}, None, None),
        ({"COSMICAI_SITE_NAME": "rivanna", "COSMICAI_SITE": "rivanna"}, None, None),  # no job of any cluster
        ({"SLURM_CLUSTER_NAME": "test"}, None, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None, "Kubernetes"),
        ({"ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4"}, None, "Amazon ECS"),
    ],
)
def test_site_and_cluster_are_those_of_the_job(environment, site, cluster):
    rank = rank_from_environment(environment)
    assert (rank.site, rank.cluster) == (site, cluster)
    launched = rank_from_environment(environment | {"COSMICAI_RANK": "0", "COSMICAI_WORLD_SIZE": "1"})
    assert (launched.site, launched.cluster) == (site, cluster)


NOT_TORCHRUN = "torchrun did not start this process, which is rank 0 of {} ({})"


@pytest.mark.parametrize(
    ("variables", "sentences"),
    [
        ({}, []),
        ({"MASTER_ADDR": "n1"}, ["MASTER_ADDR in the environment is ignored: " + NOT_TORCHRUN.format(1, "alone")]),
        (
            open_mpi(0, 2, 0, 2) | {"RANK": "0", "WORLD_SIZE": "8"},
            ["RANK, WORLD_SIZE in the environment are ignored: " + NOT_TORCHRUN.format(2, "mpi")],
        ),
        (open_mpi(1, 2, 1, 2) | {"RANK": "0"}, []),
        (torchrun(0, 2, 0, 2) | {"MASTER_ADDR": "n1"}, []),
        (step(0, 2, 0, 0, "2") | {"MASTER_ADDR": "n1"}, []),
    ],
)  # fmt: skip
def test_variables_of_torchrun_that_are_left_over_are_said_to_be_ignored(variables, sentences):
    assert describe_ignored(rank_from_environment(variables), variables) == sentences
