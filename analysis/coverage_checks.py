"""Checks of the audit on coverage: ranks, galaxies, files and batches that are missing, repeated or contradictory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from .findings import Finding, Severity, select_rows
from .tables import GALAXY_BYTES, GB, LARGEST_COUNT, TOTAL_GB, Collection, LeftOut

TOTAL_GALAXIES = 659_857  # of the total data set, as stated in the paper
TOTAL_MISSING = 40  # of these, in every published run that read all of its files, whatever their size
MB = 2**20
MB_PER_GB = 1000  # as the published 25 MB files were cut: n GB are n * 1000 / 25 files
WITH_RECORDS = ("run", "combined", "log")  # kinds of runs with a record for each rank
PAGE = 1000  # keys in one response of S3's ListObjectsV2; a single request returns no more


def check_missing_ranks(collection: Collection) -> Iterator[Finding]:
    """Compare the number of ranks with the expected one.

    A run whose ranks match the data size if a GB is 1000 MB is only doubtful: then two of its statements contradict
    each other, and either may be right.
    """
    runs = collection.runs.assign(expected=count_expected_ranks(collection.runs))
    for run in select_rows(runs, runs["ranks"] != runs["expected"]):
        if run.ranks > run.expected:
            text = f"{run.ranks:,} ranks are there, where {run.expected:,} are expected"
            yield Finding(run.run, Severity.DOUBT, "ranks", text)
        elif run.ranks * run.partition_mb == run.data_gb * MB_PER_GB:
            text = f"{run.ranks:,} of {run.expected:,} ranks are there, "
            text += f"which are {run.data_gb:g} GB only if a GB is 1000 MB"
            yield Finding(run.run, Severity.DOUBT, "ranks", text)
        else:
            yield Finding(run.run, Severity.LOSS, "ranks", f"{run.ranks:,} of {run.expected:,} ranks are there")


def check_missing_galaxies(collection: Collection) -> Iterator[Finding]:
    """Compare the galaxies with the stated data size, within one partition.

    A GB of 2^30 bytes and one of 1000 MB (2^20 bytes) are both accepted. A run that is complete only with a GB of 10^9
    bytes is doubtful, one that is smaller has a loss. Where no partition is known, each GB may end with a whole batch.
    """
    runs = collection.runs
    batches = runs["batch_size"].astype("float64") * runs["data_gb"]
    tolerance = (runs["partition_mb"] * MB / GALAXY_BYTES).fillna(batches).fillna(0)
    stated = {gb: runs["data_gb"] * gb / GALAXY_BYTES for gb in (10**9, MB_PER_GB * MB, GB)}
    galaxies = runs["galaxies"].astype("float64")
    by_size = runs["asked_galaxies"].isna() & ~_is_total(runs)  # runs whose exact number is not known
    short = by_size & (galaxies < stated[MB_PER_GB * MB] - tolerance)
    for run in select_rows(runs.assign(stated=stated[GB], least=stated[10**9], tolerance=tolerance), short):
        text = f"{run.galaxies:,} galaxies are there, where {run.data_gb:g} GB are about {run.stated:,.0f}"
        if run.galaxies < run.least - run.tolerance:
            yield Finding(run.run, Severity.LOSS, "galaxies", text)
        else:
            text = f"{text}, or {run.least:,.0f} if a GB is 10^9 bytes"
            yield Finding(run.run, Severity.DOUBT, "galaxies", text)
    for run in select_rows(runs.assign(stated=stated[GB]), by_size & (galaxies > stated[GB] + tolerance)):
        text = f"{run.galaxies:,} galaxies are there, more than {run.data_gb:g} GB hold: about {run.stated:,.0f}"
        yield Finding(run.run, Severity.DOUBT, "galaxies", text)


def check_total(collection: Collection) -> Iterator[Finding]:
    """Compare runs of the published total data set with its known number of galaxies, 40 of which are in no file."""
    runs = collection.runs
    of_total = _is_total(runs) & runs["asked_galaxies"].isna() & (runs["galaxies"] != TOTAL_GALAXIES)
    for run in select_rows(runs, of_total):
        missing = TOTAL_GALAXIES - run.galaxies
        if missing == TOTAL_MISSING:
            text = f"{run.galaxies:,} galaxies are there, {missing} fewer than the {TOTAL_GALAXIES:,} of the paper, "
            text += "as in every whole run"
            yield Finding(run.run, Severity.REMARK, "total", text)
        else:
            text = f"{run.galaxies:,} galaxies are there, where the paper states {TOTAL_GALAXIES:,}"
            yield Finding(run.run, Severity.LOSS if missing > 0 else Severity.DOUBT, "total", text)


def check_page_limit(collection: Collection) -> Iterator[Finding]:
    """Find runs with exactly one page of S3's list of keys, where more or an unknown number is expected."""
    runs = collection.runs
    expected = runs["asked_ranks"].astype("float64").fillna(runs["data_gb"] * GB / MB / runs["partition_mb"])
    least = runs["asked_ranks"].astype("float64").fillna(runs["data_gb"] * MB_PER_GB / runs["partition_mb"])
    one_page = runs["origin"].eq("published") & runs["ranks"].eq(PAGE) & ~(least <= PAGE)
    for run in select_rows(runs.assign(expected=expected), one_page):
        text = f"exactly {PAGE:,} ranks are there, as many as S3 lists at once"
        if not math.isfinite(run.expected):
            yield Finding(run.run, Severity.DOUBT, "page limit", f"{text}; the expected number is not known")
        else:
            text = f"{text}, where about {math.ceil(run.expected):,} are expected"
            yield Finding(run.run, Severity.LOSS, "page limit", text)


def check_repeated_files(collection: Collection) -> Iterator[Finding]:
    """Find files that several ranks of a published run read; runs above the total data set do so by design."""
    runs = collection.runs
    files = collection.ranks.dropna(subset="item").groupby("run", sort=False)["item"].agg(["size", "nunique"])
    runs = runs.assign(expected=count_expected_ranks(runs)).join(files, on="run")
    repeated = runs["origin"].eq("published") & (runs["size"] > runs["nunique"])
    for run in select_rows(runs, repeated):
        text = f"{run.size:,.0f} ranks read {run.nunique:,.0f} files, so that galaxies count more than once"
        if run.data_gb > TOTAL_GB:
            severity = Severity.REMARK
        else:
            short = pd.notna(run.expected) and run.nunique < run.expected
            severity = Severity.LOSS if short else Severity.DOUBT
        yield Finding(run.run, severity, "repeated files", text)


def check_plan_coverage(collection: Collection) -> Iterator[Finding]:
    """Compare runs of this project with their plans: galaxies that are missing, or in the catalogue more than once."""
    runs, ranks = collection.runs, collection.ranks
    last = ranks.sort_values("attempt").drop_duplicates(["run", "rank"], keep="last").groupby("run")["state"]
    states = pd.DataFrame({"started": last.size(), "running": last.agg(lambda state: state.eq("running").sum())})
    runs = runs.join(states.astype("Int64"), on="run").fillna({"started": 0, "running": 0})
    short = runs["galaxies"] < runs["asked_galaxies"]
    for run in select_rows(runs, short):
        if run.running:
            why = f"{run.running:,} of {run.started:,} ranks have not ended: they are still running, or were killed"
        else:
            why = "all its ranks have ended" if run.started else "no rank has started"
        text = f"{run.galaxies:,} of {run.asked_galaxies:,} galaxies are there; {why}"
        yield Finding(run.run, Severity.LOSS, "plan coverage", text)
    for run in select_rows(runs, runs["duplicate"] > 0):
        yield Finding(run.run, Severity.LOSS, "plan coverage", f"{run.duplicate:,} galaxies are there more than once")
    unexplained = runs["complete"].eq(False) & ~short.fillna(False) & ~(runs["duplicate"] > 0).fillna(False)
    for run in select_rows(runs, unexplained):
        yield Finding(run.run, Severity.LOSS, "plan coverage", "its summary does not report it as complete")


def check_duplicate_ids(collection: Collection) -> Iterator[Finding]:
    """Find runs whose catalogue has galaxies with the same id, as where a file was in the survey twice."""
    runs = collection.runs
    for run in select_rows(runs, runs["duplicate_objid"] > 0):
        count = "1 id is" if run.duplicate_objid == 1 else f"{run.duplicate_objid:,} ids are"
        text = f"{count} in its catalogue more than once, so that galaxies may count twice"
        yield Finding(run.run, Severity.DOUBT, "duplicate ids", text)


def check_batch_sizes(collection: Collection) -> Iterator[Finding]:
    """Find runs whose ranks have batches of different sizes."""
    counts = collection.ranks.groupby(["run", "batch_size"], sort=False).size()
    for run, sizes in counts[counts.groupby("run").transform("size") > 1].groupby("run", sort=False):
        pairs = [f"{count:,} of {size:,}" for (_, size), count in sizes.sort_values(ascending=False).items()]
        text = f"its ranks have batches of different sizes: {', '.join(pairs)} galaxies"
        yield Finding(str(run), Severity.DOUBT, "mixed batch sizes", text)


def check_batch_counts(collection: Collection) -> Iterator[Finding]:
    """Find ranks with too few batches for their galaxies, or published ranks with more batches than they need.

    Each work item of a run of this project may end with a batch that is not full. The only rank of a run has all of
    the run's galaxies.
    """
    runs = collection.runs.assign(of_one=collection.runs["galaxies"].where(collection.runs["ranks"].eq(1)))
    ranks = collection.ranks.merge(runs[["run", "origin", "of_one"]], on="run")
    ranks["galaxies"] = ranks["galaxies"].fillna(ranks["of_one"])
    most = ranks["batches"] * ranks["batch_size"]
    unneeded = ranks["origin"].eq("published") & (ranks["galaxies"] <= most - ranks["batch_size"])
    wrong = ranks[((ranks["galaxies"] > most) | unneeded).fillna(False).astype(bool)]
    for run, rows in wrong.groupby("run", sort=False):
        one = next(rows.itertuples())
        needed = -(-one.galaxies // one.batch_size)
        text = f"{one.galaxies:,} galaxies in batches of {one.batch_size:,} are {needed:,} batches, not {one.batches:,}"
        yield Finding(str(run), Severity.DOUBT, "batches", f"{text} ({len(rows):,} of its ranks)")


SAME_SETTINGS = ["origin", "kind", "study", "platform", "device", "machine", "threads", "engine", "precision",
                 "weights", "partition_mb", "data_gb"]  # fmt: skip


def check_repeats(collection: Collection) -> Iterator[Finding]:
    """Find repeats of the same settings with different numbers of galaxies.

    Repeats with all planned ranks are not doubted. The total data set is left to `check_total`, which knows the right
    number.
    """
    runs = collection.runs[~_is_total(collection.runs)].dropna(subset=["repeat", "galaxies"])
    for _, group in runs.groupby([*SAME_SETTINGS, "batch_size"], sort=False, dropna=False):
        if group["galaxies"].nunique() > 1:
            pairs = group.sort_values("repeat")[["repeat", "galaxies"]].itertuples(index=False)
            numbers = ", ".join(f"{galaxies:,} in repeat {repeat}" for repeat, galaxies in pairs)
            for run in select_rows(group, ~group["ranks"].eq(group["asked_ranks"]).fillna(False)):
                text = f"repeats hold different numbers of galaxies: {numbers}"
                yield Finding(run.run, Severity.DOUBT, "repeats", text)


def check_left_out(collection: Collection) -> Iterator[Finding]:
    """Report what was left out of a run, such as records; in a file of several runs the run is not known."""
    runs = collection.runs[collection.runs["kind"].isin(WITH_RECORDS)].drop_duplicates("source", keep=False)
    run_of_source = dict(zip(runs["source"], runs["run"], strict=True))
    by_run: dict[str, list[LeftOut]] = {}
    for one in collection.left_out:
        run = run_of_source.get(one.source) or run_of_source.get(one.source.removesuffix("/plan.json"))
        if run is not None:
            by_run.setdefault(run, []).append(one)
    for run, left in by_run.items():
        more = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        text = f"left out: {left[0].what or left[0].source}{more}: {left[0].reason}"
        yield Finding(run, Severity.DOUBT, "left out", text)


def check_contradictions(collection: Collection) -> Iterator[Finding]:
    """Report statements of a source that cannot all be true, such as an average that is not that of its rows."""
    for one in collection.contradictions:
        yield Finding(one.run, Severity.DOUBT, "contradiction", one.text)


def count_expected_ranks(runs: pd.DataFrame) -> pd.Series:
    """Return the expected number of ranks (Int64) of each run; NA where it is unknown.

    It is the number that the run states, else the number of files that make up the total data set.
    """
    files = np.ceil(TOTAL_GALAXIES * GALAXY_BYTES / MB / runs["partition_mb"])
    files = files.where(_is_total(runs) & (files <= LARGEST_COUNT))  # a partition of 0 MB would need infinitely many
    return runs["asked_ranks"].fillna(files.astype("Int64"))


def _is_total(runs: pd.DataFrame) -> pd.Series:
    return runs["origin"].eq("published") & runs["data_gb"].eq(TOTAL_GB)
