"""Kill a run with SIGKILL at random moments, resume it each time, and compare the catalogue with an uninterrupted run.

`python tests/support/kill_and_resume.py --kills 30` is the long form of the test in
tests/integration/runs/test_faults.py. With `--procs 2` the run has two ranks, and a kill hits the launcher, one of its
ranks, or all of them.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from cosmicai.storage import sha256
from support.processes import is_gone, wait_until


def infer_command(survey: Path, out: Path, procs: int | None, *more: str) -> list[str]:
    """Return the command of a run with small items, so that some are completed before it is killed."""
    command = ["cosmicai", "infer"] if procs is None else ["launch", "--procs", str(procs)]
    options = ["--weights", "demo", "--out", str(out), "--batch-size", "64", *more]
    return [sys.executable, "-m", *command, str(survey), *options]


def kill_and_resume(folder: Path, kills: int, galaxies: int, seed: int = 0, procs: int | None = None) -> dict[str, int]:
    """Kill a run `kills` times and resume it until it is complete; start a new one whenever it completes before.

    Return how many runs were completed and how many kills came after the first part. Raise AssertionError if a
    catalogue differs in one bit, or if the run folder has more files than those of an uninterrupted run.
    """
    survey, uninterrupted, killed = folder / "survey", folder / "uninterrupted", folder / "killed"
    make = ["synthetic", "--galaxies", str(galaxies), "--out", str(survey), "--partition-mb", "10"]
    subprocess.run([sys.executable, "-m", "cosmicai", *make], check=True, capture_output=True)
    begun = time.monotonic()
    subprocess.run(infer_command(survey, uninterrupted, procs), check=True, capture_output=True)
    duration = time.monotonic() - begun
    expected, rng = sha256(str(uninterrupted / "catalogue.parquet")), random.Random(seed)
    done = completed = in_mid_run = 0
    orphans: list[int] = []
    while done < kills or completed == 0:
        process = subprocess.Popen(
            infer_command(survey, killed, procs, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(rng.uniform(0, duration) if done < kills else None)
        except subprocess.TimeoutExpired:
            ranks = _children(process.pid)
            orphans += ranks
            victims = [process.pid, *ranks]
            only = rng.choice([victims, victims[:1], victims[-1:]])
            for pid in only:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            done += 1
            in_mid_run += any((killed / "parts").glob("*.h5"))
            if process.pid in only:
                process.wait()
                continue
            code = process.wait()  # it starts another rank
        assert code == 0, f"the resumed run ended with exit code {code}"
        found = sha256(str(killed / "catalogue.parquet"))
        assert found == expected, f"the catalogue after {done} kills is {found}, uninterrupted {expected}"
        _wait_for_end(orphans)
        left = [str(path) for path in killed.rglob("*") if ".partial-" in path.name or path.name == "launcher.json"]
        assert not left, f"{done} kills left {', '.join(left)}"
        completed += 1
        shutil.rmtree(killed)
    return {"kills": done, "kills in mid-run": in_mid_run, "completed runs": completed}


def _wait_for_end(ranks: list[int]) -> None:
    """Wait until these ranks have ended, which they do when their launcher has."""
    wait_until(lambda: all(map(is_gone, ranks)))


def _children(pid: int) -> list[int]:
    """Return the numbers of the processes that this one has started."""
    with suppress(OSError):
        return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--galaxies", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--procs", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_and_resume(Path(folder), options.kills, options.galaxies, options.seed, options.procs)
    print(", ".join(f"{count} {what}" for what, count in counts.items()), "- every catalogue bit-identical")
