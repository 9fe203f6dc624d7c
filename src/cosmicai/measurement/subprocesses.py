"""Start processes to measure them or what they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError

# The kernel counts the memory of a process from before its exec, too. After vfork (or posix_spawn) that is the memory
# of its parent, so that ru_maxrss of a small child of this process would be the peak of this process. Hence a small
# process in between starts the command; the least that can be measured is its own 11 MB.
_PEAK = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)))
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def run_module(*arguments: str, **environment: str) -> str:
    """Run `python -m ARGUMENTS` and return what it printed. Raises InputError with its last message if it fails."""
    return capture_output([sys.executable, "-m", *arguments], environment)


def run_module_json(*arguments: str, **environment: str) -> dict[str, Any]:
    """Run `python -m ARGUMENTS` and return the JSON object that it printed; raises as `run_module`."""
    values: dict[str, Any] = json.loads(run_module(*arguments, **environment))
    return values


def run_module_with_peak(*arguments: str) -> tuple[str, float]:
    """Return what `run_module` does and the peak resident memory of the process in MB (2^20 bytes); raises alike."""
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        peak = Path(folder, "peak")
        printed = capture_output([sys.executable, "-c", _PEAK, str(peak), sys.executable, "-m", *arguments], {})
        return printed, float(peak.read_text())


def capture_output(command: list[str], environment: dict[str, str]) -> str:
    """Run a command with additional environment variables and return what it printed; raises as `run_module`."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise InputError(f"`{' '.join(command)}` failed: {last_line(done.stderr)}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line of what a process printed, which usually says why it failed."""
    return (text.strip().splitlines() or ["it printed nothing"])[-1]
