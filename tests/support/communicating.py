"""What every rank of test_communicators does: says what it found in OUT/RANK.json. `... OUT fail` fails in rank 1."""

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

from cosmicai.ranks.communicator import Communicator, connect
from cosmicai.ranks.environment import rank_from_environment

ROUNDS = 8
NUMBERS = 120  # that all ranks count together
COUNTERS = 2  # threads of each rank that count
ALONE = 10  # numbers of each rank that counts while rank 0 is busy
DEADLINE = 60  # seconds
LARGE = {"text": "größer als ein MB € " * 100_000, "numbers": list(range(1000)), "nothing": None}


def gathered_from(rank: int) -> Any:
    """Another length for each rank."""
    return [rank, "ü€\0" * 1000 * rank, None, {"nested": [{"deep": [rank] * rank}, 0.1, True]}]


def random_numbers(rank: int) -> np.ndarray:
    """Numbers whose sum depends on the order of adding."""
    return np.random.default_rng(rank).normal(size=1001) * 10.0 ** np.arange(1001) ** 0.3


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def barrier(talking: Communicator, out: Path) -> list[int]:
    """How many ranks had come to each barrier when it let this one go; each time another rank comes late."""
    seen = []
    for number in range(ROUNDS):
        if number % talking.size == talking.rank:
            time.sleep(0.02)
        (out / f"round-{number}-{talking.rank}").touch()
        talking.barrier()
        seen.append(len(list(out.glob(f"round-{number}-*"))))
    return seen


def allreduce(talking: Communicator) -> dict[str, Any]:
    rank = talking.rank
    values = np.array([rank, -rank, 0.5, 2.0**rank, (rank - 1) ** 2])
    matrix = np.arange(6.0).reshape(2, 3) + 10 * rank
    strided = matrix[:, ::2]
    found: dict[str, Any] = {name: talking.allreduce(values, name).tolist() for name in ("sum", "min", "max")}
    found["default"] = talking.allreduce(values).tolist()
    found["matrix"] = talking.allreduce(matrix).tolist()
    found["transposed"] = talking.allreduce(matrix.T, "max").tolist()
    found["strided"] = talking.allreduce(strided, "min").tolist()
    found["random"] = talking.allreduce(random_numbers(rank)).tobytes().hex()
    untouched = values.tolist() == [rank, -rank, 0.5, 2.0**rank, (rank - 1) ** 2]
    return found | {"untouched": untouched and matrix.tolist() == (np.arange(6.0).reshape(2, 3) + 10 * rank).tolist()}


def gather(talking: Communicator) -> dict[str, Any]:
    everyone = talking.gather(gathered_from(talking.rank))
    return {
        "digest": everyone if everyone is None else digest(everyone),
        "none": talking.gather(None),
        "words": talking.gather("x" * talking.rank),
        "from rank 0 alone": talking.gather(LARGE["text"] if talking.rank == 0 else 0)
        == [LARGE["text"]] + [0] * (talking.size - 1),
    }


def broadcast(talking: Communicator) -> dict[str, Any]:
    mine = {"rank", talking.rank}  # JSON cannot hold a set, but it is not asked to
    return {
        "large": digest(talking.broadcast(LARGE if talking.rank == 0 else mine)),
        "none": talking.broadcast(None if talking.rank == 0 else mine),
        "rank": talking.broadcast(talking.rank),
        "text": talking.broadcast("ü" if talking.rank == 0 else "a longer one"),
    }


def count(talking: Communicator) -> dict[str, Any]:
    """Threads count while the main thread talks."""
    found: list[list[int]] = [[] for _ in range(COUNTERS)]

    def take(own: list[int]) -> None:
        own.append(talking.next_item())
        while own[-1] < NUMBERS:
            own.append(talking.next_item())

    talking.barrier()
    threads = [threading.Thread(target=take, args=(own,), daemon=True) for own in found]
    for thread in threads:
        thread.start()
    sums = [talking.allreduce(np.array([float(number + talking.rank)])).tolist() for number in range(ROUNDS)]
    for thread in threads:
        thread.join(DEADLINE)
    talking.barrier()
    return {"numbers": found, "sums": sums}


def count_without_rank_0(talking: Communicator, out: Path) -> list[int]:
    """All others count while rank 0 waits, outside of the communicator, until they have done so."""
    talking.barrier()
    if talking.rank > 0:
        numbers = [talking.next_item() for _ in range(ALONE)]
        (out / f"counted-{talking.rank}").touch()
        return numbers
    give_up = time.monotonic() + DEADLINE
    while len(list(out.glob("counted-*"))) < talking.size - 1:
        if time.monotonic() > give_up:
            raise TimeoutError("the other ranks could not count while rank 0 was busy")
        time.sleep(0.001)
    return []


def main(out: Path, fails: str = "") -> None:
    rank = rank_from_environment()
    with connect(rank, os.environ) as talking:
        assert talking is not None
        if fails:
            if talking.rank == 1:
                (out / "failed").touch()
                if fails == "exit":
                    sys.exit(7)
                raise RuntimeError("rank 1 gives up")
            talking.barrier()  # never returns: rank 1 does not come
            (out / f"let-go-{talking.rank}").touch()
        found = {
            "kind": type(talking).__name__,
            "place": [talking.rank, talking.size],
            "barrier": barrier(talking, out),
            "allreduce": allreduce(talking),
            "gather": gather(talking),
            "broadcast": broadcast(talking),
            "count": count(talking),
            "count without rank 0": count_without_rank_0(talking, out),
        }
    (out / f"{rank.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
