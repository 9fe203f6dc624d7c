"""The one place from which SLURM's commands are called: sbatch, squeue, scancel and sacct.

The user's shell may be that of a job, or have been set up by a module of the site. Variables of either would change
what these commands do or print: `SQUEUE_FORMAT`, `SLURM_JOB_ID`, or the limits of an allocation, which a new job would
inherit.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

CONTROLLER_TIMEOUT = 60.0  # seconds
ATTEMPTS = 3
PAUSE = 2.0  # seconds between attempts: a busy controller answers again after some
PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SALLOC_", "SRUN_")
# Where the cluster is and how to be known there.
CONNECTION = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_SACK_SOCKET")
# What a busy or restarting controller says; such a command has perhaps been carried out.
PASSING = ("timed out", "unable to contact slurm controller", "connection refused", "connection reset", "try again")
# The line with the number of a job: `12`, `12;cluster`, or with a site's own words around it.
SUBMITTED = re.compile(r"\s*(?:Submitted batch job )?(\d+)(?:;\S+)?(?: on cluster \S+)?\s*")
# Options of sbatch whose variable in its environment has another name.
VARIABLES = {"array": "SBATCH_ARRAY_INX", "time": "SBATCH_TIMELIMIT", "mem": "SBATCH_MEM_PER_NODE"}
# These would change what kind of job it is, contradict an option of this program's jobs, or send the job to a cluster
# on which squeue does not look for it.
NEVER_INHERITED = {
    "SBATCH_ARRAY_INX", "SBATCH_CLUSTERS", "SBATCH_CPUS_PER_GPU", "SBATCH_EXPORT_FILE", "SBATCH_GPUS",
    "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_GRES", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU",
    "SBATCH_MEM_PER_NODE", "SBATCH_NO_REQUEUE", "SBATCH_WAIT",
}  # fmt: skip


class SlurmFailure(Exception):
    """A command of SLURM failed; the text is what it said.

    If it `may_have_passed`, SLURM has perhaps done what was asked of it.
    """

    def __init__(self, text: str, *, may_have_passed: bool = False) -> None:
        super().__init__(text)
        self.may_have_passed = may_have_passed


def inherited_options(environment: Mapping[str, str], options: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return which variables of an environment add options to sbatch's command line, and which do not.

    `options` are those of the command line, such as "--partition=gpu". The first dictionary has the values of the
    variables that apply, the second has for each of the others the option that precedes it, or "" if it is never used.
    """
    here = {name: value for name, value in sorted(environment.items()) if name.startswith("SBATCH_")}
    decided = {_variable(option): option for option in options}
    applied = {name: value for name, value in here.items() if name not in decided and name not in NEVER_INHERITED}
    return applied, {name: decided.get(name, "") for name in here if name not in applied}


def _variable(option: str) -> str:
    """Return the name of the variable for an option such as "--partition=gpu"."""
    name = option.partition("=")[0].removeprefix("--")
    return VARIABLES.get(name, f"SBATCH_{name.upper().replace('-', '_')}")


def read_job_number(answer: str) -> str | None:
    """Return the number of the job from what sbatch printed, in the last line that has one; None without one."""
    numbers = [line[1] for text in answer.splitlines() if (line := SUBMITTED.fullmatch(text))]
    return numbers[-1] if numbers else None


def call_slurm(
    command: Sequence[str],
    *,
    attempts: int = ATTEMPTS,
    timeout: float = CONTROLLER_TIMEOUT,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Run a command of SLURM and return what it printed.

    Its environment is that of this process without the variables of SLURM, except CONNECTION, and with `variables`.
    If the controller did not answer in time, the command is given again, `attempts` times in all, so it must be one for
    which that does no harm. Raises SlurmFailure if it is not installed, fails, or takes more than `timeout` seconds.
    """
    for attempt in range(1, attempts + 1):
        try:
            return _run(command, timeout, variables)
        except SlurmFailure as failure:
            if attempt == attempts or not failure.may_have_passed:
                raise
            time.sleep(PAUSE)
    raise AssertionError("the last attempt returns or raises")


def _run(command: Sequence[str], timeout: float, variables: Mapping[str, str]) -> str:
    environment = {
        name: value for name, value in os.environ.items() if name in CONNECTION or not name.startswith(PREFIXES)
    }
    try:
        done = subprocess.run(
            command, env=environment | dict(variables), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SlurmFailure(f"no answer within {timeout:g} s", may_have_passed=True) from None
    except OSError as error:
        raise SlurmFailure(str(error)) from None
    if done.returncode:
        text = _message(done.stderr) or f"it ended with exit code {done.returncode}"
        raise SlurmFailure(text, may_have_passed=any(words in text.lower() for words in PASSING))
    return done.stdout


def _message(stderr: str) -> str:
    """Return what the command itself wrote, without `sbatch: error: `; the last line if it has another form."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.partition(": error: ")[2] for line in lines if ": error: " in line]
    return "; ".join(errors) or "".join(lines[-1:])
