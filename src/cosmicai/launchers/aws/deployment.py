"""Deploy a stack that can execute runs, and remove it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import InputError
from ...runs.provenance import git_commit
from ...storage.s3 import head_bucket
from ..image_commit import commit_notices
from .change_sets import Change
from .clients import Account, describe_aws_errors
from .image_push import ARCHIVE, ImageArchive, has_image, push_image, read_archive, require_skopeo
from .stack import (
    change_stack,
    delete_stack,
    describe_stack,
    explain_unchangeable,
    list_resources,
    list_running_executions,
    read_outputs,
    require_own_template,
    require_stack,
)

OBJECTS_PER_REQUEST = 1000  # that S3 deletes
IMAGES_PER_REQUEST = 100  # that ECR deletes
LISTED = 5  # of many runs
BUCKET, REPOSITORY, MACHINE = "AWS::S3::Bucket", "AWS::ECR::Repository", "AWS::StepFunctions::StateMachine"
KEPT = (BUCKET, REPOSITORY, "AWS::S3::BucketPolicy")  # by a stack without an image

Approve = Callable[[Sequence[Change]], bool]


def deploy_stack(
    account: Account,
    name: str,
    template: str,
    definition: bytes,
    parameters: Mapping[str, str],
    approve: Approve,
    notify: Callable[[str], None],
    *,
    image: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> bool:
    """Create a stack, or update it to the template, the parameters and the image; return False if nothing changed.

    A parameter that is not given keeps its value, and so does the image if there is no archive. `KmsKeyArn` may also be
    the id or an alias of a key. A new stack is first created without an image, since bucket and repository must exist
    before they can hold anything.
    Raises InputError if an argument does not fit, and as `change_stack` and `push_image` do; what has been done by then
    is kept, and another call continues from there.
    """
    stack = describe_stack(account, name)
    outputs = read_outputs(stack) if stack else {}
    archive = _choose_archive(image, outputs)
    changed = {"Prefix": name, **parameters}
    built_for = archive.architecture if archive else outputs["Architecture"]
    if changed.setdefault("Architecture", built_for) != built_for:
        raise InputError(
            f"the image is for {built_for}; build one for {changed['Architecture']} or leave --architecture out"
        )
    if changed.get("BucketName"):
        _require_bucket(account, changed["BucketName"], outputs)
    if changed.get("KmsKeyArn"):
        changed["KmsKeyArn"] = _find_key(account, changed["KmsKeyArn"])
    created = False
    if stack:
        changed.pop("BucketName", None)  # a bucket that the stack created would otherwise no longer belong to it
    else:
        require_skopeo()
        created = change_stack(account, name, template, changed, approve, tags)
        outputs = read_outputs(require_stack(account, name))
    if archive:
        for notice in commit_notices(archive.path, archive.commit, git_commit()):
            notify(notice)
        if has_image(account, outputs["RepositoryUri"], archive.digest):
            notify(f"{archive.digest} is in {outputs['RepositoryUri']}")
        else:
            notify(f"pushing {archive.digest} to {outputs['RepositoryUri']}")
            push_image(account, archive, outputs["RepositoryUri"])
        changed |= {"ImageDigest": archive.digest, "Commit": archive.commit or ""}
    changed["DefinitionKey"] = f"deployments/state_machine-{hashlib.sha256(definition).hexdigest()[:16]}.asl.json"
    with describe_aws_errors(f"write to the bucket {outputs['BucketName']}"):
        account.client("s3").put_object(Bucket=outputs["BucketName"], Key=changed["DefinitionKey"], Body=definition)

    def warn_and_approve(changes: Sequence[Change]) -> bool:
        machine = outputs.get("StateMachineArn")
        if machine and (names := list_running_executions(account, machine)):
            notify(f"runs are in progress ({_shorten(names)}); the rest of their work will use the changed stack")
        return approve(changes)

    return change_stack(account, name, template, changed, warn_and_approve, tags) or created


def remove_stack(
    account: Account, name: str, approve: Approve, notify: Callable[[str], None], *, keep_data: bool = False
) -> None:
    """Delete a stack with everything in its bucket and its repository.

    A bucket that existed before the stack is left unchanged. With `keep_data` the stack's own bucket stays as well:
    everything else is deleted by removing the image from the stack, which keeps that bucket and an empty repository,
    and `deploy_stack` restores the rest.
    Raises InputError if the stack does not exist, if a run is in progress, if the deletion is not approved, or if a
    resource cannot be deleted.
    """
    require_own_template(stack := require_stack(account, name))
    if stack["StackStatus"].endswith("_IN_PROGRESS"):
        raise InputError(explain_unchangeable(stack))
    existing = list_resources(account, name)
    physical = {resource.kind: resource.resource for resource in existing}
    machine, bucket, repository = (physical.get(kind) for kind in (MACHINE, BUCKET, REPOSITORY))
    if machine and (names := list_running_executions(account, machine)):
        raise InputError(
            f"runs are in progress ({_shorten(names)}); wait for their end or stop them with "
            "`python -m launch cancel RUN`"
        )
    keeps = keep_data and bucket is not None
    removed = [resource for resource in existing if not (keeps and resource.kind in KEPT)]
    if keeps:
        if change_stack(account, name, None, {"ImageDigest": ""}, lambda changes: approve(removed)):
            notify(f"removed {len(removed)} resources of the stack {name}")
        notify(f"kept s3://{bucket}, and the stack {name} to which it belongs")
    elif not approve(removed):
        raise InputError(f"the stack {name} is unchanged, since the removal was not approved")
    if repository:
        notify(f"images deleted from the repository {repository}: {_empty_repository(account, repository):,}")
    if not keeps:
        if bucket:
            notify(f"objects deleted from s3://{bucket}: {_empty_bucket(account, bucket):,}")
        delete_stack(account, name, stack["StackId"])
        notify(f"removed the stack {name} with its {len(removed)} resources")


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + f" and {len(names) - LISTED} more" * (len(names) > LISTED)


def _empty_bucket(account: Account, bucket: str) -> int:
    """Delete all objects of a bucket in all versions and return their number. Raises InputError if one cannot be."""
    client, count = account.client("s3"), 0
    with describe_aws_errors(f"empty the bucket {bucket}"), suppress(client.exceptions.NoSuchBucket):  # deleted by hand
        while True:  # a paginator would start each page at an object that no longer exists
            page = client.list_object_versions(Bucket=bucket, MaxKeys=OBJECTS_PER_REQUEST)
            versions = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if not versions:
                break
            keys = [{"Key": version["Key"], "VersionId": version["VersionId"]} for version in versions]
            response = client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            if errors := response.get("Errors"):
                raise InputError(f"cannot delete s3://{bucket}/{errors[0]['Key']}: {errors[0]['Message']}")
            count += len(keys)
    return count


def _empty_repository(account: Account, repository: str) -> int:
    """Delete all images of a repository and return their number."""
    client, digests = account.client("ecr"), list[str]()
    missing = client.exceptions.RepositoryNotFoundException  # deleted by hand
    with describe_aws_errors(f"empty the repository {repository}"), suppress(missing):
        pages = client.get_paginator("list_images").paginate(repositoryName=repository)
        digests = sorted({image["imageDigest"] for page in pages for image in page["imageIds"]})
        for begin in range(0, len(digests), IMAGES_PER_REQUEST):
            ids = [{"imageDigest": digest} for digest in digests[begin : begin + IMAGES_PER_REQUEST]]
            response = client.batch_delete_image(repositoryName=repository, imageIds=ids)
            if failures := response.get("failures"):
                raise InputError(f"cannot delete an image of {repository}: {failures[0]['failureReason']}")
    return len(digests)


def _choose_archive(image: str | None, outputs: Mapping[str, str]) -> ImageArchive | None:
    """Return the archive with the image, None if the stack keeps its own. Raises InputError if there is neither."""
    if image is None and not Path(ARCHIVE).exists():
        if outputs.get("ImageDigest"):
            return None
        raise InputError(f"there is no image {ARCHIVE} here; build it with `make image`, or name one with --image")
    return read_archive(image or ARCHIVE)


def _require_bucket(account: Account, bucket: str, outputs: Mapping[str, str]) -> None:
    """Raise InputError if the bucket does not exist, is in another region, or is not that of the stack."""
    if bucket != outputs.get("BucketName", bucket):
        raise InputError(
            f"the stack has the bucket {outputs['BucketName']} and cannot change it; create another stack with --stack"
        )
    with describe_aws_errors(f"use the bucket {bucket}"):
        region = head_bucket(account.client("s3"), bucket).get("BucketRegion", account.region_name)
    if region != account.region_name:
        raise InputError(
            f"the bucket {bucket} is in {region} and the stack in {account.region_name}; use one region for both"
        )


def _find_key(account: Account, key: str) -> str:
    """Return the ARN of a key in KMS. Raises InputError if it does not exist or cannot encrypt the stack's objects."""
    if not key.startswith("arn:") or ":alias/" in key:  # the key of another account may be used, but not described
        with describe_aws_errors(f"find the key {key} in KMS"):
            found = account.client("kms").describe_key(KeyId=key)["KeyMetadata"]
        if found["KeySpec"] != "SYMMETRIC_DEFAULT" or found["KeyState"] != "Enabled":
            raise InputError(
                f"--kms-key {key} is a key of the kind {found['KeySpec']} in the state {found['KeyState']}; "
                "expected an enabled one of the kind SYMMETRIC_DEFAULT"
            )
        key = found["Arn"]
    if key.split(":")[3:4] != [account.region_name]:
        raise InputError(f"--kms-key {key} is not in {account.region_name}, the region of the stack; use one that is")
    return key
