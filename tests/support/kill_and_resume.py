"""Kills a run with SIGKILL at random moments, resumes it each time, and compares the catalogue with an undisturbed one.

`python tests/support/kill_and_resume.py --kills 30` is the long form of the test in test_faults.py.
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


def command(survey: Path, out: Path, *more: str) -> list[str]:
    """A run with small items, so that kills find some of them done."""
    return [sys.executable, "-m", "cosmicai", "infer", str(survey), "--out", str(out), "--batch-size", "64", *more]


def kill_and_resume(folder: Path, kills: int, galaxies: int, seed: int = 0) -> dict[str, int]:
    """Runs until there were `kills` kills and the run is complete; starts anew whenever a run gets through before.

    Returns how many runs were completed and how many kills came after the first part. Raises AssertionError if a
    catalogue differs by a bit.
    """
    survey, calm, disturbed = folder / "survey", folder / "calm", folder / "disturbed"
    make = ["synthetic", "--galaxies", str(galaxies), "--out", str(survey), "--partition-mb", "10"]
    subprocess.run([sys.executable, "-m", "cosmicai", *make], check=True, capture_output=True)
    begun = time.monotonic()
    subprocess.run(command(survey, calm), check=True, capture_output=True)
    duration = time.monotonic() - begun
    expected, rng = sha256(str(calm / "catalogue.parquet")), random.Random(seed)
    done = completed = in_mid_run = 0
    while done < kills or completed == 0:
        process = subprocess.Popen(
            command(survey, disturbed, "--resume"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            code = process.wait(rng.uniform(0, duration) if done < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done += 1
            in_mid_run += any((disturbed / "parts").glob("*.h5"))
            continue
        assert code == 0, f"the resumed run ended with exit code {code}"
        found = sha256(str(disturbed / "catalogue.parquet"))
        assert found == expected, f"the catalogue after {done} kills is {found}, undisturbed {expected}"
        completed += 1
        shutil.rmtree(disturbed)
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
