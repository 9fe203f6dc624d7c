"""`python -m analysis ...`: the commands collect, columns, audit, compare, figures, report and advise."""

# Modules that need matplotlib, pyarrow or the engines are imported by the commands that use them, since these imports
# take long and `--help` should be quick.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cosmicai.console import echo, notify

from .tables import RANK_COLUMNS, RUN_COLUMNS, Collection

if TYPE_CHECKING:
    from .evidence import Evidence


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Compare runs on laptop, SLURM and Lambda, of this project and published ones.

    RUNS are run folders, folders that contain them, local or s3://, and files and folders of published results.
    """


def _add_runs_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.argument("runs", nargs=-1, required=True)(command)


def _add_json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


def _require_replaceable(context: click.Context, option: click.Parameter, out: str | None) -> str | None:
    """Return the file to write, checked before any run is read. Raises InputError if it may not be written."""
    if out:
        from cosmicai.storage.outputs import require_replaceable

        require_replaceable(out)
    return out


def _require_folder(context: click.Context, option: click.Parameter, out: str | None) -> str | None:
    """Return the folder to write to, checked before any run is read. Raises InputError if it may not be written to."""
    if out:
        from cosmicai.storage.outputs import require_output_folder

        require_output_folder(out)
    return out


def _require_local_folder(context: click.Context, option: click.Parameter, out: str) -> str | None:
    """Do as `_require_folder`, and raise InputError if the folder is on S3."""
    from .report import require_local_folder

    require_local_folder(out)
    return _require_folder(context, option, out)


def _add_csv_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--out", callback=_require_replaceable, help="File for the table as CSV.")(command)


def _add_job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--site", help="Site, such as rivanna, whose rates give the service units of the runs there."),
        click.option(
            "--cores", type=click.IntRange(1), default=1, show_default=True, help="Cores per rank, with --site."
        ),
        click.option(
            "--job-memory", type=click.IntRange(1), default=4096, show_default=True, help="Memory per rank in MB."
        ),
        click.option("--gpu", help="Kind of the GPU of each rank, such as a100."),
    ):
        command = option(command)
    return command


@cli.command()
@_add_runs_argument
@click.option("--out", callback=_require_folder, help="Folder for runs.csv and ranks.csv.")
@_add_json_option
def collect(runs: Sequence[str], out: str | None, as_json: bool) -> None:
    """Find runs and collect them in two tables: one row per run, and one row per rank of a run."""
    from cosmicai import storage

    from . import formatting

    found = _collect(runs)
    if out:
        formatting.write_csv(storage.join(out, "runs.csv"), found.runs)
        formatting.write_csv(storage.join(out, "ranks.csv"), found.ranks)
    if as_json:
        formatting.print_json({"runs": found.runs, "ranks": found.ranks, "left_out": _list_left_out(found)})
    else:
        names = ["run", "kind", "platform", "device", "partition_mb", "data_gb", "batch_size", "ranks", "galaxies"]
        title = f"{formatting.count_noun(len(found.runs), 'run')}, {formatting.count_noun(len(found.ranks), 'rank')}"
        formatting.print_table(found.runs[names], title, _make_headings())


@cli.command()
def columns() -> None:
    """Explain the columns of the two tables, with their units."""
    import pandas as pd

    from . import formatting

    for title, declared in (("runs.csv", RUN_COLUMNS), ("ranks.csv", RANK_COLUMNS)):
        rows = pd.DataFrame([asdict(one) for one in declared])
        formatting.print_table(rows, title, {})


@cli.command()
@_add_runs_argument
@click.option("--strict", is_flag=True, help="Exit with code 3 if a run is incomplete.")
@_add_csv_option
@_add_json_option
def audit(runs: Sequence[str], strict: bool, out: str | None, as_json: bool) -> int:
    """Check whether runs are whole, by comparing them with their plans or their stated sizes."""
    from . import audit as auditing
    from . import formatting

    found = _collect(runs)
    audited = auditing.audit(found)
    verdicts = auditing.tabulate_audit(found, audited)
    if out:
        formatting.write_csv(out, verdicts)
    if as_json:
        formatting.print_json({"runs": verdicts, "left_out": _list_left_out(found)})
    else:
        formatting.print_table(verdicts, "Audit", _make_headings())
    for finding in audited.findings:
        if not finding.run:
            notify(finding.text)
    counts = audited.verdicts.value_counts()
    notify(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 3 if strict and counts.get("incomplete", 0) else 0


@cli.command()
@_add_runs_argument
@click.option(
    "--by", default="partition,data_size", show_default=True, help="Settings that separate runs, with commas."
)
@click.option("--incomplete", is_flag=True, help="Average incomplete runs too.")
@_add_job_options
@_add_csv_option
@_add_json_option
def compare(runs: Sequence[str], by: str, incomplete: bool, out: str | None, as_json: bool, **job: Any) -> None:
    """Average runs of the same settings: means without outliers (1.5 interquartile ranges), and medians.

    --by accepts partition, data_size, batch, world, and any column of settings, such as memory_mb. Runs that differ in
    origin, study, platform, device, machine, engine, precision, weights or data size are never averaged together.
    """
    from . import formatting
    from .compare import average, format_averages

    evidence = _gather_evidence(runs, published=False, **job)
    averages = average(evidence.collection.runs, evidence.audit.verdicts, by.split(","), incomplete)
    if out:
        formatting.write_csv(out, averages)
    if as_json:
        formatting.print_json({"averages": averages})
    else:
        formatting.print_table(format_averages(averages), "Averages: mean (median)", {})
    if left := int(averages["left_out"].sum()):
        runs_left = formatting.count_noun(left, "incomplete run")
        notify(f"left out {runs_left}; --incomplete averages them too, and `audit` states what is missing")


@cli.command()
@_add_runs_argument
@click.option(
    "--out",
    required=True,
    callback=_require_local_folder,
    help="Folder for the figures, each as SVG and as PNG.",
)
def figures(runs: Sequence[str], out: str) -> None:
    """Draw every study for which these runs, with the published values, have data."""
    from .figures import save
    from .report import require_local_folder
    from .sections import build_sections

    folder = require_local_folder(out)
    for section in build_sections(_gather_evidence(runs), _make_headings()):
        for drawing in section.drawings:
            for path in save(drawing, folder):
                echo(str(path))
        for sentence in section.not_shown:
            notify(sentence)


@cli.command()
@_add_runs_argument
@click.option(
    "--out",
    required=True,
    callback=_require_local_folder,
    help="Folder for index.html, the tables as CSV and the figures.",
)
@_add_job_options
@click.option("--title", default="Cosmic AI: what ran, and what it cost", show_default=True, help="Title of the page.")
def report(runs: Sequence[str], out: str, title: str, **job: Any) -> None:
    """Write a self-contained page without scripts, and its tables and figures as files."""
    from .report import write_report

    echo(str(write_report(_gather_evidence(runs, **job), out, title, _make_headings())))


@cli.command()
@click.argument("survey")
@click.option("--deadline", metavar="TIME", help="Longest time, such as 10m or 1.5h.")
@click.option("--budget", type=float, metavar="DOLLARS", help="Most US dollars on AWS.")
@click.option("--measured", multiple=True, metavar="RUNS", help="Measured runs, yours or published; may be repeated.")
@click.option("--weights", help="Weights that will run; your runs with a network of another size are not used.")
@click.option("--out", callback=_require_folder, help="Folder for the figures and the tables.")
@_add_json_option
def advise(
    survey: str,
    deadline: str | None,
    budget: float | None,
    measured: Sequence[str],
    out: str | None,
    as_json: bool,
    **limits: Any,
) -> int:
    """Recommend a platform and settings for SURVEY: a survey, or a number of galaxies.

    The recommendation is based on measured runs: for each platform yours if --measured has some, else the published
    ones. The exit code is 3 if nothing meets deadline and budget.
    """
    from . import recommendation_output as output
    from .recommend import parse_seconds, recommend_for_survey

    seconds = None if deadline is None else parse_seconds(deadline)
    found = recommend_for_survey(survey, measured, deadline=seconds, budget=budget, **limits)
    if out:
        output.write_recommendation(found, out)
    if as_json:
        click.echo(output.to_json(found))
    else:
        output.print_recommendation(found)
    return 0 if any(found.meets) else 3


def _gather_evidence(
    addresses: Sequence[str],
    published: bool = True,
    site: str | None = None,
    cores: int = 1,
    job_memory: int = 0,
    gpu: str | None = None,
) -> Evidence:
    """Return these runs with audit and costs, and the published values unless they contain published runs."""
    from cosmicai.launchers.slurm.site_profile import load_site

    from .costs import JobResources
    from .report import gather_evidence

    job = JobResources(load_site(site, {"USER": "user"}), cores, job_memory, gpu) if site else None
    return gather_evidence(_collect(addresses), published, job)


def _collect(addresses: Sequence[str]) -> Collection:
    """Return the runs at these addresses, and notify the user of everything that was left out."""
    from .collect import collect

    found = collect(addresses)
    for one in found.left_out:
        notify(f"left out: {' '.join(part for part in (one.source, one.what) if part)}: {one.reason}")
    return found


def _list_left_out(found: Collection) -> list[dict[str, str]]:
    return [{"source": one.source, "what": one.what, "reason": one.reason} for one in found.left_out]


def _make_headings() -> dict[str, str]:
    """Return the headings of columns, with their units."""
    units = {column.name: column.unit.partition(" ")[0] for column in (*RUN_COLUMNS, *RANK_COLUMNS)}
    plain = {name: name.removesuffix("_mb").removesuffix("_gb").removesuffix("_seconds") for name in units}
    planned = {name: text.replace("asked_", "planned_") for name, text in plain.items()}
    return {
        name: planned[name].replace("_", " ") + (f", {unit}" if unit in ("MB", "GB", "s") else "")
        for name, unit in units.items()
    }
