"""Start, describe, follow and stop executions of a stack's state machine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from msgspec import field

from ...aws_lambda.summarize import RunIncomplete
from ...console.progress import poll_progress
from ...errors import InputError, StorageError
from ...records import decode_json
from ...runs.store import RunFolder
from .clients import Account, describe_aws_errors

POLL_INTERVAL = 2.0  # seconds between requests to Step Functions
WORKING = ("RUNNING", "PENDING_REDRIVE")
MAX_CAUSE = 1000  # characters of a cause
DENIED = ("AccessDenied", "(403)")
MORE_FOLDERS = (
    "the stack's functions read only in its own folders: copy surveys and weights to surveys/ and weights/ of its "
    "bucket, or name other folders with `python aws/deploy.py up` (see its --help)"
)


@dataclass(frozen=True)
class Execution:
    """The state of an execution, as AWS describes it."""

    arn: str
    status: str
    started_at: datetime
    error: str | None = None
    cause: str | None = None

    @property
    def name(self) -> str:
        """Its name, unique in the state machine."""
        return execution_name(self.arn)

    @property
    def is_working(self) -> bool:
        """Whether it has not ended."""
        return self.status in WORKING

    @property
    def has_summarized(self) -> bool:
        """Whether the run's summary describes the outcome of this execution."""
        return self.status == "SUCCEEDED" or self.error == RunIncomplete.__name__

    def __str__(self) -> str:
        if self.is_working:
            return f"execution {self.name}: {self.status} since {self.started_at:%F %T %Z}"
        reasons = [text for text in (self.error, _describe_cause(self.cause)) if text]
        text = ": ".join([f"execution {self.name}", self.status, *reasons])
        return f"{text}; {MORE_FOLDERS}" if any(word in text for word in DENIED) else text


class _FunctionError(msgspec.Struct, frozen=True):
    """What Lambda reports of a function that raised an exception."""

    message: str = field(name="errorMessage")


def execution_name(arn: str) -> str:
    """Return the name of an execution."""
    return arn.rpartition(":")[2]


def describe_execution(account: Account, arn: str) -> Execution | None:
    """Return the state of an execution, None if it does not exist. Raises InputError if AWS refuses to say."""
    client = account.client("stepfunctions")
    with describe_aws_errors(f"describe the execution {execution_name(arn)}"):
        try:
            response = client.describe_execution(executionArn=arn)
        except client.exceptions.ExecutionDoesNotExist:
            return None
    return Execution(arn, response["status"], response["startDate"], response.get("error"), response.get("cause"))


def add_next_execution(account: Account, machine: str, name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the ARNs of a run's executions, oldest first, and of the next one: NAME-1, NAME-2 and so on.

    The known ones may be incomplete, and the last one may never have started. Raises InputError if one is running.
    """
    arns, number = list(known), max(1, len(known))
    while True:
        arn = f"{machine.replace(':stateMachine:', ':execution:', 1)}:{name}-{number}"
        existing = describe_execution(account, arn)
        if existing is None:
            return (*(other for other in arns if other != arn), arn)
        if existing.is_working:
            raise InputError(
                f"the execution {existing.name} is at work on this run; wait for its end, or stop it in the console"
            )
        arns += [arn] if arn not in arns else []
        number += 1


def start_execution(account: Account, machine: str, arn: str, payload: Mapping[str, Any]) -> None:
    """Start the execution that will have this ARN. Raises InputError if AWS refuses."""
    name = execution_name(arn)
    with describe_aws_errors(f"start the execution {name}"):
        account.client("stepfunctions").start_execution(
            stateMachineArn=machine, name=name, input=json.dumps(payload, sort_keys=True)
        )


def stop_execution(account: Account, arn: str) -> bool:
    """Stop an execution and return whether it was running. Functions that are being invoked end by themselves."""
    existing = describe_execution(account, arn)
    if existing is None or not existing.is_working:
        return False
    with describe_aws_errors(f"stop the execution {existing.name}"):
        account.client("stepfunctions").stop_execution(executionArn=arn, cause="stopped by `python -m launch cancel`")
    return True


def follow_execution(account: Account, arn: str, run: RunFolder) -> Execution:
    """Show the progress of an execution until it ends; return its state. Raises InputError if AWS does not answer."""
    while (execution := _require_execution(account, arn)).is_working and not run.has_plan():
        time.sleep(POLL_INTERVAL)
    if not execution.is_working:
        return execution
    plan, done = run.plan(), 0

    def count() -> int:
        nonlocal done
        with suppress(StorageError):  # the next request may succeed
            done = plan.galaxies_of(run.parts())
        return done

    with poll_progress(plan.galaxies, count) if count() < plan.galaxies else nullcontext():
        while (execution := _require_execution(account, arn)).is_working:
            time.sleep(POLL_INTERVAL)
    return execution


def _require_execution(account: Account, arn: str) -> Execution:
    execution = describe_execution(account, arn)
    if execution is None:
        raise InputError(
            f"there is no execution {execution_name(arn)} on AWS; start it again with `python -m launch resume`"
        )
    return execution


def _describe_cause(cause: str | None) -> str:
    """Return the text of a cause; for a function that raised, only the message."""
    text = cause or ""
    with suppress(InputError):
        text = decode_json(text, _FunctionError, where="the cause", remedy="").message
    return " ".join(text.split())[:MAX_CAUSE]
