"""All launchers by name, and those that a run folder's own submissions name."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from typing import cast

from ..errors import InputError
from ..runs.store import RunFolder
from .base import Launcher
from .submission import read_cloud_run, read_submissions

# Modules are imported when their launcher is used: SLURM's needs submitit and that of AWS boto3, which take long.
LAUNCHERS = {
    "local": ("local.launcher", "LocalLauncher"),
    "mpi": ("mpi", "MpiLauncher"),
    "slurm": ("slurm.launcher", "SlurmLauncher"),
    "aws": ("aws.launcher", "AwsLauncher"),
}


def launcher_by_name(name: str) -> Launcher:
    """Return the launcher of a platform. Raises InputError if there is none of this name."""
    if name not in LAUNCHERS:
        raise InputError(f"there is no launcher {name}; use {', '.join(LAUNCHERS)}")
    module, class_name = LAUNCHERS[name]
    return cast(Launcher, getattr(import_module(f".{module}", __package__), class_name)())


def launchers_of(run: RunFolder) -> tuple[Launcher, ...]:
    """Return the launchers whose work on a run there may be, by what was submitted for it."""
    # Jobs that sbatch has started without us leave no submission, but the records of their ranks name them.
    names = ("aws",) if read_cloud_run(run) else ("slurm", "local")
    return tuple(map(launcher_by_name, names))


def submitter_of(run: RunFolder, options: Collection[str]) -> Launcher | None:
    """Return the launcher by which a run was submitted and that resumes it as it was.

    None if the run was started here, or if the user's `options` request other ranks.
    """
    submitted = read_cloud_run(run)
    if submitted and not (options and run.uri == submitted.run):
        return launcher_by_name("aws")
    if read_submissions(run) and not set(options) - {"--wait"}:
        return launcher_by_name("slurm")
    return None
