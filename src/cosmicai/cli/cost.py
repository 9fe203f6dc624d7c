"""`cosmicai cost`: what a run, the published runs or given amounts cost on AWS."""

from __future__ import annotations

import json
from typing import Any

import click

from ..console import make_console
from ..ranks.invocation import ARCHITECTURES
from .options import Amount


@click.command()
@click.argument("what", required=False)
@click.option("--region", help="AWS region; default that of the run, else us-east-1.")
@click.option("--architecture", type=click.Choice(ARCHITECTURES), help="Processor; default the run's, else x86_64.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output, the table on standard error.")
@click.option("--seconds", type=Amount(900), help="Duration of one invocation on Lambda.")
@click.option("--memory", type=click.IntRange(128, 10240), help="Memory of that invocation, in MB.")
@click.option("--invocations", type=click.IntRange(1, 10**9), help="Number of such invocations; default 1.")
@click.option("--ephemeral-mb", type=click.IntRange(512, 10240), help="Size of its /tmp, in MB; default 512 (free).")
@click.option("--stored-gb-months", type=Amount(), help="Storage in S3.")
@click.option("--image-gb-months", type=Amount(), help="Storage in ECR.")
@click.option("--fargate-vcpu", type=Amount(), help="Processors of a task on Fargate.")
@click.option("--fargate-gb", type=Amount(), help="Memory of that task, in GB.")
@click.option("--fargate-hours", type=Amount(), help="Duration of that task.")
def cost(what: str | None, region: str | None, architecture: str | None, as_json: bool, **amounts: Any) -> None:
    """Compute costs on AWS at list prices, whose date is in the table.

    WHAT is a run folder, local or s3://, whose ranks ran on Lambda, or `published` to compute the published cost table
    again. Without WHAT, the given amounts are priced: `cosmicai cost --seconds 5.1 --memory 128` is one invocation.
    """
    from ..errors import InputError
    from ..runs.prices import ARCHITECTURE, REGION

    if what and any(amount is not None for amount in amounts.values()):
        raise InputError(f"amounts such as --seconds cannot be combined with {what}; leave one of them out")
    if what == "published":
        _show_published(region or REGION, architecture or ARCHITECTURE, as_json)
    elif what:
        _show_run(what, region, architecture, as_json)
    else:
        _show_amounts(region or REGION, architecture or ARCHITECTURE, as_json, **amounts)


def _show_published(region: str, architecture: str, as_json: bool) -> None:
    from rich.table import Table

    from ..runs.cost import published_table
    from ..runs.prices import load_prices

    rows = published_table(region, architecture)
    table = Table(title="Inference on the total dataset", title_justify="left")
    for heading in ("partition, MB", "requests", "seconds", "memory, GB", "dollars", "published dollars"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row['partition_mb']}", f"{row['requests']}", f"{row['seconds']:.2f}", f"{row['memory_gb']:.1f}",
            f"{row['dollars']:.2f}", f"{row['published_dollars']:.2f}",
        )  # fmt: skip
    place = {"region": region, "architecture": architecture, "prices_as_of": load_prices(region, architecture).as_of}
    _show(place | {"rows": rows}, table, as_json)


def _show_run(what: str, region: str | None, architecture: str | None, as_json: bool) -> None:
    import msgspec

    from .. import storage
    from ..errors import InputError
    from ..runs.cost import cost_of_run
    from ..runs.store import RunFolder

    run = RunFolder(storage.absolute(what))
    run.plan()  # refuses what is not a run folder
    found = cost_of_run(run.records().values(), run.functions(), run.invocations(), region, architecture)
    if found is None:
        raise InputError(f"{run.uri} cost nothing on Lambda, since nothing of it ran there; expected a run that did")
    if found.dollars is None:
        raise InputError(found.unpriced)
    billed, noted = found.billed_from_reports, found.billed_from_records
    remark = (
        f"{billed} of {billed + noted} durations as billed, {noted} as noted by the functions themselves, which is "
        "less; transitions are an estimate"
    )
    content = {"run": run.uri} | msgspec.to_builtins(found)
    _show(content, _parts_table(run.uri, found.usage, found.dollars), as_json, remark)


def _show_amounts(
    region: str,
    architecture: str,
    as_json: bool,
    seconds: float | None,
    memory: int | None,
    invocations: int | None,
    ephemeral_mb: int | None,
    stored_gb_months: float | None,
    image_gb_months: float | None,
    fargate_vcpu: float | None,
    fargate_gb: float | None,
    fargate_hours: float | None,
) -> None:
    from dataclasses import asdict

    from ..errors import InputError
    from ..runs.prices import FREE_EPHEMERAL_MB, Usage, dollars, invocation_usage, load_prices

    prices = load_prices(region, architecture)
    usage = Usage(s3_gb_months=stored_gb_months or 0, ecr_gb_months=image_gb_months or 0)
    if seconds and memory:
        usage += (invocations or 1) * invocation_usage(seconds, memory, ephemeral_mb or FREE_EPHEMERAL_MB)
    elif seconds or memory or invocations or ephemeral_mb:
        raise InputError("an invocation on Lambda is priced by --seconds and --memory together; give both")
    if fargate_vcpu and fargate_gb and fargate_hours:
        usage += fargate_hours * Usage(fargate_vcpu_hours=fargate_vcpu, fargate_gb_hours=fargate_gb)
    elif fargate_vcpu or fargate_gb or fargate_hours:
        raise InputError("a task on Fargate is priced by --fargate-vcpu, --fargate-gb and --fargate-hours; give all")
    if usage == Usage():
        raise InputError("nothing to price was given; expected a run folder, `published`, or --seconds and --memory")
    found = dollars(usage, prices)
    place = {"region": region, "architecture": architecture, "prices_as_of": prices.as_of}
    table = _parts_table("Cost", asdict(usage), found)
    _show(place | {"usage": asdict(usage), "dollars": found}, table, as_json)


_LABELS = {
    "invocations": "Lambda: requests",
    "gb_seconds": "Lambda: memory, GB-seconds",
    "ephemeral_gb_seconds": "Lambda: storage above 512 MB, GB-seconds",
    "transitions": "Step Functions: transitions",
    "s3_writes": "S3: PUT, COPY, POST and LIST requests",
    "s3_reads": "S3: GET, HEAD and all other requests",
    "s3_gb_months": "S3: storage, GB-months",
    "ecr_gb_months": "ECR: storage, GB-months",
    "fargate_vcpu_hours": "Fargate: vCPU-hours",
    "fargate_gb_hours": "Fargate: GB-hours",
}


def _parts_table(title: str, usage: dict[str, float], found: dict[str, float]) -> Any:
    """Return a table of the amounts and their dollars."""
    from rich.table import Table

    table = Table("used", title=title, title_justify="left", show_footer=True)
    table.columns[0].footer = "total"
    table.add_column("amount", justify="right")
    table.add_column("dollars", f"{found['total']:.8f}", justify="right")
    for name, amount in usage.items():
        if amount:
            table.add_row(_LABELS[name], f"{amount:,.10g}", f"{found[name]:.8f}")
    return table


def _show(found: dict[str, Any], table: Any, as_json: bool, remark: str | None = None) -> None:
    """Print the table, or with `as_json` the JSON on standard output and the table on standard error."""
    if as_json:
        click.echo(json.dumps(found, indent=1, allow_nan=False))
    console = make_console(stderr=as_json)
    console.print(table)
    console.print(
        f"{found['region']}, {found['architecture']}, list prices of {found['prices_as_of']} in US dollars, without "
        "free tier, tax, data transfer and logs",
        soft_wrap=True,
    )
    if remark:
        console.print(remark, soft_wrap=True)


COMMANDS = (cost,)
