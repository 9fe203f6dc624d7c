"""Checks of the audit on times and rates: contradictory clocks, rates from CPU time, and impossible rates."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from .findings import Finding, Severity, select_rows
from .formatting import count_noun
from .tables import GALAXY_BYTES, GB, Collection

SLACK_SECONDS, SLACK = 1.0, 0.01  # allowed difference of two clocks: seconds, and fraction of a span
FAR = 0.2  # CPU time that differs by more than this fraction from wall-clock time is no substitute for it
START_UP = 10  # largest ratio of a rate without start-up to that of the whole run
FLOP_PER_GALAXY = 0.222e9  # of the published network
# More than any CPU reaches in float32: 16 lanes, two fused multiply-adds per cycle, 4 GHz are 256 GFLOP/s per core; a
# server has 2 x 192 cores, and Lambda gives a function at most 6 vCPUs, which are 3 cores.
FLOPS_OF_CORE, CORES, CORES_ON_LAMBDA = 256e9, 384, 3
_SAME_WORK = ["origin", "platform", "device", "data_gb"]


def check_clock_order(collection: Collection) -> Iterator[Finding]:
    """Find ranks that ended before they started or worked longer than they existed; runs shorter than their ranks."""
    ranks, runs = collection.ranks, collection.runs
    span = (ranks["ended_at"] - ranks["started_at"]).dt.total_seconds()
    phases = ranks[["load_seconds", "read_seconds", "predict_seconds", "write_seconds"]].sum(axis=1)
    for run, odd in ranks[span < 0].groupby("run", sort=False):
        text = f"{count_noun(len(odd), 'rank')} ended before they started, first rank {_first_rank(odd)}"
        yield Finding(str(run), Severity.DOUBT, "clock", text)
    longer = (span >= 0) & _exceeds(phases, span)
    for run, odd in ranks.assign(span=span, phases=phases)[longer].groupby("run", sort=False):
        text = f"{count_noun(len(odd), 'rank')} worked longer than they existed, first rank {_first_rank(odd)}: "
        text += f"{odd['phases'].iloc[0]:,.1f} s of {odd['span'].iloc[0]:,.1f} s"
        yield Finding(str(run), Severity.DOUBT, "clock", text)
    for column, what in (("slowest_seconds", "its slowest rank worked"), ("working_seconds", "its ranks worked")):
        for run in select_rows(runs.assign(seconds=runs[column]), _exceeds(runs[column], runs["wall_seconds"])):
            text = f"{what} for {run.seconds:,.1f} s, longer than the whole run took: {run.wall_seconds:,.1f} s"
            yield Finding(run.run, Severity.DOUBT, "clock", text)


def check_cpu_time_rates(collection: Collection) -> Iterator[Finding]:
    """Find rates over CPU seconds where the wall-clock time of the run is very different.

    Only for runs of one rank: CPU time adds up over ranks, wall-clock time does not.
    """
    runs = collection.runs
    by_cpu = runs["galaxies"].astype("float64") / runs["cpu_seconds"]
    claimed = runs[["galaxies_per_second", "summed_galaxies_per_second"]].sub(by_cpu, axis=0).abs().min(axis=1)
    clock = runs["working_seconds"].fillna(runs["wall_seconds"])
    far = (runs["cpu_seconds"] - clock).abs() > FAR * clock
    one = runs["ranks"].fillna(1).eq(1) & runs["origin"].ne("ours")  # own rates are wall-clock rates
    for run in select_rows(runs.assign(clock=clock), one & far & (claimed < SLACK * by_cpu)):
        text = f"its rate is over {run.cpu_seconds:,.1f} s of CPU time, where its wall-clock time is {run.clock:,.1f} s"
        yield Finding(run.run, Severity.DOUBT, "CPU time", text)


def check_missing_clocks(collection: Collection) -> Iterator[Finding]:
    """Count records with CPU time and a rate over it, but without wall-clock time; one remark, since most are such.

    Their `execution_time (seconds/batch)` is CPU seconds / galaxies * batch size, to all digits.
    """
    timed = collection.ranks[["cpu_seconds", "seconds"]].notna().groupby(collection.ranks["run"]).any()
    if count := int((timed["cpu_seconds"] & ~timed["seconds"]).sum()):
        text = f"in {count:,} of {len(timed):,} runs with records the ranks have no wall-clock time"
        yield Finding("", Severity.REMARK, "CPU time", f"{text}: their rates are galaxies over CPU time")


def check_stated_rates(collection: Collection) -> Iterator[Finding]:
    """Find stated rates without records that far exceed the fastest such run with a wall-clock time."""
    runs = collection.runs
    galaxies = runs["galaxies"].astype("float64").fillna(runs["data_gb"] * GB / GALAXY_BYTES)
    timed = runs.assign(rate=galaxies / runs["working_seconds"].fillna(runs["wall_seconds"])).dropna(subset="rate")
    fastest = timed.sort_values("rate").drop_duplicates(_SAME_WORK, keep="last")[[*_SAME_WORK, "run", "rate"]]
    claims = runs[runs["summed_galaxies_per_second"].notna() & ~runs["run"].isin(collection.ranks["run"].unique())]
    compared = claims.merge(fastest, on=_SAME_WORK, suffixes=("", "_timed"))
    for run in select_rows(compared, compared["summed_galaxies_per_second"] > START_UP * compared["rate"]):
        text = f"{run.summed_galaxies_per_second:,.0f} galaxies/s are stated, where the fastest such run with a "
        text += f"wall-clock time reached {run.rate:,.0f}: {run.run_timed}"
        yield Finding(run.run, Severity.DOUBT, "rate", text)


def check_possible_rates(collection: Collection) -> Iterator[Finding]:
    """Find ranks on a CPU whose stated float32 rate exceeds the arithmetic of any such machine."""
    ranks = collection.ranks.merge(collection.runs[["run", "platform", "device", "precision"]], on="run")
    cores = ranks["platform"].eq("lambda").map({True: CORES_ON_LAMBDA, False: CORES})
    most = cores * FLOPS_OF_CORE / FLOP_PER_GALAXY
    on_cpu = ranks["device"].eq("cpu") & ranks["precision"].eq("float32")
    odd = ranks.assign(most=most)[on_cpu & (ranks["galaxies_per_second"] > most)]
    for run, of_run in odd.groupby("run", sort=False):
        text = f"rank {_first_rank(of_run)} states {of_run['galaxies_per_second'].iloc[0]:,.0f} galaxies/s, where "
        text += f"{FLOP_PER_GALAXY / 1e9:.3f} GFLOP per galaxy allow any such CPU at most {of_run['most'].iloc[0]:,.0f}"
        yield Finding(str(run), Severity.DOUBT, "rate", f"{text} ({len(of_run):,} of its ranks)")


def _exceeds(seconds: pd.Series, span: pd.Series) -> pd.Series:
    return seconds > span * (1 + SLACK) + SLACK_SECONDS


def _first_rank(ranks: pd.DataFrame) -> str:
    return f"{ranks['rank'].iloc[0]}"
