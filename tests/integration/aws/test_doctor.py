"""`python aws/deploy.py doctor`: every check that fails names a remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from cfnlint.decode import cfn_yaml
from moto.cloudformation.models import cloudformation_backends

from cosmicai.launchers.aws.clients import Account
from cosmicai.launchers.aws.doctor import DEFAULTS, Diagnosis, diagnose
from cosmicai.launchers.aws.image_push import ARCHIVE
from cosmicai.launchers.aws.stack import change_stack
from support.cloudformation import (
    ACCOUNT,
    COMMIT,
    DEFINITION,
    DEPLOY,
    LIMITS,
    REGION,
    SECRETS,
    TEMPLATE,
    Aws,
    aws_fixture,
    digest_of,
    make_archive,
    manifest_of,
)  # fmt: skip

KEY = "deployments/state_machine-0123456789abcdef.asl.json"

_ = aws_fixture  # the fixture `aws`
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse AWS.*BucketPolicy")


@pytest.fixture
def archive(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the image in the working folder, and a skopeo that would push it; there is no stack."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "skopeo").write_text("#!/bin/sh\n")
    (tmp_path / "skopeo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    make_archive(tmp_path / ARCHIVE)
    return tmp_path / ARCHIVE


@pytest.fixture
def deployed(aws: Aws, archive: Path) -> Path:
    """Create the same with a stack that has this image."""
    digest = digest_of(manifest_of(archive))
    assert change_stack(aws.account, aws.name, TEMPLATE.read_text(), {"Prefix": aws.name}, lambda changes: True)
    boto3.client("s3").put_object(Bucket=aws.bucket, Key=KEY, Body=DEFINITION.read_bytes())
    aws.register(archive)
    parameters = {"ImageDigest": digest, "DefinitionKey": KEY}
    assert change_stack(aws.account, aws.name, None, parameters, lambda changes: True)
    return archive


def change_parameters(aws: Aws, **parameters: str) -> None:
    """Change parameters of the stack."""
    assert change_stack(aws.account, aws.name, None, parameters, lambda changes: True)


def failed_checks(aws: Aws, account: Account | None = None, **arguments: Any) -> list[Diagnosis]:
    """Return the checks that did not pass."""
    return [one for one in diagnose(account or aws.account, aws.name, **arguments) if not one.passed]


def test_all_checks_pass(aws, deployed):
    found = diagnose(aws.account, aws.name)
    assert [(one.name, one.passed, one.finding, one.remedy) for one in found] == [
        ("region", True, REGION, ""),
        ("credentials", True, f"account {ACCOUNT} as arn:aws:sts::{ACCOUNT}:user/moto", ""),
        ("CloudFormation", True, "reachable", ""),
        ("stack", True, f"{aws.name} is UPDATE_COMPLETE", ""),
        ("S3", True, f"s3://{aws.bucket} is reachable", ""),
        ("ECR", True, "reachable", ""),
        ("Step Functions", True, "reachable", ""),
        ("Lambda", True, "reachable", ""),
        (
            "concurrency", True,
            "100 ranks may run at the same time, and AWS allows 900 (not reserved, of the account's 1,000)", "",
        ),
        ("memory", True, "2048 MB for each rank", ""),
        ("image in ECR", True, digest_of(manifest_of(deployed)), ""),
        ("skopeo", True, "installed", ""),
        ("image archive", True, f"{digest_of(manifest_of(deployed))} for x86_64, of commit {COMMIT}", ""),
    ]  # fmt: skip


def test_the_command_prints_a_line_per_check_and_fails_if_one_fails(aws, deployed):
    def doctor() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, DEPLOY, "doctor", "--stack", aws.name]
        return subprocess.run(command, capture_output=True, text=True)

    done = doctor()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 13 and lines[0] == f"ok       region          {REGION}"
    change_parameters(aws, MemoryMB="4096", MaxConcurrency="901")
    done = doctor()
    assert done.returncode == 3
    by_name = {line[9:25].strip(): line for line in done.stdout.splitlines()}
    assert by_name["concurrency"].startswith("failed   concurrency     901 ranks may run")
    assert by_name["memory"] == (
        "warning  memory          4096 MB for each rank; a new account may use 3008 MB; if AWS refuses more, request "
        f"it from AWS Support, or use `python aws/deploy.py up --stack {aws.name} --memory 3008`"
    )
    assert not [secret for secret in SECRETS if secret in done.stdout + done.stderr]


def test_before_the_first_deployment_only_the_stack_is_missing(aws, archive):
    assert failed_checks(aws) == [
        Diagnosis("stack", False, f"there is no stack {aws.name} in {REGION}",
              f"create it with `python aws/deploy.py up --stack {aws.name}`")
    ]  # fmt: skip
    archive.unlink()
    assert failed_checks(aws)[1:] == [
        Diagnosis("image archive", False, f"{ARCHIVE} does not exist",
              "build it with `make image`, or name another one with --image")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "name", "finding", "remedy"),
    [
        (
            "AWS_DEFAULT_REGION", "region", "cannot use AWS: no region is given",
            "use --region or AWS_DEFAULT_REGION, such as us-east-1",
        ),
        (
            "AWS_ACCESS_KEY_ID", "credentials", "cannot use AWS: there are no AWS credentials",
            "sign in with `aws configure` or `aws sso login`, or name a profile with --profile",
        ),
    ],
)  # fmt: skip
def test_aws_is_not_checked_further_without_region_or_credentials(
    aws, archive, monkeypatch, variable, name, finding, remedy
):
    monkeypatch.delenv(variable)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = diagnose(aws.account, aws.name)
    assert [one.name for one in found] == ["region", "credentials", "skopeo", "image archive"]
    assert Diagnosis(name, False, finding, remedy) in found


def test_credentials_that_aws_does_not_accept(aws, deployed):
    account = refusing("sts", "InvalidClientTokenId", f"The token {SECRETS[1]} is invalid")
    assert failed_checks(aws, account) == [
        Diagnosis("credentials", False, "cannot identify you: AWS does not accept your credentials",
              "check them with `aws sts get-caller-identity`, and this machine's clock")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("service", "name", "finding"),
    [
        ("cloudformation", "CloudFormation", "cannot describe the stack NAME: not authorized (AccessDeniedException)"),
        ("s3", "S3", "cannot reach s3://BUCKET: not authorized (AccessDeniedException)"),
        ("stepfunctions", "Step Functions", "cannot reach stepfunctions: not authorized (AccessDeniedException)"),
        ("lambda", "Lambda", "cannot reach lambda: not authorized (AccessDeniedException)"),
        ("ecr", "ECR", "cannot reach ecr: not authorized (AccessDeniedException)"),
    ],
)
def test_a_service_that_refuses_is_named(aws, deployed, service, name, finding):
    account = refusing(service, "AccessDeniedException", "not authorized")
    remedy = "ask the administrators of the account for this permission"
    text = finding.replace("NAME", aws.name).replace("BUCKET", aws.bucket)
    assert Diagnosis(name, False, text, remedy) in failed_checks(aws, account)


def test_an_error_without_a_remedy_gets_a_general_one(aws, deployed):
    account = refusing("lambda", "ServiceException", "no idea")
    assert failed_checks(aws, account) == [
        Diagnosis("Lambda", False, "cannot reach lambda: no idea (ServiceException)",
              "check the network, and ask the administrators of the account for the permission")
    ]  # fmt: skip


def refusing(service: str, code: str, message: str) -> Account:
    """Return an account with a service that answers every request with this error."""
    account = Account()
    content = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 403}}
    response = type("Response", (), {"status_code": 403})
    events = account.client(service).meta.events
    events.register(f"before-call.{service}", lambda **_: (response, content))
    return account


def test_the_concurrency_of_a_new_account_is_too_low(aws, deployed, monkeypatch):
    monkeypatch.setitem(LIMITS, "ConcurrentExecutions", 10)
    monkeypatch.setitem(LIMITS, "UnreservedConcurrentExecutions", 10)
    assert failed_checks(aws) == [
        Diagnosis("concurrency", False,
              "100 ranks may run at the same time, and AWS allows 10 (not reserved, of the account's 10)",
              "request more from AWS (Service Quotas, AWS Lambda, Concurrent executions), or use fewer with "
              f"`python aws/deploy.py up --stack {aws.name} --max-concurrency 10`")
    ]  # fmt: skip
    change_parameters(aws, MaxConcurrency="10")
    assert failed_checks(aws) == []
    change_parameters(aws, ReservedConcurrency="9")
    [found] = failed_checks(aws)
    assert "10 ranks may run at the same time, and AWS allows 9 (reserved, of the account's 10)" in found.finding


def test_a_stack_that_fails(aws, deployed):
    stacks = cloudformation_backends[ACCOUNT][REGION].stacks
    [stack] = [one for one in stacks.values() if one.name == aws.name]
    stack.status = "UPDATE_ROLLBACK_FAILED"
    assert failed_checks(aws) == [
        Diagnosis("stack", False, f"the stack {aws.name} is UPDATE_ROLLBACK_FAILED and cannot be changed",
              "repair it in CloudFormation's console, or remove it with "
              f"`python aws/deploy.py down --stack {aws.name}`")
    ]  # fmt: skip


def test_a_stack_without_image(aws, deployed):
    change_parameters(aws, ImageDigest="")
    assert failed_checks(aws) == [
        Diagnosis("stack", False, f"{aws.name} has no image yet",
              f"finish it with `python aws/deploy.py up --stack {aws.name}`")
    ]  # fmt: skip


def test_an_image_that_ecr_has_lost(aws, deployed):
    digest = digest_of(manifest_of(deployed))
    boto3.client("ecr").batch_delete_image(repositoryName=aws.name, imageIds=[{"imageDigest": digest}])
    assert failed_checks(aws) == [
        Diagnosis("image in ECR", False, f"{aws.host}/{aws.name} no longer holds {digest}",
              f"push it with `python aws/deploy.py up --stack {aws.name}`")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "clients"),
    [
        ({"RendezvousCidr": "0.0.0.0/0"}, "0.0.0.0/0"),
        (
            {"RendezvousCidr": "192.0.2.0/24", "RendezvousSecurityGroup": "sg-01234567"},
            "192.0.2.0/24 and sg-01234567",
        ),
        ({"RendezvousPrefixList": "pl-01234567"}, "pl-01234567"),
    ],
)
def test_a_rendezvous_is_described_without_a_connection(aws, deployed, parameters, clients):
    assert "rendezvous" not in [one.name for one in diagnose(aws.account, aws.name)]
    endpoint = "rendezvous.example.invalid:10000"  # which cannot be reached
    change_parameters(
        aws, RendezvousVpc="vpc-01234567", RendezvousSubnets="subnet-01234567", RendezvousZone="Z0123456789ABC",
        RendezvousName=endpoint.removesuffix(":10000"), **parameters,
    )  # fmt: skip
    found = diagnose(aws.account, aws.name)
    assert [one for one in found if not one.passed] == []
    assert [one for one in found if one.name == "rendezvous"] == [
        Diagnosis("rendezvous", True,
              f"{endpoint} is open to {clients}; run `python -m fmi doctor {endpoint}` there for more")
    ]  # fmt: skip


def test_an_image_for_another_processor(aws, deployed):
    make_archive(deployed, "arm64")
    assert failed_checks(aws) == [
        Diagnosis("image archive", False, f"{ARCHIVE} is for arm64 and the stack's functions are for x86_64",
              f"build one for x86_64, or let `python aws/deploy.py up --stack {aws.name}` change the functions")
    ]  # fmt: skip
    deployed.write_bytes(b"")
    assert failed_checks(aws) == [
        Diagnosis("image archive", False, f"{ARCHIVE} is not one complete image in an OCI archive",
              "build it again with `make image`")
    ]  # fmt: skip


def test_skopeo_is_needed_only_to_push(aws, archive, monkeypatch):
    (archive.parent / "skopeo").unlink()
    monkeypatch.setenv("PATH", str(archive.parent))
    texts = ("skopeo, which pushes the image, is not installed", "install it with `sudo apt-get install skopeo`")
    assert failed_checks(aws)[1:] == [Diagnosis("skopeo", False, *texts)]


def test_a_stack_that_has_its_image_needs_neither_archive_nor_skopeo(aws, deployed, monkeypatch):
    (deployed.parent / "skopeo").unlink()
    deployed.unlink()
    monkeypatch.setenv("PATH", str(deployed.parent))
    found = diagnose(aws.account, aws.name)
    assert [one for one in found if not one.passed] == []
    [skopeo] = [one for one in found if one.remedy]
    assert skopeo.name == "skopeo" and "image archive" not in [one.name for one in found]


def test_a_missing_bucket(aws, deployed):
    client = boto3.client("s3")
    client.delete_object(Bucket=aws.bucket, Key=KEY)
    client.delete_bucket(Bucket=aws.bucket)
    assert failed_checks(aws) == [
        Diagnosis("S3", False, f"cannot reach s3://{aws.bucket}: it does not exist", "check its name and your region")
    ]  # fmt: skip


def test_defaults_without_a_stack_are_those_of_the_template():
    known = cfn_yaml.load(str(TEMPLATE))["Parameters"]
    assert {name: str(known[name]["Default"]) for name in DEFAULTS} == DEFAULTS
