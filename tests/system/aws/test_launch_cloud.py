"""`python -m launch --cloud`: what goes to S3, what is started, what comes back, and what is said when it does not.

Most tests have moto's own Step Functions, whose executions run until somebody stops them: what the state machine would
do is done by the test. The last ones have the whole pipeline (pipeline.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.loaders import JSONFileLoader
from moto.stepfunctions.models import stepfunctions_backends
from msgspec import structs

from cosmicai import storage
from cosmicai.console.command_line import run_command
from cosmicai.errors import InputError, StorageError
from cosmicai.launchers import status as states
from cosmicai.launchers.aws import estimate, execution, transfer
from cosmicai.launchers.aws import launcher as launching
from cosmicai.launchers.aws.account import account_for_run
from cosmicai.launchers.aws.clients import Account
from cosmicai.launchers.aws.estimate import Speed
from cosmicai.launchers.aws.stack import find_stack
from cosmicai.launchers.aws.stage import cloud_name
from cosmicai.launchers.aws.transfer import Upload
from cosmicai.launchers.submission import read_cloud_run
from cosmicai.ranks.environment import Rank
from cosmicai.runs.catalogue.facts import read_facts
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.storage.parallel import map_in_order
from cosmicai.storage.s3 import s3_client
from cosmicai.surveys.survey import ShardEntry, Survey, open_survey
from launch.commands import launch as group
from support.cloudformation import aws_fixture
from support.faulty_s3 import faulty_s3
from support.helpers import make_invocation, make_run, make_survey, random_galaxies, run, run_worker, tiny_weights
from support.pipeline import Cloud, pipeline
from support.pipeline_runs import BATCH, make_sky
from support.s3 import bucket_fixture, server_url

_ = (aws_fixture, bucket_fixture)  # the fixtures `aws` and `bucket`
SECRETS = ("marker-of-the-secret-key", "marker-of-the-session-token")
ACCOUNT, REGION = "123456789012", "us-east-1"
GALAXIES, PER_SHARD = 60, 20
DONE = ("SUCCEEDED", None, None)


@dataclass(frozen=True)
class Done:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@dataclass
class Here:
    """A stack on moto, a survey with weights in a folder, and the outcome of each execution that is started."""

    stack: str
    bucket: str
    machine: str
    folder: Path
    call: Callable[..., Done]
    then: Callable[[dict[str, Any]], tuple[str, str | None, str | None] | None] = lambda payload: None
    started: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def arguments(self, *more: object, survey: object = None, out: object = None) -> list[object]:
        """Return a command line that runs the survey."""
        where = ("--out", out or self.out, "--stack", self.stack, "--batch-size", BATCH)
        weights = ("--weights", self.folder / "w.safetensors")
        return ["--cloud", survey or self.folder / "survey", *weights, *where, *more]

    def launch(self, *more: object, **other: object) -> Done:
        """Run the survey."""
        return self.call(*self.arguments(*more, **other))

    def stored(self, prefix: str = "") -> list[str]:
        """Return the keys in the bucket."""
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def cloud_run(self) -> dict[str, Any]:
        """Return the content of cloud.json."""
        return json.loads((self.out / "cloud.json").read_text())

    def end(self, arn: str, status: str, error: str | None = None, cause: str | None = None) -> None:
        """End an execution."""
        [there] = [one for one in self._machine().executions if one.execution_arn == arn]
        there.status, there.error, there.cause = status, error, cause

    def _machine(self) -> Any:
        machines = stepfunctions_backends[ACCOUNT][REGION].state_machines
        return next(one for one in machines if one.arn == self.machine)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Return a function that runs `python -m launch` in this process and checks its output for secrets."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["launch", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            run_command(group, "launch")
        done = Done(int(end.value.code or 0), *capfd.readouterr())
        assert not [secret for secret in SECRETS if secret in done.out + done.err]
        assert "Traceback" not in done.err
        if done.code == 2:
            assert len([line for line in done.err.splitlines() if line.startswith("launch: ")]) == 1
        return done

    return call


@pytest.fixture
def here(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., Done]) -> Iterator[Here]:
    """Provide a survey of three shards, and an account with recognizable secrets."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS[0])
    monkeypatch.setenv("AWS_SESSION_TOKEN", SECRETS[1])
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_client.cache_clear()
    name = f"t{secrets.token_hex(4)}"
    role = boto3.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    definition = json.dumps({"StartAt": "Done", "States": {"Done": {"Type": "Succeed"}}})
    machine = boto3.client("stepfunctions").create_state_machine(name=name, definition=definition, roleArn=role)
    here = Here(name, bucket.removeprefix("s3://"), machine["stateMachineArn"], tmp_path, call)
    make_stack(boto3.client("cloudformation"), name, here.bucket, here.machine)
    make_survey(tmp_path / "survey", random_galaxies(GALAXIES), PER_SHARD)
    tiny_weights(tmp_path / "w.safetensors")
    for module, name, value in (
        (execution, "POLL_INTERVAL", 0.01), (states, "REFRESH_INTERVAL", 0.01), (states, "REMOTE_INTERVAL", 0.0),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    # Each command has clients of its own, which would each read the same files of botocore's again.
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda self, path: _read(path))
    begin_execution = execution.start_execution

    def begun(account: Account, machine: str, arn: str, payload: dict[str, Any]) -> None:
        begin_execution(account, machine, arn, payload)
        here.started.append((arn.rpartition(":")[2], payload))
        if end := here.then(payload):
            here.end(arn, *end)

    monkeypatch.setattr(execution, "start_execution", begun)
    yield here
    s3_client.cache_clear()


_read = cache(JSONFileLoader().load_file)


def make_stack(client: Any, name: str, bucket: str, machine: str, **other: str) -> None:
    """Create a stack with the outputs of our template and the parameter MemoryMB."""
    outputs = {
        "BucketName": bucket, "RepositoryUri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/{name}",
        "StateMachineArn": machine, "InferFunction": f"{name}-infer", "Architecture": "x86_64", "TimeoutSeconds": "60",
        "EphemeralStorageMB": "512", "MaxConcurrency": "2", "ImageDigest": "sha256:0",
    } | other  # fmt: skip
    defaults = {"ImageDigest": "sha256:0", "DefinitionKey": "key", "MemoryMB": "2048"}
    template = {
        "Parameters": {key: {"Type": "String", "Default": value} for key, value in defaults.items()},
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic", "Properties": {"DisplayName": {"Ref": "MemoryMB"}}}},
        "Outputs": {key: {"Value": value} for key, value in outputs.items() if value}
        | {"MemoryMB": {"Value": {"Ref": "MemoryMB"}}},
    }
    client.create_stack(StackName=name, TemplateBody=json.dumps(template))


def predict(payload: dict[str, Any], share: int = 1) -> RunFolder:
    """Run initialize, the first of `share` ranks, and summarize on a payload; return the run."""
    survey = open_survey(f"s3://{payload['data_bucket']}/{payload['data_prefix']}", payload.get("file_limit"))
    folder = RunFolder(f"s3://{payload['bucket']}/{payload['result_path']}")
    make_run(survey, payload["weights"], folder.uri, device="cpu", batch_size=payload.get("batch_size"), resume=True)
    run_worker(folder, Rank(0, share, "lambda"))
    return folder


def whole(payload: dict[str, Any]) -> tuple[str, str | None, str | None]:
    """Execute all ranks and return the state of a successful execution."""
    summarize(predict(payload))
    return DONE


def half(payload: dict[str, Any]) -> tuple[str, str | None, str | None]:
    """Execute half of the ranks and return the state of a failed execution."""
    summary = summarize(predict(payload, 2))
    text = f"s3://x: {summary.coverage.missing} of {GALAXIES} galaxies are missing, in the items a, b"
    return "FAILED", "RunIncomplete", json.dumps({"errorMessage": text, "errorType": "RunIncomplete"})


def catalogue(out: Path) -> str:
    """Return the digest of the rows of the catalogue in a folder."""
    digest: str = json.loads((out / "summary.json").read_text())["catalogue_sha256"]
    assert read_facts(out / "catalogue.parquet").digest == digest
    return digest


@contextmanager
def sent(operations: tuple[str, ...] = ("PutObject", "GetObject")) -> Iterator[list[tuple[str, str]]]:
    """Yield the requests of this process to S3 within the block: operation and key, in their order."""
    found: list[tuple[str, str]] = []

    def note(event_name: str, request: Any, **_: Any) -> None:
        operation = event_name.rpartition(".")[2]
        if operation in operations:
            found.append((operation, request.url.partition("?")[0].split("/", 4)[4]))

    events = s3_client().meta.events
    events.register("before-send.s3", note)
    try:
        yield found
    finally:
        events.unregister("before-send.s3", note)


# ---- To S3


def uploaded(here: Here, survey: Survey) -> list[str]:
    """Upload a survey as a run does, and return the written keys in order."""
    survey = transfer.add_checksums(survey)
    uri = f"s3://{here.bucket}/surveys/{transfer.survey_digest(survey)}"
    with sent(("PutObject", "UploadPart")) as found:
        transfer.upload_files(transfer.list_missing(transfer.list_shard_uploads(survey, uri)))
        transfer.write_survey_file(survey, uri)
    there = open_survey(uri).shards  # which also have an ETag
    assert len(there) == len(survey.shards) and all(map(ShardEntry.matches, there, survey.shards))
    return [key.rpartition("/")[2] for _, key in found]


def test_only_what_is_missing_or_differs_is_uploaded(here):
    survey = open_survey(str(here.folder / "survey"))
    assert sorted(uploaded(here, survey)) == ["000001.h5", "000002.h5", "000003.h5", "survey.json"]
    assert uploaded(here, survey) == ["survey.json"]
    first, second, third = (key for key in here.stored("surveys/") if key.endswith(".h5"))
    original = (here.folder / "survey/000002.h5").read_bytes()
    other = bytes([original[0] ^ 1]) + original[1:]
    s3_client().put_object(Bucket=here.bucket, Key=first, Body=b"shorter")
    sha256 = hashlib.sha256(other).hexdigest()
    s3_client().put_object(Bucket=here.bucket, Key=second, Body=other, Metadata={"sha256": sha256})
    s3_client().put_object(Bucket=here.bucket, Key=third, Body=original)  # by somebody who noted no checksum
    assert sorted(uploaded(here, survey)) == ["000001.h5", "000002.h5", "000003.h5", "survey.json"]
    assert storage.read_bytes(f"s3://{here.bucket}/{second}") == original


def test_a_survey_is_the_same_with_and_without_a_description(here):
    described = open_survey(str(here.folder / "survey"))
    (here.folder / "survey/survey.json").unlink()
    bare = transfer.add_checksums(open_survey(str(here.folder / "survey")))
    assert bare == described
    assert transfer.survey_digest(bare) == transfer.survey_digest(described)
    shorter = Survey(described.uri, described.shards[:2])
    assert transfer.survey_digest(shorter) != transfer.survey_digest(described)


def test_the_description_comes_last_and_not_at_all_after_an_upload_that_failed(here, monkeypatch):
    assert uploaded(here, open_survey(str(here.folder / "survey")))[-1] == "survey.json"
    for key in here.stored():
        s3_client().delete_object(Bucket=here.bucket, Key=key)
    with faulty_s3() as faults:
        faults.upstream = server_url()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", faults.url)
        faults.add("deny", "PUT", "000003.h5", times=None)
        done = here.launch()
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
        s3_client.cache_clear()
    assert done.code == 2
    assert f"launch: cannot write s3://{here.bucket}/surveys/" in done.err
    remedy = "ask the administrators of the account for this permission"
    assert done.err.endswith(f"/000003.h5: Access Denied (AccessDenied); {remedy}\n")
    assert not [key for key in here.stored() if key.endswith(("survey.json", "000003.h5"))]
    assert here.started == [] and not here.out.exists()
    here.then = whole
    assert here.launch().code == 0, "the same command goes on"


def test_a_file_of_several_pieces_arrives_whole(here):
    path = here.folder / "large"
    path.write_bytes(secrets.token_bytes(9 * 2**20 + 1))
    digest = storage.sha256(str(path))
    upload = Upload(str(path), f"s3://{here.bucket}/large", path.stat().st_size, digest)
    assert transfer.list_missing([upload]) == [upload]
    with sent(("UploadPart",)) as pieces:
        transfer.upload_files([upload])
    assert len(pieces) == 2 and transfer.list_missing([upload]) == []
    assert storage.sha256(upload.uri) == digest


def test_a_shard_that_is_not_what_the_survey_says_is_not_uploaded(here):
    path = here.folder / "survey/000002.h5"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    done = here.launch()
    assert done.code == 2 and f"{path} has the SHA-256 {hashlib.sha256(data).hexdigest()} where " in done.err
    assert not [key for key in here.stored() if key.endswith(("survey.json", "000002.h5"))] and here.started == []


@pytest.mark.parametrize(
    "damage, sentence", [(b"", "is empty; expected a weights file"), (b"nonsense", "is not a whole safetensors file")]
)
def test_unusable_weights_are_refused_before_anything_is_uploaded(here, damage, sentence):
    (here.folder / "w.safetensors").write_bytes(damage)
    done = here.launch()
    assert done.code == 2 and sentence in done.err
    assert here.stored() == [] and not here.out.exists()


# ---- From S3


def test_all_of_a_large_run_folder_comes_back_and_only_once(here):
    source, copy = RunFolder(f"s3://{here.bucket}/runs/a"), RunFolder(str(here.out))
    names = [f"parts/{number:04}.h5" for number in range(1000)] + ["summary.json", "records/0.json", "a/b/c"]
    put = partial(s3_client().put_object, Bucket=here.bucket)
    for _ in map_in_order(lambda name: put(Key=f"runs/a/{name}", Body=name.encode() * 3), names, 16):
        pass
    put(Key="runs/a/folder/", Body=b"")
    put(Key="runs/ab/other", Body=b"not of this run")
    with sent() as first:
        transfer.download_run(source, copy)
    there = {str(path.relative_to(here.out)): path.read_bytes() for path in here.out.rglob("*") if path.is_file()}
    assert there == {name: name.encode() * 3 for name in names}
    assert first[-1] == ("GetObject", "runs/a/summary.json") and len(first) == 1003
    put(Key="runs/a/records/0.json", Body=b"another size")
    (here.out / "parts/0001.h5").unlink()
    (here.out / "parts/0002.h5").write_bytes(b"x" * 39)
    os.utime(here.out / "parts/0002.h5", (0, 0))
    with sent() as second:
        transfer.download_run(source, copy)
    assert sorted(key for _, key in second) == [
        "runs/a/parts/0001.h5", "runs/a/parts/0002.h5", "runs/a/records/0.json"
    ]  # fmt: skip
    assert (here.out / "parts/0002.h5").read_bytes() == b"parts/0002.h5" * 3


def test_a_download_that_breaks_off_leaves_nothing_of_the_file(here, monkeypatch):
    source, copy = RunFolder(f"s3://{here.bucket}/runs/a"), RunFolder(str(here.out))
    for name in ("catalogue.parquet", "summary.json"):
        storage.write_bytes(source.path(name), b"x" * 100_000)
    with faulty_s3() as faults:
        faults.upstream = server_url()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", faults.url)
        s3_client.cache_clear()
        faults.add("cut", "GET", "catalogue", times=2)
        transfer.download_run(source, copy)
        assert len(faults.done) == 2, "it is tried again"
        (here.out / "catalogue.parquet").unlink()
        (here.out / "summary.json").unlink()
        faults.add("cut", "GET", "catalogue", times=None)
        with pytest.raises(StorageError, match=f"^cannot fetch {source.uri}/catalogue.parquet: "):
            transfer.download_run(source, copy)
    s3_client.cache_clear()
    assert list(here.out.iterdir()) == [], "nor has it a summary, which only a whole copy has"


def test_an_object_of_another_size_than_listed_is_refused(here, monkeypatch):
    source, copy = RunFolder(f"s3://{here.bucket}/runs/a"), RunFolder(str(here.out))
    storage.write_bytes(source.path("plan.json"), b"four")
    listed = transfer._objects
    monkeypatch.setattr(transfer, "_objects", lambda uri: [replace(item, bytes=5) for item in listed(uri)])
    with pytest.raises(StorageError, match=r"plan\.json came with 4 bytes where 5 were listed; fetch it again$"):
        transfer.download_run(source, copy)
    assert list(here.out.iterdir()) == []


def test_a_key_that_leads_out_of_the_folder_is_refused(here):
    source = RunFolder(f"s3://{here.bucket}/runs/a")
    s3_client().put_object(Bucket=here.bucket, Key="runs/a/x/../../../evil", Body=b"")
    with pytest.raises(InputError, match=r"holds 'x/\.\./\.\./\.\./evil', which is not a valid file name"):
        transfer.download_run(source, RunFolder(str(here.out)))
    assert not here.out.exists()


# ---- A run


def test_a_run_from_the_laptop_to_the_cloud_and_back(here):
    here.then = whole
    options = ("--concurrency", 7, "--tolerate", 2.5, "--fmi", "--accept-precision-loss", "--precision", "float32")
    done = here.launch(*options, "--views", 8, "--quantiles", "--calibrate-on-spectra")
    assert done.code == 0, done.err
    name = cloud_name(RunFolder(str(here.out)))
    survey = transfer.survey_digest(open_survey(str(here.folder / "survey")))
    digest = hashlib.sha256((here.folder / "w.safetensors").read_bytes()).hexdigest()[:16]
    payload = {
        "bucket": here.bucket, "result_path": f"runs/{name}", "data_bucket": here.bucket,
        "data_prefix": f"surveys/{survey}", "weights": f"s3://{here.bucket}/weights/{digest}/w.safetensors",
        "batch_size": BATCH, "precision": "float32", "accept_precision_loss": True, "views": 8, "quantiles": True,
        "calibrate_on_spectra": True, "max_concurrency": 7,
        "tolerated_failure_percentage": 2.5, "fmi_enabled": True,
    }  # fmt: skip
    assert here.started == [(f"{name}-1", payload)]
    told, arn = here.cloud_run(), f"arn:aws:states:{REGION}:{ACCOUNT}:execution:{here.stack}:{name}-1"
    assert told.pop("submitted_at").endswith("+00:00")
    assert told == {
        "run": f"s3://{here.bucket}/runs/{name}", "stack": here.stack, "region": REGION, "profile": None,
        "endpoint_url": server_url(), "executions": [arn], "payload": payload, "execution": arn,
    }  # fmt: skip
    lines = done.out.splitlines()
    assert lines[0] == f"execution {name}-1 is at work on s3://{here.bucket}/runs/{name}"
    assert lines[1:3] == [
        f"watch it with `python -m launch status --watch {here.out}`",
        f"stop it with `python -m launch cancel {here.out}`",
    ]
    assert lines[3] == f"coverage     {GALAXIES}/{GALAXIES}"
    assert f"catalogue    {here.out}/catalogue.parquet" in lines and f"plot         {here.out}/inference.png" in lines
    calm = here.folder / "calm"
    laptop = ("--weights", str(here.folder / "w.safetensors"), "--batch-size", str(BATCH), "--out", str(calm))
    assert run("infer", str(here.folder / "survey"), *laptop).returncode == 0
    assert catalogue(here.out) == catalogue(calm)
    copied = {str(path.relative_to(here.out)) for path in here.out.rglob("*") if path.is_file()} - {"cloud.json"}
    assert copied == {key.removeprefix(f"runs/{name}/") for key in here.stored(f"runs/{name}/")}
    for path in here.out.rglob("*"):
        assert not path.is_file() or not [secret for secret in SECRETS if secret.encode() in path.read_bytes()]
    for key in here.stored():
        data = storage.read_bytes(f"s3://{here.bucket}/{key}")
        assert not [secret for secret in SECRETS if secret.encode() in data]


def test_the_cost_of_a_run_is_reported(here):
    here.then = whole
    invocation = make_invocation("0", 100.0, memory_mb=1024, region=REGION)

    def noted(payload: dict[str, Any]) -> tuple[str, str | None, str | None]:
        folder = predict(payload)
        folder.amend_record(folder.records()["0"], invocation=invocation, s3_requests={})
        summarize(folder)
        return DONE

    here.then = noted
    done = here.launch()
    assert done.code == 0
    # 100 GB-seconds, a request, and 6 + 2 transitions
    dollars = 100 * 0.0000166667 + 0.0000002 + 8 * 0.000025
    assert done.out.splitlines()[-1].startswith(
        f"cost         {dollars:.6f} dollars (us-east-1, x86_64, list prices of "
    )
    invocation = structs.replace(invocation, region="mars-north-1")
    done = here.launch(out=here.folder / "other")
    assert done.out.splitlines()[-1].startswith("cost         there are no prices for the region mars-north-1; ")


def test_a_detached_run_is_inspected_and_fetched_later(here):
    done = here.launch("--detach")
    name = cloud_name(RunFolder(str(here.out)))
    assert done.code == 0 and [line.partition(" ")[0] for line in done.out.splitlines()] == [
        "execution", "watch", "stop", "when"
    ]  # fmt: skip
    done = here.call("status", here.out)
    assert done.code == 3
    lines = done.out.splitlines()
    assert lines[0] == f"{here.out}: not begun; its execution writes the plan"
    assert lines[1].startswith(f"execution {name}-1: RUNNING since 20")
    assert lines[1].endswith(f", on s3://{here.bucket}/runs/{name}")
    refused = here.call("resume", here.out)
    assert refused.code == 2 and refused.err == (
        f"launch: the execution {name}-1 (RUNNING) is at work on {here.out}; stop it with `python -m launch cancel "
        f"{here.out}` or watch it with `python -m launch status --watch {here.out}`\n"
    )
    assert here.launch("--resume").err == refused.err
    [(_, payload)] = here.started
    predict(payload, 2)
    lines = here.call("status", here.out).out.splitlines()
    assert lines[0] == f"{here.out}: not complete" and lines[1].startswith("40 of 60 galaxies done, 20 missing")
    summarize(predict(payload))
    here.end(here.cloud_run()["execution"], *DONE)
    done = here.call("status", here.out)
    assert done.code == 0
    assert f"execution {name}-1: SUCCEEDED\nfetch the results with `python -m launch resume {here.out}`\n" in done.out
    assert sorted(path.name for path in here.out.iterdir()) == ["cloud.json"]
    done = here.call("resume", here.out)
    assert done.code == 0 and f"coverage     {GALAXIES}/{GALAXIES}" in done.out
    assert len(here.started) == 1, "there was nothing left to do"
    assert catalogue(here.out)


def test_another_shell_finds_the_run_by_its_folder(here, monkeypatch):
    here.launch("--detach")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "mars-north-1")
    assert here.call("status", here.out).code == 3
    (here.out / "cloud.json").write_text(json.dumps(here.cloud_run() | {"endpoint_url": None}))
    cloud_run = read_cloud_run(RunFolder(str(here.out)))
    assert cloud_run is not None
    used = account_for_run(cloud_run)
    assert used == Account(REGION, None, None)
    assert "AWS_ENDPOINT_URL" not in os.environ and os.environ["AWS_DEFAULT_REGION"] == REGION


def test_a_complete_copy_needs_no_cloud(here, monkeypatch):
    here.then = whole
    assert here.launch().code == 0
    for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    told = here.cloud_run() | {"endpoint_url": "http://127.0.0.1:1"}
    (here.out / "cloud.json").write_text(json.dumps(told))
    for command in ("status", "resume"):
        done = here.call(command, here.out)
        assert done.code == 0, done.err
    assert f"coverage     {GALAXIES}/{GALAXIES}" in done.out


def test_watching_ends_with_the_execution(here, monkeypatch):
    here.launch("--detach")
    looks = 0

    def ends_soon(account: Account, arn: str) -> Any:
        nonlocal looks
        if (looks := looks + 1) == 3:
            half(here.started[0][1])
            here.end(arn, "ABORTED", None, "enough")
        return look(account, arn)

    look = execution.describe_execution
    monkeypatch.setattr(execution, "describe_execution", ends_soon)
    done = here.call("status", "--watch", here.out)
    assert done.code == 3 and looks >= 3
    assert ": ABORTED: enough\n" in done.out and "40 of 60 galaxies done" in done.out
    assert f"no rank is at work; finish the run with `python -m launch resume {here.out}`" in done.out
    here.then = whole
    assert here.call("resume", here.out).code == 0
    assert [name[-2:] for name, _ in here.started] == ["-1", "-2"]


def test_a_run_is_cancelled_and_resumed_from_its_folder_alone(here):
    here.launch("--detach")
    name = cloud_name(RunFolder(str(here.out)))
    done = here.call("cancel", here.out)
    assert (done.code, done.out) == (0, f"stopped execution {name}-1\n")
    assert here.call("cancel", here.out).out == f"nothing is at work on {here.out}\n"
    told = "".join(here.call("status", here.out).out.splitlines())  # which wraps long lines
    assert told.startswith(
        f"{here.out}: not begun; finish it with `python -m launch resume {here.out}`execution {name}-1: ABORTED"
    )
    here.then = whole
    done = here.call("resume", here.out)
    assert done.code == 0, done.err
    assert [one for one, _ in here.started] == [f"{name}-1", f"{name}-2"]
    assert here.started[0][1] == here.started[1][1]
    assert [arn.rpartition(":")[2] for arn in here.cloud_run()["executions"]] == [f"{name}-1", f"{name}-2"]
    assert here.cloud_run()["execution"] == here.cloud_run()["executions"][1]


def test_a_launcher_that_dies_before_the_start_loses_nothing(here, monkeypatch):
    started = execution.start_execution

    def dies(*arguments: Any) -> None:
        raise InputError("the power failed")

    monkeypatch.setattr(execution, "start_execution", dies)
    assert here.launch().code == 2
    name = cloud_name(RunFolder(str(here.out)))
    assert here.cloud_run()["execution"].endswith(f":{name}-1")
    monkeypatch.setattr(execution, "start_execution", started)
    assert "".join(here.call("status", here.out).out.splitlines()) == (
        f"{here.out}: not begun; finish it with `python -m launch resume {here.out}`"
        f"no execution has begun on s3://{here.bucket}/runs/{name}"
    )
    assert here.call("cancel", here.out).out == f"nothing is at work on {here.out}\n"
    here.then = whole
    assert here.call("resume", here.out).code == 0
    assert [one for one, _ in here.started] == [f"{name}-1"], "its name was free"


def test_an_execution_that_never_got_a_plan_is_bad_input(here):
    message = "the payload's weights are nowhere; put them there"
    here.then = lambda payload: ("FAILED", "InputError", json.dumps({"errorMessage": message, "stackTrace": []}))
    done = here.launch()
    name = cloud_name(RunFolder(str(here.out)))
    assert done.code == 2
    assert done.err.splitlines()[-1] == f"launch: execution {name}-1: FAILED: InputError: {message}"
    assert f": FAILED: InputError: {message}" in here.call("status", here.out).out.replace("\n", " ")
    here.then = whole
    assert here.launch("--resume").code == 0
    assert here.started[1][0] == f"{name}-2"


def test_functions_that_may_not_read_the_survey_are_explained(here):
    text = "cannot list s3://other/survey: An error occurred (AccessDenied) when calling the ListObjectsV2 operation"
    here.then = lambda payload: ("FAILED", "StorageError", json.dumps({"errorMessage": text}))
    done = here.launch()
    assert done.code == 2 and f"StorageError: {text}; the stack's functions read only in its own folders: " in done.err


def test_an_incomplete_run_comes_back_as_it_is_and_is_finished(here):
    here.then = half
    done = here.launch()
    name = cloud_name(RunFolder(str(here.out)))
    assert done.code == 3
    sentence = (
        f"execution {name}-1: FAILED: RunIncomplete: s3://x: 20 of {GALAXIES} galaxies are missing, in the items a, b"
    )
    assert sentence in done.err.splitlines()
    assert f"coverage     40/{GALAXIES}" in done.out
    assert (
        len(list((here.out / "parts").iterdir())) == 2
        and not json.loads((here.out / "summary.json").read_text())["complete"]
    )
    here.then = whole
    done = here.call("resume", here.out)
    assert done.code == 0 and len(list((here.out / "parts").iterdir())) == 3
    assert catalogue(here.out)


def test_galaxies_that_were_allowed_to_miss_still_make_a_run_incomplete(here):
    here.then = lambda payload: (half(payload), DONE)[1]
    assert here.launch("--tolerate", 50).code == 3


def test_an_execution_that_could_not_summarize_is_reported_with_its_coverage(here):
    def crashed(payload: dict[str, Any]) -> tuple[str, str | None, str | None]:
        predict(payload, 2)
        return "FAILED", "Runtime.OutOfMemory", "not JSON"

    here.then = crashed
    done = here.launch()
    assert done.code == 3
    assert done.err.splitlines()[-2].endswith(": FAILED: Runtime.OutOfMemory: not JSON")
    assert done.err.splitlines()[-1] == (
        f"incomplete: 20 of {GALAXIES} galaxies missing; finish the run with `python -m launch resume {here.out}`"
    )
    assert len(list((here.out / "parts").iterdir())) == 2


def test_ctrl_c_stops_following_and_nothing_else(here, monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(execution.time, "sleep", interrupted)  # type: ignore[attr-defined]
    done = here.launch()
    monkeypatch.undo()
    assert done.code == 2 and done.err.splitlines()[-1] == (
        f"launch: no longer watching; the execution goes on, stop it with `python -m launch cancel {here.out}` or "
        f"fetch its results, when it has ended, with `python -m launch resume {here.out}`"
    )


def test_aws_that_no_longer_answers_stops_following_and_nothing_else(here, monkeypatch):
    look = execution.describe_execution

    def gone(account: Account, arn: str) -> Any:
        if here.started:
            raise InputError("AWS does not answer")
        return look(account, arn)

    monkeypatch.setattr(execution, "describe_execution", gone)
    done = here.launch()
    assert done.code == 2 and "AWS does not answer; the execution goes on, fetch its results" in done.err


# ---- Which run is meant


def test_the_same_folder_is_the_same_run_and_no_other_one_is(monkeypatch):
    folder = RunFolder("/home/me/runs/first try (α)*")
    name = cloud_name(folder)
    assert name.startswith("first-try------") and name == cloud_name(folder)
    assert len(cloud_name(RunFolder("/" + "x" * 200))) == 69
    others = {cloud_name(RunFolder(uri)) for uri in ("/home/you/runs/first try (α)*", "/home/me/runs/first try (α)+")}
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    others.add(cloud_name(folder))
    assert len(others | {name}) == 4
    on_s3 = cloud_name(RunFolder("s3://bucket/runs/a"))
    monkeypatch.setattr("platform.node", lambda: "here")
    assert cloud_name(RunFolder("s3://bucket/runs/a")) == on_s3, "which is the same run from every machine"


def test_a_run_goes_on_with_resume_alone_and_only_if_it_is_the_same(here):
    here.launch("--detach")
    assert here.call("cancel", here.out).code == 0
    assert here.launch().err == (
        f"launch: {here.out} already holds this run; finish it with --resume or choose another --out\n"
    )
    make_survey(here.folder / "other", random_galaxies(10, seed=1), 10)
    assert here.launch("--resume", survey=here.folder / "other").err.endswith(
        "belongs to another run (it differs in data_prefix); choose another --out\n"
    )
    arguments = here.arguments("--resume")
    arguments[arguments.index(BATCH)] = 32
    assert "it differs in batch_size" in here.call(*arguments).err
    assert "it differs in views, quantiles); choose" in here.launch("--resume", "--views", 8, "--quantiles").err
    assert len(here.started) == 1
    here.then = whole
    assert here.launch("--resume", "--concurrency", 3, "--views", 1).code == 0
    assert here.started[1][1] == here.started[0][1] | {"max_concurrency": 3, "views": 1}


def test_a_run_whose_folder_was_lost_is_found_again(here):
    here.launch("--detach")
    (here.out / "cloud.json").unlink()
    done = here.launch()
    assert done.code == 2 and "-1 is at work on this run; wait for its end, or stop it in the console" in done.err
    [(name, payload)] = here.started
    half(payload)
    here.end(f"{here.machine.replace(':stateMachine:', ':execution:')}:{name}", "FAILED", "X", "y")
    done = here.launch()
    assert done.code == 2 and "already holds a run; finish it with --resume" in done.err
    here.then = whole
    assert here.launch("--resume").code == 0
    assert [arn[-2:] for arn in here.cloud_run()["executions"]] == ["-1", "-2"]


def test_of_two_launchers_one_begins(here, monkeypatch):
    there = storage.create_bytes
    monkeypatch.setattr(storage, "create_bytes", lambda uri, data: not uri.endswith("cloud.json") and there(uri, data))
    done = here.launch()
    assert done.code == 2 and "another launcher has just begun a run in" in done.err and here.started == []


def test_folders_of_other_runs_are_refused(here):
    weights = str(here.folder / "w.safetensors")
    assert run("plan", str(here.folder / "survey"), "--weights", weights, "--out", str(here.out)).returncode == 0
    assert here.launch().err == f"launch: {here.out} holds a run that is not in the cloud; choose another --out\n"
    here.launch("--detach", out=here.folder / "second")
    done = here.call(here.folder / "survey", "--weights", weights, "--out", here.folder / "second", "--procs", 2)
    assert done.code == 2 and "is for the results of s3://" in done.err
    done = here.call("resume", here.folder / "second", "--procs", 2)
    assert done.code == 2 and done.err.startswith("launch: --procs has no effect on a run in the cloud; leave it out")
    assert here.call("resume", here.out, "--detach").err == (
        f"launch: --detach is for runs in the cloud, and {here.out} is not one\n"
    )
    (here.folder / "file").write_text("")
    assert "is a file; expected a folder" in here.launch(out=here.folder / "file").err


def test_a_damaged_cloud_json_is_one_sentence(here):
    here.out.mkdir()
    (here.out / "cloud.json").write_text('{"run": "s3://')
    for done in (here.call("status", here.out), here.call("cancel", here.out), here.launch("--resume")):
        assert done.code == 2 and f"{here.out}/cloud.json cannot be used: " in done.err


def test_a_run_folder_on_s3_is_the_run_itself(here):
    here.then = whole
    out = f"s3://{here.bucket}/runs/team/first"
    done = here.launch(out=out)
    assert done.code == 0, done.err
    [(name, payload)] = here.started
    assert payload["result_path"] == "runs/team/first" and name.startswith("first-")
    told = json.loads(storage.read_bytes(f"{out}/cloud.json"))
    assert told["run"] == out and told["profile"] is None
    assert f"catalogue    {out}/catalogue.parquet" in done.out
    assert "fetching" not in done.err
    assert here.call("status", out).code == here.call("resume", out).code == 0
    assert here.call("cancel", out).out == f"nothing is at work on {out}\n"
    for other in (f"s3://{here.bucket}/elsewhere/a", "s3://other/runs/a"):
        done = here.launch(out=other)
        assert done.code == 2 and f"keeps runs under s3://{here.bucket}/runs/; choose an --out there" in done.err


def test_a_run_in_the_cloud_can_be_finished_on_another_machine(here):
    here.then = half
    assert here.launch().code == 3
    uri = here.cloud_run()["run"]
    assert here.call("resume", uri, "--procs", 1).code == 0
    here.then = pytest.fail
    done = here.call("resume", here.out)
    assert done.code == 0 and f"coverage     {GALAXIES}/{GALAXIES}" in done.out


# ---- What is run


def test_a_survey_on_s3_is_used_where_it_is(here):
    for path in (here.folder / "survey").iterdir():
        storage.write_bytes(f"s3://{here.bucket}/100MB/{path.name}", path.read_bytes())
    here.then = whole
    assert here.launch("--file-limit", 2, survey=f"s3://{here.bucket}/100MB").code == 0
    payload = here.started[0][1]
    assert (payload["data_bucket"], payload["data_prefix"], payload["file_limit"]) == (here.bucket, "100MB", 2)
    assert payload["order"] == "natural"
    assert json.loads((here.out / "summary.json").read_text())["coverage"]["asked"] == 40
    assert here.stored("surveys/") == []
    here.then = lambda payload: None
    done = here.launch("--detach", survey=f"s3://{here.bucket}/100MB/000002.h5", out=here.folder / "single")
    assert done.code == 0, done.err
    assert here.started[1][1]["data_map"] == {"0": ["100MB/000002.h5"]}
    done = here.launch("--partition-mb", 1, survey=f"s3://{here.bucket}/100MB", out=here.folder / "other")
    assert done.code == 2 and "--partition-mb 1 cuts a local survey, and s3://" in done.err


def test_the_first_files_of_a_local_survey_are_a_survey(here):
    here.then = whole
    assert here.launch("--limit-files", 2).code == 0
    assert "file_limit" not in here.started[0][1]
    assert [key.rpartition("/")[2] for key in here.stored("surveys/")] == ["000001.h5", "000002.h5", "survey.json"]
    assert json.loads((here.out / "summary.json").read_text())["coverage"]["asked"] == 40


def test_a_survey_is_cut_before_the_upload_and_leaves_no_temporary_files(here):
    here.then = whole
    done = here.launch("--partition-mb", 0.35)  # of 17 galaxies
    assert done.code == 0, done.err
    prefix = here.started[0][1]["data_prefix"]
    described = json.loads(storage.read_bytes(f"s3://{here.bucket}/{prefix}/survey.json"))
    assert [shard["galaxies"] for shard in described["shards"]] == [17, 17, 17, 9]
    assert sorted(path.name for path in here.folder.iterdir()) == ["run", "survey", "w.safetensors"]
    assert here.launch("--partition-mb", 0.35, "--resume").code == 0, "the same cut gives the same survey"


def test_the_demo_needs_no_files(here):
    here.then = whole
    arguments = here.arguments("--detach", survey="demo")
    arguments[arguments.index(here.folder / "w.safetensors")] = "demo"
    here.then = lambda payload: None
    done = here.call(*arguments)
    assert done.code == 0, done.err
    assert here.started[0][1]["weights"] == "demo" and here.stored("weights/") == []
    assert sum(key.endswith(".h5") for key in here.stored("surveys/")) == 4


# ---- Before it begins

OPTIONS = [
    *[(("--cloud", *option), f"--cloud and {option[0]} contradict each other; on AWS there is one rank per partition"
       " (--partition-mb)")
      for option in (("--slurm",), ("--mpi",), ("--procs", "2"), ("--gpus", "1"), ("--nodes", "2"), ("--wait",),
                     ("--schedule", "static"), ("--array", "4"), ("--memory-mb", "100"))],
    (("--cloud", "--device", "cuda"),
     "--cloud and --device cuda contradict each other; on AWS ranks use OpenVINO, on CPUs"),
    (("--cloud", "--engine", "reference"),
     "--cloud and --engine reference contradict each other; on AWS ranks use OpenVINO, on CPUs"),
    *[(option, f"{option[0]} is for runs with --cloud")
      for option in (("--stack", "mine"), ("--partition-mb", "1"), ("--memory", "2048"), ("--concurrency", "1"),
                     ("--tolerate", "1"), ("--fmi",), ("--region", "us-east-1"), ("--profile", "me"), ("--detach",),
                     ("--endpoint-url", "http://127.0.0.1:1"))],
]  # fmt: skip


@pytest.mark.parametrize(
    "options, sentence", OPTIONS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_options_that_contradict_each_other_are_one_sentence(tmp_path, call, options, sentence):
    done = call("demo", "--out", tmp_path / "run", *options)
    assert (done.code, done.out, done.err) == (2, "", f"launch: {sentence}\n")
    assert not any(tmp_path.iterdir())


def test_a_precision_that_is_only_for_gpus_is_refused(here):
    done = here.launch("--precision", "tf32")
    assert done.code == 2 and done.err.splitlines()[-1].startswith(
        "launch: --cloud and --precision tf32 contradict each other; OpenVINO"
    )


def test_a_missing_stack_or_file_is_one_sentence(here, monkeypatch):
    arguments = here.arguments()
    arguments[arguments.index(here.stack)] = "nowhere"
    assert here.call(*arguments).err.startswith("launch: there is no stack nowhere in us-east-1; create it with")
    make_stack(boto3.client("cloudformation"), f"{here.stack}-bare", here.bucket, "")
    arguments[arguments.index("nowhere")] = f"{here.stack}-bare"
    assert f"the stack {here.stack}-bare has no image yet; finish it with" in here.call(*arguments).err
    assert "does not exist" in here.launch(survey=here.folder / "nowhere").err
    (here.folder / "empty").mkdir()
    assert "holds no galaxies" in here.launch(survey=here.folder / "empty").err
    assert here.stored() == []
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "there are no AWS credentials" in here.launch().err
    assert not here.out.exists()


def test_an_address_with_a_password_is_not_written_down(here):
    done = here.launch("--endpoint-url", f"http://me:{SECRETS[0]}@127.0.0.1:1")
    assert done.code == 2 and done.err.startswith("launch: --endpoint-url holds a user name or password")


def test_the_account_that_was_named_is_found_again(here, monkeypatch):
    config = here.folder / "config"
    config.write_text(
        f"[profile team]\naws_access_key_id = team\naws_secret_access_key = {SECRETS[0]}-team\nregion = us-west-2\n"
    )
    for name, value in {"AWS_CONFIG_FILE": str(config), "AWS_PROFILE": "", "AWS_DEFAULT_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE")
    url = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    done = here.launch("--detach", "--profile", "team", "--region", REGION, "--endpoint-url", url)
    assert done.code == 0, done.err
    stored = here.cloud_run()
    assert (stored["profile"], stored["region"], stored["endpoint_url"]) == (
        "team",
        REGION,
        url,
    )
    assert s3_client()._request_signer._credentials.access_key == "team", "the files went the same way"
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_DEFAULT_REGION": "eu-west-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE")
    assert here.call("status", here.out).code == 3
    assert here.call("cancel", here.out).out.startswith("stopped execution ")
    monkeypatch.delenv("AWS_PROFILE")


def test_more_memory_changes_the_stack_unless_others_use_it(here, aws, monkeypatch):
    """On the server whose CloudFormation supports change sets (cloudformation.py)."""
    role = boto3.client("iam").create_role(RoleName=aws.name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    states_client = boto3.client("stepfunctions")
    machine = states_client.create_state_machine(name=aws.name, definition="{}", roleArn=role)["stateMachineArn"]
    make_stack(boto3.client("cloudformation"), aws.name, "bucket", machine)
    stack = find_stack(aws.account, aws.name)
    assert launching._set_memory(aws.account, stack, None) is launching._set_memory(aws.account, stack, 2048) is stack
    assert launching._set_memory(aws.account, stack, 4096).memory_mb == 4096
    assert aws.parameters()["MemoryMB"] == "4096"
    states_client.start_execution(stateMachineArn=machine, name="somebodys", input="{}")
    with pytest.raises(InputError) as told:
        launching._set_memory(aws.account, find_stack(aws.account, aws.name), 1024)
    assert str(told.value) == (
        f"--memory 1024 would change the stack {aws.name} while runs are in progress (somebodys); wait for them, "
        "stop them, or use the stack's 4096 MB"
    )
    assert aws.parameters()["MemoryMB"] == "4096"


def test_a_dry_run_counts_and_leaves_nothing(here, monkeypatch):
    make_survey(here.folder / "survey5", random_galaxies(2500), 500)
    asked: list[int] = []
    monkeypatch.setattr(estimate, "measure_speed", lambda run, memory: asked.append(memory) or Speed(2.0, 100.0))  # type: ignore[func-returns-value]
    storage.write_bytes(f"s3://{here.bucket}/there", b"")
    done = here.launch("--dry-run", survey=here.folder / "survey5")
    assert done.code == 0, done.err
    size = sum(path.stat().st_size for path in (here.folder / "survey5").glob("*.h5"))
    size += (here.folder / "w.safetensors").stat().st_size
    # Two at a time: 7 s and 7 s with their start, then 5 s each, and the fifth after them; 2 s before and after.
    seconds = [7, 7, 5, 5, 5]
    gb_seconds = sum(seconds) * 2 + 2 * 2 * 3008 / 1024
    # Of each rank: 8 pieces of 64 galaxies, one item. Then initialize and summarize, with 5 records and 5 items.
    writes = 5 * (3 + 4 + 2) + (6 + 4) + (6 + 7 + 5)
    # The survey's check opens 5 partitions, with 3 reads each, and reads 32 ranges of cutouts.
    reads = 5 * (1 + 5 + 8) + (1 + 3 + 5 * 3 + 32) + (1 + 5 + 3 + 4 * 5 + 5)
    transitions = 6 + 2 * 5
    dollars = gb_seconds * 0.0000166667 + 7 * 0.0000002 + transitions * 0.000025 + writes * 0.000005 + reads * 0.0000004
    lines = done.out.splitlines()
    assert lines[:5] == [
        f"2,500 galaxies of {here.folder}/survey5 in 5 partitions",
        f"{size / 2**20:,.1f} of {size / 2**20:,.1f} MB to upload to s3://{here.bucket}",
        "5 ranks, 2 at a time, each of 2,048 MB and 1.16 processors",
        f"requests: 7 to Lambda, {writes} writes and {reads} reads of S3, {transitions} transitions of Step Functions",
        "about 7.0 s for the longest rank, 0:00:21 in all",
    ]
    assert lines[5].startswith(f"about {gb_seconds:.1f} GB-seconds, {dollars:.6f} dollars (us-east-1, x86_64, list ")
    assert lines[6].endswith(": 100 galaxies/s and 2.0 s to start") and len(lines) == 7
    assert asked == [2048] and here.stored() == ["there"] and here.started == [] and not here.out.exists()
    lines = here.launch(
        "--dry-run", "--memory", 3538, "--concurrency", 5, survey=here.folder / "survey5"
    ).out.splitlines()
    assert lines[2] == "5 ranks, 5 at a time, each of 3,538 MB and 2.00 processors" and asked[-1] == 3538
    assert lines[4] == "about 7.0 s for the longest rank, 0:00:11 in all"
    lines = here.launch(
        "--dry-run", "--partition-mb", 4, "--limit-files", 10, survey=here.folder / "survey5"
    ).out.splitlines()
    assert lines[0] == f"2,040 galaxies of {here.folder}/survey5 in 10 partitions"  # of 204 galaxies each
    assert lines[2].startswith("10 ranks, 2 at a time")
    monkeypatch.setattr(estimate, "measure_speed", lambda run, memory: Speed(2.0, 1.0))
    lines = here.launch("--dry-run", survey=here.folder / "survey5").out.splitlines()
    assert lines[7].startswith("the stack gives an invocation 60 s, so that such a rank is invoked several times; ")


def test_a_dry_run_knows_what_is_there_already(here, monkeypatch):
    monkeypatch.setattr(estimate, "measure_speed", lambda run, memory: Speed(1.0, 100.0))
    uploaded(here, Survey(str(here.folder / "survey"), open_survey(str(here.folder / "survey")).shards))
    done = here.launch("--dry-run")
    weights = (here.folder / "w.safetensors").stat().st_size
    size = sum(path.stat().st_size for path in (here.folder / "survey").glob("*.h5")) + weights
    assert f"{weights / 2**20:,.1f} of {size / 2**20:,.1f} MB to upload to s3://{here.bucket}" in done.out


def test_what_runs_here_imports_nothing_of_aws(tmp_path):
    weights = tiny_weights(tmp_path / "w.safetensors")
    make_survey(tmp_path / "survey", random_galaxies(10), 10)
    code = (
        "import sys; from launch.commands import launch\n"
        "launch.main(sys.argv[1:], standalone_mode=False)\n"
        "unwanted = ('cosmicai.launchers.aws', 'cosmicai.launchers.aws.launcher', 'boto3', 'botocore')\n"
        "found = [name for name in sys.modules if name.startswith(unwanted)]\n"
        "assert found == [], found"
    )
    out = str(tmp_path / "run")
    common = (str(tmp_path / "survey"), "--weights", weights, "--out", out, "--batch-size", "8")
    for arguments in (("--procs", "1", *common), ("status", out), ("resume", out), ("cancel", out)):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# ---- With real functions


def environment(cloud: Cloud) -> dict[str, str]:
    """Return the variables by which a shell finds the account of a pipeline; the stack is called cosmicai."""
    make_stack(cloud.client("cloudformation"), "cosmicai", cloud.bucket, cloud.machine)
    return {
        "AWS_ENDPOINT_URL": cloud.endpoint, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRETS[0],
        "AWS_DEFAULT_REGION": REGION, "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip


def test_a_survey_through_the_whole_pipeline_gives_the_catalogue_of_the_laptop(tmp_path):
    sky = make_sky(tmp_path / "sky", 3, 300)
    out = tmp_path / "run"
    with pipeline(tmp_path, infer=2) as cloud:
        own: dict[str, Any] = environment(cloud)
        weights = ("--weights", str(tmp_path / "sky/w.safetensors"), "--batch-size", str(BATCH))
        arguments = ("--cloud", str(tmp_path / "sky/survey"), *weights, "--out", str(out))
        dry = run(*arguments, "--dry-run", module="launch", **own)
        assert dry.returncode == 0 and cloud.keys() == [], dry.stderr
        done = run(*arguments, module="launch", **own)
        assert done.returncode == 0, (done.stderr, cloud.logs())
        assert catalogue(out) == sky.digest
        assert f"coverage     {sky.galaxies}/{sky.galaxies}" in done.stdout
        usage = json.loads((out / "summary.json").read_text())["cost"]["usage"]
        found = re.search(r"requests: 5 to Lambda, (\d+) writes and (\d+) reads of S3, (\d+) transitions", dry.stdout)
        assert found
        writes, reads, transitions = map(int, found.groups())
        assert transitions == usage["transitions"]
        # Of summarize the summary knows nothing yet. Ranks do not count the two listings that find their work, nor what
        # they write last, their record and the published one; initialize does not count its note. A header takes one
        # or two reads.
        last = estimate.count_planner_requests(3, 3)["summarize"]
        assert 0 <= reads - last["GetObject"] - last["HeadObject"] - usage["s3_reads"] <= 3
        assert writes - last["PutObject"] - last["ListObjectsV2"] == usage["s3_writes"] + 3 * 4 + 1
        assert not [secret for secret in (*cloud.secrets, *SECRETS) if secret in done.stdout + done.stderr]


def test_an_execution_continues_without_its_launcher(tmp_path):
    sky = make_sky(tmp_path / "sky", 4, 300)
    out = tmp_path / "run"
    with pipeline(tmp_path, infer=1) as cloud:
        own = os.environ | environment(cloud)
        weights = ("--weights", str(tmp_path / "sky/w.safetensors"), "--batch-size", str(BATCH))
        arguments = ("--cloud", str(tmp_path / "sky/survey"), *weights, "--out", str(out))
        command = [sys.executable, "-m", "launch"]
        launcher = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True, env=own)
        assert launcher.stdout and launcher.stdout.readline().startswith("execution ")
        launcher.send_signal(signal.SIGKILL)
        assert launcher.wait() == -signal.SIGKILL
        launcher.stdout.close()
        assert sorted(path.name for path in out.iterdir()) == ["cloud.json"]
        watched = subprocess.run(
            [*command, "status", "--watch", str(out)], capture_output=True, text=True, env=own, timeout=60
        )
        assert watched.returncode == 0, (watched.stderr, cloud.logs())
        assert f"{sky.galaxies:,} of {sky.galaxies:,} galaxies done" in watched.stdout
        resumed = subprocess.run([*command, "resume", str(out)], capture_output=True, text=True, env=own)
        assert resumed.returncode == 0, resumed.stderr
        assert catalogue(out) == sky.digest
        assert len(cloud.states.list_executions(stateMachineArn=cloud.machine)["executions"]) == 1
