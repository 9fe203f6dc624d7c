"""Describe the workload of runs: where they ran and what each rank had to do, which explains their times."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cosmicai.surveys.survey import galaxies_per_partition

from .tables import GALAXY_BYTES, GB, LAPTOP, ONE_MACHINE

LAMBDA, ARRAY, NODE, GPU = "Lambda", "SLURM array", "SLURM node", "SLURM GPU"
SINGLE = (ONE_MACHINE, LAPTOP)  # platforms
PUBLISHED_MEMORY_MB = 10240.0  # of the functions of the published runs, from REPORT lines of their CloudWatch log


def add_workload(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with columns that describe their workload.

    `place` is where they ran, NA if that is not known; `variant` is what else runs of one model must share (memory on
    Lambda, ranks on one machine); `seconds` the time of the whole run; `galaxies`; `slots` the ranks at once; `share`
    the galaxies of a rank; `batches` the batches of a rank; and `limit` the limit on the slots. A published rank on
    Lambda or in an array reads whole partitions one after the other. Where the concurrency is unknown all ranks work at
    once.
    """
    place, world = _find_places(runs), runs["world_size"].astype("float64")
    galaxies = runs["asked_galaxies"].fillna(runs["galaxies"]).astype("float64")
    galaxies = galaxies.fillna(runs["data_gb"] * GB / GALAXY_BYTES)
    ours, concurrency = runs["origin"].eq("ours"), runs["concurrency"].astype("float64")
    in_files = place.isin([LAMBDA, ARRAY]) & ~ours
    size = runs["partition_mb"].map(galaxies_per_partition, na_action="ignore").astype("float64")
    files = np.ceil(galaxies / size).where(in_files, world.fillna(1))
    slots = concurrency.fillna(files).clip(upper=files)
    share = (np.ceil(files / slots) * size).where(in_files, galaxies / slots)
    # A state machine does more than its map, so only its own duration counts; elsewhere the working time is the whole.
    seconds = runs["wall_seconds"].fillna(runs["working_seconds"].where(place.ne(LAMBDA)))
    memory = runs["memory_mb"].fillna(runs["memory_mb"].where(ours | place.ne(LAMBDA), PUBLISHED_MEMORY_MB))
    variant = memory.where(place.eq(LAMBDA), world.where(ours & place.eq(ONE_MACHINE))).fillna(0.0)
    return runs.assign(
        place=place, variant=variant, memory_mb=memory, seconds=seconds, galaxies=galaxies, slots=slots, share=share,
        batches=share / runs["batch_size"].astype("float64"),
        # Files that a repeat did not find change its ranks, but not the configuration.
        limit=slots.where(place.ne(LAMBDA) | ours, concurrency),
        data_gb=runs["data_gb"].fillna(galaxies * GALAXY_BYTES / GB),
    )  # fmt: skip


def _find_places(runs: pd.DataFrame) -> pd.Series:
    on_slurm, single = runs["platform"].eq("slurm"), runs["world_size"].astype("float64").fillna(1).le(1)
    place = pd.Series(pd.NA, runs.index, dtype="str")
    place[runs["platform"].isin(SINGLE)] = ONE_MACHINE
    place[runs["platform"].eq("lambda")] = LAMBDA
    place[on_slurm & runs["device"].eq("cuda")] = GPU
    place[on_slurm & runs["device"].ne("cuda")] = ARRAY
    place[on_slurm & runs["device"].ne("cuda") & single] = NODE
    return place
