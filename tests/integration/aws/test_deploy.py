"""`python aws/deploy.py`: the real template on moto's CloudFormation (see cloudformation.py for what that lacks).

Of the template's resources moto creates no bucket policy, and of most of a rendezvous only the names. It has no
registry behind its ECR either: one test pushes into a real one, the others use a program that replaces skopeo.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import exceptions
from cfnlint.decode import cfn_yaml
from moto.cloudformation.models import CloudFormationBackend, Event, cloudformation_backends
from moto.s3.models import s3_backends

from cosmicai.cli.deploy_options import PARAMETERS
from cosmicai.errors import InputError
from cosmicai.launchers.aws import logs
from cosmicai.launchers.aws.clients import Account, describe_aws_errors
from cosmicai.launchers.aws.image_push import ARCHIVE, read_archive
from cosmicai.launchers.aws.stack import Stack, change_stack, find_stack
from cosmicai.launchers.submission import CloudRun
from support.cloudformation import (
    ACCOUNT,
    COMMIT,
    DEFINITION,
    DEPLOY,
    PASSWORD,
    REGION,
    SECRETS,
    TEMPLATE,
    Aws,
    aws_fixture,
    digest_of,
    make_archive,
    manifest_of,
)  # fmt: skip
from support.image_registry import NO_REGISTRY, fetch_manifest, is_available, serve_registry

KEY = f"deployments/state_machine-{hashlib.sha256(DEFINITION.read_bytes()).hexdigest()[:16]}.asl.json"
INCOMPLETE_IMAGE = "is not one complete image in an OCI archive; build it again with `make image`"
FOREIGN_TEMPLATE = """
Parameters: {A: {Type: String, Default: a}}
Resources: {Bucket: {Type: "AWS::S3::Bucket", Properties: {BucketName: NAME}}}
Outputs: {BucketName: {Value: !Ref Bucket}}
"""

_ = aws_fixture  # the fixture `aws`
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS.*BucketPolicy")


@dataclass(frozen=True)
class Done:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Pushes:
    """The command lines and the input of the program that replaces skopeo."""

    folder: Path

    def calls(self) -> list[list[str]]:
        """Return the words of each command line, without those that name the file of credentials."""
        calls = [line.split("\t") for line in (self.folder / "calls").read_text().splitlines()]
        return [[word for word in call if "cosmicai-push-" not in word and word != "--authfile"] for call in calls]

    def input(self) -> str:
        """Return everything that came on standard input."""
        return (self.folder / "input").read_text()


@pytest.fixture
def deploy(aws: Aws, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Return a function that runs a command on the stack in this process and checks that it prints no secrets."""

    def call(command: str, *arguments: object, answer: str = "") -> Done:
        words = ["deploy", command, "--stack", aws.name, *(str(word) for word in arguments)]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(DEPLOY), run_name="__main__")
        out, err = capfd.readouterr()
        assert not [secret for secret in (*SECRETS, PASSWORD) if secret in out + err]
        assert "Traceback" not in err
        return Done(int(end.value.code or 0), out, err)

    return call


@pytest.fixture
def skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pushes:
    """Replace skopeo by a program that accepts everything."""
    folder = tmp_path / "skopeo"
    folder.mkdir()
    return replace_skopeo(folder, monkeypatch, "exit 0")


def replace_skopeo(folder: Path, monkeypatch: pytest.MonkeyPatch, then: str) -> Pushes:
    """Replace skopeo by a program that records its command line and input and then runs the commands in `then`."""
    (folder / "calls").touch()
    program = f"""#!/bin/bash
IFS=$'\\t'
echo "$*" >>{folder}/calls
input=$(cat)
echo "$input" >>{folder}/input
{then}
"""
    (folder / "skopeo").write_text(program)
    (folder / "skopeo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Pushes(folder)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the image in the working folder, where deploy expects it."""
    monkeypatch.chdir(tmp_path)
    make_archive(tmp_path / ARCHIVE)
    return tmp_path / ARCHIVE


@pytest.fixture
def deployed(aws: Aws, deploy: Callable[..., Done], skopeo: Pushes, archive: Path) -> Path:
    """Deploy a stack with its image, and return the archive of the image."""
    done = deploy("up", "--yes")
    assert done.code == 0, done.err
    aws.register(archive)
    return archive


def test_up_creates_everything_and_a_second_one_changes_nothing(aws, deploy, skopeo, archive):
    digest, definition = digest_of(manifest_of(archive)), DEFINITION.read_bytes()
    done = deploy("up", "--yes", "--tag", "project=sky", "--weights", "demo")
    assert done.code == 0, done.err
    first, second = done.out.split("─┘")[:2]
    assert "Add" in first and "Repository" in first and "InferFunction" not in first
    assert "InferFunction" in second and "AWS::StepFunctions::StateMachine" in second
    assert f"{ARCHIVE} was built from commit {COMMIT}" in done.err
    expected = {
        "Prefix": aws.name, "ImageDigest": digest, "Architecture": "x86_64", "Commit": COMMIT, "DefinitionKey": KEY,
        "DefaultWeights": "demo", "BucketName": "", "MemoryMB": "2048",
    }  # fmt: skip
    assert expected.items() <= aws.parameters().items()
    assert aws.stack()["Tags"] == [{"Key": "project", "Value": "sky"}]
    assert boto3.client("s3").get_object(Bucket=aws.bucket, Key=KEY)["Body"].read() == definition
    assert aws.resources() == {
        f"bucket {aws.bucket}", f"repository {aws.name}", f"machine {aws.name}",
        *(f"function {aws.name}-{name}" for name in ("initialize", "infer", "summarize")),
        *(f"role {aws.name}-{name}-{REGION}" for name in ("initialize", "infer", "summarize", "states")),
        *(f"policy {aws.name}-{name}-{REGION}" for name in ("inputs", "runs")),
        *(f"log /aws/lambda/{aws.name}-{name}" for name in ("initialize", "infer", "summarize")),
    }  # fmt: skip
    repository = f"{aws.host}/{aws.name}"
    calls = [
        ["login", "--tls-verify=true", "--username", "AWS", "--password-stdin", aws.host],
        [
            "copy", "--preserve-digests", "--dest-tls-verify=true", f"oci-archive:{ARCHIVE}",
            f"docker://{repository}:0123456789ab-{digest[7:19]}",
        ],
    ]  # fmt: skip
    assert skopeo.calls() == calls and skopeo.input() == f"{PASSWORD}\n\n"

    aws.register(archive)
    before = aws.parameters()
    again = deploy("up", "--yes")
    assert again.code == 0, again.err
    assert f"nothing to change: the stack {aws.name} is up to date" in again.out
    assert f"{digest} is in {repository}" in again.err
    assert skopeo.calls() == calls and aws.parameters() == before
    assert aws.stack()["Tags"] == [{"Key": "project", "Value": "sky"}]


def test_an_image_is_pushed_with_its_digest(aws, deploy, archive, tmp_path, monkeypatch):
    if not is_available():
        pytest.skip(NO_REGISTRY)
    real = shutil.which("skopeo")
    folder = tmp_path / "calls"
    folder.mkdir()
    skopeo = replace_skopeo(folder, monkeypatch, f'echo -n "$input" | {real} "$@"')
    expected = manifest_of(archive)
    with serve_registry(tmp_path) as aws.host:
        done = deploy("up", "--yes")
        assert done.code == 0, done.err
        assert fetch_manifest(aws.host, aws.name, digest_of(expected)) == expected
        tag = f"0123456789ab-{digest_of(expected)[7:19]}"
        assert fetch_manifest(aws.host, aws.name, tag) == expected
    assert aws.parameters()["ImageDigest"] == digest_of(expected)
    assert [call[:2] for call in skopeo.calls()] == [["login", "--tls-verify=false"], ["copy", "--preserve-digests"]]
    assert PASSWORD not in (folder / "calls").read_text() and PASSWORD in skopeo.input()
    assert not list(Path(tmp_path.root, "tmp").glob("cosmicai-push-*"))


def test_a_failed_push_is_one_sentence_and_up_continues_from_there(aws, deploy, archive, tmp_path, monkeypatch):
    folder = tmp_path / "refusing"
    folder.mkdir()
    line = 'time="2026-11-21T19:00:00Z" level=fatal msg="writing blob: denied"'
    with monkeypatch.context() as patch:
        replace_skopeo(folder, patch, f"[ $1 = login ] || {{ echo '{line}' >&2; exit 1; }}")
        done = deploy("up", "--yes")
    assert done.code == 2
    assert "deploy: skopeo copy failed: writing blob: denied; check the network and your rights to the" in done.err
    assert aws.resources() == {f"bucket {aws.bucket}", f"repository {aws.name}"}
    refused = deploy("status")
    assert (refused.code, "RepositoryUri" in refused.out, "StateMachineArn" in refused.out) == (0, True, False)
    with pytest.raises(InputError, match="has no image yet; finish it with"):
        find_stack(aws.account, aws.name)
    replace_skopeo(folder, monkeypatch, "exit 0")
    done = deploy("up", "--yes")
    assert done.code == 0 and "Repository " not in done.out.partition("─┘")[0], done.err
    assert f"machine {aws.name}" in aws.resources()


def test_parameters_that_are_not_given_keep_their_values(aws, deploy, deployed):
    done = deploy("up", "--yes", "--memory", 4096, "--data-prefix", "a/", "--data-prefix", "/b", "--log-days", 7)
    assert done.code == 0 and "Modify" in done.out, done.err
    deployed.unlink()
    done = deploy("up", "--yes", "--timeout", 60, "--reserved-concurrency", 0, "--tag", "a=b=c")
    assert done.code == 0, done.err
    parameters = aws.parameters()
    assert {name: parameters[name] for name in ("MemoryMB", "DataPrefixes", "LogDays", "TimeoutSeconds")} == {
        "MemoryMB": "4096", "DataPrefixes": "a,b", "LogDays": "7", "TimeoutSeconds": "60",
    }  # fmt: skip
    assert parameters["ImageDigest"].startswith("sha256:")
    assert deploy("up", "--yes", "--timeout", 61, "--tag", "d=e").code == 0
    assert aws.stack()["Tags"] == [{"Key": "a", "Value": "b=c"}, {"Key": "d", "Value": "e"}]
    stack = find_stack(aws.account, aws.name)
    assert (stack.bucket, stack.memory_mb, stack.timeout_seconds, stack.ephemeral_mb) == (aws.bucket, 4096, 61, 512)
    assert (stack.architecture, stack.max_concurrency) == ("x86_64", 100)
    assert stack.outputs["ImageDigest"] == parameters["ImageDigest"]
    assert stack.state_machine == f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{aws.name}"
    assert tuple(stack.outputs[name] for name in ("InferFunction", "RepositoryUri")) == (
        f"{aws.name}-infer",
        f"{aws.host}/{aws.name}",
    )


def test_every_parameter_has_an_option():
    known = cfn_yaml.load(str(TEMPLATE))["Parameters"]

    def command() -> None: ...

    for option in PARAMETERS:
        option(command)
    offered = {option.name for option in command.__click_params__}  # type: ignore[attr-defined]
    assert len(offered) == len(PARAMETERS)
    assert set(known) - offered == {"Prefix", "ImageDigest", "DefinitionKey", "Commit"}
    assert offered <= set(known)


def test_memory_alone_can_be_changed_without_the_template(aws, deployed):
    """As by `python -m launch --cloud --memory`."""
    shown: list[Any] = []
    approve = lambda changes: bool(shown.extend(changes)) or True  # type: ignore[func-returns-value]  # noqa: E731
    assert change_stack(aws.account, aws.name, None, {"MemoryMB": "3008"}, approve)
    assert [(one.action, one.resource, one.kind) for one in shown] == [
        ("Modify", "InferFunction", "AWS::Lambda::Function")
    ]
    assert find_stack(aws.account, aws.name).memory_mb == 3008
    assert boto3.client("lambda").get_function_configuration(FunctionName=f"{aws.name}-infer")["MemorySize"] == 3008
    assert not change_stack(aws.account, aws.name, None, {"MemoryMB": "3008"}, approve)


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_nothing_is_changed_without_confirmation(aws, deploy, skopeo, archive, answer):
    done = deploy("up", answer=answer)
    assert (done.code, done.err.splitlines()[-1]) == (
        2, f"deploy: the stack {aws.name} is unchanged, since the changes were not approved",
    )  # fmt: skip
    assert aws.stack() is None and aws.resources() == set() and skopeo.calls() == []
    assert deploy("up", answer="y\ny\n").code == 0
    before = aws.parameters()
    aws.register(archive)
    assert deploy("up", "--memory", 4096, answer=answer).code == 2
    assert deploy("down", answer=answer).code == 2
    assert aws.parameters() == before and len(aws.resources()) == 15
    client = boto3.client("cloudformation")
    assert not [one for one in client.list_change_sets(StackName=aws.name)["Summaries"] if one["StackName"] == aws.name
                and one["ExecutionStatus"] == "AVAILABLE"]  # fmt: skip


def test_a_failed_change_is_reported_with_its_reasons(aws, deploy, deployed, monkeypatch):
    """moto's changes never fail: these are the events of CloudFormation for a change that does."""

    def fail(self: CloudFormationBackend, change_set_name: str, stack_name: str | None = None) -> None:
        made = self.change_sets[change_set_name]
        stack = self.stacks[made.stack_id]
        stack.status = "UPDATE_ROLLBACK_COMPLETE"
        reported = [
            ("before", "InferRole", "CREATE_FAILED", "long ago"),
            (made.change_set_name, "InferFunction", "UPDATE_FAILED", "MemorySize must be at most 3008"),
            (made.change_set_name, "StateMachine", "UPDATE_FAILED", "Resource update cancelled"),
            (made.change_set_name, aws.name, "UPDATE_ROLLBACK_COMPLETE", ""),
        ]
        for token, resource, status, reason in reported:
            event = Event(stack.stack_id, stack.name, resource, resource, "", status, reason, "")
            event.client_request_token = token  # type: ignore[assignment]
            stack.events.append(event)

    monkeypatch.setattr(CloudFormationBackend, "execute_change_set", fail)
    done = deploy("up", "--yes", "--memory", 4096)
    assert (done.code, done.err.splitlines()[-1]) == (
        2,
        f"deploy: CloudFormation could not change the stack {aws.name}: InferFunction (MemorySize must be at most "
        "3008); correct it and try again",
    )


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("UPDATE_IN_PROGRESS", "is being changed (UPDATE_IN_PROGRESS); try again when this is done"),
        (
            "UPDATE_ROLLBACK_FAILED",
            "is UPDATE_ROLLBACK_FAILED and cannot be changed; repair it in CloudFormation's console, or remove it with "
            "`python aws/deploy.py down --stack ",
        ),
    ],
)
def test_a_stack_whose_state_permits_no_change_is_left_alone(aws, deploy, deployed, state, sentence):
    stacks = cloudformation_backends[ACCOUNT][REGION].stacks
    [stack] = [one for one in stacks.values() if one.name == aws.name]
    stack.status = state
    done = deploy("up", "--yes", "--memory", 4096)
    assert done.code == 2 and f"the stack {aws.name} {sentence}" in done.err
    assert aws.parameters()["MemoryMB"] == "2048"
    assert deploy("down", "--yes").code == (2 if state.endswith("_IN_PROGRESS") else 0)


def test_waiting_can_be_interrupted(aws, deployed):
    account, requests = aws.account, []

    def interrupt(**_: Any) -> None:
        requests.append(1)
        if len(requests) == 2:  # the first request asks whether there is a stack
            raise KeyboardInterrupt

    account.client("cloudformation").meta.events.register("before-call.cloudformation.DescribeStacks", interrupt)
    with pytest.raises(InputError) as refused:
        change_stack(account, aws.name, None, {"MemoryMB": "3008"}, lambda changes: True)
    assert str(refused.value) == (
        "no longer waiting for CloudFormation, which continues; check with "
        f"`python aws/deploy.py status --stack {aws.name}`"
    )
    assert aws.parameters()["MemoryMB"] == "3008"


def test_a_key_is_given_by_its_arn_its_id_or_an_alias(aws, deploy, deployed):
    kms, alias = boto3.client("kms"), f"alias/{aws.name}"
    key = kms.create_key()["KeyMetadata"]
    kms.create_alias(AliasName=alias, TargetKeyId=key["KeyId"])
    for given in (alias, key["Arn"], key["KeyId"], key["Arn"].partition(":key/")[0] + f":{alias}"):
        done = deploy("up", "--yes", "--kms-key", given)
        assert done.code == 0 and ("nothing to change" in done.out) is (given != alias), done.err
        assert aws.parameters()["KmsKeyArn"] == key["Arn"]
    arn = f"arn:aws:iam::{ACCOUNT}:policy/{aws.name}-key-{REGION}"
    document = boto3.client("iam").get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]
    assert document["Statement"][0]["Resource"] == key["Arn"]
    assert deploy("up", "--yes", "--memory", 4096).code == 0
    assert aws.parameters()["KmsKeyArn"] == key["Arn"]
    assert deploy("up", "--yes", "--kms-key", "").code == 0
    assert aws.parameters()["KmsKeyArn"] == ""


def test_a_key_that_cannot_be_used_is_refused_before_anything_is_created(aws, deploy, skopeo, archive):
    kms = boto3.client("kms")
    signing = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    disabled = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.disable_key(KeyId=disabled)
    expected = "expected an enabled one of the kind SYMMETRIC_DEFAULT"
    elsewhere = f"arn:aws:kms:eu-north-1:{ACCOUNT}:key/01234567-89ab-cdef-0123-456789abcdef"
    for key, sentence in {
        "alias/missing": "cannot find the key alias/missing in KMS: ",
        signing: f"--kms-key {signing} is a key of the kind RSA_2048 in the state Enabled; {expected}",
        disabled: f"--kms-key {disabled} is a key of the kind SYMMETRIC_DEFAULT in the state Disabled; {expected}",
        elsewhere: f"--kms-key {elsewhere} is not in {REGION}, the region of the stack; use one that is",
    }.items():
        done = deploy("up", "--yes", "--kms-key", key)
        assert done.code == 2 and done.err.splitlines()[-1].startswith(f"deploy: {sentence}"), done.err
    assert aws.stack() is None and skopeo.calls() == []


def test_options_of_the_bucket_are_passed_on(aws, deploy, skopeo, archive):
    words = ("--versioning", "Enabled", "--access-log-bucket", "logs", "--reserved-run-concurrency", 2)
    assert deploy("up", "--yes", *words).code == 0
    expected = {"Versioning": "Enabled", "AccessLogBucketName": "logs", "ReservedRunConcurrency": "2"}
    assert expected.items() <= aws.parameters().items()


def test_an_existing_bucket_is_kept(aws, deploy, skopeo, archive):
    s3, own = boto3.client("s3"), f"{aws.name}-before"
    missing = deploy("up", "--yes", "--bucket", own)
    assert missing.code == 2 and aws.stack() is None
    assert f"cannot use the bucket {own}: it does not exist; check its name and your region" in missing.err
    s3.create_bucket(Bucket=own)
    s3.put_object(Bucket=own, Key="surveys/a", Body=b"a")
    assert deploy("up", "--yes", "--bucket", own).code == 0
    assert find_stack(aws.account, aws.name).bucket == own
    aws.register(archive)
    assert "nothing to change" in deploy("up", "--yes", "--bucket", own).out
    other = deploy("up", "--yes", "--bucket", f"{aws.name}-other")
    assert other.code == 2
    assert f"the stack has the bucket {own} and cannot change it; create another stack with --stack" in other.err
    done = deploy("down", "--yes", "--keep-data")
    assert done.code == 0 and "kept" not in done.out and "objects" not in done.out, done.err
    assert aws.stack() is None and aws.resources() == {f"bucket {own}"}
    assert s3.get_object(Bucket=own, Key="surveys/a")["Body"].read() == b"a"


def test_the_own_bucket_of_a_stack_stays_its_own_if_it_is_named(aws, deploy, deployed):
    done = deploy("up", "--yes", "--bucket", aws.bucket)
    assert "nothing to change" in done.out and aws.parameters()["BucketName"] == ""


def test_down_removes_everything(aws, deploy, deployed):
    s3 = s3_backends[ACCOUNT]["aws"]
    for number in range(1003):
        s3.put_object(aws.bucket, f"runs/{number}", b"")
    client = boto3.client("s3")
    client.put_bucket_versioning(Bucket=aws.bucket, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(2):
        client.put_object(Bucket=aws.bucket, Key="runs/0", Body=b"new")
    client.delete_object(Bucket=aws.bucket, Key="runs/1")
    done = deploy("down", "--yes")
    assert done.code == 0, done.err
    table, _, lines = done.out.rpartition("┘\n")
    assert "Remove" in table and "AWS::Logs::LogGroup" in table and f"{aws.name}-infer" in table
    assert lines.splitlines() == [
        f"images deleted from the repository {aws.name}: 1",
        f"objects deleted from s3://{aws.bucket}: 1,007",  # with the definition, two newer ones and a delete marker
        f"removed the stack {aws.name} with its 15 resources",
    ]
    assert aws.stack() is None and aws.resources() == set()
    again = deploy("down", "--yes")
    assert again.code == 2
    assert f"there is no stack {aws.name} in {REGION}; create it with `python aws/deploy.py up --stack" in again.err


def test_a_rendezvous_exists_while_it_is_requested(aws, deploy, deployed):
    """Its resources are tested in test_template.py."""
    assert "Rendezvous" not in deploy("status").out
    before, parameters = aws.resources(), aws.parameters()
    vpc, subnets = "vpc-01234567", ("subnet-01234567", "subnet-89abcdef")
    network = ("--rendezvous-vpc", vpc, "--rendezvous-subnet", subnets[0], "--rendezvous-subnet", subnets[1])
    done = deploy("up", "--yes", *network, "--rendezvous-cidr", "192.0.2.0/24")
    assert done.code == 0 and "RendezvousService" in done.out, done.err
    given = {"RendezvousVpc": vpc, "RendezvousSubnets": ",".join(subnets), "RendezvousCidr": "192.0.2.0/24"}
    assert aws.parameters() == parameters | given
    assert aws.resources() - before == {
        f"role {aws.name}-rendezvous-{REGION}", f"policy {aws.name}-rendezvous-{REGION}",
        f"log /ecs/{aws.name}-rendezvous",
    }  # fmt: skip
    endpoint = find_stack(aws.account, aws.name).outputs["RendezvousEndpoint"]
    assert endpoint.startswith("DNSName-of-") and endpoint.endswith(":10000")
    assert [line for line in deploy("status").out.splitlines() if "RendezvousEndpoint" in line and endpoint in line]
    named = ("--rendezvous-zone", "Z0123456789ABC", "--rendezvous-name", "rendezvous.example.org")
    assert "RendezvousRecord" in deploy("up", "--yes", *named).out
    assert "rendezvous.example.org:10000" in deploy("status").out
    assert "nothing to change" in deploy("up", "--yes").out

    done = deploy("up", "--yes", "--rendezvous-vpc", "")
    assert done.code == 0 and "RendezvousService" in done.out, done.err
    assert aws.resources() == before and "Rendezvous" not in deploy("status").out
    assert "RendezvousService" in deploy("up", "--yes", "--rendezvous-vpc", vpc).out  # the rest was kept
    assert "rendezvous.example.org:10000" in deploy("status").out
    assert deploy("down", "--yes", "--keep-data").code == 0
    assert aws.resources() == {f"bucket {aws.bucket}", f"repository {aws.name}"}
    assert deploy("down", "--yes").code == 0 and aws.resources() == set()


@pytest.mark.parametrize(
    ("option", "parameter", "value"),
    [
        ("--rendezvous-scheme", "RendezvousScheme", "internal"),
        ("--rendezvous-prefix-list", "RendezvousPrefixList", "pl-01234567"),
        ("--rendezvous-security-group", "RendezvousSecurityGroup", "sg-01234567"),
    ],
)
def test_clients_of_the_rendezvous_are_given_by_options(aws, deploy, deployed, option, parameter, value):
    parameters = aws.parameters()
    assert deploy("up", "--yes", option, value).code == 0
    assert aws.parameters() == parameters | {parameter: value}


def test_data_can_be_kept_without_everything_else(aws, deploy, skopeo, deployed):
    boto3.client("s3").put_object(Bucket=aws.bucket, Key="surveys/a", Body=b"a")
    done = deploy("down", "--yes", "--keep-data")
    assert done.code == 0, done.err
    table, _, lines = done.out.rpartition("┘\n")
    assert "AWS::S3::Bucket " not in table and "AWS::IAM::Role" in table
    assert lines.splitlines() == [
        f"removed 13 resources of the stack {aws.name}",
        f"kept s3://{aws.bucket}, and the stack {aws.name} to which it belongs",
        f"images deleted from the repository {aws.name}: 1",
    ]
    assert aws.resources() == {f"bucket {aws.bucket}", f"repository {aws.name}"}
    assert boto3.client("s3").get_object(Bucket=aws.bucket, Key="surveys/a")["Body"].read() == b"a"
    assert boto3.client("ecr").list_images(repositoryName=aws.name)["imageIds"] == []
    assert deploy("up", "--yes").code == 0
    assert find_stack(aws.account, aws.name).bucket == aws.bucket
    assert deploy("down", "--yes").code == 0 and aws.resources() == set()


def test_down_refuses_while_runs_are_in_progress(aws, deploy, deployed):
    client, machine = boto3.client("stepfunctions"), find_stack(aws.account, aws.name).state_machine
    runs = [f"survey-{number}" for number in range(7)]
    started = [client.start_execution(stateMachineArn=machine, name=name, input="{}") for name in runs]
    before = aws.resources()
    for options in ((), ("--keep-data",)):
        done = deploy("down", "--yes", *options)
        assert done.code == 2
        assert (
            "runs are in progress (survey-6, survey-5, survey-4, survey-3, survey-2 and 2 more); wait for" in done.err
        )
    assert "survey-6" in deploy("status").out
    assert aws.resources() == before
    for execution in started[1:]:
        client.stop_execution(executionArn=execution["executionArn"])
    done = deploy("up", "--memory", 4096, answer="y\n")
    assert done.code == 0 and "Apply these changes? [y/N]" in done.out
    assert "runs are in progress (survey-0); the rest of their work will use the changed stack" in done.err
    client.stop_execution(executionArn=started[0]["executionArn"])
    assert deploy("down", "--yes").code == 0 and aws.resources() == set()


def test_a_stack_of_another_template_is_left_alone(aws, deploy, skopeo, archive):
    template = FOREIGN_TEMPLATE.replace("NAME", f"{aws.name}-theirs")
    boto3.client("cloudformation").create_stack(StackName=aws.name, TemplateBody=template)
    for command in (("up", "--yes"), ("down", "--yes"), ("status",)):
        done = deploy(*command)
        assert done.code == 2
        assert f"the stack {aws.name} was not made from aws/template.yaml; choose another name" in done.err
    assert aws.resources() == {f"bucket {aws.name}-theirs"}
    boto3.client("cloudformation").delete_stack(StackName=aws.name)


def test_down_accepts_resources_that_were_removed_by_hand(aws, deploy, deployed):
    client = boto3.client("s3")
    client.delete_object(Bucket=aws.bucket, Key=KEY)
    client.delete_bucket(Bucket=aws.bucket)
    boto3.client("ecr").delete_repository(repositoryName=aws.name, force=True)
    done = deploy("status")
    assert done.code == 0, done.err
    # CloudFormation treats missing resources as deleted; moto does not, so that only the earlier steps are reported.
    done = deploy("down", "--yes")
    assert done.out.splitlines()[-2:] == [
        f"images deleted from the repository {aws.name}: 0", f"objects deleted from s3://{aws.bucket}: 0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (None, "there is no image cosmicai-cpu.oci.tar here; build it with `make image`, or name one with --image"),
        (lambda path: path.write_bytes(b"no archive"), INCOMPLETE_IMAGE),
        (lambda path: path.write_bytes(path.read_bytes()[:2500]), INCOMPLETE_IMAGE),
        (lambda path: drop_layer(path), INCOMPLETE_IMAGE),
        (lambda path: corrupt_config(path), INCOMPLETE_IMAGE),
        (lambda path: make_archive(path, "s390x"), "is an image for s390x; Lambda runs images for amd64 and arm64"),
        (
            lambda path: make_archive(path, "arm64"),
            "the image is for arm64; build one for x86_64 or leave --architecture out",
        ),
    ],
    ids=["missing", "no archive", "cut off", "without layer", "corrupt", "unknown processor", "other processor"],
)
def test_nothing_is_created_with_an_image_that_does_not_fit(aws, deploy, skopeo, tmp_path, monkeypatch, make, sentence):
    monkeypatch.chdir(tmp_path)
    if make:
        make_archive(tmp_path / ARCHIVE)
        make(tmp_path / ARCHIVE)
    done = deploy("up", "--yes", "--architecture", "x86_64")
    assert (done.code, done.out) == (2, "") and sentence in done.err
    assert aws.stack() is None and skopeo.calls() == []


def drop_layer(path: Path) -> None:
    """Remove the only layer of the image from its archive."""
    [layer] = json.loads(manifest_of(path))["layers"]
    content = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(content)) as old, tarfile.open(path, "w") as new:
        for member in old:
            if not member.name.endswith(layer["digest"].removeprefix("sha256:")):
                new.addfile(member, old.extractfile(member))


def corrupt_config(path: Path) -> None:
    """Change the configuration of the image in its archive."""
    content = path.read_bytes()
    assert content.count(b'"amd64"') == 1
    path.write_bytes(content.replace(b'"amd64"', b'"arm64"'))


def test_a_missing_image_is_named(aws, deploy, tmp_path):
    done = deploy("up", "--yes", "--image", tmp_path / "x.tar")
    assert done.code == 2 and f"cannot read {tmp_path}/x.tar: it does not exist; check the path" in done.err


def test_an_image_for_arm_creates_functions_for_arm(aws, deploy, skopeo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_archive(tmp_path / "arm.tar", "arm64", commit=f"{COMMIT}-dirty")
    assert read_archive(str(tmp_path / "arm.tar")).tag.startswith("0123456789ab-dirty-")
    assert deploy("up", "--yes", "--image", tmp_path / "arm.tar").code == 0
    assert find_stack(aws.account, aws.name).architecture == "arm64"
    refused = deploy("up", "--yes", "--architecture", "x86_64")
    assert refused.code == 2 and "the image is for arm64; build one for x86_64" in refused.err


def test_nothing_is_created_without_skopeo(aws, deploy, archive, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = deploy("up", "--yes")
    assert done.code == 2 and aws.stack() is None
    assert "skopeo, which pushes the image, is not installed; install it with `sudo apt-get install skopeo`" in done.err


@pytest.mark.parametrize("tag", ["alone", "=value"])
def test_a_tag_without_a_value_is_refused(deploy, archive, tag):
    done = deploy("up", "--yes", "--tag", tag)
    assert done.code == 2 and f"--tag {tag} is not a tag; write KEY=VALUE" in done.err


@pytest.mark.parametrize(
    ("changed", "options", "sentence"),
    [
        ({"AWS_ACCESS_KEY_ID": ""}, (), "cannot use AWS: there are no AWS credentials; sign in with `aws configure`"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, (), "cannot use AWS: your AWS credentials are incomplete; expected the id"),
        ({"AWS_DEFAULT_REGION": ""}, (), "cannot use AWS: no region is given; use --region or AWS_DEFAULT_REGION"),
        ({}, ("--profile", "nobody"), "(nobody) could not be found; `aws configure list-profiles` lists your"),
        ({}, ("--endpoint-url", "nonsense"), "nonsense is not an address; expected one such as https://HOST:PORT"),
        ({}, ("--endpoint-url", "http://127.0.0.1:9"), "http://127.0.0.1:9/ does not answer; check the network, the"),
        ({}, ("--region", "no region"), "Provided region_name 'no region' doesn't match a supported format"),
        ({}, (), "there is no stack cosmicai in us-east-1; create it with `python aws/deploy.py up --stack cosmicai`"),
    ],
)
def test_bad_input_is_one_sentence(aws, changed, options, sentence):
    done = in_process(["status", *options], changed)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and sentence in done.stderr
    assert not [secret for secret in SECRETS if secret in done.stderr]


def test_a_profile_provides_credentials_and_region(aws, tmp_path):
    (tmp_path / "credentials").write_text(
        f"[mine]\naws_access_key_id = AKIAMINE\naws_secret_access_key = {SECRETS[0]}\nregion = eu-west-3\n"
    )
    changed = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    unset = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), "")
    done = in_process(["status", "--profile", "mine"], changed | unset | {"AWS_DEFAULT_REGION": ""})
    assert done.returncode == 2 and "there is no stack cosmicai in eu-west-3" in done.stderr, done.stderr
    assert SECRETS[0] not in done.stderr


def in_process(arguments: list[str], changed: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run deploy.py in its own process; variables that are changed to "" are unset."""
    environment = {name: value for name, value in (os.environ | changed).items() if value}
    return subprocess.run([sys.executable, DEPLOY, *arguments], capture_output=True, text=True, env=environment)


def refusal(code: str, message: str, operation: str = "GetObject") -> exceptions.ClientError:
    return exceptions.ClientError({"Error": {"Code": code, "Message": message}}, operation)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (refusal("SignatureDoesNotMatch", f"The Canonical String was {SECRETS[0]}"), "AWS does not accept your"),
        (refusal("ExpiredToken", f"{SECRETS[1]} has expired"), "you are no longer signed in to AWS; sign in again"),
        (
            refusal("AccessDeniedException", "User: arn:a is not authorized"),
            "not authorized (AccessDeniedException); ask the",
        ),
        (refusal("ValidationError", "Parameter LogDays\nmust be one"), "Parameter LogDays must be one (Validation"),
        (
            exceptions.ProxyConnectionError(proxy_url=f"http://me:{SECRETS[0]}@proxy:3128"),
            "the proxy http://proxy:3128 does not answer; correct HTTPS_PROXY and HTTP_PROXY, or name AWS in NO_PROXY",
        ),
        (
            exceptions.ReadTimeoutError(endpoint_url=f"https://s3.amazonaws.com/a?X-Amz-Signature={SECRETS[0]}"),
            "https://s3.amazonaws.com/a does not answer; check the network",
        ),
        (
            exceptions.CredentialRetrievalError(provider="custom-process", error_msg=f"printed {SECRETS[0]}"),
            "the program or service that provides the credentials of your profile failed; see why with",
        ),
        (exceptions.UnauthorizedSSOTokenError(), "you are no longer signed in to AWS; sign in again"),
        (
            exceptions.WaiterError("StackExists", "no", {"Error": {"Code": "ExpiredToken", "Message": SECRETS[1]}}),
            "you are no longer signed in to AWS",
        ),
    ],
)
def test_errors_of_aws_are_sentences_without_secrets(error, sentence):
    with pytest.raises(InputError) as caught, describe_aws_errors("do it"):
        raise error
    text = str(caught.value)
    assert text.startswith("cannot do it: ") and sentence in text and "\n" not in text
    assert not [secret for secret in SECRETS if secret in text]


def test_other_errors_pass():
    with pytest.raises(ValueError, match="mine"), describe_aws_errors("do it"):
        raise ValueError("mine")


def test_an_account_is_passed_on_to_child_processes():
    assert Account("eu-west-3", "http://127.0.0.1:1", "mine").environment() == {
        "AWS_DEFAULT_REGION": "eu-west-3", "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_PROFILE": "mine",
    }  # fmt: skip
    assert Account().environment() == {}


def test_a_named_profile_is_preferred_to_keys_in_the_environment(aws, monkeypatch, tmp_path):
    (tmp_path / "config").write_text("[profile mine]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    Account(profile="mine").activate()
    assert os.environ["AWS_PROFILE"] == "mine"
    assert not [name for name in os.environ if name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]


def test_a_missing_profile_is_one_sentence(aws, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "other")  # so that it is restored at the end
    with pytest.raises(InputError, match=r"profile .*nobodys.* could not be found"):
        Account(profile="nobodys").activate()


def test_logs_are_written_into_the_run_and_its_copy(aws, deploy, deployed, tmp_path, monkeypatch):
    """The collection itself is tested in test_logs.py."""
    calls: list[tuple[Account, Stack, str]] = []

    def collect(account: Account, stack: Stack, run: Any) -> int:
        calls.append((account, stack, run.uri))
        run.write_json(run.invocations_path, [{"request_id": "r"}] * 1200)
        return 1200

    monkeypatch.setattr(logs, "collect_reports", collect)
    copy, there = tmp_path / "copy", f"s3://{aws.bucket}/runs/a"
    copy.mkdir()
    refused = deploy("logs", copy)
    assert refused.code == 2 and f"{copy} is not a copy of a run in the cloud (it has no cloud.json)" in refused.err
    known = CloudRun(there, aws.name, REGION, None, None, ("arn",), {}, "2026-11-21T19:00:00+00:00")
    (copy / "cloud.json").write_bytes(known.to_json())
    done = deploy("logs", copy, "--region", "eu-west-3")
    assert (done.code, done.out) == (0, f"1,200 invocations in {copy}/invocations.json\n"), done.err
    done = deploy("logs", there, "--region", REGION)
    assert (done.code, done.out) == (0, f"1,200 invocations in {there}/invocations.json\n"), done.err
    assert [(account.region, stack.name, uri) for account, stack, uri in calls] == [(REGION, aws.name, there)] * 2
    assert len(json.loads((copy / "invocations.json").read_text())) == 1200
