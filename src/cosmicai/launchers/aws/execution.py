"""Executions of a stack's state machine: how one begins, stands, ends and is stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ...aws_lambda.summarize import RunIncomplete
from ...console.progress import polled
from ...errors import InputError, StorageError
from ...runs.store import RunFolder
from .clients import Account, explained_aws

LOOK_EVERY = 2.0  # seconds between questions to Step Functions
WORKING = ("RUNNING", "PENDING_REDRIVE")
LONGEST = 1000  # characters of a cause
DENIED = ("AccessDenied", "(403)")
MORE_FOLDERS = (
    "the stack's functions read only in its own folders: copy surveys and weights to surveys/ and weights/ of its "
    "bucket, or name other folders with `python aws/deploy.py up` (see its --help)"
)


@dataclass(frozen=True)
class Execution:
    """How an execution stands, in AWS's words."""

    arn: str
    status: str
    started_at: datetime
    error: str | None = None
    cause: str | None = None

    @property
    def name(self) -> str:
        """What it is called beside the others of its state machine."""
        return name_of(self.arn)

    @property
    def is_working(self) -> bool:
        """Whether it has not ended."""
        return self.status in WORKING

    @property
    def has_summarized(self) -> bool:
        """Whether the run's summary tells what came of this execution."""
        return self.status == "SUCCEEDED" or self.error == RunIncomplete.__name__

    def __str__(self) -> str:
        if self.is_working:
            return f"execution {self.name}: {self.status} since {self.started_at:%F %T %Z}"
        why = [text for text in (self.error, _sentence(self.cause)) if text]
        told = ": ".join([f"execution {self.name}", self.status, *why])
        return f"{told}; {MORE_FOLDERS}" if any(word in told for word in DENIED) else told


def name_of(arn: str) -> str:
    """The name of an execution."""
    return arn.rpartition(":")[2]


def look(account: Account, arn: str) -> Execution | None:
    """How an execution stands; None if there is none. Raises InputError if AWS cannot be asked."""
    client = account.client("stepfunctions")
    with explained_aws(f"ask for the execution {name_of(arn)}"):
        try:
            told = client.describe_execution(executionArn=arn)
        except client.exceptions.ExecutionDoesNotExist:
            return None
    return Execution(arn, told["status"], told["startDate"], told.get("error"), told.get("cause"))


def with_next(account: Account, machine: str, name: str, known: Sequence[str]) -> tuple[str, ...]:
    """The ARNs of a run's executions, oldest first, and of one more that is not there yet: NAME-1, NAME-2 and so on.

    Known ones may be incomplete, and the last one may never have begun. Raises InputError if one is at work.
    """
    found, number = list(known), max(1, len(known))
    while True:
        arn = f"{machine.replace(':stateMachine:', ':execution:', 1)}:{name}-{number}"
        there = look(account, arn)
        if there is None:
            return (*(one for one in found if one != arn), arn)
        if there.is_working:
            raise InputError(
                f"the execution {there.name} is at work on this run; wait for its end, or stop it in the console"
            )
        found += [arn] if arn not in found else []
        number += 1


def begin(account: Account, machine: str, arn: str, payload: Mapping[str, Any]) -> None:
    """Starts the execution that will have this ARN. Raises InputError if AWS refuses."""
    name = name_of(arn)
    with explained_aws(f"start the execution {name}"):
        account.client("stepfunctions").start_execution(
            stateMachineArn=machine, name=name, input=json.dumps(payload, sort_keys=True)
        )


def stop(account: Account, arn: str) -> bool:
    """Stops an execution; says whether it was at work. Functions that are called already end by themselves."""
    there = look(account, arn)
    if there is None or not there.is_working:
        return False
    with explained_aws(f"stop the execution {there.name}"):
        account.client("stepfunctions").stop_execution(executionArn=arn, cause="stopped by `python -m launch cancel`")
    return True


def follow(account: Account, arn: str, run: RunFolder) -> Execution:
    """Shows the progress of an execution until it ends. Raises InputError if it cannot be asked for."""
    while (there := _there(account, arn)).is_working and not run.has_plan():
        time.sleep(LOOK_EVERY)
    if not there.is_working:
        return there
    plan, done = run.plan(), 0

    def count() -> int:
        nonlocal done
        with suppress(StorageError):  # the next look may get an answer
            done = plan.galaxies_of(run.parts())
        return done

    with polled(plan.galaxies, count) if count() < plan.galaxies else nullcontext():
        while (there := _there(account, arn)).is_working:
            time.sleep(LOOK_EVERY)
    return there


def _there(account: Account, arn: str) -> Execution:
    there = look(account, arn)
    if there is None:
        raise InputError(f"AWS knows no execution {name_of(arn)}; start it again with `python -m launch resume`")
    return there


def _sentence(cause: str | None) -> str:
    """What a cause says: of a function that raised, the message alone."""
    text = cause or ""
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["errorMessage"])
    return " ".join(text.split())[:LONGEST]
