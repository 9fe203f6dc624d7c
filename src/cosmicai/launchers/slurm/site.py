"""What a SLURM cluster offers: its partitions, GPUs, limits and rates, and whether a job fits into them.

The records here are the content of files such as `slurm/rivanna.toml`, with the same names of fields. A limit or a rate
that a file does not state is unknown, and nothing is refused or charged because of it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Annotated

import msgspec
from msgspec import Meta

from ...errors import InputError

MB_PER_GB = 1024
WORD = r"[A-Za-z0-9][\w.-]*"
SBATCH_OPTION = r"(--)?[a-z][a-z0-9-]+(=[^\n]+)?"


def _text(pattern: str, expected: str) -> Meta:
    """Return the rule for a text that must match a pattern as a whole, in ASCII."""
    return Meta(pattern=rf"(?a)\A({pattern})\Z", description=expected)


# What a field must be; descriptions are for messages. The patterns keep out what would mean something else in the
# script of a job.
_Name = Annotated[str, _text(WORD, "a name of letters, digits, ., - and _")]
_Module = Annotated[str, _text(r"[A-Za-z0-9][\w.+/-]*", "the name of a module")]
_Names = Annotated[tuple[_Name, ...], Meta(description="a list of names of partitions")]
_Modules = Annotated[tuple[_Module, ...], Meta(description="a list of names of modules")]
Folder = Annotated[str, _text(r"[/$].*", 'the absolute path of a folder, such as "/scratch/$USER"')]
_Gres = Annotated[str, _text(r"gpu(:[\w.-]+)?", 'a gres such as "gpu:a100"')]
_Value = Annotated[str, _text(r"[^\s\"']+", "a text without spaces and quotes")]
_Option = Annotated[str, _text(SBATCH_OPTION, 'an option of sbatch such as "exclude=n7"')]
_Options = Annotated[tuple[_Option, ...], Meta(description='a list of options of sbatch such as ["exclude=n7"]')]
_TimeLimit = Annotated[str, _text(r"[0-9:-]+", 'a time limit such as "3-00:00:00"')]
_Line = Annotated[str, _text(".+", "a text on one line")]
_Flag = Annotated[bool, Meta(description="true or false")]
_Date = Annotated[date, Meta(description="a date without quotes, such as 2026-11-21")]
_Count = Annotated[int, Meta(ge=1, description="a whole number, 1 or more")]
_Hours = Annotated[float, Meta(gt=0, le=sys.float_info.max, description="a number of hours above 0")]
_Rate = Annotated[float, Meta(ge=0, le=sys.float_info.max, description="a number of service units, 0 or more")]


class SlurmPartition(msgspec.Struct, frozen=True):
    """Limits of one job in a partition. `max_cores` and `max_gpus` count those of all its nodes together.

    `gpus` says that the partition has GPUs, and `cpu_jobs` that jobs without GPUs may run there all the same.
    """

    name: _Name
    max_hours: _Hours | None = None
    min_nodes: _Count = 1
    max_nodes: _Count | None = None
    cores_per_node: _Count | None = None
    max_cores: _Count | None = None
    memory_mb_per_node: _Count | None = None
    gpus: _Flag = False
    cpu_jobs: _Flag = False
    max_gpus: _Count | None = None


class Gpu(msgspec.Struct, frozen=True):
    """A kind of GPU: what follows --gres=, how many a node has, and what is charged for an hour of one.

    `partitions` are those that have it, any with GPUs if there are none, and `constraint` is the feature of its nodes
    where the gres alone does not tell them apart. With each GPU a job may have at most `cores` and `memory` MB, for
    `max_time` in SLURM's notation, and `max_running_per_user` jobs of a user run at a time. The rates for cores and
    memory are those of its nodes, the site's if they are not stated. `computes` is false for a stand-in, with which
    ranks compute on the CPU.
    """

    kind: _Name
    gres: _Gres
    per_node: _Count
    partitions: _Names = ()
    constraint: _Value | None = None
    cores: _Count | None = None
    memory: _Count | None = None
    max_time: _TimeLimit | None = None
    max_running_per_user: _Count | None = None
    service_units_per_hour: _Rate | None = None
    service_units_per_core_hour: _Rate | None = None
    service_units_per_gb_hour: _Rate | None = None
    computes: _Flag = True


class Site(msgspec.Struct, frozen=True):
    """A cluster. `scratch` is the folder for large files; `read` is the day on which `source` stated these figures.

    Jobs request memory per core, not per node, if `memory_per_core` is true. `qos`, `constraint`, `reservation` and the
    further options `sbatch` are for all jobs for which the user does not request others. Jobs that leave a GPU idle for
    `idle_gpu_hours` are ended by the site.
    """

    name: _Name
    account_required: _Flag
    scratch: Folder
    partitions: tuple[SlurmPartition, ...]
    gpus: tuple[Gpu, ...] = ()
    modules: _Modules = ()
    memory_per_core: _Flag = False
    qos: _Value | None = None
    constraint: _Value | None = None
    reservation: _Value | None = None
    sbatch: _Options = ()
    largest_array: _Count | None = None
    idle_gpu_hours: _Hours | None = None
    service_units_per_core_hour: _Rate | None = None
    service_units_per_gb_hour: _Rate | None = None
    read: _Date | None = None
    source: _Line | None = None

    def choose_partition(
        self,
        requested: str | None,
        *,
        nodes: int,
        cores_per_node: int,
        memory_mb_per_node: int,
        hours: float,
        gpus: int = 0,
        gpu: Gpu | None = None,
    ) -> SlurmPartition:
        """Return the requested partition, or else the first that takes the job.

        `gpus` are those of all nodes together, all of the kind `gpu`. Raises InputError if there is no partition of
        this name, or if it, or all of them, refuse such a job.
        """
        demands = {
            "max_nodes": nodes,
            "cores_per_node": cores_per_node,
            "memory_mb_per_node": memory_mb_per_node,
            "max_cores": nodes * cores_per_node,
            "max_gpus": gpus,
            "max_hours": hours,
        }
        refusals = {partition.name: _refusal(partition, demands, gpu) for partition in self.partitions}
        fitting = [partition for partition in self.partitions if not refusals[partition.name]]
        if requested is None and not fitting:
            reasons = ", ".join(f"{name} {refusal}" for name, refusal in refusals.items())
            raise InputError(f"no partition of {self.name} takes this job: {reasons}; ask for less")
        if requested is not None and requested not in refusals:
            raise InputError(f"{self.name} has no partition {requested}; use {join_choices(refusals)}")
        if requested is not None and refusals[requested]:
            others = join_choices(partition.name for partition in fitting) if fitting else ""
            advice = f"use {others}" if others else "no other takes it, so ask for less"
            raise InputError(f"partition {requested} of {self.name} {refusals[requested]}; {advice}")
        return next(partition for partition in fitting if requested in (None, partition.name))

    def find_gpu(self, kind: str) -> Gpu:
        """Return the kind of GPU with this name. Raises InputError if the site does not have it."""
        self.require_gpus()
        for gpu in self.gpus:
            if kind == gpu.kind:
                return gpu
        raise InputError(f"{self.name} has no GPUs of kind {kind}; use {join_choices(gpu.kind for gpu in self.gpus)}")

    def require_gpus(self) -> None:
        """Raise InputError if the site has no GPUs."""
        if not self.gpus:
            raise InputError(f"{self.name} has no GPUs; leave --gpus out or choose another site")

    def require_share(self, gpu: Gpu, per_node: int, *, cores_per_node: int, memory_mb_per_node: int, time: str) -> str:
        """Return the value of --gres= for a job with this many GPUs on each node, and these cores and MB of a node.

        Raises InputError if no node has that many GPUs, or if the job breaks a limit of this kind.
        """
        if per_node > gpu.per_node:
            problem = f"a node of {self.name} has {gpu.per_node} GPUs of kind {gpu.kind} and the job asks for"
            raise InputError(f"{problem} {per_node}; ask for fewer per node, on more nodes")
        having = f"with each GPU of kind {gpu.kind} of {self.name} a job may have"
        if gpu.cores and cores_per_node > gpu.cores * per_node:
            raise InputError(
                f"{having} {gpu.cores} cores and this one asks for {cores_per_node / per_node:g}; use --cores "
                f"{gpu.cores} or fewer"
            )
        if gpu.memory and memory_mb_per_node > gpu.memory * per_node:
            raise InputError(
                f"{having} {gpu.memory} MB and this one asks for {memory_mb_per_node / per_node:.12g}; use --memory-mb "
                f"{gpu.memory * per_node} or less"
            )
        if gpu.max_time and parse_time_limit(time) > parse_time_limit(gpu.max_time):
            raise InputError(f"{having} {gpu.max_time} of time and this one asks for {time}; use a shorter --time")
        return f"{gpu.gres}:{per_node}"

    def compute_service_units(
        self, cores: int, gpus: int, gpu: Gpu | None, hours: float, *, memory_mb: float
    ) -> float | None:
        """Return what a job is charged; cores, GPUs and MB are those requested for all its nodes together.

        `gpu` is the kind of the GPUs. None where the site states no rates.
        """
        gpu = gpu or Gpu("", "", 0, service_units_per_hour=0.0)
        rates = [
            gpu.service_units_per_hour,
            _first(gpu.service_units_per_core_hour, self.service_units_per_core_hour),
            _first(gpu.service_units_per_gb_hour, self.service_units_per_gb_hour, 0.0),
        ]
        amounts = [gpus, cores, memory_mb / MB_PER_GB]
        known = [rate * amount for rate, amount in zip(rates, amounts, strict=True) if rate is not None]
        return hours * sum(known) if len(known) == len(rates) else None

    def require_account(self, account: str | None) -> None:
        """Raise InputError if jobs of this site need an account and none is given."""
        if self.account_required and not account:
            raise InputError(f"{self.name} charges jobs to an account; name yours with --account")

    def split_array(self, tasks: int) -> list[int]:
        """Return the sizes of as few arrays as the site's limit allows, which differ by one task at most."""
        count = math.ceil(tasks / (self.largest_array or max(1, tasks)))
        return [tasks // count + (number < tasks % count) for number in range(count)]


def parse_time_limit(time: str) -> int:
    """Return the seconds of a time limit in any of SLURM's notations.

    Raises InputError if it is in none of them, or is 0, which SLURM takes for no limit.
    """
    two, seconds = "[0-5]?[0-9]", 0
    if found := re.fullmatch(rf"([0-9]+)-([01]?[0-9]|2[0-3])(?::({two})(?::({two}))?)?", time):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    elif found := re.fullmatch(rf"(?:([0-9]+)|([0-9]+):({two}))(?::({two}))?", time):
        minutes, hours, of_hours, rest = (int(part or 0) for part in found.groups())
        seconds = (hours * 60 + of_hours + minutes) * 60 + rest
    if not seconds:
        formats = "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or "
        raise InputError(f"{time!r} is not a time limit; write {formats}days-hours:minutes:seconds, such as 1:30:00")
    return seconds


def join_choices(choices: Iterable[str]) -> str:
    """Return choices as part of a sentence: `a, b or c`."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _refusal(partition: SlurmPartition, demands: Mapping[str, float], gpu: Gpu | None) -> str:
    """Return why a partition does not take a job with such demands on its limits; empty if it does."""
    gpus = demands["max_gpus"]
    if gpus and not partition.gpus:
        return f"has no GPUs and the job asks for {gpus}"
    if not gpus and partition.gpus and not partition.cpu_jobs:
        return "is for jobs with GPUs and the job asks for none"
    if gpu and gpu.partitions and partition.name not in gpu.partitions:
        return f"has no GPUs of kind {gpu.kind}"
    if demands["max_nodes"] < partition.min_nodes:
        return f"has min_nodes = {partition.min_nodes} and the job asks for {demands['max_nodes']}"
    for limit, demand in demands.items():
        most = getattr(partition, limit)
        if most is not None and demand > most:
            return f"has {limit} = {most:.12g} and the job asks for {demand:.12g}"
    return ""


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)
