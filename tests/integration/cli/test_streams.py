"""Standard output and error that are closed, or whose reader is gone, lose no more than what would be printed there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.helpers import make_survey, random_galaxies, run, tiny_weights

CLOSED = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "<&-"]
PRINTED = (b"coverage", b"galaxies/s", b"no GPU", b"Traceback", b"rank 0")


@pytest.fixture(name="job", scope="module")
def job_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the paths of a survey and weights."""
    folder = tmp_path_factory.mktemp("job")
    return make_survey(folder / "survey", random_galaxies(64), 32).uri, tiny_weights(folder / "w.safetensors")


def command(module: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-m", module, *arguments])


def require_clean(out: Path) -> None:
    """Require a complete run, no file of which has a word of what the command prints."""
    assert json.loads((out / "summary.json").read_text())["complete"]
    for path in out.rglob("*"):
        if path.is_file() and path.parent.name != "logs" and path.name not in ("summary.json", "plan.json"):
            assert not [word for word in PRINTED if word in path.read_bytes() and path.suffix != ".json"], path
    json.loads((out / "plan.json").read_text())


@pytest.mark.parametrize("redirection", CLOSED)
@pytest.mark.parametrize("module", ["cosmicai", "launch"])
def test_a_run_with_closed_streams_is_complete(
    job: tuple[str, str], tmp_path: Path, module: str, redirection: str
) -> None:
    survey, weights = job
    more = ("infer", survey) if module == "cosmicai" else ("run", survey, "--procs", "1")
    line = command(module, *more, "--weights", weights, "--out", str(tmp_path / "run"))
    done = subprocess.run(["bash", "-c", f"{line} {redirection}"], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr
    require_clean(tmp_path / "run")


def test_a_run_whose_reader_is_gone_is_complete(job: tuple[str, str], tmp_path: Path) -> None:
    survey, weights = job
    read, write = os.pipe()
    os.close(read)
    arguments = [
        sys.executable,
        "-m",
        "cosmicai",
        "infer",
        survey,
        "--weights",
        weights,
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(arguments, stdout=write, stderr=write)
    os.close(write)
    assert done.returncode == 0
    require_clean(tmp_path / "run")


def test_the_exit_code_of_an_incomplete_run_does_not_depend_on_its_streams(
    job: tuple[str, str], tmp_path: Path
) -> None:
    survey, weights = job
    out = tmp_path / "run"
    assert run("infer", survey, "--weights", weights, "--out", str(out)).returncode == 0
    next((out / "parts").iterdir()).unlink()
    for redirection in ("", *CLOSED, "| true"):
        line = f"set -o pipefail; {command('cosmicai', 'summarize', str(out))} {redirection}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert done.returncode == 3 and "Traceback" not in done.stdout + done.stderr


def test_a_mistake_ends_with_2_also_if_nobody_reads_of_it() -> None:
    for redirection in ("2>&-", ">&- 2>&-", "2>/dev/full"):
        line = f"{command('cosmicai', 'summarize', 'nothing')} {redirection}"
        assert subprocess.run(["bash", "-c", line], capture_output=True).returncode == 2


def test_output_on_a_full_disk_is_one_sentence() -> None:
    line = f"{command('cosmicai', 'infer', '--help')} >/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "cosmicai: input or output: no space left on the device; free some space or choose another place, then run "
        "again\n"
    )
