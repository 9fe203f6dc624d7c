"""Options of sbatch that a job gets besides its size: mail, dependencies, nodes to avoid, and what a site demands."""

from __future__ import annotations

import re

from ...errors import InputError
from ..base import SlurmRequest
from .site import SBATCH_OPTION, Gpu, Site

# Options of sbatch that are requested by options of the launcher or follow from them.
DECIDED = {
    "account": "--account", "array": "--array", "constraint": "--constraint", "cpus-per-task": "--cores",
    "error": "the launcher", "gpus": "--gpus", "gpus-per-node": "--gpus", "gpus-per-task": "--gpus",
    "gres": "--gpu-kind", "job-name": "the launcher", "mem": "--memory-mb", "mem-per-cpu": "--mem-per-cpu",
    "mem-per-gpu": "--memory-mb", "nodes": "--nodes", "ntasks": "--procs", "ntasks-per-node": "--procs",
    "no-requeue": "--requeues", "open-mode": "the launcher", "output": "the launcher", "parsable": "the launcher",
    "partition": "--partition", "qos": "--qos", "requeue": "--requeues", "reservation": "--reservation",
    "signal": "the launcher", "time": "--time", "wait": "--wait", "wrap": "the launcher",
}  # fmt: skip
MAIL_TYPES = (
    "NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT", "TIME_LIMIT", "TIME_LIMIT_90",
    "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS",
)  # fmt: skip
USUAL_MAIL = "END,FAIL"  # of a job with an address and no types, to which SLURM itself would send nothing
DEPENDENCY = r"(singleton|(after(any|ok|notok|corr|burstbuffer)?:\d+(_\d+)?(\+\d+)?(:\d+(_\d+)?(\+\d+)?)*))"


def collect_options(site: Site, slurm: SlurmRequest) -> dict[str, bool | str]:
    """Return options of sbatch that submitit has no parameter for, those of the request before those of the site.

    True is the value of an option that takes none. Raises InputError for one that is no option, that contradicts
    another one, or that is decided by other means.
    """
    named = _named_options(site, slurm)
    options = _parse(site.sbatch) | named
    for key, value in _parse(slurm.sbatch).items():
        if named.get(key, value) != value and getattr(slurm, key.replace("-", "_"), None):
            raise InputError(f"--sbatch {key}={value} and --{key} {named[key]} contradict each other; use one of them")
        options[key] = value
    return options


def join_constraints(slurm: SlurmRequest, site: Site, gpu: Gpu | None) -> str | None:
    """Return the features that nodes must have: those of the request, or else of the site, and of the kind of GPU."""
    parts = [part for part in (slurm.constraint or site.constraint, gpu.constraint if gpu else None) if part]
    parts = list(dict.fromkeys(parts))
    if len(parts) > 1:  # & binds before |
        parts = [f"({part})" if "|" in part and not part.startswith(("(", "[")) else part for part in parts]
    return "&".join(parts) or None


def _parse(texts: tuple[str, ...]) -> dict[str, bool | str]:
    """Return options that are written as KEY=VALUE or KEY. Raises InputError."""
    options: dict[str, bool | str] = {}
    for text in texts:
        if not re.fullmatch(SBATCH_OPTION, text, re.ASCII):
            raise InputError(f"--sbatch {text!r} is not an option of sbatch; write KEY=VALUE, such as exclude=n7")
        key, equals, value = text.removeprefix("--").partition("=")
        if key in DECIDED:
            raise InputError(f"--sbatch {text} sets what {DECIDED[key]} decides; use that")
        options[key] = value if equals else True
    return options


def _named_options(site: Site, slurm: SlurmRequest) -> dict[str, bool | str]:
    """Return the options of sbatch that have an option of the launcher with their name. Raises InputError."""
    mail_type = USUAL_MAIL if slurm.mail_type is None else slurm.mail_type
    for word in mail_type.split(","):
        if word.upper() not in MAIL_TYPES:
            raise InputError(f"--mail-type {mail_type!r} has {word!r}; use any of {', '.join(MAIL_TYPES)}")
    for key, value in (("mail-user", slurm.mail_user), ("exclude", slurm.exclude)):
        if value is not None and not re.fullmatch(r"[^\s'\"]+", value):
            raise InputError(f"--{key} {value!r} is empty or has spaces or quotes; write it without them")
    if slurm.dependency and not re.fullmatch(rf"{DEPENDENCY}([,?]{DEPENDENCY})*", slurm.dependency, re.ASCII):
        raise InputError(
            f"--dependency {slurm.dependency} is not a dependency; write afterok:JOB, afterany:JOB, singleton or "
            "several of them with commas"
        )
    values = {
        "mail-user": slurm.mail_user,
        "mail-type": mail_type if slurm.mail_user or slurm.mail_type else None,
        "dependency": slurm.dependency,
        "exclude": slurm.exclude,
        "nice": None if slurm.nice is None else str(slurm.nice),
        "reservation": slurm.reservation or site.reservation,
    }
    return {key: value for key, value in values.items() if value}
