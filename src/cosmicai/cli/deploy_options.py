"""Options of `python aws/deploy.py`, declared once, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

from ..errors import InputError
from ..launchers.aws.change_sets import Change
from ..launchers.aws.clients import Account
from . import deploy_tables
from .launch_options import ACCOUNT_OPTIONS

Command = Callable[..., Any]

YES = click.option("--yes", is_flag=True, help="Do not ask.")
TAGS = click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="For all that the stack makes.")
_COMMON = (
    click.option("--stack", default="cosmicai", show_default=True, help="Its name, and how its parts' names begin."),
    *ACCOUNT_OPTIONS,
)
# Each with the name of its parameter in aws/template.yaml, which also has the defaults.
PARAMETERS = (
    click.option("--memory", "MemoryMB", type=click.IntRange(128, 10240), help="Of each rank, in MB."),
    click.option("--timeout", "TimeoutSeconds", type=click.IntRange(1, 900), help="Of one invocation, in seconds."),
    click.option("--ephemeral-mb", "EphemeralStorageMB", type=click.IntRange(512, 10240), help="Size of /tmp."),
    click.option("--architecture", "Architecture", type=click.Choice(["x86_64", "arm64"]), help="Default the image's."),
    click.option("--reserved-concurrency", "ReservedConcurrency", type=click.IntRange(0), help="For ranks; 0 is none."),
    click.option("--max-concurrency", "MaxConcurrency", type=click.IntRange(1), help="Ranks at work at a time."),
    click.option("--bucket", "BucketName", help="One that is there; default one that the stack makes and removes."),
    click.option("--data-bucket", "DataBucketName", help="Another one, to read galaxies from."),
    click.option("--data-prefix", "DataPrefixes", multiple=True, help="Folder of galaxies; repeat it for several."),
    click.option("--result-prefix", "ResultPrefixes", multiple=True, help="Folder of runs; repeat it for several."),
    click.option("--weights-prefix", "WeightsPrefixes", multiple=True, help="Folder of weights; repeat for several."),
    click.option("--weights", "DefaultWeights", help="Of runs that name none: `demo`, or an s3:// address."),
    click.option("--log-days", "LogDays", type=click.IntRange(1), help="How long logs are kept."),
    click.option("--rendezvous-vpc", "RendezvousVpc", help="Network of a rendezvous server; '' removes it again."),
    click.option("--rendezvous-subnet", "RendezvousSubnets", multiple=True, help="Public; repeat it for several."),
    click.option(
        "--rendezvous-scheme",
        "RendezvousScheme",
        type=click.Choice(["internet-facing", "internal"]),
        help="Whether its name leads to public addresses.",
    ),
    click.option("--rendezvous-cidr", "RendezvousCidr", help="Who may connect, such as 192.0.2.0/24."),
    click.option("--rendezvous-prefix-list", "RendezvousPrefixList", help="Who may connect: pl-..."),
    click.option("--rendezvous-security-group", "RendezvousSecurityGroup", help="Who may connect: sg-..., internal."),
    click.option("--rendezvous-zone", "RendezvousZone", help="Route 53's hosted zone of its name."),
    click.option("--rendezvous-name", "RendezvousName", help="Its full name; default the load balancer's."),
)


def on_aws(*options: Command) -> Callable[[Command], Command]:
    """Adds these options and those that say whose AWS and which stack; the command gets an Account and the name."""

    def add(command: Command) -> Command:
        @wraps(command)
        def called(stack: str, region: str, profile: str, endpoint_url: str, **own: Any) -> Any:
            account = Account(region, endpoint_url, profile)
            account.use()
            return command(account, stack, **own)

        for option in reversed((*options, *_COMMON)):
            called = option(called)
        return called

    return add


def given_parameters(options: dict[str, Any]) -> dict[str, str]:
    """The template's parameters that the user has given; folders are as CloudFormation wants them."""
    given = {name: value for name, value in options.items() if value not in (None, ())}
    return {
        name: ",".join(one.strip("/") for one in value) if isinstance(value, tuple) else str(value)
        for name, value in given.items()
    }


def given_tags(tags: Sequence[str]) -> dict[str, str]:
    """Tags by their keys. Raises InputError if one is no KEY=VALUE."""
    for tag in tags:
        if not tag.partition("=")[0] or "=" not in tag:
            raise InputError(f"--tag {tag} is none; write KEY=VALUE")
    return {key: value for key, _, value in (tag.partition("=") for tag in tags)}


def asking(yes: bool, question: str) -> Callable[[Sequence[Change]], bool]:
    """Shows changes, and asks the user for consent unless that was given before."""

    def approve(changes: Sequence[Change]) -> bool:
        deploy_tables.show_changes(changes)
        try:
            return yes or click.confirm(question)
        except click.Abort:  # Ctrl-C, or nobody is there to answer
            return False

    return approve
