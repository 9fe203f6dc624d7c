"""Diagnose what could prevent a deployment or a run on AWS, one check after the other, and name the remedies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...storage.s3 import head_bucket
from .clients import Account, describe_aws_errors
from .image_push import ARCHIVE, has_image, read_archive, require_skopeo
from .stack import CHANGEABLE, describe_stack, explain_unchangeable, read_outputs, require_stack

NEW_ACCOUNT_MB = 3008  # the largest memory of a function that AWS permits a new account
DEFAULTS = {"MemoryMB": "2048", "MaxConcurrency": "100", "ReservedConcurrency": "0"}  # of the template
CLIENTS = ("RendezvousCidr", "RendezvousPrefixList", "RendezvousSecurityGroup")  # parameters: who may connect
DEFAULT_REMEDY = "check the network, and ask the administrators of the account for the permission"


@dataclass(frozen=True)
class Diagnosis:
    """The result of one check: the finding and what to do about it; the remedy of a passed check is a warning."""

    name: str
    passed: bool
    finding: str
    remedy: str = ""


def diagnose(account: Account, name: str, image: str = ARCHIVE) -> list[Diagnosis]:
    """Return the results of all checks on a deployment of the stack of this name and on runs with it.

    Without region or credentials AWS is not checked further. Errors of AWS are results, not exceptions.
    """
    found = [_check("region", lambda: account.region_name), _check("credentials", lambda: _identity(account))]
    parameters, outputs, redeploy = DEFAULTS, dict[str, str](), f"python aws/deploy.py up --stack {name}"
    if all(result.passed for result in found):
        try:
            stack = describe_stack(account, name)
        except InputError as error:
            found.append(_failed("CloudFormation", str(error)))
        else:
            found += [Diagnosis("CloudFormation", True, "reachable"), _check("stack", lambda: _state(account, name))]
            given = (stack or {}).get("Parameters", [])
            parameters = DEFAULTS | {parameter["ParameterKey"]: parameter["ParameterValue"] for parameter in given}
            outputs = {output["OutputKey"]: output["OutputValue"] for output in (stack or {}).get("Outputs", [])}
        found += _check_services(account, redeploy, parameters, outputs)
    return [*found, *_check_local_image(image, redeploy, outputs)]


def _identity(account: Account) -> str:
    with describe_aws_errors("identify you"):
        identity = account.client("sts").get_caller_identity()
    return f"account {identity['Account']} as {identity['Arn']}"


def _state(account: Account, name: str) -> str:
    """Return the state of the stack. Raises InputError if there is no stack that can execute runs."""
    stack = require_stack(account, name)
    if "StateMachineArn" not in read_outputs(stack):
        raise InputError(f"{name} has no image yet; finish it with `python aws/deploy.py up --stack {name}`")
    if stack["StackStatus"] not in CHANGEABLE:
        raise InputError(explain_unchangeable(stack))
    return f"{name} is {stack['StackStatus']}"


def _check_services(
    account: Account, redeploy: str, parameters: Mapping[str, str], outputs: Mapping[str, str]
) -> Iterator[Diagnosis]:
    """Check the services that the stack uses; `redeploy` is the command that deploys it again."""
    call = partial(_call, account)
    if bucket := outputs.get("BucketName"):
        yield _check("S3", lambda: _reach_bucket(account, bucket))
    else:
        yield _check("S3", lambda: call("s3", "list_buckets"))
    yield _check("ECR", lambda: call("ecr", "describe_repositories", maxResults=1))
    yield _check("Step Functions", lambda: call("stepfunctions", "list_state_machines", maxResults=1))
    limits: dict[str, Any] = {}
    yield _check("Lambda", lambda: limits.update(call("lambda", "get_account_settings")["AccountLimit"]))
    if limits:
        yield _check_concurrency(limits, redeploy, parameters)
    yield _check_memory(int(parameters["MemoryMB"]), redeploy)
    if "ImageDigest" in outputs:
        yield _check("image in ECR", lambda: _deployed_image(account, redeploy, outputs))
    if endpoint := outputs.get("RendezvousEndpoint"):
        yield _describe_rendezvous(endpoint, parameters)


def _reach_bucket(account: Account, bucket: str) -> str:
    with describe_aws_errors(f"reach s3://{bucket}"):
        head_bucket(account.client("s3"), bucket)
    return f"s3://{bucket} is reachable"


def _deployed_image(account: Account, redeploy: str, outputs: Mapping[str, str]) -> str:
    repository, digest = outputs["RepositoryUri"], outputs["ImageDigest"]
    if not has_image(account, repository, digest):
        raise InputError(f"{repository} no longer holds {digest}; push it with `{redeploy}`")
    return digest


def _check_concurrency(limits: Mapping[str, Any], redeploy: str, parameters: Mapping[str, str]) -> Diagnosis:
    requested, reserved = int(parameters["MaxConcurrency"]), int(parameters["ReservedConcurrency"])
    allowed = reserved or int(limits["UnreservedConcurrentExecutions"])
    finding = (
        f"{requested:,} ranks may run at the same time, and AWS allows {allowed:,} "
        f"({'reserved' if reserved else 'not reserved'}, of the account's {limits['ConcurrentExecutions']:,})"
    )
    remedy = (
        "request more from AWS (Service Quotas, AWS Lambda, Concurrent executions), or use fewer with "
        f"`{redeploy} --max-concurrency {allowed}`"
    )
    return Diagnosis("concurrency", requested <= allowed, finding, remedy if requested > allowed else "")


def _check_memory(size: int, redeploy: str) -> Diagnosis:
    remedy = (
        f"a new account may use {NEW_ACCOUNT_MB} MB; if AWS refuses more, request it from AWS Support, or use "
        f"`{redeploy} --memory {NEW_ACCOUNT_MB}`"
    )
    return Diagnosis("memory", True, f"{size} MB for each rank", remedy if size > NEW_ACCOUNT_MB else "")


def _describe_rendezvous(endpoint: str, parameters: Mapping[str, str]) -> Diagnosis:
    """Describe the rendezvous server and its clients without connecting, since this machine may not be one of them."""
    clients = " and ".join(parameters[name] for name in CLIENTS if parameters.get(name))
    finding = f"{endpoint} is open to {clients}; run `python -m fmi doctor {endpoint}` there for more"
    return Diagnosis("rendezvous", True, finding)


def _check_local_image(image: str, redeploy: str, outputs: Mapping[str, str]) -> Iterator[Diagnosis]:
    """Check the image archive and skopeo; a stack that has its image needs neither."""
    deployed = "ImageDigest" in outputs
    skopeo = _check("skopeo", require_skopeo, "installed")
    yield Diagnosis(skopeo.name, skopeo.passed or deployed, skopeo.finding, skopeo.remedy)
    if Path(image).exists() or not deployed:
        yield _check("image archive", lambda: _fitting_archive(image, redeploy, outputs.get("Architecture")))


def _fitting_archive(image: str, redeploy: str, architecture: str | None) -> str:
    if not Path(image).exists():
        raise InputError(f"{image} does not exist; build it with `make image`, or name another one with --image")
    archive = read_archive(image)
    if architecture not in (None, archive.architecture):
        raise InputError(
            f"{image} is for {archive.architecture} and the stack's functions are for {architecture}; build one for "
            f"{architecture}, or let `{redeploy}` change the functions"
        )
    return f"{archive.digest} for {archive.architecture}, of commit {archive.commit}"


def _call(account: Account, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
    client = account.client(service)
    with describe_aws_errors(f"reach {service}"):
        return dict(getattr(client, operation)(**arguments))


def _check(name: str, examine: Callable[[], object], default: str = "reachable") -> Diagnosis:
    """Return the text that `examine` returns, if it is one, as a passed check; InputError is a failed check."""
    try:
        finding = examine()
    except InputError as error:
        return _failed(name, str(error))
    return Diagnosis(name, True, finding if isinstance(finding, str) else default)


def _failed(name: str, sentence: str) -> Diagnosis:
    """Return a failed check from a sentence whose last part says what to do."""
    finding, _, remedy = sentence.rpartition("; ")
    return Diagnosis(name, False, finding or remedy, remedy if finding else DEFAULT_REMEDY)
