"""What runs cost that do not say it: dollars at AWS' list prices on Lambda, service units on a SLURM cluster.

What would need a guess stays missing, and columns beside the figures say what each was reckoned from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cosmicai.launchers.slurm.site import MB_PER_GB, Site
from cosmicai.runs.cost import Usage, dollars, load_prices, published_table

BY_RUN = "as the run itself reckons at list prices"
AS_PUBLISHED = "as published"
BILLED, CPU_SECONDS = "billed seconds at list prices", "CPU seconds at list prices"
OWN_MEMORY, PUBLISHED_MEMORY = "memory of the function", "memory as published"
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Job:
    """What each rank of SLURM runs asked for at a site: cores, memory in MB and, if it ran on GPUs, one of a kind."""

    site: Site
    cores: int
    memory_mb: float
    gpu: str | None = None


def with_costs(runs: pd.DataFrame, job: Job | None = None) -> pd.DataFrame:
    """The runs with `dollars` of published ones on Lambda and, with a job, `service_units` of those on SLURM.

    `dollars_source` and `service_units_source` say what each is reckoned from. Dollars are those of Lambda's requests
    and memory alone where no source states them. Without what was billed they are for the mean CPU seconds of a rank,
    which is all that published records measure, and so less than was billed: starting, loading and waiting are not in
    it. Calls are the ranks that the source tells of, else those that there should be. Memory is the function's, else
    the one that the published cost table has for such partitions. Service units are for the time of the whole run and
    as many ranks as there were at once, the most that a run can be charged whose ranks end one by one.
    Raises InputError if the site has no such GPU.
    """
    rows = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in runs.to_dict("records")]
    found = {"dollars": [_dollars(row) for row in rows], "service_units": [_service_units(row, job) for row in rows]}
    columns = {name: pd.array([amount for amount, _ in pairs], dtype="float64") for name, pairs in found.items()}
    columns |= {
        f"{name}_source": pd.array([source for _, source in pairs], dtype="str") for name, pairs in found.items()
    }
    return runs.assign(**columns)


_Run = Mapping[str, Any]  # a row of runs, None where a value is missing
_Figure = tuple[float | None, str | None]  # an amount, and what it was reckoned from


def _dollars(run: _Run) -> _Figure:
    """US dollars of a run on Lambda. Of our own only those that it states: it knows where it ran and all it used."""
    if run["dollars"] is not None:
        return run["dollars"], AS_PUBLISHED if run["origin"] == "published" else BY_RUN
    calls = next((run[name] for name in ("ranks", "world_size", "asked_ranks") if run[name] is not None), None)
    memory_mb, memory = run["memory_mb"], OWN_MEMORY
    if memory_mb is None:
        memory_mb, memory = _PUBLISHED_MB.get(run["partition_mb"]), PUBLISHED_MEMORY
    if run["platform"] != "lambda" or run["origin"] != "published" or calls is None or memory_mb is None:
        return None, None
    if run["billed_seconds"] is not None:
        seconds, clock = run["billed_seconds"], BILLED
    elif run["mean_cpu_seconds"] is not None:
        seconds, clock = calls * run["mean_cpu_seconds"], CPU_SECONDS
    else:
        return None, None
    usage = Usage(invocations=calls, gb_seconds=seconds * memory_mb / MB_PER_GB)
    return dollars(usage, load_prices())["total"], f"{clock}, {memory}"


def _service_units(run: _Run, job: Job | None) -> _Figure:
    """Service units of a run on SLURM; nothing for one on GPUs of an unknown kind, or if the site states no rates."""
    ranks = run["world_size"] if run["concurrency"] is None else run["concurrency"]
    on_gpu = run["device"] == "cuda"
    if job is None or run["platform"] != "slurm" or ranks is None or run["wall_seconds"] is None:
        return None, None
    if on_gpu and job.gpu is None:
        return None, None
    hours = run["wall_seconds"] / SECONDS_PER_HOUR
    gpus = ranks if on_gpu else 0
    units = job.site.service_units(ranks * job.cores, gpus, job.gpu, hours, memory_mb=ranks * job.memory_mb)
    asked = f"{job.cores} cores and {job.memory_mb:g} MB a rank" + (f", {job.gpu}" if on_gpu else "")
    return units, f"at most, by the rates of {job.site.name}: {asked}" if units is not None else None


_PUBLISHED_MB = {row["partition_mb"]: row["memory_gb"] * MB_PER_GB for row in published_table()}
