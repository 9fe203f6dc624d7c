"""Options of `python aws/deploy.py`, declared once, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

from ..errors import InputError
from ..launchers.aws.change_sets import Change
from ..launchers.aws.clients import Account
from ..ranks.invocation import ARCHITECTURES
from . import deploy_output
from .launch_options import ACCOUNT_OPTIONS

Command = Callable[..., Any]

YES = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
TAGS = click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Tag of all resources of the stack.")
_COMMON = (
    click.option(
        "--stack", default="cosmicai", show_default=True, help="Name of the stack, the prefix of its resources."
    ),
    *ACCOUNT_OPTIONS,
)
# Named after the parameters of aws/template.yaml, which has the defaults.
PARAMETERS = (
    click.option("--memory", "MemoryMB", type=click.IntRange(128, 10240), help="Memory of each rank, in MB."),
    click.option(
        "--timeout", "TimeoutSeconds", type=click.IntRange(1, 900), help="Time limit of an invocation, in seconds."
    ),
    click.option("--ephemeral-mb", "EphemeralStorageMB", type=click.IntRange(512, 10240), help="Size of /tmp, in MB."),
    click.option("--architecture", "Architecture", type=click.Choice(ARCHITECTURES), help="Default that of the image."),
    click.option(
        "--reserved-concurrency", "ReservedConcurrency", type=click.IntRange(0), help="Reserved for ranks; 0 for none."
    ),
    click.option(
        "--reserved-run-concurrency",
        "ReservedRunConcurrency",
        type=click.IntRange(0),
        help="Reserved for each of initialize and summarize, once per run; 0 for none.",
    ),
    click.option(
        "--max-concurrency", "MaxConcurrency", type=click.IntRange(1), help="Ranks that run at the same time."
    ),
    click.option("--bucket", "BucketName", help="Existing bucket; by default the stack creates its own."),
    click.option(
        "--kms-key", "KmsKeyArn", help="Key in KMS of the bucket's objects: ARN, id or alias/NAME; '' for AES256."
    ),
    click.option(
        "--versioning",
        "Versioning",
        type=click.Choice(["Enabled", "Suspended"]),
        help="Keep replaced and deleted objects of the stack's own bucket for 30 days.",
    ),
    click.option(
        "--access-log-bucket", "AccessLogBucketName", help="Bucket for access logs of the stack's own; '' for none."
    ),
    click.option("--data-bucket", "DataBucketName", help="Another bucket to read galaxies from."),
    click.option("--data-prefix", "DataPrefixes", multiple=True, help="Folder of galaxies; repeatable."),
    click.option("--result-prefix", "ResultPrefixes", multiple=True, help="Folder of runs; repeatable."),
    click.option("--weights-prefix", "WeightsPrefixes", multiple=True, help="Folder of weights; repeatable."),
    click.option("--weights", "DefaultWeights", help="Default weights of runs: `demo`, or an s3:// address."),
    click.option("--log-days", "LogDays", type=click.IntRange(1), help="Days for which logs are kept."),
    click.option("--rendezvous-vpc", "RendezvousVpc", help="VPC of a rendezvous server; '' removes the server."),
    click.option("--rendezvous-subnet", "RendezvousSubnets", multiple=True, help="Public subnet; repeatable."),
    click.option(
        "--rendezvous-scheme",
        "RendezvousScheme",
        type=click.Choice(["internet-facing", "internal"]),
        help="Whether the name of the server resolves to public addresses.",
    ),
    click.option("--rendezvous-cidr", "RendezvousCidr", help="Addresses that may connect, such as 192.0.2.0/24."),
    click.option("--rendezvous-prefix-list", "RendezvousPrefixList", help="Prefix list that may connect: pl-..."),
    click.option(
        "--rendezvous-security-group",
        "RendezvousSecurityGroup",
        help="Security group that may connect: sg-... (internal).",
    ),
    click.option("--rendezvous-zone", "RendezvousZone", help="Hosted zone in Route 53 of the server's name."),
    click.option("--rendezvous-name", "RendezvousName", help="Full name of the server; default the load balancer's."),
)


def with_account(*options: Command) -> Callable[[Command], Command]:
    """Add these options and those of the account and the stack to a command, which gets the Account and the name."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(stack: str, region: str, profile: str, endpoint_url: str, **own: Any) -> Any:
            account = Account(region, endpoint_url, profile)
            account.activate()
            return command(account, stack, **own)

        for option in reversed((*options, *_COMMON)):
            run = option(run)
        return run

    return decorate


def read_parameters(options: dict[str, Any]) -> dict[str, str]:
    """Return the template's parameters that were given; lists are joined by commas as CloudFormation expects."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    return {
        name: ",".join(item.strip("/") for item in value) if isinstance(value, tuple) else str(value)
        for name, value in given.items()
    }


def read_tags(tags: Sequence[str]) -> dict[str, str]:
    """Return tags by their keys. Raises InputError if one is not KEY=VALUE."""
    for tag in tags:
        if not tag.partition("=")[0] or "=" not in tag:
            raise InputError(f"--tag {tag} is not a tag; write KEY=VALUE")
    return {key: value for key, _, value in (tag.partition("=") for tag in tags)}


def confirm_changes(yes: bool, question: str) -> Callable[[Sequence[Change]], bool]:
    """Return a function that shows changes and asks the user to confirm them, unless `yes` confirms them already."""

    def approve(changes: Sequence[Change]) -> bool:
        deploy_output.show_changes(changes)
        try:
            return yes or click.confirm(question)
        except click.Abort:  # Ctrl-C, or no terminal
            return False

    return approve
