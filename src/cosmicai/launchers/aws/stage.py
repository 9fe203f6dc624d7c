"""Prepare a run: the files that S3 must hold, and the payload for the state machine."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import storage
from ...aws_lambda.payload import read_payload
from ...engines.registry import PRECISIONS
from ...errors import InputError
from ...models.weights import DEMO, check_architecture, find_weights
from ...runs.demo import open_named_survey
from ...runs.request import require_views
from ...runs.store import RunFolder
from ...storage.s3 import is_s3, split_s3_uri
from ...surveys.survey import Survey, galaxies_per_partition, resplit_survey
from ..base import CloudRequest, LaunchRequest
from .stack import Stack
from .transfer import (
    Upload,
    add_checksums,
    list_missing,
    list_shard_uploads,
    survey_digest,
    upload_files,
    write_survey_file,
)

RUNS, SURVEYS, WEIGHTS = "runs", "surveys", "weights"  # folders of a stack's bucket
MAX_NAME = 60  # characters; Step Functions allows 80 including what is added


@dataclass(frozen=True)
class PreparedRun:
    """The payload for the state machine, the survey that it names, and the files that S3 must hold before the start.

    The files include the shards of a local survey.
    """

    payload: dict[str, Any]
    survey: Survey
    survey_uri: str
    uploads: list[Upload]

    def upload(self) -> None:
        """Upload the files that S3 does not have. Raises InputError as `transfer.upload_files`."""
        upload_files(list_missing(self.uploads))
        if not is_s3(self.survey.uri):
            write_survey_file(self.survey, self.survey_uri)


def cloud_name(folder: RunFolder) -> str:
    """Return the name of a run on AWS: that of its folder, and a digest of the folder's address and machine."""
    address = folder.uri if is_s3(folder.uri) else f"{platform.node()}:{folder.uri}"
    name = re.sub(r"[^A-Za-z0-9._-]", "-", storage.basename(folder.uri))[:MAX_NAME]
    return f"{name}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"


def locate_run(stack: Stack, folder: RunFolder) -> RunFolder:
    """Return the folder on S3 of a run with results in `folder`. Raises InputError if the stack cannot write there."""
    if not is_s3(folder.uri):
        return RunFolder(f"s3://{stack.bucket}/{RUNS}/{cloud_name(folder)}")
    bucket, key = split_s3_uri(folder.uri)
    if bucket != stack.bucket or not key.startswith(f"{RUNS}/"):
        raise InputError(
            f"{folder.uri}: the stack {stack.name} keeps runs under s3://{stack.bucket}/{RUNS}/; choose an --out there "
            "or a local folder"
        )
    return folder


def open_survey(request: LaunchRequest, temporary: str) -> Survey:
    """Return the survey as it will be read on S3, of at most `limit_files` shards.

    It is cut into the temporary folder if other partitions are requested. Raises InputError if it cannot be read, if
    it holds no galaxies, or if it cannot be cut.
    """
    run, partition_mb = request.run, request.cloud.partition_mb if request.cloud else None
    survey = open_named_survey(run.survey, run.out)
    if partition_mb is not None:
        require_local(survey, partition_mb)
        survey = resplit_survey(survey, storage.join(temporary, "survey"), galaxies_per_partition(partition_mb))
    survey = replace(survey, shards=survey.shards[: run.limit_files])
    if not survey.galaxies:
        raise InputError(f"{survey.uri} holds no galaxies; nothing to do")
    return survey


def require_local(survey: Survey, partition_mb: float) -> None:
    """Raise InputError if a survey cannot be cut into other partitions, since it is on S3."""
    if is_s3(survey.uri):
        raise InputError(
            f"--partition-mb {partition_mb:g} cuts a local survey, and {survey.uri} is on S3; cut the original "
            "with `cosmicai split`, or leave --partition-mb out"
        )


def prepare(stack: Stack, run: RunFolder, survey: Survey, request: LaunchRequest) -> PreparedRun:
    """Return what a run on S3 needs. Raises InputError if weights or options cannot be used."""
    requested, cloud = request.run, request.cloud or CloudRequest()
    weights, uploads = _stage_weights(stack, requested.weights)
    if requested.precision not in (None, *PRECISIONS["openvino"]):
        raise InputError(
            f"--cloud and --precision {requested.precision} contradict each other; OpenVINO, the engine on AWS, "
            f"has {', '.join(PRECISIONS['openvino'])}"
        )
    uri, source = survey.uri, dict[str, Any]()
    if is_s3(uri):
        prefix = split_s3_uri(uri)[1]
        if storage.absolute(requested.survey) != uri:  # a single file of that folder
            source["data_map"] = {"0": [f"{prefix}/{survey.shards[0].name}"]}
        elif requested.limit_files:
            source |= {"file_limit": requested.limit_files, "order": "natural"}
    else:
        survey = add_checksums(survey)
        uri = f"s3://{stack.bucket}/{SURVEYS}/{survey_digest(survey)}"
        uploads += list_shard_uploads(survey, uri)
    data_bucket, data_prefix = split_s3_uri(uri)
    bucket, result_path = split_s3_uri(run.uri)
    values = {
        "bucket": bucket, "result_path": result_path, "data_bucket": data_bucket, "data_prefix": data_prefix, **source,
        "weights": weights, "batch_size": requested.batch_size, "precision": requested.precision,
        "accept_precision_loss": requested.accept_precision_loss or None,
        "views": None if requested.views is None else require_views(requested.views),
        "quantiles": requested.quantiles or None, "calibrate_on_spectra": requested.calibrate_on_spectra or None,
        "strict": requested.strict or None, "max_concurrency": cloud.concurrency,
        "tolerated_failure_percentage": cloud.tolerate, "fmi_enabled": cloud.fmi or None,
    }  # fmt: skip
    payload = {name: value for name, value in values.items() if value is not None}
    read_payload(payload)  # refuses here what the function would refuse
    return PreparedRun(payload, survey, uri, uploads)


def _stage_weights(stack: Stack, named: str) -> tuple[str, list[Upload]]:
    """Return the address of the weights for the functions, and the files to upload for it."""
    if named == DEMO:
        return DEMO, []
    file = find_weights(named)
    check_architecture(file.load())
    if is_s3(file.uri):
        return file.uri, []
    # The file keeps its name, which the catalogue states.
    uri = f"s3://{stack.bucket}/{WEIGHTS}/{file.sha256[:16]}/{storage.basename(file.uri)}"
    return uri, [Upload(file.uri, uri, Path(file.uri).stat().st_size, file.sha256)]
