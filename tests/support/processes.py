"""Commands as processes that tests wait for, signal and kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOW = ("--batch-size", "4")  # many small batches, so that there is time to disturb a run
DEADLINE = 60.0  # seconds for anything that a test waits for


def digest(out: Path) -> str:
    return json.loads((out / "summary.json").read_text())["catalogue_sha256"]


def start(
    module: str,
    *arguments: str,
    through: tuple[str, ...] = (),
    cwd: Path | None = None,
    **environment: str,
) -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS`, with the command line of another program in front if `through` is given."""
    return subprocess.Popen(
        [*through, sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=cwd, env=os.environ | environment,
    )  # fmt: skip


def wait_for_end(process: subprocess.Popen[str], deadline: float = DEADLINE) -> tuple[int, str, str]:
    """Return exit code, output and errors of a process; one that does not end in time is killed, and the test fails."""
    try:
        printed, errors = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, printed, errors


def run(*arguments: str, module: str = "cosmicai", **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, which must end in time; `more` as in `start`."""
    process = start(module, *arguments, **more)
    return subprocess.CompletedProcess(process.args, *wait_for_end(process))


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """Wait for a condition to be true, in time and before the process ends, and return its value."""
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the condition never became true"
        time.sleep(0.01)
    return found


def wait_for_part(process: subprocess.Popen[str], out: Path) -> None:
    wait_until(lambda: any((out / "parts").glob("*.h5")), process)


def wait_for_pid(process: subprocess.Popen[str], out: Path, record: str) -> int:
    """Wait for the record of a rank's attempt and return its process id."""
    path = out / "records" / f"{record}.json"
    wait_until(path.exists, process)
    return json.loads(path.read_text())["pid"]


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, also if its exit code was not read yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except OSError:
        return True
