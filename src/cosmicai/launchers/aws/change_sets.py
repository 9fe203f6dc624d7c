"""What CloudFormation is about to change, and waiting until it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from .clients import explained_aws

LOOK_EVERY = {"change set": 2, "stack": 5}  # seconds between questions how far it is
LONGEST = 3600  # seconds that it may take
NO_CHANGES = ("didn't contain changes", "No updates are to be performed")


@dataclass(frozen=True)
class Change:
    """What happens to one resource: Add, Modify or Remove; `replacement` is True, False or Conditional, empty where
    nothing can be replaced."""

    action: str
    resource: str
    kind: str
    replacement: str = ""


def prepared(client: Any, name: str, change_set: str) -> list[Change] | None:
    """What a change set would do to a stack, once CloudFormation knows; None if it would do nothing.

    Raises InputError if CloudFormation refuses to do it, or cannot be asked.
    """
    from botocore.exceptions import WaiterError

    with explained_aws(f"prepare a change of the stack {name}"):
        try:
            client.get_waiter("change_set_create_complete").wait(
                ChangeSetName=change_set, WaiterConfig=_patience("change set")
            )
        except WaiterError as error:
            reason = error.last_response.get("StatusReason", "")
            if any(text in reason for text in NO_CHANGES):
                return None
            if error.last_response.get("Status") == "FAILED":
                raise InputError(f"CloudFormation refuses to change the stack {name}: {reason}") from None
            raise
        pages = client.get_paginator("describe_change_set").paginate(ChangeSetName=change_set)
        found = [one["ResourceChange"] for page in pages for one in page.get("Changes", [])]
    return [
        Change(one["Action"], one["LogicalResourceId"], one["ResourceType"], one.get("Replacement", ""))
        for one in found
    ]


def await_end(client: Any, end: str, name: str, stack_id: str, token: str) -> None:
    """Waits until a stack has come to an end (a waiter's name) of what was asked with the token.

    Raises InputError if it does not, with the reasons of the resources that failed, the first one first.
    """
    from botocore.exceptions import WaiterError

    try:
        with explained_aws(f"wait for the stack {name}"):
            try:
                client.get_waiter(end).wait(StackName=stack_id, WaiterConfig=_patience("stack"))
            except WaiterError:
                if not (reasons := _reasons(client, stack_id, token)):
                    raise
                told = f"CloudFormation could not do this to the stack {name}: {', '.join(reasons)}"
                raise InputError(f"{told}; mend that and try again") from None
    except KeyboardInterrupt:
        told = "no longer waiting for CloudFormation, which goes on"
        raise InputError(f"{told}; look with `python aws/deploy.py status --stack {name}`") from None


def _reasons(client: Any, stack_id: str, token: str) -> list[str]:
    """Why resources failed, without those that were given up because of another one."""
    pages = client.get_paginator("describe_stack_events").paginate(StackName=stack_id)
    told = [one for page in pages for one in page["StackEvents"] if one.get("ClientRequestToken") == token]
    failed = [one for one in reversed(told) if one["ResourceStatus"].endswith("_FAILED")]
    reasons = [(one["LogicalResourceId"], one.get("ResourceStatusReason", "no reason given")) for one in failed]
    return [f"{resource} ({reason})" for resource, reason in reasons if "cancelled" not in reason]


def _patience(what: str) -> dict[str, int]:
    return {"Delay": LOOK_EVERY[what], "MaxAttempts": LONGEST // LOOK_EVERY[what]}
