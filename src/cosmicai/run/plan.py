"""The plan: every work item of a run and everything that decides its numbers. Written once, never changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from ..engine.base import Choice
from ..errors import InputError
from ..galaxies.survey import ShardEntry
from ..model.weights import WeightsFile

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
        values: dict[str, Any] = {"format": FORMAT} | {field.name: getattr(self, field.name) for field in fields(self)}
        values["shards"] = [asdict(shard) for shard in self.shards]
        values["items"] = [[item.shard, item.start, item.stop] for item in self.items]
        return json.dumps(values)

    @staticmethod
    def from_json(text: str, where: str) -> Plan:
        """Inverse of `to_json`. Raises InputError naming `where` if it is no plan."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError(f'its format is not "{FORMAT}"')
            values["shards"] = tuple(ShardEntry(**shard) for shard in values["shards"])
            values["items"] = tuple(WorkItem(*item) for item in values["items"])
            return Plan(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{where} is not a plan of this program ({error}); choose another run folder") from None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's text; every part carries it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, asked: Asked) -> list[str]:
        """Names of what was asked for in which the plan differs."""
        there = asdict(self) | {"precision": self.asked_precision, "shards": self.shards}
        wanted = {field.name: getattr(asked, field.name) for field in fields(asked)}
        return [name for name, value in wanted.items() if value is not None and value != there[name]]


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
