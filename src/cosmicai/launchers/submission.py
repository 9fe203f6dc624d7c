"""What a run folder keeps about where the run was submitted, so that any copy of it can inspect, stop or resume it."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from .. import storage
from ..errors import InputError
from ..records import decode_json
from ..runs.store import RunFolder
from ..storage.s3 import is_s3
from .base import RankRequest, SlurmRequest


class SubmittedRequest(msgspec.Struct, frozen=True):
    """What was requested of SLURM, under the names that a submission's file has for it."""

    ranks: RankRequest = msgspec.field(name="request")
    slurm: SlurmRequest = msgspec.field(name="batch")


class SlurmSubmission(msgspec.Struct, frozen=True):
    """Jobs that work on a run together.

    `folder` holds what they print and what submitit needs, `worker` is the command line of `cosmicai` that each rank
    runs, and `jobs` are SLURM's numbers. Times are ISO 8601.
    """

    name: str
    folder: str
    options: SubmittedRequest
    worker: tuple[str, ...]
    submitted_at: str
    jobs: tuple[str, ...] = ()

    def save(self, run: RunFolder) -> None:
        """Write the submission into the run folder."""
        run.write_json(run.submission_path(self.name), msgspec.to_builtins(self))


class CloudRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run in the cloud, as `cloud.json` in the local folder of its results describes it.

    `run` is its address on S3; `stack`, `region`, `profile` and `endpoint_url` say how to reach it; `executions` are
    the ARNs of its executions, oldest first, the newest of which is `execution`; `payload` is what they start with.
    """

    run: str
    stack: str
    region: str
    profile: str | None
    endpoint_url: str | None
    executions: tuple[str, ...]
    payload: dict[str, Any]
    submitted_at: str
    execution: str | None = None

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "execution", self.executions[-1] if self.executions else None)

    def to_json(self) -> bytes:
        """Return the content of `cloud.json`."""
        return (json.dumps(msgspec.to_builtins(self), indent=1) + "\n").encode()


def read_submissions(run: RunFolder) -> list[SlurmSubmission]:
    """Return all submissions of a run to SLURM, oldest first. Raises InputError if a file of one is damaged."""
    found = [(path, storage.read_if_exists(path)) for path in run.submission_paths()]
    remedy = "put back what `python -m launch` wrote, or remove it"
    read = [decode_json(data, SlurmSubmission, where=path, remedy=remedy) for path, data in found if data]
    return sorted(read, key=lambda submission: submission.submitted_at)


def read_cloud_run(run: RunFolder) -> CloudRun | None:
    """Return the run in the cloud whose results a folder is for; None if there is none.

    Raises InputError if its file is damaged.
    """
    data = storage.read_if_exists(run.cloud_path)
    if data is None:
        return None
    return decode_json(data, CloudRun, where=run.cloud_path, remedy="put back what `python -m launch` wrote")


def require_no_cloud_run(out: str) -> None:
    """Raise InputError if a folder is for the results of a run in the cloud, and so cannot hold another run."""
    if is_s3(out):
        return
    folder = RunFolder(storage.absolute(out))
    if submitted := read_cloud_run(folder):
        raise InputError(
            f"{folder.uri} is for the results of {submitted.run}, a run in the cloud; choose another --out, or finish "
            f"it with `python -m launch resume {folder.uri}`"
        )
