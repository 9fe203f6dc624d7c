"""Reports: everything that runs tell, on one page; and advice, as text, figure and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from cosmicai import __version__
from cosmicai.errors import InputError
from cosmicai.runs.record import git_commit
from cosmicai.storage.s3 import is_s3

from . import formatting, published_figures
from .audit import audit
from .costs import Job, with_costs
from .figures import pareto, save
from .page import write_page
from .recommend import Advice, advice_table, error_table, to_json
from .sections import Evidence, sections
from .tables import Collection


def gather(collection: Collection, with_published: bool = True, job: Job | None = None) -> Evidence:
    """What a report is made from: the runs with their costs and their audit; `job` is what SLURM runs asked for.

    The published figures' runs are among them, unless the collection has published runs of its own or they are not
    wanted.
    """
    runs = collection.runs
    if with_published and not runs["origin"].eq("published").any():
        runs = pd.concat([runs, published_figures.published_runs().runs], ignore_index=True)
    found = replace(collection, runs=with_costs(runs, job))
    return Evidence(found, audit(found))


def write_report(evidence: Evidence, out: str, title: str, headings: Mapping[str, str]) -> Path:
    """Writes OUT/index.html, which needs nothing beside it, the tables as CSV and the figures as SVG and PNG.

    Returns the path of index.html. Raises InputError as `local_folder`.
    """
    folder = local_folder(out)
    formatting.write_csv(str(folder / "ranks.csv"), evidence.collection.ranks)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = [f"written {now}", f"cosmicai {__version__}", f"commit {git_commit() or 'unknown'}"]
    return write_page(folder, title, facts, sections(evidence, headings))


def local_folder(out: str) -> Path:
    """The folder for what is written. Raises InputError if it is on S3 or a file."""
    if is_s3(out) or Path(out).is_file():
        raise InputError(f"{out} is no local folder; choose another --out")
    return Path(out)


ADVICE_HEADINGS = {
    "seconds": "time, s",
    "low": "from",
    "high": "to",
    "dollars": "US dollars",
    "service_units": "service units",
    "memory_mb": "memory, MB",
    "on_front": "on the front",
    "based_on": "based on",
    "left_out": "configurations left out in turn",
    "median_error": "median error",
    "largest_error": "largest error",
}


def show_advice(advice: Advice, out: str | None, as_json: bool) -> None:
    """Prints the choices on the front, how far the models are off, and the command line of each choice.

    With `out` all choices are written there as choices.csv, advice.json and figures of the front.
    """
    import click

    choices = advice_table(advice)
    if out:
        folder = local_folder(out)
        formatting.write_csv(str(folder / "choices.csv"), choices)
        formatting.write_text(str(folder / "advice.json"), to_json(advice))
        # Apart, since service units have no price: what costs dollars or nothing, and what costs service units.
        labelled, charged = choices.rename(columns={"choice": "label"}), choices["service_units"].notna()
        save(pareto(labelled[~charged].fillna({"dollars": 0.0})), folder)
        save(pareto(labelled[charged], name="pareto-service-units", cost="service_units"), folder)
    if as_json:
        click.echo(to_json(advice))
        return
    # Beside the front, so that no platform is passed over in silence: the fastest choice of each that is not on it.
    others = choices[~choices["platform"].isin(choices.loc[choices["on_front"], "platform"])]
    front = choices[choices["on_front"] | choices.index.isin(others.drop_duplicates("platform").index)]
    title = f"{advice.target.galaxies:,} galaxies: what no other choice beats, and the fastest of each other platform"
    formatting.print_table(_in_short(front.drop(columns=["platform", "command", "remark"])), title, ADVICE_HEADINGS)
    for row in front.itertuples():
        click.echo(f"{row.choice}:\n  {row.command}")
    click.echo()
    told = "How far the models are off, each configuration left out in turn"
    formatting.print_table(_in_short(error_table(advice.models)), told, ADVICE_HEADINGS)
    for reason, one in {one.reason: one for one in reversed(advice.excluded)}.items():
        click.echo(f"Not possible, such as {one.name}: {reason}")
    remarks = [part for text in front["remark"].dropna() for part in text.split("; ") if part]
    for note in (*dict.fromkeys(remarks), *advice.notes, advice.verdict):
        click.echo(f"{note[0].upper()}{note[1:]}")


def _in_short(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the names of the runs that it is based on."""
    return table.assign(based_on=table["based_on"].str.partition(":")[0])
