"""The CloudFormation stack of aws/template.yaml: finding it, changing it by change sets, and removing it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from .change_sets import Change, await_end, prepared
from .clients import Account, explained_aws

CHANGEABLE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
NOT_MADE = "REVIEW_IN_PROGRESS"  # a stack of which there is nothing but a change set


@dataclass(frozen=True)
class Stack:
    """A stack that has an image, by the outputs of its template."""

    name: str
    outputs: dict[str, str]

    @property
    def bucket(self) -> str:
        """The bucket with surveys, weights and runs."""
        return self.outputs["BucketName"]

    @property
    def state_machine(self) -> str:
        """The ARN of the state machine that does a run."""
        return self.outputs["StateMachineArn"]

    @property
    def architecture(self) -> str:
        """That of the functions, x86_64 or arm64."""
        return self.outputs["Architecture"]

    @property
    def memory_mb(self) -> int:
        """Memory of a rank's function, in MB (2^20 bytes)."""
        return int(self.outputs["MemoryMB"])

    @property
    def ephemeral_mb(self) -> int:
        """Size of a rank's /tmp, in MB (2^20 bytes)."""
        return int(self.outputs["EphemeralStorageMB"])

    @property
    def timeout_seconds(self) -> int:
        """How long one invocation of a rank's function may take."""
        return int(self.outputs["TimeoutSeconds"])

    @property
    def max_concurrency(self) -> int:
        """How many ranks may be at work at a time."""
        return int(self.outputs["MaxConcurrency"])


def described(account: Account, name: str) -> dict[str, Any] | None:
    """What CloudFormation says of a stack; None if there is none. Raises InputError if it cannot be asked."""
    client = account.client("cloudformation")
    with explained_aws(f"ask for the stack {name}"):
        try:
            stack: dict[str, Any] = client.describe_stacks(StackName=name)["Stacks"][0]
        except client.exceptions.ClientError as error:
            if "does not exist" in error.response["Error"]["Message"]:
                return None
            raise
    return None if stack["StackStatus"] == NOT_MADE else stack


def require_ours(stack: Mapping[str, Any]) -> None:
    """Raises InputError if a described stack is none of our template."""
    if not {"ImageDigest", "DefinitionKey"} <= {one["ParameterKey"] for one in stack.get("Parameters", [])}:
        raise InputError(
            f"the stack {stack['StackName']} was not made from aws/template.yaml; choose another name with --stack"
        )


def outputs_of(stack: Mapping[str, Any]) -> dict[str, str]:
    """The outputs of a described stack. Raises InputError if it has none, or is none of our template."""
    require_ours(stack)
    outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}
    if not outputs:
        raise InputError(not_now(stack))
    return outputs


def find_stack(account: Account, name: str) -> Stack:
    """The stack of this name. Raises InputError if there is none, or it has no image yet and can run nothing."""
    outputs = outputs_of(present(account, name))
    if "StateMachineArn" not in outputs:
        raise InputError(f"the stack {name} has no image yet; finish it with `python aws/deploy.py up --stack {name}`")
    return Stack(name, outputs)


def present(account: Account, name: str) -> dict[str, Any]:
    """What CloudFormation says of a stack. Raises InputError if there is none."""
    stack = described(account, name)
    if stack is None:
        raise InputError(
            f"there is no stack {name} in {account.where}; make it with `python aws/deploy.py up --stack {name}`"
        )
    return stack


def not_now(stack: Mapping[str, Any]) -> str:
    """The sentence for a stack that is in no state to be changed."""
    name, status = stack["StackName"], stack["StackStatus"]
    if status.endswith("_IN_PROGRESS"):
        return f"the stack {name} is being changed ({status}); try again when that is done"
    return (
        f"the stack {name} is {status} and cannot be changed; mend it in CloudFormation's console, or remove it with "
        f"`python aws/deploy.py down --stack {name}`"
    )


def change(
    account: Account,
    name: str,
    template: str | None,
    parameters: Mapping[str, str],
    approve: Callable[[Sequence[Change]], bool],
    tags: Mapping[str, str] | None = None,
) -> bool:
    """Makes or changes a stack, once `approve` has said yes to the changes, and waits; False if nothing would change.

    Without a template the stack's own remains, and so does every parameter and tag that is not given.
    Raises InputError if it is not approved, if the stack is in no state to be changed, or if the change fails.
    """
    client, before = account.client("cloudformation"), described(account, name)
    if before and before["StackStatus"] not in CHANGEABLE:
        raise InputError(not_now(before))
    source = {"UsePreviousTemplate": True} if template is None else {"TemplateBody": template}
    token = f"cosmicai-{secrets.token_hex(8)}"
    with explained_aws(f"prepare a change of the stack {name}"):
        asked = client.get_template_summary(**({"StackName": name} if template is None else source))
        known = {one["ParameterKey"] for one in asked["Parameters"]}
        had = {one["ParameterKey"] for one in (before or {}).get("Parameters", [])}
        all_tags = {one["Key"]: one["Value"] for one in (before or {}).get("Tags", [])} | dict(tags or {})
        made = client.create_change_set(
            StackName=name,
            ChangeSetName=token,
            ChangeSetType="UPDATE" if before else "CREATE",
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
            + [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(known & had - set(parameters))],
            Tags=[{"Key": key, "Value": value} for key, value in all_tags.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
            **source,
            **({} if before else {"OnStackFailure": "DELETE"}),
        )
    executed = False
    try:
        changes = prepared(client, name, made["Id"])
        if changes is None:
            return False
        if not approve(changes):
            raise InputError(f"the stack {name} remains as it is, since you did not agree")
        with explained_aws(f"change the stack {name}"):
            client.execute_change_set(ChangeSetName=made["Id"], ClientRequestToken=token)
        executed = True
    finally:
        if not executed:
            with suppress(InputError), explained_aws("forget it"):  # what went wrong before is the error to report
                client.delete_change_set(ChangeSetName=made["Id"])
                if not before:
                    client.delete_stack(StackName=made["StackId"])
    await_end(client, "stack_update_complete" if before else "stack_create_complete", name, made["StackId"], token)
    return True


def delete(account: Account, name: str, stack_id: str) -> None:
    """Removes a stack with all that it made, and waits. Raises InputError if something of it resists."""
    client, token = account.client("cloudformation"), f"cosmicai-{secrets.token_hex(8)}"
    with explained_aws(f"remove the stack {name}"):
        client.delete_stack(StackName=stack_id, ClientRequestToken=token)
    await_end(client, "stack_delete_complete", name, stack_id, token)


def resources(account: Account, name: str) -> list[Change]:
    """All that a stack consists of, as what its removal removes."""
    pages = account.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=name)
    with explained_aws(f"list what the stack {name} consists of"):
        return [
            Change("Remove", one["PhysicalResourceId"], one["ResourceType"])
            for page in pages
            for one in page["StackResourceSummaries"]
            if one.get("PhysicalResourceId") and one["ResourceStatus"] != "DELETE_COMPLETE"
        ]


def running(account: Account, state_machine: str) -> list[str]:
    """The names of the executions of a state machine that have not ended."""
    pages = account.client("stepfunctions").get_paginator("list_executions")
    with explained_aws("list the executions that run"):
        found = pages.paginate(stateMachineArn=state_machine, statusFilter="RUNNING")
        return [one["name"] for page in found for one in page["executions"]]
