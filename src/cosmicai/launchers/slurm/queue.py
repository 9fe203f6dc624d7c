"""What SLURM has in its queue."""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import dataclass

ANSWER = 60.0  # seconds that SLURM's controller has for an answer


@dataclass(frozen=True)
class Job:
    """A job or task of an array that SLURM has in its queue: its state in SLURM's words, and why it waits."""

    number: str
    state: str
    reason: str


def queued(jobs: Collection[str]) -> list[Job] | None:
    """Those of some jobs and arrays that wait or work; None where SLURM is not here or does not answer."""
    if not jobs:
        return []
    try:
        # All of ours, since squeue fails for a number that the controller has forgotten.
        command = ["squeue", "--me", "--noheader", "--format=%i|%T|%r"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    found = [Job(*line.split("|", 2)) for line in lines]
    return [job for job in found if job.number.partition("_")[0] in jobs and job.state != "COMPLETING"]
