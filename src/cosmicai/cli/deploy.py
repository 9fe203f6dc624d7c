"""up, status, logs, down, doctor: the commands of `python aws/deploy.py`, which says where the template is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from .. import storage
from ..console import notify
from ..console.command_line import INCOMPLETE
from ..errors import InputError
from ..launchers.aws import deployment
from ..launchers.aws.clients import Account
from ..launchers.aws.image_push import ARCHIVE
from ..launchers.aws.stack import find_stack, outputs_of, present, running
from ..launchers.submission import cloud_run
from ..runs.store import RunFolder
from ..storage.s3 import is_s3
from . import deploy_tables
from .deploy_options import PARAMETERS, TAGS, YES, asking, given_parameters, given_tags, on_aws


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def deploy() -> None:
    """Make, look at and remove the stack on AWS that does runs.

    Exit codes: 0 done, 2 bad input or refused by AWS, 3 the doctor found something, 130 interrupted.
    """


@deploy.command()
@on_aws(
    click.option("--image", type=click.Path(), help=f"OCI archive; default {ARCHIVE} in this folder, if it is there."),
    *PARAMETERS,
    TAGS,
    YES,
)
def up(account: Account, stack: str, image: str | None, tags: Sequence[str], yes: bool, **options: Any) -> None:
    """Make the stack, or bring it up to date; what is not given remains as it is."""
    folder: Path = click.get_current_context().obj
    changed = deployment.up(
        account,
        stack,
        (folder / "template.yaml").read_text(),
        (folder / "state_machine.asl.json").read_bytes(),
        given_parameters(options),
        asking(yes, "Do this?"),
        notify,
        image=image,
        tags=given_tags(tags),
    )
    if not changed:
        click.echo(f"nothing to change: the stack {stack} is as it should be")
    _show(account, stack)


@deploy.command()
@on_aws()
def status(account: Account, stack: str) -> None:
    """Show the stack and the runs that are going on."""
    _show(account, stack)


@deploy.command()
@on_aws(
    click.option("--keep-data", is_flag=True, help="Keep the bucket, and for it the stack, without all the rest."), YES
)
def down(account: Account, stack: str, keep_data: bool, yes: bool) -> None:
    """Remove the stack with all that is in its bucket; a bucket that was there before remains as it is."""
    question = "Remove this?" if keep_data else "Remove this, with everything in a bucket that is among it?"
    deployment.down(account, stack, asking(yes, question), click.echo, keep_data=keep_data)


@deploy.command()
@on_aws(click.argument("run"))
def logs(account: Account, stack: str, run: str) -> None:
    """Fetch what the logs say of each invocation of RUN, a run folder on S3 or its local copy."""
    from ..launchers.aws.logs import collect

    given = folder = RunFolder(storage.absolute(run))
    if known := cloud_run(given):
        folder, stack = RunFolder(known.run), known.stack
        account = Account(known.region, account.endpoint_url or known.endpoint_url, account.profile or known.profile)
        account.use()
    elif not is_s3(run):
        raise InputError(f"{given.uri} is no copy of a run in the cloud (it has no cloud.json); expected one, or s3://")
    count = collect(account, find_stack(account, stack), folder)
    if folder != given:
        storage.write_bytes(given.invocations_path, storage.read_bytes(folder.invocations_path))
    click.echo(f"{count:,} invocations in {given.invocations_path}")


@deploy.command()
@on_aws(click.option("--image", default=ARCHIVE, show_default=True, type=click.Path(), help="OCI archive."))
def doctor(account: Account, stack: str, image: str) -> int:
    """Check everything that a deployment or a run could fail at, and say what mends it."""
    from ..launchers.aws.doctor import checks

    found = checks(account, stack, image)
    deploy_tables.show_checks(found)
    return 0 if all(one.passed for one in found) else INCOMPLETE


def _show(account: Account, stack: str) -> None:
    there = present(account, stack)
    outputs = outputs_of(there)
    names = running(account, outputs["StateMachineArn"]) if "StateMachineArn" in outputs else []
    deploy_tables.show_stack(stack, there["StackStatus"], outputs, names)
