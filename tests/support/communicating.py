"""The program of every rank of test_communicators, which writes its results to OUT/RANK.json.

With a second argument, `raise` or `exit`, rank 1 fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from cosmicai.ranks.communicator import Communicator
from cosmicai.ranks.connect import connect
from cosmicai.ranks.environment import rank_from_environment

ROUNDS = 8
NUMBERS = 120  # that all ranks take from the counter together
COUNTERS = 2  # threads per rank that take numbers
NUMBERS_WITHOUT_RANK_0 = 10  # numbers that each other rank takes while rank 0 is busy
DEADLINE = 60  # seconds
LARGE = {"text": "größer als ein MB € " * 100_000, "numbers": list(range(1000)), "nothing": None}


def gathered_from(rank: int) -> Any:
    """A value whose length is different for each rank."""
    return [rank, "ü€\0" * 1000 * rank, None, {"nested": [{"deep": [rank] * rank}, 0.1, True]}]


def random_numbers(rank: int) -> np.ndarray:
    """Numbers whose sum depends on the order of addition."""
    return np.random.default_rng(rank).normal(size=1001) * 10.0 ** np.arange(1001) ** 0.3


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def barrier(communicator: Communicator, out: Path) -> list[int]:
    """Count the ranks that had reached each barrier when this rank left it; each time another rank is late."""
    seen = []
    for number in range(ROUNDS):
        if number % communicator.size == communicator.rank:
            time.sleep(0.02)
        (out / f"round-{number}-{communicator.rank}").touch()
        communicator.barrier()
        seen.append(len(list(out.glob(f"round-{number}-*"))))
    return seen


def allreduce(communicator: Communicator) -> dict[str, Any]:
    rank = communicator.rank
    values = np.array([rank, -rank, 0.5, 2.0**rank, (rank - 1) ** 2])
    matrix = np.arange(6.0).reshape(2, 3) + 10 * rank
    strided = matrix[:, ::2]
    found: dict[str, Any] = {name: communicator.allreduce(values, name).tolist() for name in ("sum", "min", "max")}
    found["default"] = communicator.allreduce(values).tolist()
    found["matrix"] = communicator.allreduce(matrix).tolist()
    found["transposed"] = communicator.allreduce(matrix.T, "max").tolist()
    found["strided"] = communicator.allreduce(strided, "min").tolist()
    found["random"] = communicator.allreduce(random_numbers(rank)).tobytes().hex()
    untouched = values.tolist() == [rank, -rank, 0.5, 2.0**rank, (rank - 1) ** 2]
    return found | {"untouched": untouched and matrix.tolist() == (np.arange(6.0).reshape(2, 3) + 10 * rank).tolist()}


def gather(communicator: Communicator) -> dict[str, Any]:
    gathered = communicator.gather(gathered_from(communicator.rank))
    return {
        "digest": gathered if gathered is None else digest(gathered),
        "none": communicator.gather(None),
        "words": communicator.gather("x" * communicator.rank),
        "from rank 0 alone": communicator.gather(LARGE["text"] if communicator.rank == 0 else 0)
        == [LARGE["text"]] + [0] * (communicator.size - 1),
    }


def broadcast(communicator: Communicator) -> dict[str, Any]:
    own = {"rank", communicator.rank}  # a set, which JSON cannot represent: only rank 0's value is encoded
    return {
        "large": digest(communicator.broadcast(LARGE if communicator.rank == 0 else own)),
        "none": communicator.broadcast(None if communicator.rank == 0 else own),
        "rank": communicator.broadcast(communicator.rank),
        "text": communicator.broadcast("ü" if communicator.rank == 0 else "a longer one"),
    }


def count(communicator: Communicator) -> dict[str, Any]:
    """Take numbers in threads while the main thread calls collective operations."""
    found: list[list[int]] = [[] for _ in range(COUNTERS)]

    def take(own: list[int]) -> None:
        own.append(communicator.next_item())
        while own[-1] < NUMBERS:
            own.append(communicator.next_item())

    communicator.barrier()
    threads = [threading.Thread(target=take, args=(own,), daemon=True) for own in found]
    for thread in threads:
        thread.start()
    sums = [communicator.allreduce(np.array([float(number + communicator.rank)])).tolist() for number in range(ROUNDS)]
    for thread in threads:
        thread.join(DEADLINE)
    communicator.barrier()
    return {"numbers": found, "sums": sums}


def count_without_rank_0(communicator: Communicator, out: Path) -> list[int]:
    """Take numbers in all ranks but 0, which meanwhile waits for them outside of the communicator."""
    communicator.barrier()
    if communicator.rank > 0:
        numbers = [communicator.next_item() for _ in range(NUMBERS_WITHOUT_RANK_0)]
        (out / f"counted-{communicator.rank}").touch()
        return numbers
    give_up = time.monotonic() + DEADLINE
    while len(list(out.glob("counted-*"))) < communicator.size - 1:
        if time.monotonic() > give_up:
            raise TimeoutError("the other ranks got no numbers while rank 0 was busy")
        time.sleep(0.001)
    return []


def main(out: Path, failure: str = "") -> None:
    rank = rank_from_environment()
    with connect(rank, os.environ) as communicator:
        assert communicator is not None
        if failure:
            if communicator.rank == 1:
                (out / "failed").touch()
                if failure == "exit":
                    sys.exit(7)
                raise RuntimeError("rank 1 gives up")
            communicator.barrier()  # never returns: rank 1 does not call it
            (out / f"passed-{communicator.rank}").touch()
        found = {
            "kind": type(communicator).__name__,
            "place": [communicator.rank, communicator.size],
            "barrier": barrier(communicator, out),
            "allreduce": allreduce(communicator),
            "gather": gather(communicator),
            "broadcast": broadcast(communicator),
            "count": count(communicator),
            "count without rank 0": count_without_rank_0(communicator, out),
        }
    (out / f"{rank.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
