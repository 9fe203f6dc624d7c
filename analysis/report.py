"""Reports: everything that runs tell, on one page; and advice, as text, figure and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from cosmicai import __version__, storage
from cosmicai.errors import InputError
from cosmicai.run.record import git_commit
from cosmicai.s3 import is_s3

from . import published, show
from .advise import Advice, advice_table, error_table, to_json
from .audit import audit
from .costs import with_costs
from .figures import pareto, save
from .page import write_page
from .sections import Evidence, sections
from .tables import Collection


def gather(collection: Collection, with_published: bool = True) -> Evidence:
    """What a report is made from: the runs with their costs and their audit.

    The published figures' runs are among them, unless the collection has published runs of its own or they are not
    wanted.
    """
    runs = collection.runs
    if with_published and not runs["origin"].eq("published").any():
        runs = pd.concat([runs, published.published_runs().runs], ignore_index=True)
    found = replace(collection, runs=with_costs(runs))
    return Evidence(found, audit(found))


def write_report(evidence: Evidence, out: str, title: str, headings: Mapping[str, str]) -> Path:
    """Writes OUT/index.html, which needs nothing beside it, the tables as CSV and the figures as SVG and PNG.

    Returns the path of index.html. Raises InputError if `out` is on S3 or a file.
    """
    folder = Path(out)
    if is_s3(out) or folder.is_file():
        raise InputError(f"{out} cannot hold the report; expected a local folder, choose another --out")
    show.write_csv(str(folder / "ranks.csv"), evidence.collection.ranks)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    facts = [f"written {now}", f"cosmicai {__version__}", f"commit {git_commit() or 'unknown'}"]
    return write_page(folder, title, facts, sections(evidence, headings))


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

    With `out` all choices are written there as choices.csv, advice.json and the figure of the front.
    """
    import click

    choices = advice_table(advice)
    if out:
        show.write_csv(storage.join(out, "choices.csv"), choices)
        show.write_text(storage.join(out, "advice.json"), to_json(advice))
        # Where no dollars are charged nothing is paid; service units are in the table.
        save(pareto(choices.rename(columns={"choice": "label"}).fillna({"dollars": 0.0})), out)
    if as_json:
        click.echo(to_json(advice))
        return
    front = choices[choices["on_front"]]
    title = f"{advice.target.galaxies:,} galaxies: choices that no other beats in time, dollars and service units"
    show.print_table(front.drop(columns=["platform", "on_front", "command", "remark"]), title, ADVICE_HEADINGS)
    for row in front.itertuples():
        click.echo(f"{row.choice}:\n  {row.command}")
    click.echo()
    show.print_table(
        error_table(advice.models), "How far the models are off, each configuration left out in turn", ADVICE_HEADINGS
    )
    remarks = [part for text in front["remark"].dropna() for part in text.split("; ")]
    for note in (*dict.fromkeys(remarks), *advice.notes, advice.verdict):
        click.echo(f"{note[0].upper()}{note[1:]}")
