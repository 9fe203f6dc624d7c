"""Reads the profile of a site: a TOML file such as `slurm/rivanna.toml`."""

from __future__ import annotations

import json
import os
import pwd
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from string import Template
from typing import Any, TypeVar, get_args

import msgspec
from msgspec import structs

from ...errors import InputError, describe_os_errors
from ...storage.local import open_regular
from .site import WORD, Folder, Gpu, Site, SlurmPartition, join_choices, parse_time_limit

SITES = Path(__file__).parents[4] / "slurm"
T = TypeVar("T", bound=msgspec.Struct)


def load_site(requested: str | None, environment: Mapping[str, str]) -> Site:
    """Return the site of --site, or else of COSMICAI_SITE: a file in the folder slurm, or the path of a .toml file.

    Variables in `scratch` are replaced. Raises InputError if there is no such file, or if something in it is wrong.
    """
    path, file = _find_file(requested, environment)
    with describe_os_errors(file, "read"), os.fdopen(open_regular(path), "rb") as stream:
        text = stream.read().decode(errors="replace")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("at end of document", f"at the end, line {len(text.splitlines())}")
        raise InputError(f"{file} is not valid TOML: {reason}; correct it there") from error
    partitions = tuple(_read_tables(SlurmPartition, "name", table.get("partitions", {}), file, "partitions"))
    gpus = tuple(_read_tables(Gpu, "kind", table.get("gpus", {}), file, "gpus"))
    if not partitions:
        raise InputError(f"{file}: partitions is missing; give a table [partitions.NAME] for each")
    site = _read_table(Site, table, file, "", {"partitions": partitions, "gpus": gpus})
    with_gpus = [partition.name for partition in partitions if partition.gpus]
    for gpu in gpus:
        if gpu.max_time is not None:
            _require_time_limit(gpu.max_time, f"{file}: gpus.{gpu.kind}.max_time")
        if unknown := [name for name in gpu.partitions if name not in with_gpus]:
            raise InputError(
                f"{file}: gpus.{gpu.kind}.partitions names {unknown[0]}; expected partitions with gpus = true: "
                f"{', '.join(with_gpus) or 'there are none'}"
            )
    return structs.replace(site, scratch=_expand_scratch(site.scratch, file, environment))


def _find_file(requested: str | None, environment: Mapping[str, str]) -> tuple[Path, str]:
    """Return the path of a profile, and its name in messages."""
    name, known = requested or environment.get("COSMICAI_SITE"), sorted(path.stem for path in SITES.glob("*.toml"))
    choices = join_choices([*known, "the path of a .toml file"])
    if not name:
        raise InputError(f"no site is named; use --site or COSMICAI_SITE with {choices}")
    if not name.endswith(".toml") and name not in known:
        raise InputError(f"{'--site' if requested else 'COSMICAI_SITE'} {name}: there is no such site; use {choices}")
    path = Path(name) if name.endswith(".toml") else SITES / f"{name}.toml"
    return path, f"slurm/{path.name}" if path.parent == SITES else str(path)


def _require_time_limit(time: str, where: str) -> None:
    try:
        parse_time_limit(time)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _expand_scratch(scratch: str, file: str, environment: Mapping[str, str]) -> str:
    known = {key: value for key, value in environment.items() if value}
    if "USER" not in known:  # as in a cron job or a container
        with suppress(KeyError):  # a user that the account database does not have
            known["USER"] = pwd.getpwuid(os.getuid()).pw_name
    try:
        folder = Template(scratch).substitute(known)
    except KeyError as error:
        problem = f"{file}: scratch is {json.dumps(scratch)} and the variable {error.args[0]} is not set"
        raise InputError(f"{problem}; export {error.args[0]} with a value") from error
    except ValueError as error:
        raise InputError(f"{file}: scratch is {json.dumps(scratch)}; write a plain $ as $$") from error
    if not folder.startswith("/"):
        raise InputError(f"{file}: scratch is {json.dumps(folder)}; expected {_expectation(Folder)}")
    return folder


def _read_tables(kind: type[T], key: str, tables: Any, file: str, above: str) -> Iterator[T]:
    """Yield a record for each of the tables [above.NAME], with NAME as its key. Raises InputError if one is wrong."""
    if not isinstance(tables, dict):
        raise InputError(f"{file}: {above} is {json.dumps(tables, default=str)}; expected tables [{above}.NAME]")
    for name in tables:
        if not re.fullmatch(WORD, name, re.ASCII):
            raise InputError(f"{file}: {above} has the name {json.dumps(name)}; expected letters, digits, ., - and _")
    for name, table in tables.items():
        if not isinstance(table, dict):
            here = f"{above}.{name}"
            raise InputError(f"{file}: {here} is {json.dumps(table, default=str)}; expected a table [{here}]")
        yield _read_table(kind, table, file, f"{above}.{name}.", {key: name}, writable=lambda field: field != key)


def _read_table(
    kind: type[T], table: Mapping[str, Any], file: str, above: str, read: Mapping[str, Any],
    writable: Callable[[str], bool] = lambda field: True,
) -> T:  # fmt: skip
    """Return the record of a table by the rules of its type; values in `read` take the place of those in the table.

    Raises InputError if a value is wrong, unknown or missing, with the field and what was expected.
    """
    known = {field.name: field for field in structs.fields(kind) if writable(field.name)}
    for name, value in table.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise InputError(f"{file}: {above}{name} is not known; use {near[0] if near else join_choices(known)}")
        if name not in read and not _fits(value, known[name].type):
            written = json.dumps(value, default=str)
            raise InputError(f"{file}: {above}{name} is {written}; expected {_expectation(known[name].type)}")
    for name, field in known.items():
        if field.required and name not in table and name not in read:
            raise InputError(f"{file}: {above}{name} is missing; give {_expectation(field.type)}")
    return msgspec.convert({**table, **read}, kind)


def _fits(value: object, kind: Any) -> bool:
    """Return whether a value of TOML, which has dates of its own, fits a type."""
    try:
        msgspec.convert(value, kind, builtin_types=(date,))
    except msgspec.ValidationError:
        return False
    return True


def _expectation(kind: Any) -> str:
    """Return the description of an annotated type, or of the one that is optional."""
    rules = [rule for part in (kind, *get_args(kind)) for rule in getattr(part, "__metadata__", ())]
    return next(str(rule.description) for rule in rules if rule.description)
