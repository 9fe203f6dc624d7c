"""What the audit holds against a run that tells too little, too much or what cannot be: one function per rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from .tables import GALAXY_BYTES, GB, TOTAL_GB, Collection, LeftOut

TOTAL_GALAXIES = 659_857  # of the total data set, as the paper says
TOTAL_MISSING = 40  # of these, in every published run that read all of its files, whatever their size
MB = 2**20
MB_PER_GB = 1000  # as whoever cut the published 25 MB files counted: n GB are n * 1000 / 25 files
RECORDED = ("run", "combined", "log")  # kinds of runs with a record for each rank
PAGE = 1000  # keys in one answer of S3's ListObjectsV2; who asks once gets no more


class Severity(StrEnum):
    """A remark changes nothing; a run in doubt is kept and marked; of a run with a loss something is not there."""

    REMARK = "remark"
    DOUBT = "doubt"
    LOSS = "loss"


@dataclass(frozen=True)
class Finding:
    """What a rule found in a run, in one sentence with the numbers. `run` is empty if it holds of many runs alike."""

    run: str
    severity: Severity
    rule: str
    text: str


Rule = Callable[[Collection], Iterator[Finding]]


def missing_ranks(collection: Collection) -> Iterator[Finding]:
    """Ranks against those that there should be.

    A run whose ranks are just the data size claimed if a GB is 1000 MB is in doubt alone: then two claims contradict
    each other, and nothing tells which one is right.
    """
    runs = collection.runs.assign(asked=asked_ranks(collection.runs))
    for run in rows(runs, runs["ranks"] != runs["asked"]):
        if run.ranks > run.asked:
            text = f"{run.ranks:,} ranks are there, where {run.asked:,} should be"
            yield Finding(run.run, Severity.DOUBT, "ranks", text)
        elif run.ranks * run.partition_mb == run.data_gb * MB_PER_GB:
            text = f"{run.ranks:,} of {run.asked:,} ranks are there, "
            text += f"which are {run.data_gb:g} GB only if a GB is 1000 MB"
            yield Finding(run.run, Severity.DOUBT, "ranks", text)
        else:
            yield Finding(run.run, Severity.LOSS, "ranks", f"{run.ranks:,} of {run.asked:,} ranks are there")


def missing_galaxies(collection: Collection) -> Iterator[Finding]:
    """Galaxies against the data size claimed, less or more by up to one partition.

    A GB of 2^30 bytes and one of 1000 MB (2^20 bytes) are both good enough; what is enough only for one of 10^9 bytes
    is in doubt, what is less than that is a loss. Where no partition is known, each GB may end with a whole batch.
    """
    runs = collection.runs
    batches = runs["batch_size"].astype("float64") * runs["data_gb"]
    within = (runs["partition_mb"] * MB / GALAXY_BYTES).fillna(batches).fillna(0)
    claim = {gb: runs["data_gb"] * gb / GALAXY_BYTES for gb in (10**9, MB_PER_GB * MB, GB)}
    galaxies = runs["galaxies"].astype("float64")
    told = runs["asked_galaxies"].isna() & ~_is_total(runs)
    short = told & (galaxies < claim[MB_PER_GB * MB] - within)
    for run in rows(runs.assign(claim=claim[GB], least=claim[10**9], within=within), short):
        text = f"{run.galaxies:,} galaxies are there, where {run.data_gb:g} GB are about {run.claim:,.0f}"
        if run.galaxies < run.least - run.within:
            yield Finding(run.run, Severity.LOSS, "galaxies", text)
        else:
            text = f"{text}, or {run.least:,.0f} if a GB is 10^9 bytes"
            yield Finding(run.run, Severity.DOUBT, "galaxies", text)
    for run in rows(runs.assign(claim=claim[GB]), told & (galaxies > claim[GB] + within)):
        text = f"{run.galaxies:,} galaxies are there, more than {run.data_gb:g} GB hold: about {run.claim:,.0f}"
        yield Finding(run.run, Severity.DOUBT, "galaxies", text)


def total(collection: Collection) -> Iterator[Finding]:
    """The published total data set, of which the number of galaxies is known: 40 fewer than that are all there are."""
    runs = collection.runs
    of_total = _is_total(runs) & runs["asked_galaxies"].isna() & (runs["galaxies"] != TOTAL_GALAXIES)
    for run in rows(runs, of_total):
        missing = TOTAL_GALAXIES - run.galaxies
        if missing == TOTAL_MISSING:
            text = (
                f"{run.galaxies:,} galaxies are there, {missing} fewer than the {TOTAL_GALAXIES:,} of the paper, as in "
            )
            text += "every whole run"
            yield Finding(run.run, Severity.REMARK, "total", text)
        else:
            text = f"{run.galaxies:,} galaxies are there, where the paper says {TOTAL_GALAXIES:,}"
            yield Finding(run.run, Severity.LOSS if missing > 0 else Severity.DOUBT, "total", text)


def page_limit(collection: Collection) -> Iterator[Finding]:
    """Exactly one page of S3's list of keys, where there should be more or nothing tells how many there should be."""
    runs = collection.runs
    asked = runs["asked_ranks"].astype("float64").fillna(runs["data_gb"] * GB / MB / runs["partition_mb"])
    least = runs["asked_ranks"].astype("float64").fillna(runs["data_gb"] * MB_PER_GB / runs["partition_mb"])
    cut = runs["origin"].eq("published") & runs["ranks"].eq(PAGE) & ~(least <= PAGE)
    for run in rows(runs.assign(asked=asked), cut):
        text = f"exactly {PAGE:,} ranks are there, as many as S3 lists at once"
        if math.isnan(run.asked):
            yield Finding(run.run, Severity.DOUBT, "page limit", f"{text}; nothing tells how many there should be")
        else:
            text = f"{text}, where about {math.ceil(run.asked):,} should be"
            yield Finding(run.run, Severity.LOSS, "page limit", text)


def repeated_files(collection: Collection) -> Iterator[Finding]:
    """Files that several ranks of a published run read. Runs of more than the total data set do so by design."""
    runs = collection.runs
    files = collection.ranks.dropna(subset="item").groupby("run", sort=False)["item"].agg(["size", "nunique"])
    runs = runs.assign(asked=asked_ranks(runs)).join(files, on="run")
    repeated = runs["origin"].eq("published") & (runs["size"] > runs["nunique"])
    for run in rows(runs, repeated):
        text = f"{run.size:,.0f} ranks read {run.nunique:,.0f} files, so that galaxies count more than once"
        if run.data_gb > TOTAL_GB:
            severity = Severity.REMARK
        else:
            severity = Severity.LOSS if pd.notna(run.asked) and run.nunique < run.asked else Severity.DOUBT
        yield Finding(run.run, severity, "repeated files", text)


def own_account(collection: Collection) -> Iterator[Finding]:
    """What a run of ours counts against its plan: galaxies that are missing, or in the catalogue more than once."""
    runs, ranks = collection.runs, collection.ranks
    last = ranks.sort_values("attempt").drop_duplicates(["run", "rank"], keep="last").groupby("run")["state"]
    states = pd.DataFrame({"begun": last.size(), "running": last.agg(lambda state: state.eq("running").sum())})
    runs = runs.join(states.astype("Int64"), on="run").fillna({"begun": 0, "running": 0})
    short = runs["galaxies"] < runs["asked_galaxies"]
    for run in rows(runs, short):
        if run.running:
            why = f"{run.running:,} of {run.begun:,} ranks have not ended: they are still going, or were killed"
        else:
            why = "all its ranks have ended" if run.begun else "no rank has begun"
        text = f"{run.galaxies:,} of {run.asked_galaxies:,} galaxies are there; {why}"
        yield Finding(run.run, Severity.LOSS, "own account", text)
    for run in rows(runs, runs["duplicate"] > 0):
        yield Finding(run.run, Severity.LOSS, "own account", f"{run.duplicate:,} galaxies are there more than once")
    silent = runs["complete"].eq(False) & ~short.fillna(False) & ~(runs["duplicate"] > 0).fillna(False)
    for run in rows(runs, silent):
        yield Finding(run.run, Severity.LOSS, "own account", "it does not say of itself that it is complete")


def mixed_batch_sizes(collection: Collection) -> Iterator[Finding]:
    """Ranks of one run with batches of different sizes."""
    counts = collection.ranks.groupby(["run", "batch_size"], sort=False).size()
    for run, sizes in counts[counts.groupby("run").transform("size") > 1].groupby("run", sort=False):
        pairs = [f"{count:,} of {size:,}" for (_, size), count in sizes.sort_values(ascending=False).items()]
        text = f"its ranks have batches of different sizes: {', '.join(pairs)} galaxies"
        yield Finding(str(run), Severity.DOUBT, "mixed batch sizes", text)


def batches_against_galaxies(collection: Collection) -> Iterator[Finding]:
    """Batches that cannot hold the galaxies, or of which a published rank would have filled fewer.

    Each work item of a run of ours ends with a batch that need not be full. The only rank of a run has its galaxies.
    """
    runs = collection.runs.assign(of_one=collection.runs["galaxies"].where(collection.runs["ranks"].eq(1)))
    ranks = collection.ranks.merge(runs[["run", "origin", "of_one"]], on="run")
    ranks["galaxies"] = ranks["galaxies"].fillna(ranks["of_one"])
    most = ranks["batches"] * ranks["batch_size"]
    idle = ranks["origin"].eq("published") & (ranks["galaxies"] <= most - ranks["batch_size"])
    wrong = ranks[((ranks["galaxies"] > most) | idle).fillna(False).astype(bool)]
    for run, odd in wrong.groupby("run", sort=False):
        one = next(odd.itertuples())
        needed = -(-one.galaxies // one.batch_size)
        text = f"{one.galaxies:,} galaxies in batches of {one.batch_size:,} are {needed:,} batches, not {one.batches:,}"
        yield Finding(str(run), Severity.DOUBT, "batches", f"{text} ({len(odd):,} of its ranks)")


ALIKE = ["origin", "kind", "study", "platform", "device", "machine", "engine", "precision", "weights",
         "partition_mb", "data_gb"]  # fmt: skip


def unequal_repeats(collection: Collection) -> Iterator[Finding]:
    """Repeats of the same settings with different numbers of galaxies; one with all ranks asked for is not doubted.

    Of the total data set `total` knows which number is the right one.
    """
    runs = collection.runs[~_is_total(collection.runs)].dropna(subset=["repeat", "galaxies"])
    for _, group in runs.groupby([*ALIKE, "batch_size"], sort=False, dropna=False):
        if group["galaxies"].nunique() > 1:
            pairs = group.sort_values("repeat")[["repeat", "galaxies"]].itertuples(index=False)
            told = ", ".join(f"{galaxies:,} in repeat {repeat}" for repeat, galaxies in pairs)
            for run in rows(group, ~group["ranks"].eq(group["asked_ranks"]).fillna(False)):
                text = f"repeats hold different numbers of galaxies: {told}"
                yield Finding(run.run, Severity.DOUBT, "repeats", text)


def left_out(collection: Collection) -> Iterator[Finding]:
    """What was left out of a run, such as records. In a file of several runs nothing tells of which it was."""
    runs = collection.runs[collection.runs["kind"].isin(RECORDED)].drop_duplicates("source", keep=False)
    of_source = dict(zip(runs["source"], runs["run"], strict=True))
    found: dict[str, list[LeftOut]] = {}
    for one in collection.left_out:
        run = of_source.get(one.source) or of_source.get(one.source.removesuffix("/plan.json"))
        if run is not None:
            found.setdefault(run, []).append(one)
    for run, left in found.items():
        more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        text = f"left out: {left[0].what or left[0].source}{more}: {left[0].reason}"
        yield Finding(run, Severity.DOUBT, "left out", text)


def asked_ranks(runs: pd.DataFrame) -> pd.Series:
    """Ranks that there should be: as the run says, else the files that the total data set needs; NA where unknown."""
    files = (TOTAL_GALAXIES * GALAXY_BYTES / MB / runs["partition_mb"]).map(math.ceil, na_action="ignore")
    return runs["asked_ranks"].fillna(files.where(_is_total(runs)).astype("Int64"))


def rows(table: pd.DataFrame, chosen: pd.Series) -> Iterator[Any]:
    """The rows for which `chosen` is true; what is NA is not."""
    yield from table[chosen.fillna(False).astype(bool)].itertuples()


def _is_total(runs: pd.DataFrame) -> pd.Series:
    return runs["origin"].eq("published") & runs["data_gb"].eq(TOTAL_GB)
