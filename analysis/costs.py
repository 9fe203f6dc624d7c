"""Estimate the cost of runs that do not state it: dollars on Lambda at AWS list prices, service units on SLURM.

Values that would need a guess stay missing, and additional columns state the basis of each amount.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cosmicai.launchers.slurm.site import MB_PER_GB, Site
from cosmicai.runs.cost import published_table
from cosmicai.runs.prices import Usage, dollars, load_prices

BY_RUN = "as computed by the run itself at list prices"
AS_PUBLISHED = "as published"
BILLED, CPU_SECONDS = "billed seconds at list prices", "CPU seconds at list prices"
OWN_MEMORY, PUBLISHED_MEMORY = "memory of the function", "memory as published"
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class JobResources:
    """What each rank of SLURM runs requested at a site: cores, memory in MB and, on GPUs, one GPU of a kind."""

    site: Site
    cores: int
    memory_mb: float
    gpu: str | None = None


def add_costs(runs: pd.DataFrame, job: JobResources | None = None) -> pd.DataFrame:
    """Return the runs with `dollars` of published runs on Lambda and, with a job, `service_units` of runs on SLURM.

    `dollars_source` and `service_units_source` state the basis of each. Dollars that no source states are for Lambda's
    requests and memory alone. Without billed seconds they are for the mean CPU seconds of a rank, the only time in
    published records; this is less than was billed, which includes starting, loading and waiting. The number of
    invocations is the number of ranks that the source describes, else the expected one. Memory is that of the function,
    else that of the published cost table for such partitions. Service units are for the time of the whole run and as
    many ranks as ran at once, the most that a run can be charged whose ranks end one by one; only runs at the job's
    site have any.
    Raises InputError if the site has no such GPU.
    """
    rows = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in runs.to_dict("records")]
    found = {
        "dollars": [_estimate_dollars(row) for row in rows],
        "service_units": [_estimate_service_units(row, job) for row in rows],
    }
    columns = {name: pd.array([amount for amount, _ in pairs], dtype="float64") for name, pairs in found.items()}
    columns |= {
        f"{name}_source": pd.array([source for _, source in pairs], dtype="str") for name, pairs in found.items()
    }
    return runs.assign(**columns)


_Run = Mapping[str, Any]  # a row of runs, None where a value is missing
_Amount = tuple[float | None, str | None]  # an amount and its basis


def _estimate_dollars(run: _Run) -> _Amount:
    """Return US dollars of a run on Lambda; a run of this project states them itself, with everything that it used."""
    if run["dollars"] is not None:
        return run["dollars"], AS_PUBLISHED if run["origin"] == "published" else BY_RUN
    invocations = next((run[name] for name in ("ranks", "world_size", "asked_ranks") if run[name] is not None), None)
    memory_mb, memory = run["memory_mb"], OWN_MEMORY
    if memory_mb is None:
        memory_mb, memory = _PUBLISHED_MB.get(run["partition_mb"]), PUBLISHED_MEMORY
    if run["platform"] != "lambda" or run["origin"] != "published" or invocations is None or memory_mb is None:
        return None, None
    if run["billed_seconds"] is not None:
        seconds, clock = run["billed_seconds"], BILLED
    elif run["mean_cpu_seconds"] is not None:
        seconds, clock = invocations * run["mean_cpu_seconds"], CPU_SECONDS
    else:
        return None, None
    usage = Usage(invocations=invocations, gb_seconds=seconds * memory_mb / MB_PER_GB)
    return dollars(usage, load_prices())["total"], f"{clock}, {memory}"


def _estimate_service_units(run: _Run, job: JobResources | None) -> _Amount:
    """Return service units of a run at the site; None on GPUs of an unknown kind, or if the site states no rates."""
    ranks = run["world_size"] if run["concurrency"] is None else run["concurrency"]
    on_gpu = run["device"] == "cuda"
    if job is None or not _ran_at(run, job.site) or ranks is None or run["wall_seconds"] is None:
        return None, None
    if on_gpu and job.gpu is None:
        return None, None
    hours = run["wall_seconds"] / SECONDS_PER_HOUR
    gpu = job.site.find_gpu(job.gpu) if on_gpu and job.gpu else None
    gpus = ranks if on_gpu else 0
    units = job.site.compute_service_units(ranks * job.cores, gpus, gpu, hours, memory_mb=ranks * job.memory_mb)
    requested = f"{job.cores} core{'' if job.cores == 1 else 's'} and {job.memory_mb:g} MB per rank"
    requested += f", {job.gpu}" if on_gpu else ""
    return units, f"at most, by the rates of {job.site.name}: {requested}" if units is not None else None


def _ran_at(run: _Run, site: Site) -> bool:
    """Return whether a run was charged by a site: ours name theirs, of published ones only the machine is known."""
    if run["platform"] != "slurm":
        return False
    if run["origin"] == "published":
        return re.split(r"\W", run["machine"] or "")[0].lower() == site.name
    return bool(run["site"] == site.name)


_PUBLISHED_MB = {row["partition_mb"]: row["memory_gb"] * MB_PER_GB for row in published_table()}
