"""Where a run on AWS Lambda lies: its published results at `result_path`, and its run folder there or out of sight.

The published summarizer takes every JSON file whose key begins with `result_path`. A run that is planned by a call with
the published keys alone therefore has its run folder at `.cosmicai/RESULT_PATH`, where that prefix does not reach. With
this program's own state machine `result_path` is the run folder, as it was for all runs of earlier versions.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..runs.store import RunFolder
from ..storage.s3 import is_s3, split_s3_uri

HIDDEN = ".cosmicai"  # folder of the bucket


@dataclass(frozen=True)
class RunLocation:
    """The folder of the published results of a run, and its run folder, which may be the same."""

    results: RunFolder
    run: RunFolder

    @property
    def is_hidden(self) -> bool:
        """Whether the run folder lies where the published summarizer does not look."""
        return self.run.uri != self.results.uri


def normalize_result_path(path: str, where: str) -> str:
    """Return a `result_path` without slashes around it.

    Raises InputError, with `where` as its subject, if it is empty or as a prefix could reach a hidden run folder.
    """
    result_path = path.strip("/")
    if not result_path or f"{HIDDEN}/".startswith(result_path) or result_path.startswith(f"{HIDDEN}/"):
        raise InputError(
            f"{where} {path!r} cannot be used: results there would mix with the run folders in {HIDDEN}/; expected a "
            "folder such as results/1, name another"
        )
    return result_path


def locate_run(bucket: str, result_path: str, *below: str) -> RunLocation:
    """Return where the run of a `result_path` lies, or where the one in a folder `below` its run folder does.

    A run that has a plan is found in either place; the run folder of a new one is hidden.
    """
    results = RunFolder(f"s3://{bucket}/{result_path}")
    visible = RunFolder(results.path(*below)) if below else results
    return RunLocation(results, visible if visible.has_plan() else _hidden(bucket, result_path, *below))


def locate_own_run(bucket: str, result_path: str) -> RunLocation:
    """Return where this program's own state machine keeps a run: at `result_path`.

    Raises InputError if a run for that path has a hidden run folder already.
    """
    results = RunFolder(f"s3://{bucket}/{result_path}")
    if not results.has_plan() and (hidden := _hidden(bucket, result_path)).has_plan():
        raise InputError(
            f"{results.uri} holds the results of {hidden.uri}, which was planned without this program's state machine; "
            "finish that run as it was begun, or give this execution its own result_path"
        )
    return RunLocation(results, results)


def locate_folder(uri: str) -> RunLocation:
    """Return where the run with this run folder has its published results; outside S3 it holds them itself."""
    run = RunFolder(uri.rstrip("/"))
    if not is_s3(run.uri):
        return RunLocation(run, run)
    bucket, key = split_s3_uri(run.uri)
    results = key.removeprefix(f"{HIDDEN}/")
    return RunLocation(run if results == key else RunFolder(f"s3://{bucket}/{results}"), run)


def _hidden(bucket: str, *names: str) -> RunFolder:
    return RunFolder("/".join([f"s3://{bucket}", HIDDEN, *names]))
