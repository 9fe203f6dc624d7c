"""Kill a run with SIGKILL at random moments, resume it each time, and compare the catalogue with an uninterrupted run.

`python tests/support/kill_and_resume.py --kills 30` is the long form of the test in
tests/integration/runs/test_faults.py.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cosmicai.storage import sha256


def infer_command(survey: Path, out: Path, *more: str) -> list[str]:
    """Return the command of a run with small items, so that some are completed before it is killed."""
    return [
        sys.executable,
        "-m",
        "cosmicai",
        "infer",
        str(survey),
        "--weights",
        "demo",
        "--out",
        str(out),
        "--batch-size",
        "64",
        *more,
    ]


def kill_and_resume(folder: Path, kills: int, galaxies: int, seed: int = 0) -> dict[str, int]:
    """Kill a run `kills` times and resume it until it is complete; start a new one whenever it completes before.

    Return how many runs were completed and how many kills came after the first part. Raise AssertionError if a
    catalogue differs in one bit.
    """
    survey, uninterrupted, killed = folder / "survey", folder / "uninterrupted", folder / "killed"
    make = ["synthetic", "--galaxies", str(galaxies), "--out", str(survey), "--partition-mb", "10"]
    subprocess.run([sys.executable, "-m", "cosmicai", *make], check=True, capture_output=True)
    begun = time.monotonic()
    subprocess.run(infer_command(survey, uninterrupted), check=True, capture_output=True)
    duration = time.monotonic() - begun
    expected, rng = sha256(str(uninterrupted / "catalogue.parquet")), random.Random(seed)
    done = completed = in_mid_run = 0
    while done < kills or completed == 0:
        process = subprocess.Popen(
            infer_command(survey, killed, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(rng.uniform(0, duration) if done < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            in_mid_run += any((killed / "parts").glob("*.h5"))
            continue
        assert code == 0, f"the resumed run ended with exit code {code}"
        found = sha256(str(killed / "catalogue.parquet"))
        assert found == expected, f"the catalogue after {done} kills is {found}, uninterrupted {expected}"
        completed += 1
        shutil.rmtree(killed)
    return {"kills": done, "kills in mid-run": in_mid_run, "completed runs": completed}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--galaxies", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_and_resume(Path(folder), options.kills, options.galaxies, options.seed)
    print(", ".join(f"{count} {what}" for what, count in counts.items()), "- every catalogue bit-identical")
