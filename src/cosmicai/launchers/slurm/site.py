"""What one SLURM cluster offers, read from a file such as `slurm/rivanna.toml`, whose fields are those of the classes.

A limit or a rate that a file does not state is unknown, and nothing is refused or charged for it.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from ...errors import InputError, explained

SITES = Path(__file__).parents[4] / "slurm"
MB_PER_GB = 1024
T = TypeVar("T")


@dataclass(frozen=True)
class Partition:
    """Limits of one job. `max_cores` and `max_gpus` count those of all its nodes together.

    `gpus`: there are GPUs; `cpu_jobs`: and jobs without GPUs may run there all the same.
    """

    name: str
    max_hours: float | None = None
    min_nodes: int = 1
    max_nodes: int | None = None
    cores_per_node: int | None = None
    max_cores: int | None = None
    memory_mb_per_node: int | None = None
    gpus: bool = False
    cpu_jobs: bool = False
    max_gpus: int | None = None


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: what to say for it after --gres=, how many a node has, and what an hour of one is charged.

    `partitions`: those that have it; any with GPUs if there are none. The rates for cores and memory are those of its
    nodes, the site's if not stated. `computes`: false for a stand-in, beside which ranks compute on the CPU.
    """

    kind: str
    gres: str
    per_node: int
    partitions: tuple[str, ...] = ()
    service_units_per_hour: float | None = None
    service_units_per_core_hour: float | None = None
    service_units_per_gb_hour: float | None = None
    computes: bool = True


@dataclass(frozen=True)
class Site:
    """A cluster. `scratch` is the folder for large files; `read` is the day when `source` stated these figures."""

    name: str
    account_required: bool
    scratch: str
    partitions: tuple[Partition, ...]
    gpus: tuple[Gpu, ...] = ()
    modules: tuple[str, ...] = ()
    largest_array: int | None = None
    service_units_per_core_hour: float | None = None
    service_units_per_gb_hour: float | None = None
    read: date | None = None
    source: str | None = None

    def partition(
        self,
        asked: str | None,
        *,
        nodes: int,
        cores_per_node: int,
        memory_mb_per_node: int,
        gpus: int,
        hours: float,
        kind: str | None = None,
    ) -> Partition:
        """The partition asked for, or else the first that takes the job; `gpus` are those of all nodes together, of the
        site's first kind if none is given.

        Raises InputError if there is none of this name or kind, or it or all of them refuse such a job.
        """
        demands = {
            "max_nodes": nodes,
            "cores_per_node": cores_per_node,
            "memory_mb_per_node": memory_mb_per_node,
            "max_cores": nodes * cores_per_node,
            "max_gpus": gpus,
            "max_hours": hours,
        }
        gpu = self.gpu(kind) if gpus else None
        refusals = {each.name: _refusal(each, demands, gpu) for each in self.partitions}
        fitting = [each for each in self.partitions if not refusals[each.name]]
        if asked is None and not fitting:
            told = ", ".join(f"{name} {refusal}" for name, refusal in refusals.items())
            raise InputError(f"no partition of {self.name} takes this job: {told}; ask for less")
        if asked is not None and asked not in refusals:
            raise InputError(f"{self.name} has no partition {asked}; use {_either(refusals)}")
        if asked is not None and refusals[asked]:
            advice = (
                f"use {_either(each.name for each in fitting)}" if fitting else "no other takes it, so ask for less"
            )
            raise InputError(f"partition {asked} of {self.name} {refusals[asked]}; {advice}")
        return next(each for each in fitting if asked in (None, each.name))

    def gpu(self, kind: str | None) -> Gpu:
        """The kind of GPU, or else the site's first. Raises InputError if the site has none of it."""
        if not self.gpus:
            raise InputError(f"{self.name} has no GPUs; leave --gpus out or choose another site")
        for each in self.gpus:
            if kind in (None, each.kind):
                return each
        raise InputError(f"{self.name} has no GPUs of kind {kind}; use {_either(each.kind for each in self.gpus)}")

    def gres(self, kind: str | None, per_node: int) -> str:
        """What to say after --gres= for so many GPUs on each node. Raises InputError if no node has so many."""
        gpu = self.gpu(kind)
        if per_node > gpu.per_node:
            told = f"a node of {self.name} has {gpu.per_node} GPUs of kind {gpu.kind} and the job asks for {per_node}"
            raise InputError(f"{told}; ask for fewer a node, on more nodes")
        return f"{gpu.gres}:{per_node}"

    def service_units(self, cores: int, gpus: int, kind: str | None, hours: float, *, memory_mb: float) -> float | None:
        """What a job is charged; cores, GPUs and MB are those of all its nodes together, as it asked for them.

        None where the site states no rates. Raises InputError if the site has no GPUs of this kind.
        """
        gpu = self.gpu(kind) if gpus else Gpu("", "", 0, service_units_per_hour=0.0)
        rates = [
            gpu.service_units_per_hour,
            _first(gpu.service_units_per_core_hour, self.service_units_per_core_hour),
            _first(gpu.service_units_per_gb_hour, self.service_units_per_gb_hour, 0.0),
        ]
        amounts = [gpus, cores, memory_mb / MB_PER_GB]
        known = [rate * amount for rate, amount in zip(rates, amounts, strict=True) if rate is not None]
        return hours * sum(known) if len(known) == len(rates) else None

    def require_account(self, account: str | None) -> None:
        """Raises InputError if jobs of this site need an account and none is given."""
        if self.account_required and not account:
            raise InputError(f"{self.name} charges jobs to an account; name yours with --account")

    def array_sizes(self, tasks: int) -> list[int]:
        """How many of the tasks go into each array, so that none is too large and all are as alike as can be."""
        count = math.ceil(tasks / (self.largest_array or max(1, tasks)))
        return [tasks // count + (number < tasks % count) for number in range(count)]


def load_site(asked: str | None, environment: Mapping[str, str]) -> Site:
    """The site of --site, or else of COSMICAI_SITE: the name of a file in the folder slurm, or the path of a .toml.

    Variables in `scratch` are replaced. Raises InputError if there is no such file, or something in it is wrong.
    """
    name, there = asked or environment.get("COSMICAI_SITE"), sorted(path.stem for path in SITES.glob("*.toml"))
    choice = _either([*there, "the path of a .toml file"])
    if not name:
        raise InputError(f"no site is named; use --site or COSMICAI_SITE with {choice}")
    if not name.endswith(".toml") and name not in there:
        raise InputError(f"{'--site' if asked else 'COSMICAI_SITE'} {name}: there is no such site; use {choice}")
    path = Path(name) if name.endswith(".toml") else SITES / f"{name}.toml"
    file = f"slurm/{path.name}" if path.parent == SITES else str(path)
    with explained(file, "read"):
        text = path.read_bytes().decode(errors="replace")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("at end of document", f"at the end, line {len(text.splitlines())}")
        raise InputError(f"{file} is not valid TOML: {reason}; mend it there") from error
    table["partitions"] = _made_all(Partition, "name", table.get("partitions", {}), file, "partitions")
    table["gpus"] = _made_all(Gpu, "kind", table.get("gpus", {}), file, "gpus")
    if not table["partitions"]:
        raise InputError(f"{file}: partitions is missing; give a table [partitions.NAME] for each")
    site = _made(Site, {}, table, file, "")
    with_gpus = [each.name for each in site.partitions if each.gpus]
    for gpu in site.gpus:
        if unknown := [each for each in gpu.partitions if each not in with_gpus]:
            told = f"{file}: gpus.{gpu.kind}.partitions names {unknown[0]}"
            raise InputError(
                f"{told}; expected partitions with gpus = true: {', '.join(with_gpus) or 'there are none'}"
            )
    try:
        scratch = Template(site.scratch).substitute({key: value for key, value in environment.items() if value})
    except KeyError as error:
        told = f"{file}: scratch is {json.dumps(site.scratch)} and the variable {error.args[0]} is not set"
        raise InputError(f"{told}; export {error.args[0]} with a value") from error
    except ValueError as error:
        raise InputError(f"{file}: scratch is {json.dumps(site.scratch)}; write a plain $ as $$") from error
    if not scratch.startswith("/"):
        raise InputError(f"{file}: scratch is {json.dumps(scratch)}; expected {_RULES['scratch'][0]}")
    return replace(site, scratch=scratch)


def seconds_of(time: str) -> int:
    """The seconds of a time limit in any of SLURM's ways to write one. Raises InputError if it is none of them, or
    it is 0, by which SLURM understands that there is no limit."""
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


def _refusal(partition: Partition, demands: Mapping[str, float], gpu: Gpu | None) -> str:
    """Why the partition does not take a job with such demands on its limits; empty if it does."""
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


def _made_all(made: type[T], key: str, tables: Any, file: str, above: str) -> tuple[T, ...]:
    """An object for each of the tables [above.NAME]. Raises InputError if one of them is wrong."""
    if not isinstance(tables, dict):
        raise InputError(f"{file}: {above} is {json.dumps(tables, default=str)}; expected tables [{above}.NAME]")
    for name in tables:
        if not _text(_WORD)(name):
            raise InputError(f"{file}: {above} has the name {json.dumps(name)}; expected letters, digits, ., - and _")
    return tuple(_made(made, {key: name}, table, file, f"{above}.{name}.") for name, table in tables.items())


def _made(made: type[T], given: dict[str, Any], table: Any, file: str, above: str) -> T:
    """An object of the table's fields and those given. Raises InputError if one is wrong, unknown or missing."""
    if not isinstance(table, dict):
        raise InputError(f"{file}: {above[:-1]} is {json.dumps(table, default=str)}; expected a table [{above[:-1]}]")
    known = {field.name: field.default for field in fields(made) if field.name not in given}  # type: ignore[arg-type]
    for key, value in table.items():
        if key not in known:
            near = get_close_matches(key, known, 1)
            raise InputError(f"{file}: {above}{key} is not known; use {near[0] if near else _either(known)}")
        expected, holds = _RULES[key]
        if not (isinstance(value, tuple) or holds(value)):  # a tuple is no TOML: it is made of tables already
            raise InputError(f"{file}: {above}{key} is {json.dumps(value, default=str)}; expected {expected}")
    for key, default in known.items():
        if default is MISSING and key not in table:
            raise InputError(f"{file}: {above}{key} is missing; give {_RULES[key][0]}")
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return made(**given | table | lists)


def _either(choices: Iterable[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _text(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def _list(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(_text(pattern), value))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


# What a field must be, in words and as a test. The patterns keep out what would mean something else in a job's script.
_WORD = r"[A-Za-z0-9][\w.-]*"
_WHOLE = ("a whole number, 1 or more", lambda value: type(value) is int and value >= 1)
_RATE = ("a number of service units, 0 or more", _number)
_FLAG = ("true or false", lambda value: isinstance(value, bool))
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "name": ("a name of letters, digits, ., - and _", _text(_WORD)),
    "account_required": _FLAG,
    "scratch": ('the absolute path of a folder, such as "/scratch/$USER"', _text(r"[/$].*")),
    "partitions": ("a list of names of partitions", _list(_WORD)),
    "modules": ("a list of names of modules", _list(r"[A-Za-z0-9][\w.+/-]*")),
    "read": ("a date without quotes, such as 2026-11-21", lambda value: type(value) is date),
    "source": ("a text on one line", _text(".+")),
    "max_hours": ("a number of hours above 0", lambda value: _number(value) and value > 0),
    "gres": ('a gres such as "gpu:a100"', _text(r"gpu(:[\w.-]+)?")),
    **dict.fromkeys(("gpus", "cpu_jobs", "computes"), _FLAG),
    **dict.fromkeys(("min_nodes", "max_nodes", "cores_per_node", "max_cores", "memory_mb_per_node"), _WHOLE),
    **dict.fromkeys(("max_gpus", "per_node", "largest_array"), _WHOLE),
    **{f"service_units_per_{what}hour": _RATE for what in ("", "core_", "gb_")},
}
