"""The head of a report: its verdict on coverage, accuracy, time and cost, and the machines of the runs."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from cosmicai.models.weights import DEMO

from .evidence import Evidence
from .formatting import count_noun, format_fraction, format_statistic, shorten_hashes
from .page import Section

MACHINE_HEADINGS = {"platforms": "where", "engines": "engines", "git_commit": "commits", "image_digest": "images",
                    "threads": "threads of a rank", "clusters": "clusters", "first": "first start"}  # fmt: skip
NOT_STATED = "not stated"
SYNTHETIC = (
    "The demo weights were trained on synthetic galaxies and are for synthetic galaxies only: with them, accuracy says "
    "nothing about real ones."
)


def build_verdict(evidence: Evidence) -> Section:
    """Return the first section: how complete, accurate, fast and expensive our runs were, each in a sentence."""
    runs = evidence.runs
    ours = runs[runs["origin"].eq("ours")]
    whole = ours[ours["verdict"].eq("whole")].sort_values("galaxies", ascending=False, kind="stable")
    verdict = [
        ("Coverage", _describe_coverage(ours)),
        ("Accuracy", _describe_accuracy(whole[whole["nmad"].notna()])),
        ("Time", _describe_time(whole[whole["wall_seconds"].notna()])),
        ("Cost", _describe_cost(ours)),
    ]
    prose = [SYNTHETIC] if ours["weights"].eq(DEMO).any() else []
    published = runs[runs["origin"].eq("published")]
    values = len(evidence.collection.runs) - len(runs)
    parts = [f"{count_noun(len(published), 'published run')} ({_count_verdicts(published)})"] if len(published) else []
    parts += [f"{count_noun(values, 'published value')}, each with its source"] if values else []
    prose += [f"For comparison: {' and '.join(parts)}."] if parts else []
    prose.append("Incomplete runs are left out of all averages and of the figures made from them.")
    if left_out := len(evidence.collection.left_out):
        prose.append(f"What was found but could not be used ({count_noun(left_out, 'case')}) is listed under Coverage.")
    return Section("summary", "Verdict", verdict, prose)


def tabulate_machines(runs: pd.DataFrame) -> pd.DataFrame:
    """Return a row per machine and origin, ours first, with what ran there; a run on several machines counts on each.

    Columns: machine, origin, platforms, clusters, engines, threads, runs, ranks, galaxies, git_commit, image_digest,
    first.
    """
    engines = (runs["engine"].fillna("") + " " + runs["precision"].fillna("")).str.strip()
    clusters = runs["site"].fillna("") + (" (" + runs["cluster"] + ")").fillna("")
    table = runs.assign(
        machine=runs["machine"].fillna(NOT_STATED).str.split("; "), engines=engines, clusters=clusters.str.strip()
    ).explode("machine")
    texts = {"platforms": "platform", "clusters": "clusters", "engines": "engines", "threads": "threads"}
    texts |= {"git_commit": "git_commit", "image_digest": "image_digest"}
    rows = [
        {
            "machine": machine, "origin": origin, **{name: _join(group[column]) for name, column in texts.items()},
            "runs": len(group), "ranks": group["ranks"].sum(), "galaxies": group["galaxies"].sum(),
            "first": group["started_at"].min(),
        }
        for (origin, machine), group in table.groupby(["origin", "machine"], sort=False)
    ]  # fmt: skip
    names = ["machine", "origin", *list(texts)[:4], "runs", "ranks", "galaxies", *list(texts)[4:], "first"]
    found = pd.DataFrame(rows, columns=names)
    return found.sort_values("origin", kind="stable", ignore_index=True)


def _join(values: pd.Series) -> str | None:
    """Return the different values of a column as one text, digests shortened; None without any."""
    known: Iterable[object] = values.dropna().unique()
    return ", ".join(shorten_hashes(str(value)) for value in known if str(value)) or None


def _count_verdicts(runs: pd.DataFrame) -> str:
    return ", ".join(f"{count:,} {verdict}" for verdict, count in runs["verdict"].value_counts().items())


def _describe_coverage(ours: pd.DataFrame) -> str:
    if ours.empty:
        return "No runs of this project."
    counts = f"{count_noun(len(ours), 'run')}: {_count_verdicts(ours)}"
    planned = ours["asked_galaxies"].sum()
    if not planned:
        return f"{counts}."
    done = ours["galaxies"].sum()
    return f"{done:,} of {planned:,} planned galaxies ({done / planned:.1%}). {counts}."


def _describe_accuracy(known: pd.DataFrame) -> str:
    if known.empty:
        return "Not known: no whole run of this project has spectroscopic redshifts to compare with."
    run = known.iloc[0]
    sample = int(run["galaxies"])
    bias = format_statistic(run["bias"], sample, "+")
    return (
        f"NMAD {format_statistic(run['nmad'], sample)}, bias {bias}, {format_fraction(run['outliers'], sample)} "
        f"outliers: run {run['run']}, {sample:,} galaxies, {shorten_hashes(run['weights_name'])}."
    )


def _describe_time(known: pd.DataFrame) -> str:
    if known.empty:
        return "Not known: no whole run of this project has ended."
    run = known.iloc[0]
    rate = format_statistic(run["galaxies"] / run["wall_seconds"], 1)
    return (
        f"{run['galaxies']:,} galaxies in {format_statistic(run['wall_seconds'], 1)} s, {rate} galaxies/s from start "
        f"to end: run {run['run']}, {count_noun(int(run['ranks']), 'rank')} on {run['machine']}."
    )


def _describe_cost(ours: pd.DataFrame) -> str:
    parts = []
    for column, unit in (("dollars", "US dollars on AWS"), ("service_units", "service units")):
        if count := ours[column].notna().sum():
            parts.append(f"{format_statistic(ours[column].sum())} {unit} ({count_noun(int(count), 'run')})")
    return f"{' and '.join(parts)}." if parts else "None known: no run on AWS, and none at a site given by --site."
