"""Runs on AWS: the survey goes to S3, a state machine has each partition done, and the run folder comes back.

The folder into which the results are fetched says in its cloud.json where the run is, and that is all that need be
kept: whoever has it can look at the run, stop it and go on with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from ... import storage
from ...console import notify
from ...errors import InputError, explained
from ...runs.store import RunFolder
from ...runs.summary import count_coverage
from ...runs.summary_text import conclude
from ...storage.s3 import is_s3
from ..request import CloudRequest
from ..status import Elsewhere
from ..submission import CloudRun, cloud_run
from . import estimate, execution, stage, transfer
from .account import asked, reached
from .clients import Account
from .execution import Execution
from .stack import Stack, change, find_stack, running

# What must be the same in a payload to go on with a run; the latter ones only if they are asked for.
FIXED = ("bucket", "result_path", "data_bucket", "data_prefix", "data_map", "file_limit", "weights")
FIXED_IF_ASKED = ("batch_size", "precision")


def launch(
    survey: str, out: str, request: CloudRequest, options: dict[str, Any], *, dry_run: bool, resume: bool
) -> int:
    """Runs a survey in the cloud, or says what that would take; returns the exit code.

    Raises InputError if something that was asked for cannot be used, if `out` holds another run, or holds this one and
    `resume` is not set, if an execution is at work on it, if it fails before there is a plan, or if AWS refuses.
    """
    folder = RunFolder(storage.absolute(out))
    account = asked(request)
    stack = find_stack(account, request.stack)
    run = stage.run_on_s3(stack, folder)
    if dry_run:
        for line in estimate.estimate(survey, account.where, stack, run, request, options):
            click.echo(line)
        return 0
    if known := _known(folder, resume):
        _require_idle(account, folder, known)
    elif not resume and run.has_plan():
        raise InputError(f"{run.uri} already holds a run; finish it with --resume or choose another --out")
    with TemporaryDirectory(prefix=f".{storage.basename(folder.uri)}.partitions-", dir=_beside(folder, request)) as cut:
        opened = stage.opened(survey, out, request, options["limit_files"], cut)
        prepared = stage.prepare(stack, run, survey, opened, request, options)
        if known:
            _require_same(folder, known.payload, prepared.payload)
        stack = _with_memory(account, stack, request.memory)
        prepared.send()
    submitted = CloudRun(
        run.uri, stack.name, account.where, None if is_s3(folder.uri) else account.profile, account.endpoint_url,
        known.executions if known else (), (known.payload if known else {}) | prepared.payload, _now(),
    )  # fmt: skip
    return _go_on(account, stack, folder, submitted, request.detach, is_new=known is None)


def resume(folder: RunFolder, submitted: CloudRun, detach: bool) -> int:
    """Does what is missing of a run in the cloud, by another execution with the same payload, or fetches the results of
    one that is complete; returns the exit code. Raises InputError if an execution is at work on it, and as `launch`.
    """
    if folder.complete_summary():
        return _conclude(folder)
    account = reached(submitted)
    stack = find_stack(account, submitted.stack)
    _require_idle(account, folder, submitted)
    return _go_on(account, stack, folder, submitted, detach, is_new=False)


def stop(submitted: CloudRun) -> str | None:
    """Stops the execution that is at work on a run; returns its name, None if there is none."""
    arn = submitted.execution
    return execution.name_of(arn) if arn and execution.stop(reached(submitted), arn) else None


def watcher(folder: RunFolder, submitted: CloudRun) -> Callable[[], Elsewhere]:
    """Gives a function that says how the newest execution of a run stands."""
    account, arn = reached(submitted), submitted.execution

    def look() -> Elsewhere:
        there = execution.look(account, arn) if arn else None
        if there is None:
            return Elsewhere(ended=(f"no execution has begun on {submitted.run}",))
        if there.is_working:
            return Elsewhere(working=(f"{there}, on {submitted.run}",))
        if there.status == "SUCCEEDED" and folder.uri != submitted.run:
            return Elsewhere(ended=(str(there), f"fetch the results with `python -m launch resume {folder.uri}`"))
        return Elsewhere(ended=(str(there),))

    return look


def _known(folder: RunFolder, resume: bool) -> CloudRun | None:
    """The run in the cloud that a folder is for. Raises InputError if that is another one, or may not be resumed."""
    known = cloud_run(folder)
    if known and not resume:
        raise InputError(f"{folder.uri} already holds this run; finish it with --resume or choose another --out")
    if not known and not is_s3(folder.uri) and folder.has_plan():
        raise InputError(f"{folder.uri} holds a run that is not in the cloud; choose another --out")
    return known


def _require_idle(account: Account, folder: RunFolder, submitted: CloudRun) -> None:
    there = execution.look(account, submitted.execution) if submitted.execution else None
    if there and there.is_working:
        raise InputError(
            f"the execution {there.name} ({there.status}) is at work on {folder.uri}; stop it with `python -m launch "
            f"cancel {folder.uri}` or watch it with `python -m launch status --watch {folder.uri}`"
        )


def _require_same(folder: RunFolder, before: dict[str, Any], now: dict[str, Any]) -> None:
    different = [name for name in FIXED if before.get(name) != now.get(name)]
    different += [name for name in FIXED_IF_ASKED if name in now and now[name] != before.get(name)]
    if different:
        raise InputError(
            f"{folder.uri} belongs to another run (it differs in {', '.join(different)}); choose another --out"
        )


def _with_memory(account: Account, stack: Stack, memory_mb: int | None) -> Stack:
    """The stack with so much memory for each rank. Raises InputError if that would change other runs."""
    if memory_mb in (None, stack.memory_mb):
        return stack
    if names := running(account, stack.state_machine):
        raise InputError(
            f"--memory {memory_mb} would change the stack {stack.name} under runs that are going on "
            f"({', '.join(names)}); wait for them, stop them, or do with the stack's {stack.memory_mb} MB"
        )
    notify(f"changing the stack {stack.name} from {stack.memory_mb} to {memory_mb} MB for each rank")
    change(account, stack.name, None, {"MemoryMB": str(memory_mb)}, lambda changes: True)
    return find_stack(account, stack.name)


def _beside(folder: RunFolder, request: CloudRequest) -> str | None:
    """Where there is room to cut a survey anew: beside the results, if they are local."""
    if request.partition_mb is None or is_s3(folder.uri):
        return None
    beside = Path(folder.uri).parent
    with explained(str(beside), "write"):
        beside.mkdir(parents=True, exist_ok=True)
    return str(beside)


def _go_on(
    account: Account, stack: Stack, folder: RunFolder, submitted: CloudRun, detach: bool, *, is_new: bool
) -> int:
    """Starts an execution for what is missing and, without `detach`, follows it to its end; returns the exit code."""
    run = RunFolder(submitted.run)
    is_complete = run.complete_summary() is not None
    if not is_complete:
        name = stage.short_name(folder)
        arns = execution.with_next(account, stack.state_machine, name, submitted.executions)
        submitted = replace(submitted, executions=arns, submitted_at=_now())
    if not is_new:
        storage.write_bytes(folder.cloud_path, submitted.to_json())
    elif not storage.create_bytes(folder.cloud_path, submitted.to_json()):
        raise InputError(f"another launcher has just begun a run in {folder.uri}; choose another --out")
    if is_complete:
        return _finish(folder, run, None)
    # Only now: a launcher that dies here leaves a folder which knows the execution's name.
    arn = submitted.executions[-1]
    execution.begin(account, stack.state_machine, arn, submitted.payload)
    click.echo(f"execution {execution.name_of(arn)} is at work on {run.uri}")
    click.echo(f"watch it with `python -m launch status --watch {folder.uri}`")
    click.echo(f"stop it with `python -m launch cancel {folder.uri}`")
    fetch = f"`python -m launch resume {folder.uri}`"
    if detach:
        click.echo(f"when it has ended, fetch its results with {fetch}")
        return 0
    try:
        ended = execution.follow(account, arn, run)
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


def _finish(folder: RunFolder, run: RunFolder, ended: Execution | None) -> int:
    """Fetches what an execution that has `ended` left, or a run that was complete before, and tells how it went;
    returns the exit code. Raises InputError if there is not even a plan.
    """
    if not run.has_plan():
        raise InputError(str(ended))
    if folder != run:
        transfer.fetch(run, folder)
    if ended and ended.status != "SUCCEEDED":
        click.echo(str(ended), err=True)
    if run.complete_summary() or (ended and ended.has_summarized):
        return _conclude(folder)
    coverage = count_coverage(run.plan(), run.parts())  # a summary would be that of an earlier execution
    click.echo(
        f"incomplete: {coverage['missing']} of {coverage['asked']} galaxies missing; finish the run with "
        f"`python -m launch resume {folder.uri}`",
        err=True,
    )
    return 3


def _conclude(folder: RunFolder) -> int:
    """Prints the summary that is in a folder, and what the run cost; returns the exit code."""
    summary = folder.summary()
    assert summary
    code = conclude(summary | {"catalogue": folder.catalogue_path, "plot": folder.plot_path})
    if cost := summary["cost"]:
        place = f"{cost['region']}, {cost['architecture']}, list prices of {cost['prices_as_of']}"
        told = f"{cost['dollars']['total']:.6f} dollars ({place})" if cost["dollars"] else cost["unpriced"]
        click.echo(f"{'cost':<13}{told}")
    return code


def _now() -> str:
    return datetime.now(UTC).isoformat()
