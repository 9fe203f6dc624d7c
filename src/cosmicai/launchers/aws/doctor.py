"""What could keep runs from AWS, asked one thing after the other, and what mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from .clients import Account, explained_aws
from .image_push import ARCHIVE, has_image, read_archive, require_skopeo
from .stack import CHANGEABLE, described, not_now, outputs_of, present

NEW_ACCOUNTS_MB = 3008  # the most memory of a function that AWS allows a new account
DEFAULTS = {"MemoryMB": "2048", "MaxConcurrency": "100", "ReservedConcurrency": "0"}  # of the template
ADMITTED = ("RendezvousCidr", "RendezvousPrefixList", "RendezvousSecurityGroup")  # parameters: who may connect
ELSE = "check the network, and ask those who run the account for the right to do this"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was seen, and what to do about it; where it passed that is a warning."""

    name: str
    passed: bool
    said: str
    mend: str = ""


def checks(account: Account, name: str, image: str = ARCHIVE) -> list[Check]:
    """Everything that a deployment of the stack of this name, or a run on it, could fail at.

    AWS is not asked for more where region or credentials are missing. Raises nothing that AWS can cause.
    """
    found = [_asked("region", lambda: account.where), _asked("credentials", lambda: _identity(account))]
    parameters, outputs, again = DEFAULTS, dict[str, str](), f"python aws/deploy.py up --stack {name}"
    if all(one.passed for one in found):
        try:
            stack = described(account, name)
        except InputError as error:
            found.append(_failed("CloudFormation", str(error)))
        else:
            found += [Check("CloudFormation", True, "reachable"), _asked("stack", lambda: _state(account, name))]
            told = (stack or {}).get("Parameters", [])
            parameters = DEFAULTS | {one["ParameterKey"]: one["ParameterValue"] for one in told}
            outputs = {one["OutputKey"]: one["OutputValue"] for one in (stack or {}).get("Outputs", [])}
        found += _services(account, again, parameters, outputs)
    return [*found, *_image_here(image, again, outputs)]


def _identity(account: Account) -> str:
    with explained_aws("ask who you are"):
        told = account.client("sts").get_caller_identity()
    return f"account {told['Account']} as {told['Arn']}"


def _state(account: Account, name: str) -> str:
    """The stack's state. Raises InputError if there is no stack that can do runs."""
    stack = present(account, name)
    if "StateMachineArn" not in outputs_of(stack):
        raise InputError(f"{name} has no image yet; finish it with `python aws/deploy.py up --stack {name}`")
    if stack["StackStatus"] not in CHANGEABLE:
        raise InputError(not_now(stack))
    return f"{name} is {stack['StackStatus']}"


def _services(
    account: Account, again: str, parameters: Mapping[str, str], outputs: Mapping[str, str]
) -> Iterator[Check]:
    """What the stack is made of; `again` is the command that deploys it."""
    call = partial(_call, account)
    if bucket := outputs.get("BucketName"):
        yield _asked("S3", lambda: _reach(account, bucket))
    else:
        yield _asked("S3", lambda: call("s3", "list_buckets"))
    yield _asked("ECR", lambda: call("ecr", "describe_repositories", maxResults=1))
    yield _asked("Step Functions", lambda: call("stepfunctions", "list_state_machines", maxResults=1))
    limits: dict[str, Any] = {}
    yield _asked("Lambda", lambda: limits.update(call("lambda", "get_account_settings")["AccountLimit"]))
    if limits:
        yield _concurrency(limits, again, parameters)
    yield _memory(int(parameters["MemoryMB"]), again)
    if "ImageDigest" in outputs:
        yield _asked("image in ECR", lambda: _there(account, again, outputs))
    if endpoint := outputs.get("RendezvousEndpoint"):
        yield _rendezvous(endpoint, parameters)


def _reach(account: Account, bucket: str) -> str:
    with explained_aws(f"reach s3://{bucket}"):
        account.client("s3").head_bucket(Bucket=bucket)
    return f"s3://{bucket} is reachable"


def _there(account: Account, again: str, outputs: Mapping[str, str]) -> str:
    repository, digest = outputs["RepositoryUri"], outputs["ImageDigest"]
    if not has_image(account, repository, digest):
        raise InputError(f"{repository} no longer holds {digest}; push it with `{again}`")
    return digest


def _concurrency(limits: Mapping[str, Any], again: str, parameters: Mapping[str, str]) -> Check:
    wanted, reserved = int(parameters["MaxConcurrency"]), int(parameters["ReservedConcurrency"])
    allowed = reserved or int(limits["UnreservedConcurrentExecutions"])
    said = (
        f"{wanted:,} ranks may be at work at a time, and AWS allows {allowed:,} "
        f"({'reserved' if reserved else 'not reserved'}, of the account's {limits['ConcurrentExecutions']:,})"
    )
    mend = (
        "ask AWS for more (Service Quotas, AWS Lambda, Concurrent executions), or have fewer with "
        f"`{again} --max-concurrency {allowed}`"
    )
    return Check("concurrency", wanted <= allowed, said, mend if wanted > allowed else "")


def _memory(size: int, again: str) -> Check:
    mend = (
        f"a new account is allowed {NEW_ACCOUNTS_MB} MB; if AWS refuses more, ask its support for it, or use "
        f"`{again} --memory {NEW_ACCOUNTS_MB}`"
    )
    return Check("memory", True, f"{size} MB for each rank", mend if size > NEW_ACCOUNTS_MB else "")


def _rendezvous(endpoint: str, parameters: Mapping[str, str]) -> Check:
    """Where it is, and for whom; it is not asked, since it is closed to most machines, and this may be one of them."""
    admitted = " and ".join(parameters[name] for name in ADMITTED if parameters.get(name))
    said = f"{endpoint} is open to {admitted}; run there, `python -m fmi doctor {endpoint}` tells more"
    return Check("rendezvous", True, said)


def _image_here(image: str, again: str, outputs: Mapping[str, str]) -> Iterator[Check]:
    """The archive and what pushes it; a stack that has its image needs neither."""
    deployed = "ImageDigest" in outputs
    skopeo = _asked("skopeo", require_skopeo, "installed")
    yield Check(skopeo.name, skopeo.passed or deployed, skopeo.said, skopeo.mend)
    if Path(image).exists() or not deployed:
        yield _asked("image archive", lambda: _fitting(image, again, outputs.get("Architecture")))


def _fitting(image: str, again: str, architecture: str | None) -> str:
    if not Path(image).exists():
        raise InputError(f"{image} is not there; make it with `make image`, or name another one with --image")
    archive = read_archive(image)
    if architecture not in (None, archive.architecture):
        raise InputError(
            f"{image} is for {archive.architecture} and the stack's functions are for {architecture}; build one for "
            f"{architecture}, or let `{again}` change the functions"
        )
    return f"{archive.digest} for {archive.architecture}, of commit {archive.commit}"


def _call(account: Account, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
    client = account.client(service)
    with explained_aws(f"reach {service}"):
        return dict(getattr(client, operation)(**arguments))


def _asked(name: str, ask: Callable[[], object], default: str = "reachable") -> Check:
    """A check that says what asking returned if that is a text; it failed if asking raised InputError."""
    try:
        answer = ask()
    except InputError as error:
        return _failed(name, str(error))
    return Check(name, True, answer if isinstance(answer, str) else default)


def _failed(name: str, sentence: str) -> Check:
    """A check that failed with a sentence, of which the last part says what to do."""
    said, _, mend = sentence.rpartition("; ")
    return Check(name, False, said or mend, mend if said else ELSE)
