"""From what was asked for to what S3 must hold and what the state machine is told."""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import storage
from ...aws_lambda.payload import read_payload
from ...engines.registry import PRECISIONS
from ...errors import InputError
from ...models.weights import DEMO, check, find_weights
from ...runs.demo import named_survey
from ...runs.store import RunFolder
from ...storage.s3 import is_s3, s3_parts
from ...surveys.survey import Survey, galaxies_per_partition, resplit
from ..request import CloudRequest
from .stack import Stack
from .transfer import Upload, describe, missing, send, shards_of, survey_id, with_checksums

RUNS, SURVEYS, WEIGHTS = "runs", "surveys", "weights"  # folders of a stack's bucket
LONGEST_NAME = 60  # characters; Step Functions allows 80 with all that is added


@dataclass(frozen=True)
class Prepared:
    """A payload for the state machine, the survey that it names, and files that S3 must have before, the local survey's
    shards among them."""

    payload: dict[str, Any]
    survey: Survey
    survey_uri: str
    uploads: list[Upload]

    def send(self) -> None:
        """Uploads what S3 does not have. Raises InputError as `transfer.send`."""
        send(missing(self.uploads))
        if not is_s3(self.survey.uri):
            describe(self.survey, self.survey_uri)


def short_name(folder: RunFolder) -> str:
    """What a run is called in the cloud: the end of its folder's name, and what tells it from all others of that name,
    on other machines too."""
    where = folder.uri if is_s3(folder.uri) else f"{platform.node()}:{folder.uri}"
    name = re.sub(r"[^A-Za-z0-9._-]", "-", storage.basename(folder.uri))[:LONGEST_NAME]
    return f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"


def run_on_s3(stack: Stack, folder: RunFolder) -> RunFolder:
    """Where a run is whose results are to be in this folder. Raises InputError if the stack cannot write there."""
    if not is_s3(folder.uri):
        return RunFolder(f"s3://{stack.bucket}/{RUNS}/{short_name(folder)}")
    bucket, key = s3_parts(folder.uri)
    if bucket != stack.bucket or not key.startswith(f"{RUNS}/"):
        raise InputError(
            f"{folder.uri}: the stack {stack.name} keeps runs under s3://{stack.bucket}/{RUNS}/; choose an --out there "
            "or a local folder"
        )
    return folder


def opened(survey: str, out: str, request: CloudRequest, limit: int | None, temporary: str) -> Survey:
    """The survey as it is to be read there, of no more than `limit` shards; cut anew into the temporary folder if that
    is asked for. Raises InputError as `open_survey` does, or if there is nothing to do or nothing to cut."""
    found = named_survey(survey, out)
    if request.partition_mb is not None:
        require_local(found, request.partition_mb)
        found = resplit(found, storage.join(temporary, "survey"), galaxies_per_partition(request.partition_mb))
    found = Survey(found.uri, found.shards[:limit])
    if not found.galaxies:
        raise InputError(f"{found.uri} holds no galaxies; nothing to do")
    return found


def require_local(survey: Survey, partition_mb: float) -> None:
    """Raises InputError if a survey cannot be cut anew on its way."""
    if is_s3(survey.uri):
        raise InputError(
            f"--partition-mb {partition_mb:g} cuts a local survey, and {survey.uri} is on S3; cut it where it came "
            "from with `cosmicai split`, or leave --partition-mb out"
        )


def prepare(
    stack: Stack, run: RunFolder, named: str, survey: Survey, request: CloudRequest, options: dict[str, Any]
) -> Prepared:
    """What a run needs, of a survey that was `named` so. Raises InputError if weights or options cannot be used."""
    weights, uploads = _weights(stack, options["weights"])
    if options["precision"] not in (None, *PRECISIONS["openvino"]):
        raise InputError(
            f"--cloud and --precision {options['precision']} contradict each other; OpenVINO, which computes on AWS, "
            f"has {', '.join(PRECISIONS['openvino'])}"
        )
    uri, source = survey.uri, dict[str, Any]()
    if is_s3(uri):
        prefix = s3_parts(uri)[1]
        if storage.absolute(named) != uri:  # a single file of that folder
            source["data_map"] = {"0": [f"{prefix}/{survey.shards[0].name}"]}
        elif options["limit_files"]:
            source["file_limit"] = options["limit_files"]
    else:
        survey = with_checksums(survey)
        uri = f"s3://{stack.bucket}/{SURVEYS}/{survey_id(survey)}"
        uploads += shards_of(survey, uri)
    data_bucket, data_prefix = s3_parts(uri)
    bucket, result_path = s3_parts(run.uri)
    asked = {
        "bucket": bucket, "result_path": result_path, "data_bucket": data_bucket, "data_prefix": data_prefix, **source,
        "weights": weights, "batch_size": options["batch_size"], "precision": options["precision"],
        "accept_precision_loss": options["accept_precision_loss"] or None, "max_concurrency": request.concurrency,
        "tolerated_failure_percentage": request.tolerate, "fmi_enabled": request.fmi or None,
    }  # fmt: skip
    payload = {name: value for name, value in asked.items() if value is not None}
    read_payload(payload)
    return Prepared(payload, survey, uri, uploads)


def _weights(stack: Stack, named: str) -> tuple[str, list[Upload]]:
    """The address of the weights for the functions, and what must be uploaded for that."""
    if named == DEMO:
        return DEMO, []
    file = find_weights(named)
    check(file.load())
    if is_s3(file.uri):
        return file.uri, []
    uri = f"s3://{stack.bucket}/{WEIGHTS}/{file.sha256[:16]}.safetensors"
    return uri, [Upload(file.uri, uri, Path(file.uri).stat().st_size, file.sha256)]
