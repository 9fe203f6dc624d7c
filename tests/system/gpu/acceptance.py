"""The acceptance test on a GPU: run each step with its own time limit, and record what became of it and the others.

It needs the standard library alone, so that a missing package is the failure of a step and not of the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .steps import STEPS, Step

ROOT = Path(__file__).parents[3]
LAST_LINES = 20  # of a failed step, kept in the JSON; the log has all
NO_GPU = "no GPU is visible to torch"


@dataclass(frozen=True)
class Outcome:
    """What became of a step: "passed", "failed" or "skipped", with the reason, exit code, seconds and JSON."""

    name: str
    outcome: str
    reason: str | None = None
    exit_code: int | None = None
    seconds: float = 0.0
    last_lines: tuple[str, ...] = ()
    result: Any = None


def main(arguments: Sequence[str]) -> int:
    """Run the steps and return the exit code: 0, or 1 if one failed."""
    options = parse_options(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    gpu, problem = find_gpu()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="cosmicai-gpu-") as work, (out / "acceptance.log").open("wb") as log:
        values = make_values(Path(work), options.weights, gpu is not None, options.galaxies)
        for step in STEPS:
            if options.steps and step.name not in options.steps:
                outcomes.append(Outcome(step.name, "skipped", "not among --steps"))
            elif step.needs_gpu and gpu is None:
                outcomes.append(Outcome(step.name, "skipped", problem))
            elif (left := deadline - time.monotonic()) < 1:
                outcomes.append(Outcome(step.name, "skipped", f"no time is left of {options.seconds:g} s"))
            else:
                outcomes.append(run_step(step, values, min(step.seconds, left), log))
            print(describe(outcomes[-1]), flush=True)
            write_report(out / "acceptance.json", gpu, outcomes)
    return int(any(own.outcome == "failed" for own in outcomes))


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of acceptance.sh, `steps` as a list of known names, empty for all of them."""
    names = ", ".join(step.name for step in STEPS)
    parser = argparse.ArgumentParser(prog="acceptance.sh", epilog=f"Steps: {names}.")
    parser.add_argument("--out", default=os.environ.get("OUT") or "gpu", help="folder for acceptance.json and .log")
    parser.add_argument("--seconds", type=float, default=470, help="time for all steps together")
    parser.add_argument("--steps", default="", help="only these steps, separated by commas")
    parser.add_argument("--weights", default="", help="weights of the full-size network")
    parser.add_argument("--galaxies", type=int, help="size of the synthetic survey; default 20000, without a GPU 512")
    options = parser.parse_args(arguments)
    options.steps = [name for name in options.steps.split(",") if name]
    if unknown := set(options.steps) - {step.name for step in STEPS}:
        parser.error(f"there is no step {min(unknown)!r}; expected some of {names}")
    return options


def find_gpu() -> tuple[str | None, str]:
    """Return the name of the GPU that torch sees, or None and the reason."""
    program = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    try:
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None, "torch did not say within 60 s whether a GPU is visible"
    if found.returncode:
        return None, (found.stderr.strip().splitlines() or ["torch cannot be imported"])[-1]
    return found.stdout.strip() or None, NO_GPU


def make_values(work: Path, weights: str, has_gpu: bool, galaxies: int | None) -> dict[str, Any]:
    """Return what the names in braces in commands stand for; without a GPU everything is small."""
    trained = work / "trained.safetensors"
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text()]
    return {
        "python": sys.executable, "work": work, "survey": work / "survey", "given": weights, "trained": trained,
        "marked": marked, "device": "cuda" if has_gpu else "cpu", "fast": "bfloat16" if has_gpu else "float32",
        "engines": "cuda" if has_gpu else "reference", "batch": 1024 if has_gpu else 32,
        "galaxies": galaxies or (20000 if has_gpu else 512),
    }  # fmt: skip


def run_step(step: Step, values: dict[str, Any], seconds: float, log: Any) -> Outcome:
    """Run a step, append its output to the log, and return its outcome."""
    work, result = values["work"], values["work"] / f"{step.name}.json"
    chosen = values["given"] or (values["trained"] if values["trained"].exists() else "demo")
    command = fill(step.command, values | {"weights": chosen, "result": result})
    log.write(f"\n== {step.name}: {' '.join(command)}\n".encode())
    log.flush()
    begin, written = time.monotonic(), log.tell()
    code = run_command(command, seconds, log)
    took, lines = time.monotonic() - begin, read_lines(log.name, written)
    found = json.loads(result.read_text()) if result.exists() else None
    reason = find_problem(step, code, seconds, found, work)
    if reason is None:
        return Outcome(step.name, "passed", None, code, took, (), found)
    return Outcome(step.name, "failed", reason, code, took, tuple(lines[-LAST_LINES:]), found)


def fill(command: Sequence[str], values: dict[str, Any]) -> list[str]:
    """Return the words of a command with values for names in braces; a list becomes several words."""
    words: list[str] = []
    for word in command:
        value = values.get(word.strip("{}"))
        if isinstance(value, list):
            words += map(str, value)
            continue
        for name, text in values.items():
            word = word.replace(f"{{{name}}}", str(text))
        words.append(word)
    return words


def run_command(command: Sequence[str], seconds: float, log: Any) -> int | None:
    """Run a command in a session of its own and return its exit code; None if it was killed after its time."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what a command has left
        process.wait()


def read_lines(path: str, start: int) -> list[str]:
    """Return the lines of a file from a byte on."""
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()


def find_problem(step: Step, code: int | None, seconds: float, found: Any, work: Path) -> str | None:
    """Return why a step failed, None if it passed."""
    if code is None:
        return f"it took longer than {seconds:.0f} s"
    if code:
        return f"exit code {code}"
    if step.result and not (found and found.get("rows")):
        return "it measured nothing"
    if step.run and (own := read_digest(work / step.run)) != (first := read_digest(work / "first")):
        return f"its catalogue ({own}) is not that of the first run ({first})"
    return None


def read_digest(run: Path) -> str | None:
    """Return the digest of all values of a run's catalogue, None if there is no summary."""
    path = run / "summary.json"
    return str(json.loads(path.read_text())["catalogue_sha256"]) if path.exists() else None


def describe(own: Outcome) -> str:
    """Return a line for people."""
    return f"{own.outcome:<8}{own.name:<16}{own.seconds:7.1f} s  {own.reason or ''}".rstrip()


def write_report(path: Path, gpu: str | None, outcomes: Sequence[Outcome]) -> None:
    """Write all outcomes so far, so that they are there even if this process is killed."""
    by_outcome = {
        kind: [own.name for own in outcomes if own.outcome == kind] for kind in ("passed", "failed", "skipped")
    }
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "gpu": gpu, "cores": os.cpu_count(),
        "seconds": sum(own.seconds for own in outcomes), **by_outcome, "steps": [asdict(own) for own in outcomes],
    }  # fmt: skip
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
