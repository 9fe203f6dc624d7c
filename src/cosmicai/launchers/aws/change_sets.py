"""CloudFormation change sets: what a change would do to each resource, and waiting until it is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from .clients import describe_aws_errors

POLL_INTERVAL = {"change set": 2, "stack": 5}  # seconds
TIMEOUT = 3600  # seconds
NO_CHANGES = ("didn't contain changes", "No updates are to be performed")


@dataclass(frozen=True)
class Change:
    """A change of one resource: `action` is Add, Modify or Remove.

    `replacement` is True, False or Conditional, or empty where nothing can be replaced.
    """

    action: str
    resource: str
    kind: str
    replacement: str = ""


def await_change_set(client: Any, name: str, change_set: str) -> list[Change] | None:
    """Wait until CloudFormation has prepared a change set and return its changes; None if nothing would change.

    Raises InputError if CloudFormation refuses the change set or cannot be reached.
    """
    from botocore.exceptions import WaiterError

    with describe_aws_errors(f"prepare a change of the stack {name}"):
        try:
            client.get_waiter("change_set_create_complete").wait(
                ChangeSetName=change_set, WaiterConfig=_waiter_config("change set")
            )
        except WaiterError as error:
            reason = error.last_response.get("StatusReason", "")
            if any(text in reason for text in NO_CHANGES):
                return None
            if error.last_response.get("Status") == "FAILED":
                raise InputError(f"CloudFormation refuses to change the stack {name}: {reason}") from None
            raise
        pages = client.get_paginator("describe_change_set").paginate(ChangeSetName=change_set)
        changes = [change["ResourceChange"] for page in pages for change in page.get("Changes", [])]
    return [
        Change(change["Action"], change["LogicalResourceId"], change["ResourceType"], change.get("Replacement", ""))
        for change in changes
    ]


def await_stack(client: Any, waiter: str, name: str, stack_id: str, token: str) -> None:
    """Wait with the boto3 `waiter` of this name until the request with the token is done.

    Raises InputError if it fails, with the reasons of the resources that failed, in their order.
    """
    from botocore.exceptions import WaiterError

    try:
        with describe_aws_errors(f"wait for the stack {name}"):
            try:
                client.get_waiter(waiter).wait(StackName=stack_id, WaiterConfig=_waiter_config("stack"))
            except WaiterError:
                if not (reasons := _reasons(client, stack_id, token)):
                    raise
                raise InputError(
                    f"CloudFormation could not change the stack {name}: {', '.join(reasons)}; correct it and try again"
                ) from None
    except KeyboardInterrupt:
        raise InputError(
            "no longer waiting for CloudFormation, which continues; check with "
            f"`python aws/deploy.py status --stack {name}`"
        ) from None


def _reasons(client: Any, stack_id: str, token: str) -> list[str]:
    """Return why resources failed, without those that were cancelled because of another one."""
    pages = client.get_paginator("describe_stack_events").paginate(StackName=stack_id)
    events = [event for page in pages for event in page["StackEvents"] if event.get("ClientRequestToken") == token]
    failed = [event for event in reversed(events) if event["ResourceStatus"].endswith("_FAILED")]
    reasons = [(event["LogicalResourceId"], event.get("ResourceStatusReason", "no reason given")) for event in failed]
    return [f"{resource} ({reason})" for resource, reason in reasons if "cancelled" not in reason]


def _waiter_config(kind: str) -> dict[str, int]:
    return {"Delay": POLL_INTERVAL[kind], "MaxAttempts": TIMEOUT // POLL_INTERVAL[kind]}
