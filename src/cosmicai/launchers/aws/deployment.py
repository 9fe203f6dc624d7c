"""From nothing to a stack that can do runs, and back to nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import InputError
from ...runs.record import git_commit
from ..slurm.sif import Image
from .change_sets import Change
from .clients import Account, explained_aws
from .image_push import ARCHIVE, Archive, has_image, push, read_archive, require_skopeo
from .stack import change, delete, described, not_now, outputs_of, present, require_ours, resources, running

OBJECTS_AT_ONCE = 1000  # that S3 deletes in one request
IMAGES_AT_ONCE = 100  # that ECR deletes in one request
NAMED = 5  # of many runs
BUCKET, REPOSITORY, MACHINE = "AWS::S3::Bucket", "AWS::ECR::Repository", "AWS::StepFunctions::StateMachine"
KEPT = (BUCKET, REPOSITORY, "AWS::S3::BucketPolicy")  # by a stack that has no image

Approve = Callable[[Sequence[Change]], bool]


def up(
    account: Account,
    name: str,
    template: str,
    definition: bytes,
    parameters: Mapping[str, str],
    approve: Approve,
    tell: Callable[[str], None],
    *,
    image: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> bool:
    """Makes a stack of the template, or brings it to the template, the parameters and the image; False if it was so.

    A parameter that is not given keeps its value, and so does the image if there is no archive. A new stack is made
    without image first, since bucket and repository must be there before what they hold.
    Raises InputError if something given does not fit, and as `change` and `push` do; what is done then is kept, and
    doing it again goes on from there.
    """
    stack = described(account, name)
    outputs = outputs_of(stack) if stack else {}
    archive = _chosen(image, outputs)
    own = {"Prefix": name, **parameters}
    built_for = archive.architecture if archive else outputs["Architecture"]
    if own.setdefault("Architecture", built_for) != built_for:
        raise InputError(
            f"the image is for {built_for}; build one for {own['Architecture']} or leave --architecture out"
        )
    if own.get("BucketName"):
        _require_bucket(account, own["BucketName"], outputs)
    made = False
    if stack:
        own.pop("BucketName", None)  # else a bucket that the stack has made would no longer be its own
    else:
        require_skopeo()
        made = change(account, name, template, own, approve, tags)
        outputs = outputs_of(present(account, name))
    if archive:
        for notice in Image(archive.path, archive.variant, archive.commit).notices(git_commit()):
            tell(notice)
        if has_image(account, outputs["RepositoryUri"], archive.digest):
            tell(f"{archive.digest} is in {outputs['RepositoryUri']}")
        else:
            tell(f"pushing {archive.digest} to {outputs['RepositoryUri']}")
            push(account, archive, outputs["RepositoryUri"])
        own |= {"ImageDigest": archive.digest, "Commit": archive.commit or ""}
    own["DefinitionKey"] = f"deployments/state_machine-{hashlib.sha256(definition).hexdigest()[:16]}.asl.json"
    with explained_aws(f"write to the bucket {outputs['BucketName']}"):
        account.client("s3").put_object(Bucket=outputs["BucketName"], Key=own["DefinitionKey"], Body=definition)

    def warned(changes: Sequence[Change]) -> bool:
        machine = outputs.get("StateMachineArn")
        if machine and (names := running(account, machine)):
            tell(f"runs are going on ({_few(names)}); what is left of them will be done by what is changed")
        return approve(changes)

    return change(account, name, template, own, warned, tags) or made


def down(
    account: Account, name: str, approve: Approve, tell: Callable[[str], None], *, keep_data: bool = False
) -> None:
    """Removes a stack with everything in its bucket and its repository.

    A bucket that existed before remains as it is. With `keep_data` the stack's own bucket remains too: then all else
    is removed by taking the image from the stack, which keeps that bucket and an empty repository, and `up` brings
    the rest back.
    Raises InputError if there is no such stack, if a run is going on, if it is not approved, or if something resists.
    """
    require_ours(stack := present(account, name))
    if stack["StackStatus"].endswith("_IN_PROGRESS"):
        raise InputError(not_now(stack))
    there = resources(account, name)
    physical = {one.kind: one.resource for one in there}
    machine, bucket, repository = (physical.get(kind) for kind in (MACHINE, BUCKET, REPOSITORY))
    if machine and (names := running(account, machine)):
        raise InputError(
            f"runs are going on ({_few(names)}); wait for their end or stop them with `python -m launch cancel RUN`"
        )
    keeps = keep_data and bucket is not None
    going = [one for one in there if not (keeps and one.kind in KEPT)]
    if keeps:
        if change(account, name, None, {"ImageDigest": ""}, lambda changes: approve(going)):
            tell(f"removed {len(going)} resources of the stack {name}")
        tell(f"kept s3://{bucket}, and the stack {name} for it")
    elif not approve(going):
        raise InputError(f"the stack {name} remains as it is, since you did not agree")
    if repository:
        tell(f"images deleted from the repository {repository}: {_empty_repository(account, repository):,}")
    if not keeps:
        if bucket:
            tell(f"objects deleted from s3://{bucket}: {_empty_bucket(account, bucket):,}")
        delete(account, name, stack["StackId"])
        tell(f"removed the stack {name} with its {len(going)} resources")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + f" and {len(names) - NAMED} more" * (len(names) > NAMED)


def _empty_bucket(account: Account, bucket: str) -> int:
    """Deletes all objects of a bucket, all their versions too; returns how many. Raises InputError if one resists."""
    client, count = account.client("s3"), 0
    with explained_aws(f"empty the bucket {bucket}"), suppress(client.exceptions.NoSuchBucket):  # removed by hand
        while True:  # not page by page, of which each would begin after an object that is gone
            page = client.list_object_versions(Bucket=bucket, MaxKeys=OBJECTS_AT_ONCE)
            found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if not found:
                break
            keys = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in found]
            answer = client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            if errors := answer.get("Errors"):
                raise InputError(f"cannot delete s3://{bucket}/{errors[0]['Key']}: {errors[0]['Message']}")
            count += len(keys)
    return count


def _empty_repository(account: Account, repository: str) -> int:
    """Deletes all images of a repository; returns how many."""
    client, digests = account.client("ecr"), list[str]()
    gone = client.exceptions.RepositoryNotFoundException  # removed by hand
    with explained_aws(f"empty the repository {repository}"), suppress(gone):
        pages = client.get_paginator("list_images").paginate(repositoryName=repository)
        digests = sorted({one["imageDigest"] for page in pages for one in page["imageIds"]})
        for begin in range(0, len(digests), IMAGES_AT_ONCE):
            ids = [{"imageDigest": digest} for digest in digests[begin : begin + IMAGES_AT_ONCE]]
            answer = client.batch_delete_image(repositoryName=repository, imageIds=ids)
            if failures := answer.get("failures"):
                raise InputError(f"cannot delete an image of {repository}: {failures[0]['failureReason']}")
    return len(digests)


def _chosen(image: str | None, outputs: Mapping[str, str]) -> Archive | None:
    """The archive to take the image from; None if the stack keeps its own. Raises InputError if there is neither."""
    if image is None and not Path(ARCHIVE).exists():
        if outputs.get("ImageDigest"):
            return None
        raise InputError(f"there is no image {ARCHIVE} here; make it with `make image`, or name one with --image")
    return read_archive(image or ARCHIVE)


def _require_bucket(account: Account, bucket: str, outputs: Mapping[str, str]) -> None:
    """Raises InputError if the bucket is not there, in another region, or not the one that the stack has."""
    if bucket != outputs.get("BucketName", bucket):
        raise InputError(
            f"the stack has the bucket {outputs['BucketName']} and cannot change it; make another stack with --stack"
        )
    with explained_aws(f"use the bucket {bucket}"):
        there = account.client("s3").head_bucket(Bucket=bucket).get("BucketRegion", account.where)
    if there != account.where:
        raise InputError(f"the bucket {bucket} is in {there} and the stack in {account.where}; use one region for both")
