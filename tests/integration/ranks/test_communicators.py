"""Communicators: the same behaviour of a single process, torch.distributed, MPI and FMI, under real launchers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import support.communicating
from support.communicating import (
    COUNTERS,
    LARGE,
    NUMBERS,
    NUMBERS_WITHOUT_RANK_0,
    ROUNDS,
    digest,
    gathered_from,
    random_numbers,
)
from support.rank_launchers import LAUNCHERS, NO_MPI, clean_environment

PROGRAM = support.communicating.__file__
LONGEST = 120  # seconds of a launcher
CLASSES = {
    "torchrun": "TorchCommunicator",
    "mpi": "MPICommunicator",
    "fmi": "FMICommunicator",
}
CASES = [
    ("alone", 1),
    *[(kind, size) for kind in ("torchrun", "mpi", "fmi") for size in (1, 2, 3, 8)],
    ("mpi over TCP", 3),
]


def launch(kind: str, size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    if kind.startswith("mpi") and not shutil.which("mpirun"):
        pytest.skip(NO_MPI)
    command = [*LAUNCHERS[kind](size), PROGRAM, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=clean_environment()) as launcher:
        try:
            printed, errors = launcher.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # not kill, so that it terminates its ranks
            raise
    return subprocess.CompletedProcess(command, launcher.returncode, printed, errors)


Found = list[dict[str, Any]]


@pytest.fixture(scope="module", params=CASES, ids=[f"{kind}-{size}" for kind, size in CASES])
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param


@pytest.fixture(scope="module")
def found(case: tuple[str, int], tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The results of every rank, by rank. Of parallel test processes, only one launches the ranks."""
    kind, size = case
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    out = shared / f"communicating-{kind.replace(' ', '-')}-{size}"
    out.mkdir(exist_ok=True)
    results = [out / f"{rank}.json" for rank in range(size)]
    with (out / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "launched").exists():
            (out / "launched").touch()
            done = launch(kind, size, str(out))
            assert done.returncode == 0, done.stdout + done.stderr
    assert [path for path in results if not path.exists()] == []
    return [json.loads(path.read_text()) for path in results]


def test_every_rank_knows_its_number_and_the_size(case: tuple[str, int], found: Found) -> None:
    kind, size = case
    assert [rank["place"] for rank in found] == [[rank, size] for rank in range(size)]
    expected = "SingleProcessCommunicator" if size == 1 else CLASSES[kind.partition(" ")[0]]
    assert {rank["kind"] for rank in found} == {expected}


def test_no_rank_leaves_a_barrier_before_all_have_reached_it(case: tuple[str, int], found: Found) -> None:
    assert [rank["barrier"] for rank in found] == [[case[1]] * ROUNDS] * case[1]


def test_arrays_are_reduced_element_by_element(case: tuple[str, int], found: Found) -> None:
    size = case[1]
    ranks = np.arange(size)
    values = np.stack([ranks, -ranks, np.full(size, 0.5), 2.0**ranks, (ranks - 1) ** 2])
    matrices = np.arange(6.0).reshape(2, 3) + 10 * ranks[:, None, None]
    expected = {name: getattr(values, name)(axis=1).tolist() for name in ("sum", "min", "max")} | {
        "default": values.sum(axis=1).tolist(),
        "matrix": matrices.sum(axis=0).tolist(),
        "transposed": matrices.max(axis=0).T.tolist(),
        "strided": matrices.min(axis=0)[:, ::2].tolist(),
        "untouched": True,
    }
    for rank in found:
        assert {name: rank["allreduce"][name] for name in expected} == expected


def test_every_rank_gets_the_same_bits_of_a_sum(case: tuple[str, int], found: Found) -> None:
    assert len({rank["allreduce"]["random"] for rank in found}) == 1
    total = np.frombuffer(bytes.fromhex(found[0]["allreduce"]["random"]))
    numbers = np.stack([random_numbers(rank) for rank in range(case[1])])
    assert (np.abs(total - numbers.sum(axis=0)) <= 1e-14 * np.abs(numbers).sum(axis=0)).all()


def test_gathered_values_reach_rank_0_in_order_and_whole(case: tuple[str, int], found: Found) -> None:
    size = case[1]
    assert found[0]["gather"] == {
        "digest": digest([gathered_from(rank) for rank in range(size)]),
        "none": [None] * size,
        "words": ["x" * rank for rank in range(size)],
        "from rank 0 alone": True,
    }
    nothing = {"digest": None, "none": None, "words": None, "from rank 0 alone": False}
    assert [rank["gather"] for rank in found[1:]] == [nothing] * (size - 1)


def test_every_rank_gets_the_value_that_rank_0_broadcasts(case: tuple[str, int], found: Found) -> None:
    assert len(json.dumps(LARGE)) > 2**20
    expected = {"large": digest(LARGE), "none": None, "rank": 0, "text": "ü"}
    assert [rank["broadcast"] for rank in found] == [expected] * case[1]


def test_each_number_of_the_counter_is_given_once(case: tuple[str, int], found: Found) -> None:
    size = case[1]
    threads = [numbers for rank in found for numbers in rank["count"]["numbers"]]
    assert len(threads) == size * COUNTERS
    assert sorted(number for numbers in threads for number in numbers) == list(range(NUMBERS + size * COUNTERS))
    for numbers in threads:
        assert numbers == sorted(numbers)
        assert [number >= NUMBERS for number in numbers] == [False] * (len(numbers) - 1) + [True]


def test_the_counter_does_not_disturb_collective_operations(case: tuple[str, int], found: Found) -> None:
    size = case[1]
    expected = [[number * size + sum(range(size))] for number in range(ROUNDS)]
    assert [rank["count"]["sums"] for rank in found] == [expected] * size


def test_the_other_ranks_get_numbers_while_rank_0_is_busy(case: tuple[str, int], found: Found) -> None:
    size = case[1]
    numbers = [rank["count without rank 0"] for rank in found]
    assert [len(own) for own in numbers] == [0] + [NUMBERS_WITHOUT_RANK_0] * (size - 1)
    first = NUMBERS + size * COUNTERS
    assert sorted(number for own in numbers for number in own) == list(
        range(first, first + NUMBERS_WITHOUT_RANK_0 * (size - 1))
    )


@pytest.mark.parametrize(
    ("kind", "how", "code"),
    [("mpi", "raise", 1), ("mpi", "exit", 7), ("torchrun", "raise", 1), ("fmi", "raise", 1)],
)
def test_a_failed_rank_ends_all_ranks(tmp_path: Path, kind: str, how: str, code: int) -> None:
    done = launch(kind, 3, str(tmp_path), how)
    ended = time.time()
    assert done.returncode == code, done.stderr
    assert ended - (tmp_path / "failed").stat().st_mtime < 30
    assert [path.name for path in tmp_path.iterdir()] == ["failed"]
    if how == "raise":
        assert "rank 1 gives up" in done.stderr


@pytest.mark.parametrize("rank", [0, 2])
def test_an_mpi_library_other_than_the_launchers_is_named(rank: int) -> None:
    if not shutil.which("mpirun"):
        pytest.skip(NO_MPI)
    code = (
        "import os\n"
        "from cosmicai.errors import InputError\n"
        "from cosmicai.ranks.connect import connect\n"
        "from cosmicai.ranks.environment import rank_from_environment\n"
        "try:\n"
        "    with connect(rank_from_environment(), os.environ):\n"
        "        print('connected')\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    names = {"RANK": rank, "SIZE": 4, "LOCAL_RANK": rank, "LOCAL_SIZE": 4}
    variables = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LONGEST,
        env=clean_environment() | variables,
    )
    assert done.returncode == 0, done.stderr
    start, _, end = done.stdout.partition(" mpi4py uses ")
    library, _, end = end.partition(", ")
    assert start == "4 ranks were started and this one finds 1:"
    assert library
    assert end == "which is not the MPI of this mpirun or srun\n"


def test_ranks_of_launchers_without_communication_have_no_communicator() -> None:
    from cosmicai.ranks.connect import connect
    from cosmicai.ranks.environment import Rank

    for platform in ("local", "slurm-array", "slurm", "lambda"):
        with connect(Rank(1, 2, platform), {}) as communicator:
            assert communicator is None
    with connect(Rank(1, 2, "slurm-array"), {"MASTER_ADDR": "somewhere"}) as communicator:
        assert communicator is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {},
            "COSMICAI_RENDEZVOUS is set and COSMICAI_RENDEZVOUS_JOB is not; set it to one name that is the same for",
        ),
        (
            {"COSMICAI_RENDEZVOUS_JOB": "ä" * 128},
            f"the job's name {'ä' * 40}... is too long; expected at most 255 bytes",
        ),
        (
            {"COSMICAI_RENDEZVOUS": "here:x", "COSMICAI_RENDEZVOUS_JOB": "j"},
            "'here:x' is not the address of a",
        ),
        (
            {"COSMICAI_RENDEZVOUS_JOB": "j"},
            "rank 1 of 2 with rendezvous server 127.0.0.1:9: no rendezvous server answers",
        ),
    ],
)
def test_an_invalid_rendezvous_is_one_sentence(environment: dict[str, str], message: str) -> None:
    from cosmicai.errors import InputError
    from cosmicai.ranks.connect import connect
    from cosmicai.ranks.environment import Rank

    here = {"COSMICAI_RENDEZVOUS": "127.0.0.1:9"} | environment
    with pytest.raises(InputError) as caught, connect(Rank(1, 2, "local"), here):
        pass
    assert str(caught.value).startswith(message)
