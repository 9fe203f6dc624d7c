"""`python -m analysis ...`: collect, audit, compare, figures, report, advise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cosmicai.console import notify

from .tables import RANK_COLUMNS, RUN_COLUMNS, Collection

if TYPE_CHECKING:
    from .sections import Evidence


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Compare runs on laptop, SLURM and Lambda, ours and published ones.

    RUNS are run folders, folders with such below them, local or s3://, and files and folders of the published results.
    """


def _runs(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("runs", nargs=-1, required=True)(command)


def _json(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")(command)


def _csv(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--out", help="File for the table as CSV.")(command)


def _job(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--site", help="What service units of SLURM runs are reckoned by, such as rivanna."),
        click.option(
            "--cores", type=click.IntRange(1), default=1, show_default=True, help="Of each rank, with --site."
        ),
        click.option("--job-memory", type=click.IntRange(1), default=4096, show_default=True, help="MB of each rank."),
        click.option("--gpu", help="Kind of the GPU of each rank, such as a100."),
    ):
        command = option(command)
    return command


@cli.command()
@_runs
@click.option("--out", help="Folder for runs.csv and ranks.csv.")
@_json
def collect(runs: Sequence[str], out: str | None, as_json: bool) -> None:
    """Find runs and put them into two tables: a row per run, and a row per rank of a run."""
    from cosmicai import storage

    from . import formatting

    found = _collect(runs)
    if out:
        formatting.write_csv(storage.join(out, "runs.csv"), found.runs)
        formatting.write_csv(storage.join(out, "ranks.csv"), found.ranks)
    if as_json:
        formatting.print_json({"runs": found.runs, "ranks": found.ranks, "left_out": _left_out(found)})
    else:
        names = ["run", "kind", "platform", "device", "partition_mb", "data_gb", "batch_size", "ranks", "galaxies"]
        formatting.print_table(found.runs[names], f"{len(found.runs):,} runs, {len(found.ranks):,} ranks", _headings())


@cli.command()
def columns() -> None:
    """What the columns of the two tables are, with their units."""
    import pandas as pd

    from . import formatting

    for title, declared in (("runs.csv", RUN_COLUMNS), ("ranks.csv", RANK_COLUMNS)):
        rows = pd.DataFrame([asdict(one) for one in declared])
        formatting.print_table(rows, title, {})


@cli.command()
@_runs
@click.option("--strict", is_flag=True, help="Exit code 3 if a run is incomplete.")
@_csv
@_json
def audit(runs: Sequence[str], strict: bool, out: str | None, as_json: bool) -> int:
    """Are these runs whole? Count what is there against what was asked for, or claimed."""
    from . import formatting
    from .audit import audit as examine
    from .audit import table

    found = _collect(runs)
    verdicts = table(found, examined := examine(found))
    if out:
        formatting.write_csv(out, verdicts)
    if as_json:
        formatting.print_json({"runs": verdicts, "left_out": _left_out(found)})
    else:
        formatting.print_table(verdicts, "Audit", _headings())
    for finding in examined.findings:
        if not finding.run:
            notify(finding.text)
    counts = examined.verdicts.value_counts()
    notify(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 3 if strict and counts.get("incomplete", 0) else 0


@cli.command()
@_runs
@click.option("--by", default="partition,data_size", show_default=True, help="What sets runs apart, by commas.")
@click.option("--incomplete", is_flag=True, help="Average incomplete runs too.")
@_job
@_csv
@_json
def compare(runs: Sequence[str], by: str, incomplete: bool, out: str | None, as_json: bool, **job: Any) -> None:
    """Average runs of the same settings: means without outliers (1.5 interquartile ranges), and medians beside them.

    --by takes partition, data_size, batch, world, and any column of settings, such as memory_mb. Runs that differ in
    origin, study, platform, device, machine, engine, precision, weights or data size are never averaged together.
    """
    from . import formatting
    from .compare import average, headed

    evidence = _evidence(runs, published=False, **job)
    averages = average(evidence.collection.runs, evidence.audit.verdicts, by.split(","), incomplete)
    if out:
        formatting.write_csv(out, averages)
    if as_json:
        formatting.print_json({"averages": averages})
    else:
        formatting.print_table(headed(averages), "Averages: mean (median)", {})
    if left := int(averages["left_out"].sum()):
        notify(f"{left} incomplete runs are left out; --incomplete averages them too, and `audit` says what is missing")


@cli.command()
@_runs
@click.option("--out", required=True, help="Folder for the figures, each as SVG and as PNG.")
def figures(runs: Sequence[str], out: str) -> None:
    """Draw every study of which these runs, beside the published figures, tell something."""
    from .figures import save
    from .report import local_folder
    from .sections import sections

    folder = local_folder(out)
    for section in sections(_evidence(runs), _headings()):
        for drawing in section.drawings:
            for path in save(drawing, folder):
                click.echo(path)
        for sentence in section.absent:
            notify(sentence)


@cli.command()
@_runs
@click.option("--out", required=True, help="Folder for index.html, the tables as CSV and the figures.")
@_job
@click.option("--title", default="Cosmic AI: what ran, and what it cost", show_default=True)
def report(runs: Sequence[str], out: str, title: str, **job: Any) -> None:
    """Write one page that needs no network and no script, and the tables and figures beside it."""
    from .report import write_report

    click.echo(write_report(_evidence(runs, **job), out, title, _headings()))


@cli.command()
@click.argument("survey")
@click.option("--deadline", metavar="TIME", help="Such as 10m or 1.5h.")
@click.option("--budget", type=float, metavar="DOLLARS", help="US dollars on AWS.")
@click.option("--measured", multiple=True, metavar="RUNS", help="Measured runs, yours or published; may be repeated.")
@click.option("--weights", help="Weights that will run; runs of yours with a network of another size are not used.")
@click.option("--out", help="Folder for the figure and the tables.")
@_json
def advise(
    survey: str,
    deadline: str | None,
    budget: float | None,
    measured: Sequence[str],
    out: str | None,
    as_json: bool,
    **limits: Any,
) -> int:
    """Say which platform and which settings suit SURVEY: a survey, or a number of galaxies.

    Rests on measured runs: yours if --measured has some of a platform, else the published ones. Exit code 3 if nothing
    meets deadline and budget.
    """
    from .recommend import advise_survey, parse_seconds
    from .report import show_advice

    seconds = None if deadline is None else parse_seconds(deadline)
    advice = advise_survey(survey, measured, deadline=seconds, budget=budget, **limits)
    show_advice(advice, out, as_json)
    return 0 if any(advice.meets) else 3


def _evidence(
    addresses: Sequence[str],
    published: bool = True,
    site: str | None = None,
    cores: int = 1,
    job_memory: int = 0,
    gpu: str | None = None,
) -> Evidence:
    """These runs with their audit and costs; with the published figures beside them unless they have published runs."""
    from cosmicai.launchers.slurm.site import load_site

    from .costs import Job
    from .report import gather

    job = Job(load_site(site, {"USER": "user"}), cores, job_memory, gpu) if site else None
    return gather(_collect(addresses), published, job)


def _collect(addresses: Sequence[str]) -> Collection:
    """What is at these addresses; what was left out of it is told."""
    from .collect import collect

    found = collect(addresses)
    for one in found.left_out:
        notify(f"left out: {' '.join(part for part in (one.source, one.what) if part)}: {one.reason}")
    return found


def _left_out(found: Collection) -> list[dict[str, str]]:
    return [{"source": one.source, "what": one.what, "reason": one.reason} for one in found.left_out]


def _headings() -> dict[str, str]:
    """Column names as people read them, with their units."""
    units = {column.name: column.unit.partition(" ")[0] for column in (*RUN_COLUMNS, *RANK_COLUMNS)}
    plain = {name: name.removesuffix("_mb").removesuffix("_gb").removesuffix("_seconds") for name in units}
    return {
        name: plain[name].replace("_", " ") + (f", {unit}" if unit in ("MB", "GB", "s") else "")
        for name, unit in units.items()
    }
