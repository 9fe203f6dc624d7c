"""The plan: every work item of a run and everything that decides its numbers. Written once, never changed."""

from __future__ import annotations

import gc
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

from ..engines.base import Choice
from ..errors import InputError
from ..models.weights import WeightsFile
from ..surveys.survey import ShardEntry

FORMAT = "cosmicai-plan/2"


@dataclass(frozen=True, order=True, slots=True)
class WorkItem:
    """Rows start to stop of the shard with this index: what is done once, retried alone and resumed."""

    shard: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of its part and failure files."""
        return f"{self.shard:06d}-{self.start:08d}-{self.stop:08d}"

    @property
    def galaxies(self) -> int:
        """Rows of the item."""
        return self.stop - self.start

    @staticmethod
    def from_name(name: str) -> WorkItem | None:
        """Inverse of `name`; None if it is not one."""
        parts = name.split("-")
        return WorkItem(*map(int, parts)) if len(parts) == 3 and all(part.isdecimal() for part in parts) else None


@dataclass(frozen=True)
class Plan:
    """What will be done. See `schedule.cut` for the items."""

    survey: str
    shards: tuple[ShardEntry, ...]
    weights: str
    weights_sha256: str
    engine: str
    precision: str
    device: str
    batch_size: int
    inner_batch: int
    precision_check: dict[str, Any] | None  # what a reduced precision was found to do (`run.precision`)
    quantized: str | None  # name in the run folder of the network in int8
    items: tuple[WorkItem, ...]

    @property
    def choice(self) -> Choice:
        """The engine and all that decides its numbers."""
        return Choice(self.engine, self.precision, self.device, self.inner_batch)

    @property
    def asked_precision(self) -> str:
        """The precision that was asked for; this machine may not have had it."""
        return str(self.precision_check["asked"]) if self.precision_check else self.precision

    @property
    def weights_file(self) -> WeightsFile:
        """The weights."""
        return WeightsFile(self.weights, self.weights_sha256)

    @property
    def galaxies(self) -> int:
        """Galaxies asked for."""
        return sum(item.galaxies for item in self.items)

    def galaxies_of(self, done: set[WorkItem]) -> int:
        """Galaxies of those items of the plan that are among these."""
        return sum(item.galaxies for item in self.items if item in done)

    def to_json(self) -> str:
        """The plan as JSON; equal plans give equal text."""
        # By hand, what there may be millions of: json takes three times as long, and more memory.
        text = io.StringIO()
        text.write(f'{{"format": {json.dumps(FORMAT)}')
        for field in fields(self):
            value = getattr(self, field.name)
            text.write(f', "{field.name}": ')
            if field.name == "shards":
                _write_list(text, map(_shard_text, value))
            elif field.name == "items":
                _write_list(text, (f"[{item.shard}, {item.start}, {item.stop}]" for item in value))
            else:
                text.write(json.dumps(value))
        text.write("}")
        return text.getvalue()

    @staticmethod
    def from_json(text: str, where: str) -> Plan:
        """Inverse of `to_json`. Raises InputError naming `where` if it is no plan."""
        try:
            with _no_collection():
                values = json.loads(text, object_hook=_shard_or_dict)
                if values.pop("format") != FORMAT:
                    raise ValueError(f'its format is not "{FORMAT}"')
                values["shards"] = tuple(values["shards"])
                values["items"] = tuple(WorkItem(*item) for item in values["items"])
                return Plan(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where} is not a plan of this program ({error}); choose another run folder") from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's text; every part carries it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, asked: Asked) -> list[str]:
        """Names of what was asked for in which the plan differs."""
        there = {field.name: getattr(self, field.name) for field in fields(self)} | {"precision": self.asked_precision}
        wanted = {field.name: getattr(asked, field.name) for field in fields(asked)}
        return [name for name, value in wanted.items() if value is not None and value != there[name]]


def _write_list(text: io.StringIO, values: Iterable[str]) -> None:
    separator = "["
    for value in values:
        text.write(separator)
        text.write(value)
        separator = ", "
    text.write("[]" if separator == "[" else "]")


def _shard_text(shard: ShardEntry) -> str:
    return (
        f'{{"name": {_quoted(shard.name)}, "galaxies": {shard.galaxies}, "bytes": {shard.bytes}, '
        f'"sha256": {_quoted(shard.sha256)}}}'
    )


def _shard_or_dict(values: dict[str, Any]) -> ShardEntry | dict[str, Any]:
    return ShardEntry(**values) if "sha256" in values else values


@contextmanager
def _no_collection() -> Iterator[None]:
    """Nothing of what is read is garbage, and looking for some among millions of objects takes as long as reading."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class Asked:
    """What was asked for, in the fields of `Plan`; None leaves it to the plan."""

    survey: str
    shards: tuple[ShardEntry, ...]
    weights: str
    weights_sha256: str
    engine: str | None
    precision: str | None
    device: str | None
    batch_size: int | None
