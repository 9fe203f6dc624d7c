"""Find, change (by change sets) and remove the CloudFormation stack of aws/template.yaml."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...errors import InputError
from .change_sets import Change, await_change_set, await_stack
from .clients import Account, describe_aws_errors

CHANGEABLE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")
EMPTY = "REVIEW_IN_PROGRESS"  # a stack that has a change set and nothing else


@dataclass(frozen=True)
class Stack:
    """A stack that has an image, described by the outputs of its template."""

    name: str
    outputs: dict[str, str]

    @property
    def bucket(self) -> str:
        """Name of the bucket with surveys, weights and runs."""
        return self.outputs["BucketName"]

    @property
    def state_machine(self) -> str:
        """ARN of the state machine that executes a run."""
        return self.outputs["StateMachineArn"]

    @property
    def architecture(self) -> str:
        """Architecture of the functions, x86_64 or arm64."""
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
        """Time limit of one invocation of a rank's function, in seconds."""
        return int(self.outputs["TimeoutSeconds"])

    @property
    def max_concurrency(self) -> int:
        """Maximum number of ranks that run at the same time."""
        return int(self.outputs["MaxConcurrency"])


def describe_stack(account: Account, name: str) -> dict[str, Any] | None:
    """Return CloudFormation's description of a stack, None if it does not exist."""
    client = account.client("cloudformation")
    with describe_aws_errors(f"describe the stack {name}"):
        try:
            stack: dict[str, Any] = client.describe_stacks(StackName=name)["Stacks"][0]
        except client.exceptions.ClientError as error:
            if "does not exist" in error.response["Error"]["Message"]:
                return None
            raise
    return None if stack["StackStatus"] == EMPTY else stack


def require_own_template(stack: Mapping[str, Any]) -> None:
    """Raise InputError if a described stack was not made from this template."""
    if not {"ImageDigest", "DefinitionKey"} <= {parameter["ParameterKey"] for parameter in stack.get("Parameters", [])}:
        raise InputError(
            f"the stack {stack['StackName']} was not made from aws/template.yaml; choose another name with --stack"
        )


def read_outputs(stack: Mapping[str, Any]) -> dict[str, str]:
    """Return the outputs of a described stack. Raises InputError if it has none, or was made from another template."""
    require_own_template(stack)
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    if not outputs:
        raise InputError(explain_unchangeable(stack))
    return outputs


def find_stack(account: Account, name: str) -> Stack:
    """Return the stack of this name. Raises InputError if it does not exist, or has no image yet and cannot run."""
    outputs = read_outputs(require_stack(account, name))
    if "StateMachineArn" not in outputs:
        raise InputError(f"the stack {name} has no image yet; finish it with `python aws/deploy.py up --stack {name}`")
    return Stack(name, outputs)


def require_stack(account: Account, name: str) -> dict[str, Any]:
    """Return CloudFormation's description of a stack. Raises InputError if it does not exist."""
    stack = describe_stack(account, name)
    if stack is None:
        raise InputError(
            f"there is no stack {name} in {account.region_name}; create it with "
            f"`python aws/deploy.py up --stack {name}`"
        )
    return stack


def explain_unchangeable(stack: Mapping[str, Any]) -> str:
    """Return the message for a stack whose state does not permit a change."""
    name, status = stack["StackName"], stack["StackStatus"]
    if status.endswith("_IN_PROGRESS"):
        return f"the stack {name} is being changed ({status}); try again when this is done"
    return (
        f"the stack {name} is {status} and cannot be changed; repair it in CloudFormation's console, or remove it with "
        f"`python aws/deploy.py down --stack {name}`"
    )


def change_stack(
    account: Account,
    name: str,
    template: str | None,
    parameters: Mapping[str, str],
    approve: Callable[[Sequence[Change]], bool],
    tags: Mapping[str, str] | None = None,
) -> bool:
    """Create or change a stack once `approve` accepts the changes, and wait; return False if nothing would change.

    Without a template the stack keeps its own, and it keeps every parameter and tag that is not given.
    Raises InputError if the changes are not approved, if the stack's state does not permit them, or if they fail.
    """
    client, before = account.client("cloudformation"), describe_stack(account, name)
    if before and before["StackStatus"] not in CHANGEABLE:
        raise InputError(explain_unchangeable(before))
    source = {"UsePreviousTemplate": True} if template is None else {"TemplateBody": template}
    token = f"cosmicai-{secrets.token_hex(8)}"
    with describe_aws_errors(f"prepare a change of the stack {name}"):
        summary = client.get_template_summary(**({"StackName": name} if template is None else source))
        known = {parameter["ParameterKey"] for parameter in summary["Parameters"]}
        earlier = {parameter["ParameterKey"] for parameter in (before or {}).get("Parameters", [])}
        all_tags = {tag["Key"]: tag["Value"] for tag in (before or {}).get("Tags", [])} | dict(tags or {})
        change_set = client.create_change_set(
            StackName=name,
            ChangeSetName=token,
            ChangeSetType="UPDATE" if before else "CREATE",
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()]
            + [{"ParameterKey": key, "UsePreviousValue": True} for key in sorted(known & earlier - set(parameters))],
            Tags=[{"Key": key, "Value": value} for key, value in all_tags.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
            **source,
            **({} if before else {"OnStackFailure": "DELETE"}),
        )
    executed = False
    try:
        changes = await_change_set(client, name, change_set["Id"])
        if changes is None:
            return False
        if not approve(changes):
            raise InputError(f"the stack {name} is unchanged, since the changes were not approved")
        with describe_aws_errors(f"change the stack {name}"):
            client.execute_change_set(ChangeSetName=change_set["Id"], ClientRequestToken=token)
        executed = True
    finally:
        if not executed:
            with suppress(InputError), describe_aws_errors("discard it"):  # the error to report is the earlier one
                client.delete_change_set(ChangeSetName=change_set["Id"])
                if not before:
                    client.delete_stack(StackName=change_set["StackId"])
    waiter = "stack_update_complete" if before else "stack_create_complete"
    await_stack(client, waiter, name, change_set["StackId"], token)
    return True


def delete_stack(account: Account, name: str, stack_id: str) -> None:
    """Delete a stack with all its resources, and wait. Raises InputError if a resource cannot be deleted."""
    client, token = account.client("cloudformation"), f"cosmicai-{secrets.token_hex(8)}"
    with describe_aws_errors(f"delete the stack {name}"):
        client.delete_stack(StackName=stack_id, ClientRequestToken=token)
    await_stack(client, "stack_delete_complete", name, stack_id, token)


def list_resources(account: Account, name: str) -> list[Change]:
    """Return all resources of a stack, as the changes of its deletion."""
    pages = account.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=name)
    with describe_aws_errors(f"list the resources of the stack {name}"):
        return [
            Change("Remove", resource["PhysicalResourceId"], resource["ResourceType"])
            for page in pages
            for resource in page["StackResourceSummaries"]
            if resource.get("PhysicalResourceId") and resource["ResourceStatus"] != "DELETE_COMPLETE"
        ]


def list_running_executions(account: Account, state_machine: str) -> list[str]:
    """Return the names of the executions of a state machine that are running."""
    pages = account.client("stepfunctions").get_paginator("list_executions")
    with describe_aws_errors("list the running executions"):
        running = pages.paginate(stateMachineArn=state_machine, statusFilter="RUNNING")
        return [execution["name"] for page in running for execution in page["executions"]]
