"""acceptance.sh where no GPU is: what it runs, skips and records, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.scripts import NO_SHELLCHECK, PROJECT
from system.gpu import acceptance
from system.gpu.acceptance import NO_GPU, describe, find_problem, run_step
from system.gpu.steps import STEPS, Step

SCRIPTS = ["tests/system/gpu/acceptance.sh", "tests/system/gpu/wheels.sh"]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    variables = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(words, cwd=PROJECT, env=variables, capture_output=True, text=True)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return acceptance.make_values(tmp_path, "", has_gpu=False, galaxies=None)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    if not shutil.which("shellcheck"):
        pytest.skip(NO_SHELLCHECK)
    checked = run("shellcheck", script)
    assert checked.returncode == 0, checked.stdout


def test_without_a_gpu_its_steps_are_skipped_by_name_and_the_others_run(tmp_path: Path) -> None:
    names = ["survey", "first run", "resumed run", "tests", "engines", "nccl"]
    done = run(SCRIPTS[0], "--galaxies", 100, "--steps", ",".join(names), OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/acceptance.json").read_text())
    assert report["gpu"] is None and report["passed"] == names[:3] and report["failed"] == []
    reasons = {own["name"]: own["reason"] for own in report["steps"] if own["outcome"] == "skipped"}
    assert [name for name, reason in reasons.items() if reason == NO_GPU] == ["tests", "engines", "nccl"]
    assert reasons["weights"] == "not among --steps"
    assert [own["name"] for own in report["steps"]] == [step.name for step in STEPS]
    assert "== resumed run: bash -ec" in (tmp_path / "out/acceptance.log").read_text()


def test_a_failed_step_is_recorded_with_its_last_lines_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; print('first'); print('cannot', file=sys.stderr); sys.exit(7)"
    steps = (
        Step("fails", 60, ("{python}", "-c", program), needs_gpu=False),
        Step("hangs", 1, ("bash", "-c", "sleep 60 & wait"), needs_gpu=False),
        Step("works", 60, ("bash", "-c", """echo '{"rows": [1]}' >"$0" """, "{result}"), needs_gpu=False, result=True),
    )
    monkeypatch.setattr(acceptance, "STEPS", steps)
    monkeypatch.setattr(acceptance, "find_gpu", lambda: (None, NO_GPU))
    assert acceptance.main(["--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "acceptance.json").read_text())
    fails, hangs, works = report["steps"]
    assert (fails["exit_code"], fails["reason"], fails["last_lines"]) == (7, "exit code 7", ["first", "cannot"])
    assert (hangs["exit_code"], hangs["reason"]) == (None, "it took longer than 1 s") and hangs["seconds"] < 30
    assert (works["outcome"], works["result"]) == ("passed", {"rows": [1]})
    assert report["failed"] == ["fails", "hangs"] and "failed  fails" in capsys.readouterr().out


def test_steps_without_time_left_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "find_gpu", lambda: ("a GPU", NO_GPU))
    assert acceptance.main(["--out", str(tmp_path), "--seconds", "0"]) == 0
    report = json.loads((tmp_path / "acceptance.json").read_text())
    assert len(report["skipped"]) == len(STEPS) and report["gpu"] == "a GPU"
    assert {own["reason"] for own in report["steps"]} == {"no time is left of 0 s"}


def test_unknown_steps_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        acceptance.main(["--steps", "survey,dance"])
    assert refused.value.code == 2 and "there is no step 'dance'; expected some of survey" in capsys.readouterr().err


def test_a_run_with_another_catalogue_than_the_first_fails(tmp_path: Path) -> None:
    for name, digest in (("first", "a"), ("second", "b"), ("third", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"catalogue_sha256": digest}))
    problems = [find_problem(Step(run, 1, (), run=run), 0, 1, None, tmp_path) for run in ("second", "third", "fourth")]
    assert problems[0] == "its catalogue (b) is not that of the first run (a)" and problems[1] is None
    assert problems[2] == "its catalogue (None) is not that of the first run (a)"
    assert find_problem(Step("x", 1, (), result=True), 0, 1, {"rows": []}, tmp_path) == "it measured nothing"


def test_the_step_of_tests_has_every_file_with_the_marker(values: dict[str, Any]) -> None:
    assert PROJECT / "tests/unit/engines/test_cuda.py" in values["marked"]
    assert all(isinstance(path, Path) and path.is_file() for path in values["marked"])


def test_every_word_of_every_command_can_be_filled(values: dict[str, Any]) -> None:
    known = values | {"weights": "demo", "result": "r.json"}
    for step in STEPS:
        words = acceptance.fill(step.command, known)
        assert not [word for word in words if word.startswith("{") and word.endswith("}")]


def test_weights_that_were_trained_before_are_used(values: dict[str, Any], tmp_path: Path) -> None:
    step = Step("weights of", 60, ("bash", "-c", "echo $0", "{weights}"))
    used = []
    for _ in range(2):
        with (tmp_path / "log").open("wb") as log:
            assert describe(run_step(step, values, 60, log)).startswith("passed")
        used.append((tmp_path / "log").read_text().splitlines()[-1])
        values["trained"].write_bytes(b"")
    assert used == ["demo", str(tmp_path / "trained.safetensors")]


def test_only_wheels_that_this_python_lacks_are_named(tmp_path: Path) -> None:
    for name in ("numpy-2.0-cp311-cp311-any.whl", "no_such_package-1.0-py3-none-any.whl", "notes.txt"):
        (tmp_path / name).touch()
    listed = run(sys.executable, PROJECT / "tests/system/gpu/missing_wheels.py", tmp_path)
    assert listed.stdout.split() == [str(tmp_path / "no_such_package-1.0-py3-none-any.whl")]


def test_wheels_are_downloaded_in_locked_versions_and_never_torch(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        f'#!/bin/bash\n[ "$1" != -c ] || exec {sys.executable} "$@"\n'
        f'echo "$@" >"{tmp_path}/words"\n'
        f'while [ "$1" != --constraint ]; do shift; done; cp "$2" "{tmp_path}/constraints"\n'
        f'mkdir -p "{tmp_path}/w"; touch "{tmp_path}/w/a.whl"\n'
    )
    fake.chmod(0o755)
    done = run(SCRIPTS[1], "--out", tmp_path / "w", "--python", "3.12", PYTHON=str(fake))
    assert done.returncode == 0, done.stderr
    words, constraints = (tmp_path / "words").read_text(), (tmp_path / "constraints").read_text().splitlines()
    assert "--python-version 3.12" in words and "msgspec>=0.20" in words and " pytest" in words and "torch" not in words
    assert "torch==0" in constraints and any(line.startswith("msgspec==") for line in constraints)
    assert not [line for line in constraints if "--hash" in line or line.endswith("\\")]
