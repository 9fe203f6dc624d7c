"""Rules of the audit on times and rates: clocks in disorder, CPU time in the place of time, rates that cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from .rules import Finding, Severity, rows
from .tables import GALAXY_BYTES, GB, Collection

SLACK_SECONDS, SLACK = 1.0, 0.01  # by which two clocks may differ: seconds, and of a span
FAR = 0.2  # CPU time that differs by more from the clock's is no stand-in for it
START_UP = 10  # a rate without start-up can be so many times that of the whole run, not more
FLOP_PER_GALAXY = 0.222e9  # of the published network
# More than any CPU has in float32: 16 lanes, two fused multiply-adds a cycle, 4 GHz are 256 GFLOP/s per core; of cores
# a server has 2 x 192, and Lambda gives a function at most 6 vCPUs, which are 3.
FLOPS_OF_CORE, CORES, CORES_ON_LAMBDA = 256e9, 384, 3
_LIKE = ["origin", "platform", "device", "data_gb"]


def clock_disorder(collection: Collection) -> Iterator[Finding]:
    """Ranks that ended before they began or worked for longer than they were there; runs shorter than their ranks."""
    ranks, runs = collection.ranks, collection.runs
    span = (ranks["ended_at"] - ranks["started_at"]).dt.total_seconds()
    phases = ranks[["load_seconds", "read_seconds", "predict_seconds", "write_seconds"]].sum(axis=1)
    for run, odd in ranks[span < 0].groupby("run", sort=False):
        text = f"{len(odd):,} ranks ended before they began, first rank {_first(odd)}"
        yield Finding(str(run), Severity.DOUBT, "clock", text)
    longer = (span >= 0) & _exceeds(phases, span)
    for run, odd in ranks.assign(span=span, phases=phases)[longer].groupby("run", sort=False):
        text = f"{len(odd):,} ranks worked for longer than they were there, first rank {_first(odd)}: "
        text += f"{odd['phases'].iloc[0]:,.1f} s of {odd['span'].iloc[0]:,.1f} s"
        yield Finding(str(run), Severity.DOUBT, "clock", text)
    for column, what in (("slowest_seconds", "its slowest rank worked"), ("working_seconds", "its ranks worked")):
        for run in rows(runs.assign(seconds=runs[column]), _exceeds(runs[column], runs["wall_seconds"])):
            text = f"{what} for {run.seconds:,.1f} s, longer than the whole run took: {run.wall_seconds:,.1f} s"
            yield Finding(run.run, Severity.DOUBT, "clock", text)


def cpu_time_for_time(collection: Collection) -> Iterator[Finding]:
    """A rate over CPU seconds, where a clock tells that the run took a very different time.

    Only of runs with one rank: CPU time adds up over ranks, time does not.
    """
    runs = collection.runs
    by_cpu = runs["galaxies"].astype("float64") / runs["cpu_seconds"]
    claimed = runs[["galaxies_per_second", "summed_galaxies_per_second"]].sub(by_cpu, axis=0).abs().min(axis=1)
    clock = runs["working_seconds"].fillna(runs["wall_seconds"])
    far = (runs["cpu_seconds"] - clock).abs() > FAR * clock
    one = runs["ranks"].fillna(1).eq(1) & runs["origin"].ne("ours")  # whose rates are by the clock
    for run in rows(runs.assign(clock=clock), one & far & (claimed < SLACK * by_cpu)):
        text = f"its rate is over {run.cpu_seconds:,.1f} s of CPU time, where by the clock it took {run.clock:,.1f} s"
        yield Finding(run.run, Severity.DOUBT, "CPU time", text)


def no_clock(collection: Collection) -> Iterator[Finding]:
    """Records that tell CPU time and a rate over it, and no time that passed; one remark, since most are such.

    Their `execution_time (seconds/batch)` is CPU seconds / galaxies * batch size, to all digits.
    """
    timed = collection.ranks[["cpu_seconds", "seconds"]].notna().groupby(collection.ranks["run"]).any()
    if count := int((timed["cpu_seconds"] & ~timed["seconds"]).sum()):
        text = f"in {count:,} of {len(timed):,} runs with records no clock timed the ranks"
        yield Finding("", Severity.REMARK, "CPU time", f"{text}: their rates are galaxies over CPU time")


def claimed_rate(collection: Collection) -> Iterator[Finding]:
    """A rate that no rank's record shows, far beyond that of the fastest such run that a clock measured."""
    runs = collection.runs
    galaxies = runs["galaxies"].astype("float64").fillna(runs["data_gb"] * GB / GALAXY_BYTES)
    timed = runs.assign(rate=galaxies / runs["working_seconds"].fillna(runs["wall_seconds"])).dropna(subset="rate")
    fastest = timed.sort_values("rate").drop_duplicates(_LIKE, keep="last")[[*_LIKE, "run", "rate"]]
    claims = runs[runs["summed_galaxies_per_second"].notna() & ~runs["run"].isin(collection.ranks["run"].unique())]
    beside = claims.merge(fastest, on=_LIKE, suffixes=("", "_of_clock"))
    for run in rows(beside, beside["summed_galaxies_per_second"] > START_UP * beside["rate"]):
        text = f"{run.summed_galaxies_per_second:,.0f} galaxies/s are claimed, where by the clock the fastest "
        text += f"such run had {run.rate:,.0f}: {run.run_of_clock}"
        yield Finding(run.run, Severity.DOUBT, "rate", text)


def impossible_rank(collection: Collection) -> Iterator[Finding]:
    """Ranks on a CPU that are faster in float32 than the arithmetic of any such machine."""
    ranks = collection.ranks.merge(collection.runs[["run", "platform", "device", "precision"]], on="run")
    cores = ranks["platform"].eq("lambda").map({True: CORES_ON_LAMBDA, False: CORES})
    most = cores * FLOPS_OF_CORE / FLOP_PER_GALAXY
    on_cpu = ranks["device"].eq("cpu") & ranks["precision"].eq("float32")
    odd = ranks.assign(most=most)[on_cpu & (ranks["galaxies_per_second"] > most)]
    for run, of_run in odd.groupby("run", sort=False):
        text = f"rank {_first(of_run)} claims {of_run['galaxies_per_second'].iloc[0]:,.0f} galaxies/s, where "
        text += f"{FLOP_PER_GALAXY / 1e9:.3f} GFLOP per galaxy allow any such CPU {of_run['most'].iloc[0]:,.0f}"
        yield Finding(str(run), Severity.DOUBT, "rate", f"{text} ({len(of_run):,} of its ranks)")


def _exceeds(seconds: pd.Series, span: pd.Series) -> pd.Series:
    return seconds > span * (1 + SLACK) + SLACK_SECONDS


def _first(ranks: pd.DataFrame) -> str:
    return f"{ranks['rank'].iloc[0]}"
