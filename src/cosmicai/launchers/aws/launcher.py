"""Run on AWS: upload the survey to S3, let a state machine process each partition, and fetch the run folder.

The `cloud.json` of the folder for the results says where the run is. It is the only state: any copy of the folder can
be used to inspect, stop or resume the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import structs

from ... import storage
from ...console import echo, notify
from ...errors import InputError, describe_os_errors
from ...runs.store import RunFolder
from ...runs.summary import Summary, count_coverage
from ...storage.s3 import is_s3
from ...surveys.check import inspect_survey
from ..base import CloudRequest, LaunchRequest, RemoteStatus, ResumeRequest, Submission
from ..submission import CloudRun, read_cloud_run
from . import estimate, execution, stage, transfer
from .account import account_for_request, account_for_run
from .clients import Account
from .execution import Execution
from .stack import Stack, change_stack, find_stack, list_running_executions

# Keys of a payload that must be the same to resume a run; the latter only if they are requested, and with the value
# that they have in a payload without them.
FIXED = ("bucket", "result_path", "data_bucket", "data_prefix", "data_map", "file_limit", "weights")
FIXED_IF_REQUESTED = {
    "batch_size": None, "precision": None, "views": 1, "quantiles": False, "calibrate_on_spectra": False,
}  # fmt: skip


class AwsLauncher:
    """Runs each partition of a survey as an execution of a stack's state machine, and fetches the results."""

    name = "aws"

    def __init__(self) -> None:
        self._account: Account | None = None

    def estimate(self, request: LaunchRequest) -> Iterator[str]:
        """Yield what would be uploaded, and the ranks, requests, time and price of a run."""
        account, stack, _, run = _resolve(request)
        yield from estimate.describe_estimate(request, account.region_name, stack, run)

    def submit(self, request: LaunchRequest) -> Submission:
        """Start a run and, unless it is to be detached, follow it to its end and fetch the results.

        Raises InputError if something requested cannot be used, if `out` holds another run, or holds this one and is
        not to be resumed, if an execution is at work on it, if it fails before there is a plan, or if AWS refuses.
        """
        cloud, resume = request.cloud or CloudRequest(), request.run.resume
        account, stack, folder, run = _resolve(request)
        if known := _read_known_run(folder, resume):
            _require_idle(account, folder, known)
        elif not resume and run.has_plan():
            raise InputError(f"{run.uri} already holds a run; finish it with --resume or choose another --out")
        prefix = f".{storage.basename(folder.uri)}.partitions-"
        with TemporaryDirectory(prefix=prefix, dir=_folder_for_partitions(folder, cloud)) as temporary:
            survey = stage.open_survey(request, temporary)
            # One on S3 is inspected where the run is planned, which is nearer, but only after something was written.
            if not known and (request.run.strict or not is_s3(survey.uri)):
                inspect_survey(survey, request.run.strict, notify)
            prepared = stage.prepare(stack, run, survey, request)
            if known:
                _require_same(folder, known.payload, prepared.payload)
            stack = _set_memory(account, stack, cloud.memory)
            prepared.upload()
        submitted = CloudRun(
            run=run.uri,
            stack=stack.name,
            region=account.region_name,
            profile=None if is_s3(folder.uri) else account.profile,
            endpoint_url=account.endpoint_url,
            executions=known.executions if known else (),
            payload=(known.payload if known else {}) | prepared.payload,
            submitted_at=_now(),
        )
        return _execute(account, stack, folder, submitted, request.detach, is_new=known is None)

    def resume(self, run: RunFolder, request: ResumeRequest) -> Submission:
        """Do what is missing of a run by another execution with the same payload, or fetch the results of one that is
        complete.

        Raises InputError if other ranks are requested, if an execution is at work on the run, or if AWS refuses.
        """
        submitted = read_cloud_run(run)
        if submitted is None:
            raise InputError(f"{run.uri} is not for the results of a run in the cloud; it has no cloud.json")
        if request.options:
            raise InputError(
                f"{request.options[0]} has no effect on a run in the cloud; leave it out, or finish the run elsewhere "
                f"with `python -m launch resume {submitted.run} {request.options[0]} ...`"
            )
        if summary := run.complete_summary():
            return _report(run, summary)
        account = account_for_run(submitted)
        stack = find_stack(account, submitted.stack)
        _require_idle(account, run, submitted)
        return _execute(account, stack, run, submitted, request.detach, is_new=False)

    def status(self, run: RunFolder) -> RemoteStatus:
        """Return how the newest execution of a run stands; nothing of a run that was complete at the first call."""
        submitted = read_cloud_run(run)
        if submitted is None or (self._account is None and run.complete_summary()):
            return RemoteStatus()
        self._account = account = self._account or account_for_run(submitted)
        arn = submitted.execution
        working: tuple[str, ...] = ()
        ended: tuple[str, ...] = ()
        newest = execution.describe_execution(account, arn) if arn else None
        if newest is None:
            ended = (f"no execution has begun on {submitted.run}",)
        elif newest.is_working:
            working = (f"{newest}, on {submitted.run}",)
        elif newest.status == "SUCCEEDED" and run.uri != submitted.run:
            ended = (str(newest), f"fetch the results with `python -m launch resume {run.uri}`")
        else:
            ended = (str(newest),)
        return RemoteStatus(working, ended, "its execution", RunFolder(submitted.run), is_exclusive=True)

    def cancel(self, run: RunFolder) -> tuple[str, ...]:
        """Stop the execution that is at work on a run. Raises InputError if AWS refuses."""
        submitted = read_cloud_run(run)
        if submitted is None or submitted.execution is None:
            return ()
        stopped = execution.stop_execution(account_for_run(submitted), submitted.execution)
        return (f"execution {execution.execution_name(submitted.execution)}",) if stopped else ()


def _resolve(request: LaunchRequest) -> tuple[Account, Stack, RunFolder, RunFolder]:
    """Return the account, the stack, the folder for the results, and the folder of the run on S3."""
    cloud = request.cloud or CloudRequest()
    folder = RunFolder(storage.absolute(request.run.out))
    account = account_for_request(cloud)
    stack = find_stack(account, cloud.stack)
    return account, stack, folder, stage.locate_run(stack, folder)


def _read_known_run(folder: RunFolder, resume: bool) -> CloudRun | None:
    """Return the run in the cloud whose results a folder is for. Raises InputError if it must not be used for it."""
    known = read_cloud_run(folder)
    if known and not resume:
        raise InputError(f"{folder.uri} already holds this run; finish it with --resume or choose another --out")
    if not known and not is_s3(folder.uri) and folder.has_plan():
        raise InputError(f"{folder.uri} holds a run that is not in the cloud; choose another --out")
    return known


def _require_idle(account: Account, folder: RunFolder, submitted: CloudRun) -> None:
    """Raise InputError if an execution of the run has not ended."""
    newest = execution.describe_execution(account, submitted.execution) if submitted.execution else None
    if newest and newest.is_working:
        raise InputError(
            f"the execution {newest.name} ({newest.status}) is at work on {folder.uri}; stop it with `python -m launch "
            f"cancel {folder.uri}` or watch it with `python -m launch status --watch {folder.uri}`"
        )


def _require_same(folder: RunFolder, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError if two payloads are not for the same run."""
    different = [name for name in FIXED if before.get(name) != now.get(name)]
    different += [
        name for name, absent in FIXED_IF_REQUESTED.items() if name in now and now[name] != before.get(name, absent)
    ]
    if different:
        raise InputError(
            f"{folder.uri} belongs to another run (it differs in {', '.join(different)}); choose another --out"
        )


def _set_memory(account: Account, stack: Stack, memory_mb: int | None) -> Stack:
    """Return the stack, changed to this memory per rank. Raises InputError if that would affect other runs."""
    if memory_mb in (None, stack.memory_mb):
        return stack
    if names := list_running_executions(account, stack.state_machine):
        raise InputError(
            f"--memory {memory_mb} would change the stack {stack.name} while runs are in progress "
            f"({', '.join(names)}); wait for them, stop them, or use the stack's {stack.memory_mb} MB"
        )
    notify(f"changing the stack {stack.name} from {stack.memory_mb} to {memory_mb} MB for each rank")
    change_stack(account, stack.name, None, {"MemoryMB": str(memory_mb)}, lambda changes: True)
    return find_stack(account, stack.name)


def _folder_for_partitions(folder: RunFolder, request: CloudRequest) -> str | None:
    """Return where to cut a survey into other partitions: next to the results, if they are local."""
    if request.partition_mb is None or is_s3(folder.uri):
        return None
    parent = Path(folder.uri).parent
    with describe_os_errors(str(parent), "write"):
        parent.mkdir(parents=True, exist_ok=True)
    return str(parent)


def _execute(
    account: Account, stack: Stack, folder: RunFolder, submitted: CloudRun, detach: bool, *, is_new: bool
) -> Submission:
    """Start an execution for what is missing of a run and, without `detach`, follow it to its end."""
    run = RunFolder(submitted.run)
    is_complete = run.complete_summary() is not None
    if not is_complete:
        name = stage.cloud_name(folder)
        arns = execution.add_next_execution(account, stack.state_machine, name, submitted.executions)
        submitted = structs.replace(submitted, executions=arns, submitted_at=_now())
    if not is_new:
        storage.write_bytes(folder.cloud_path, submitted.to_json())
    elif not storage.create_bytes(folder.cloud_path, submitted.to_json()):
        raise InputError(f"another launcher has just begun a run in {folder.uri}; choose another --out")
    if is_complete:
        return _finish(folder, run, None)
    # Only now: a launcher that dies here leaves a folder that knows the name of the execution.
    arn = submitted.executions[-1]
    execution.start_execution(account, stack.state_machine, arn, submitted.payload)
    fetch = f"`python -m launch resume {folder.uri}`"
    lines = (
        f"execution {execution.execution_name(arn)} is at work on {run.uri}",
        f"watch it with `python -m launch status --watch {folder.uri}`",
        f"stop it with `python -m launch cancel {folder.uri}`",
    )
    if detach:
        return Submission(folder, (*lines, f"when it has ended, fetch its results with {fetch}"))
    for line in lines:
        echo(line)
    try:
        ended = execution.follow_execution(account, arn, run)
    except KeyboardInterrupt:
        raise InputError(
            f"no longer watching; the execution goes on, stop it with `python -m launch cancel {folder.uri}` or fetch "
            f"its results, when it has ended, with {fetch}"
        ) from None
    except InputError as error:
        raise InputError(
            f"{error}; the execution goes on, fetch its results, when it has ended, with {fetch}"
        ) from None
    return _finish(folder, run, ended)


def _finish(folder: RunFolder, run: RunFolder, ended: Execution | None) -> Submission:
    """Fetch the results of an execution that has ended, or of a run that was complete before.

    Raises InputError if there is not even a plan.
    """
    if not run.has_plan():
        raise InputError(str(ended))
    if folder != run:
        transfer.download_run(run, folder)
    if ended and ended.status != "SUCCEEDED":
        notify(str(ended))
    if run.complete_summary() or (ended and ended.has_summarized):
        summary = folder.summary()
        assert summary
        return _report(folder, summary)
    coverage = count_coverage(run.plan(), run.parts())  # a summary would be that of an earlier execution
    return Submission(
        folder, has_ended=True,
        incomplete=f"incomplete: {coverage.missing} of {coverage.planned} galaxies missing; finish the run with "
        f"`python -m launch resume {folder.uri}`",
    )  # fmt: skip


def _report(folder: RunFolder, summary: Summary) -> Submission:
    """Return the summary that is in a folder, and what the run cost."""
    summary = structs.replace(summary, catalogue=folder.catalogue_path, plot=folder.plot_path("png"))
    closing: tuple[str, ...] = ()
    if cost := summary.cost:
        place = f"{cost.region}, {cost.architecture}, list prices of {cost.prices_as_of}"
        price = f"{cost.dollars['total']:.6f} dollars ({place})" if cost.dollars else cost.unpriced
        closing = (f"{'cost':<13}{price}",)
    return Submission(folder, has_ended=True, summary=summary, closing=closing)


def _now() -> str:
    return datetime.now(UTC).isoformat()
