"""Launchers by name, and those that a run folder names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmicai.errors import InputError
from cosmicai.launchers.base import RankRequest, SlurmRequest
from cosmicai.launchers.registry import LAUNCHERS, launcher_by_name, launchers_of, submitter_of
from cosmicai.launchers.submission import (
    CloudRun,
    SlurmSubmission,
    SubmittedRequest,
    read_cloud_run,
    read_submissions,
    require_no_cloud_run,
)
from cosmicai.runs.store import RunFolder

# As earlier versions wrote them.
SUBMISSION = """\
{
 "name": "20261121T110534-0a1b",
 "folder": "/runs/1/submissions/20261121T110534-0a1b",
 "options": {
  "request": {
   "procs": null,
   "gpus": 4,
   "nodes": 2,
   "schedule": "dynamic",
   "max_restarts": 3,
   "rank_timeout": 300.0
  },
  "batch": {
   "site": "local",
   "account": null,
   "partition": null,
   "time": "1:00:00",
   "gpu_kind": null,
   "cores": null,
   "memory_mb": null,
   "tasks": null,
   "image": null,
   "requeues": 10
  }
 },
 "worker": [
  "infer",
  "/sky",
  "--out",
  "/runs/1",
  "--resume"
 ],
 "submitted_at": "2026-11-21T11:05:34+00:00",
 "jobs": [
  "17"
 ]
}
"""
CLOUD = """\
{
 "run": "s3://bucket/runs/1",
 "stack": "cosmicai",
 "region": "us-east-1",
 "profile": null,
 "endpoint_url": null,
 "executions": [
  "arn:1",
  "arn:2"
 ],
 "payload": {
  "bucket": "bucket"
 },
 "submitted_at": "2026-11-21T11:05:34+00:00",
 "execution": "arn:2"
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(str(tmp_path))


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_has_its_name(name):
    launcher = launcher_by_name(name)
    assert launcher.name == name
    for method in ("estimate", "submit", "resume", "status", "cancel"):
        assert callable(getattr(launcher, method))


def test_an_unknown_launcher_is_one_sentence():
    with pytest.raises(InputError, match=r"^there is no launcher pbs; use local, mpi, slurm, aws$"):
        launcher_by_name("pbs")


def test_a_submission_is_written_as_before_and_read_again(folder):
    write(folder.submission_path("20261121T110534-0a1b"), SUBMISSION)
    [submission] = read_submissions(folder)
    requested = SubmittedRequest(RankRequest(gpus=4, nodes=2), SlurmRequest(site="local"))
    assert submission == SlurmSubmission(
        "20261121T110534-0a1b", "/runs/1/submissions/20261121T110534-0a1b", requested,
        ("infer", "/sky", "--out", "/runs/1", "--resume"), "2026-11-21T11:05:34+00:00", ("17",),
    )  # fmt: skip
    submission.save(folder)
    assert Path(folder.submission_path(submission.name)).read_text() == SUBMISSION


def test_a_run_in_the_cloud_is_written_as_before_and_read_again(folder):
    write(folder.cloud_path, CLOUD)
    run = read_cloud_run(folder)
    assert isinstance(run, CloudRun)
    assert (run.run, run.executions, run.execution) == ("s3://bucket/runs/1", ("arn:1", "arn:2"), "arn:2")
    assert run.to_json().decode() == CLOUD


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"run": 5}', "\\", CLOUD.replace('"stack"', '"stuck"')])
def test_damaged_files_are_one_sentence(folder, text):
    write(folder.cloud_path, text)
    with pytest.raises(InputError, match=r"cloud\.json cannot be used: .*; put back what `python -m launch` wrote$"):
        read_cloud_run(folder)
    write(folder.submission_path("x"), text)
    with pytest.raises(InputError, match=r"x\.json cannot be used: .*; put back what `python -m launch` wrote, or"):
        read_submissions(folder)


def test_the_launchers_of_a_run_are_those_that_may_work_on_it(folder):
    assert [launcher.name for launcher in launchers_of(folder)] == ["slurm", "local"]
    assert submitter_of(folder, ()) is None
    write(folder.submission_path("x"), SUBMISSION)
    submitter = submitter_of(folder, ("--wait",))
    assert submitter is not None and submitter.name == "slurm"
    assert submitter_of(folder, ("--procs", "--wait")) is None, "other ranks are requested"
    write(folder.cloud_path, CLOUD)
    assert [launcher.name for launcher in launchers_of(folder)] == ["aws"]
    for options in ((), ("--procs",)):
        submitter = submitter_of(folder, options)
        assert submitter is not None and submitter.name == "aws", "which refuses other ranks"
    write(folder.cloud_path, CLOUD.replace("s3://bucket/runs/1", folder.uri))
    assert submitter_of(folder, ("--procs",)) is None, "the folder in the cloud itself takes ranks from anywhere"


def test_a_folder_for_results_of_the_cloud_takes_no_other_run(folder):
    require_no_cloud_run(folder.uri)
    require_no_cloud_run("s3://bucket/runs/1")
    write(folder.cloud_path, CLOUD)
    with pytest.raises(InputError, match=r" is for the results of s3://bucket/runs/1, a run in the cloud; choose ano"):
        require_no_cloud_run(folder.uri)
