"""What a record says of the process, the machine and the code that made it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from functools import cache
from pathlib import Path


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process so far, in MB (2^20 bytes).

    This is Linux's VmHWM, since getrusage's ru_maxrss can hold the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def process_age() -> float:
    """Return the seconds since this process was started, 0 where the system does not report it."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    started = int(stat.read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def cpu_model() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def gpu_model(device: str) -> str | None:
    """Return the name of the GPU, None for the device "cpu"."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()


@cache
def git_commit() -> str | None:
    """Return the commit of the running code, with `-dirty` if it was changed since; None if it is unknown.

    It comes from the variable COSMICAI_GIT_COMMIT, else from the checkout that holds this file.
    """
    if given := os.environ.get("COSMICAI_GIT_COMMIT"):
        return given
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
