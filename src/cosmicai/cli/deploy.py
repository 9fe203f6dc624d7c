"""The commands of `python aws/deploy.py`: up, status, logs, down, doctor.

The script passes the folder of the template as click's `obj`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import storage
from ..console import echo, notify
from ..console.command_line import COMPLETE, INCOMPLETE
from ..errors import InputError
from ..launchers.aws import deployment
from ..launchers.aws.clients import Account
from ..launchers.aws.image_push import ARCHIVE
from ..launchers.aws.stack import find_stack, list_running_executions, read_outputs, require_stack
from ..launchers.submission import read_cloud_run
from ..runs.store import RunFolder
from ..storage.s3 import is_s3
from . import deploy_output
from .deploy_options import PARAMETERS, TAGS, YES, confirm_changes, read_parameters, read_tags, with_account


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def deploy() -> None:
    """Create, inspect and remove the stack on AWS that executes runs.

    Exit codes: 0 done, 2 bad input or refused by AWS, 3 a check of the doctor failed, 130 interrupted.
    """


@deploy.command()
@with_account(
    click.option("--image", type=click.Path(), help=f"OCI archive; default {ARCHIVE} here, if it exists."),
    *PARAMETERS,
    TAGS,
    YES,
)
def up(account: Account, stack: str, image: str | None, tags: Sequence[str], yes: bool, **options: Any) -> None:
    """Create the stack or update it; parameters that are not given keep their values."""
    folder: Path = click.get_current_context().obj
    changed = deployment.deploy_stack(
        account,
        stack,
        (folder / "template.yaml").read_text(),
        (folder / "state_machine.asl.json").read_bytes(),
        read_parameters(options),
        confirm_changes(yes, "Apply these changes?"),
        notify,
        image=image,
        tags=read_tags(tags),
    )
    if not changed:
        echo(f"nothing to change: the stack {stack} is up to date")
    _show(account, stack)


@deploy.command()
@with_account()
def status(account: Account, stack: str) -> None:
    """Show the stack and the runs in progress."""
    _show(account, stack)


@deploy.command()
@with_account(
    click.option("--keep-data", is_flag=True, help="Keep the bucket and the stack, without everything else."), YES
)
def down(account: Account, stack: str, keep_data: bool, yes: bool) -> None:
    """Remove the stack with everything in its bucket; a bucket that existed before is left unchanged."""
    question = "Remove these resources" + ("?" if keep_data else ", and everything in a bucket among them?")
    deployment.remove_stack(account, stack, confirm_changes(yes, question), echo, keep_data=keep_data)


@deploy.command()
@with_account(click.argument("run"))
def logs(account: Account, stack: str, run: str) -> None:
    """Fetch the reports of all invocations of RUN, a run folder on S3 or its local copy, from the logs."""
    from ..launchers.aws.logs import collect_reports

    copy = folder = RunFolder(storage.absolute(run))
    if known := read_cloud_run(copy):
        folder, stack = RunFolder(known.run), known.stack
        account = Account(known.region, account.endpoint_url or known.endpoint_url, account.profile or known.profile)
        account.activate()
    elif not is_s3(run):
        raise InputError(
            f"{copy.uri} is not a copy of a run in the cloud (it has no cloud.json); expected one, or s3://"
        )
    count = collect_reports(account, find_stack(account, stack), folder)
    if folder != copy:
        storage.write_bytes(copy.invocations_path, storage.read_bytes(folder.invocations_path))
    echo(f"{count:,} invocations in {copy.invocations_path}")


@deploy.command()
@with_account(click.option("--image", default=ARCHIVE, show_default=True, type=click.Path(), help="OCI archive."))
def doctor(account: Account, stack: str, image: str) -> int:
    """Check what could make a deployment or a run fail, and suggest remedies."""
    from ..launchers.aws.doctor import diagnose

    diagnoses = diagnose(account, stack, image)
    deploy_output.show_diagnoses(diagnoses)
    return COMPLETE if all(diagnosis.passed for diagnosis in diagnoses) else INCOMPLETE


def _show(account: Account, stack: str) -> None:
    description = require_stack(account, stack)
    outputs = read_outputs(description)
    names = list_running_executions(account, outputs["StateMachineArn"]) if "StateMachineArn" in outputs else []
    deploy_output.show_stack(stack, description["StackStatus"], outputs, names)
