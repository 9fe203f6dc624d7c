"""Processes of which something is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError

# The kernel counts the memory of a process from before its exec, too, and after vfork (or posix_spawn) that is the
# memory of whoever started it: seen from here ru_maxrss of a small child is our own peak. So a small process in between
# starts the command, and the least that can be measured is the 11 MB of that one.
_PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def child(*arguments: str, **environment: str) -> str:
    """Runs `python -m ARGUMENTS` and returns what it printed. Raises InputError with its last words if it fails."""
    return output_of([sys.executable, "-m", *arguments], environment)


def child_json(*arguments: str, **environment: str) -> dict[str, Any]:
    """Runs `python -m ARGUMENTS`, which prints JSON; raises as `child`."""
    values: dict[str, Any] = json.loads(child(*arguments, **environment))
    return values


def child_with_peak(*arguments: str) -> tuple[str, float]:
    """What `child` returns, and the largest resident memory of that process in MB (2^20 bytes); raises as `child`."""
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        peak = Path(folder, "peak")
        printed = output_of([sys.executable, "-c", _PEAK, str(peak), sys.executable, "-m", *arguments], {})
        return printed, float(peak.read_text())


def output_of(command: list[str], environment: dict[str, str]) -> str:
    """Runs a command with more environment and returns what it printed; raises as `child`."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"`{' '.join(command)}` failed: {last}")
    return done.stdout
