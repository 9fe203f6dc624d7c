"""The plan of a run: every work item and everything that decides the numbers. It is written once and never changed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any

import msgspec
from msgspec import Meta, field

from ..calibration.records import Calibration, TrainingDomain
from ..engines.base import EngineChoice
from ..engines.registry import LARGEST_BATCH_SIZE
from ..errors import InputError
from ..models.weights import WeightsFile
from ..records import decode_json
from ..surveys.check_record import SurveyCheck
from ..surveys.survey import Count, FileOrder, ShardEntry
from .request import VIEWS

FORMAT = "cosmicai-plan/2"
REMEDY = "choose another run folder"
_ENCODED_TOGETHER = 10_000  # shards or items; the text of a million of them would need as much memory as they do

Size = Annotated[int, Meta(ge=1, le=2**63 - 1)]
QuantizedName = Annotated[str, Meta(pattern=r"^int8-[0-9a-f]{16}\.zip$")]


class WorkItem(msgspec.Struct, frozen=True, order=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Rows `start` to `stop` of the shard with this index: the unit that is done once, retried singly and resumed."""

    shard: Count
    start: Count
    stop: Count

    @property
    def name(self) -> str:
        """Name of the part and failure files of the item."""
        return f"{self.shard:06d}-{self.start:08d}-{self.stop:08d}"

    @property
    def galaxies(self) -> int:
        """Number of rows of the item."""
        return self.stop - self.start

    @staticmethod
    def from_name(name: str) -> WorkItem | None:
        """Return the item with this `name`, None if it is not the name of an item."""
        parts = name.split("-")
        return WorkItem(*map(int, parts)) if len(parts) == 3 and all(part.isdecimal() for part in parts) else None


class PrecisionCheck(msgspec.Struct, frozen=True):
    """How much a reduced precision changes the redshifts of a sample, against the same engine in float32.

    `largest_shift` is the largest |z - z_float32| / (1 + z_float32); `nmad` and `nmad_float32` are
    1.48 median |dz - median dz| against spectroscopic redshifts, None where too few are known.
    """

    requested: str = field(name="asked")
    used: str
    reason: str
    galaxies: Count = 0
    largest_shift: float | None = field(name="largest", default=None)
    nmad: float | None = None
    nmad_float32: float | None = None


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="format", tag=FORMAT, dict=True):
    """The content of `plan.json`; see `schedule.split_work` for the items.

    Fields with a default are not in the text where they have it, so that plans that were made before such a field
    existed keep their text and their digest. `survey_check` is None for plans that were made without it.
    """

    survey: str
    shards: tuple[ShardEntry, ...]
    weights: str
    weights_sha256: str
    engine: str
    precision: str
    device: str
    batch_size: Size
    inner_batch: Size
    precision_check: PrecisionCheck | None
    quantized: QuantizedName | None  # name in the run folder of the network in int8
    items: tuple[WorkItem, ...]
    survey_check: SurveyCheck | None = None
    views: int = 1  # of each cutout, whose redshifts are averaged
    quantiles: bool = False  # whether the catalogue has all quantiles of each redshift
    calibrate_on_spectra: bool = False  # whether half of the spectroscopic redshifts calibrate the intervals
    weights_network: str = ""  # digest of tensors and configuration
    calibration: Calibration | None = None  # of the weights, like the domain
    domain: TrainingDomain | None = None
    order: FileOrder = "natural"  # of the files by which they were selected and assigned to ranks on AWS Lambda

    @cached_property
    def inputs_digest(self) -> str:
        """SHA-256 of what decides the rows of the catalogue, wherever it lies and however the work is cut."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(json.dumps([shard.name, shard.galaxies, shard.bytes, shard.digest or ""]).encode())
        own = [self.weights_sha256, self.engine, self.precision, self.device, self.batch_size, self.inner_batch]
        chosen = self._unlike_defaults()
        for name in ("survey_check", "order"):
            chosen.pop(name, None)
        digest.update(json.dumps([*own, *chosen.items()]).encode())
        return digest.hexdigest()

    @property
    def choice(self) -> EngineChoice:
        """The engine and everything that decides its numbers."""
        return EngineChoice(self.engine, self.precision, self.device, self.inner_batch)

    @property
    def requested_precision(self) -> str:
        """The precision that was requested, which the machine of the plan may not have offered."""
        return self.precision_check.requested if self.precision_check else self.precision

    @property
    def weights_file(self) -> WeightsFile:
        """The weights and their digest."""
        return WeightsFile(self.weights, self.weights_sha256, self.weights_network)

    @property
    def galaxies(self) -> int:
        """Number of galaxies of all items."""
        return sum(item.galaxies for item in self.items)

    def galaxies_of(self, done: set[WorkItem]) -> int:
        """Return the number of galaxies of those items of the plan that are in `done`."""
        return sum(item.galaxies for item in self.items if item in done)

    def to_json(self) -> bytes:
        """Return the plan as JSON; equal plans give equal text."""
        text = io.BytesIO()
        text.writelines(self._json_pieces())
        return text.getvalue()

    @staticmethod
    def from_json(text: bytes | str, where: str) -> Plan:
        """Return the plan that JSON text holds.

        Raises InputError naming `where` if the text is not a plan, or its items do not hold every galaxy exactly once.
        """
        found = decode_json(text, _Format, where=where, remedy=REMEDY).format
        if found != FORMAT:
            raise InputError(f'{where} cannot be used: field format is "{found}", expected "{FORMAT}"; {REMEDY}')
        plan = decode_json(text, Plan, where=where, remedy=REMEDY)
        if plan.batch_size > LARGEST_BATCH_SIZE:
            expected = f"expected at most {LARGEST_BATCH_SIZE}, got {plan.batch_size}"
            raise InputError(f"{where} cannot be used: field batch_size: {expected}; {REMEDY}")
        if plan.inner_batch > plan.batch_size:
            expected = f"expected at most the batch_size {plan.batch_size}, got {plan.inner_batch}"
            raise InputError(f"{where} cannot be used: field inner_batch: {expected}; {REMEDY}")
        if plan.views not in VIEWS:
            expected = f"expected {' or '.join(map(str, VIEWS))}, got {plan.views}"
            raise InputError(f"{where} cannot be used: field views: {expected}; {REMEDY}")
        if problem := _coverage_problem(plan.shards, plan.items):
            raise InputError(f"{where} cannot be used: field items: {problem}; {REMEDY}")
        return plan

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's text, which every part carries."""
        digest = hashlib.sha256()
        for piece in self._json_pieces():
            digest.update(piece)
        return digest.hexdigest()

    def differences(self, request: PlanRequest) -> list[str]:
        """Return the names of those fields of a request in which the plan differs."""
        requested = {name.name: getattr(request, name.name) for name in fields(request)}
        planned = {name: getattr(self, name) for name in requested} | {"precision": self.requested_precision}
        if len(self.shards) == len(request.shards) and all(map(ShardEntry.matches, self.shards, request.shards)):
            planned["shards"] = request.shards
        return [name for name, value in requested.items() if value is not None and value != planned[name]]

    def _unlike_defaults(self) -> dict[str, Any]:
        """Return those fields with a default that have another value, as builtins."""
        defaults = self.__struct_defaults__
        found = {name: getattr(self, name) for name in self.__struct_fields__[-len(defaults) :]}
        return {
            name: msgspec.to_builtins(value)
            for (name, value), default in zip(found.items(), defaults, strict=True)
            if value != default
        }

    def _json_pieces(self) -> Iterator[bytes]:
        yield f'{{"format": {json.dumps(FORMAT)}'.encode()
        required = self.__struct_fields__[: -len(self.__struct_defaults__)]
        for name, value in ({name: getattr(self, name) for name in required} | self._unlike_defaults()).items():
            yield f', "{name}": '.encode()
            if isinstance(value, tuple):
                yield from _list_pieces(value)
            else:
                yield json.dumps(msgspec.to_builtins(value)).encode()
        yield b"}"


class _Format(msgspec.Struct, frozen=True):
    # Read first, since msgspec accepts text without the tag of a Struct, which is not a plan.
    format: str


def _list_pieces(values: Sequence[msgspec.Struct]) -> Iterator[bytes]:
    """Yield a list of shards or items as `json.dumps` writes it: a space after each separator, and ASCII only."""
    yield b"["
    for start in range(0, len(values), _ENCODED_TOGETHER):
        piece = msgspec.json.format(msgspec.json.encode(values[start : start + _ENCODED_TOGETHER]), indent=0)[1:-1]
        if not piece.isascii() or b"\x7f" in piece:
            piece = json.dumps(json.loads(b"[%b]" % piece)).encode()[1:-1]
        yield b", " + piece if start else piece
    yield b"]"


def _coverage_problem(shards: Sequence[ShardEntry], items: Sequence[WorkItem]) -> str | None:
    """Return in which way items, in survey order, do not hold every galaxy exactly once, None if they do."""
    shard = row = 0
    for item in items:
        while shard < len(shards) and row == shards[shard].galaxies:
            shard, row = shard + 1, 0
        if shard == len(shards):
            return f"item {item.name} comes after the last galaxy; expected every galaxy in exactly one item"
        if item.shard != shard or item.start != row or not row < item.stop <= shards[shard].galaxies:
            return f"item {item.name} does not continue with row {row} of shard {shard} and end within it"
        row = item.stop
    while shard < len(shards) and row == shards[shard].galaxies:
        shard, row = shard + 1, 0
    return None if shard == len(shards) else f"no item continues with row {row} of shard {shard}"


@dataclass(frozen=True)
class PlanRequest:
    """What was requested, in the fields of `Plan`; None leaves the choice to the plan."""

    survey: str
    shards: tuple[ShardEntry, ...]
    weights: str
    weights_sha256: str
    engine: str | None
    precision: str | None
    device: str | None
    batch_size: int | None
    views: int | None = None
    quantiles: bool | None = None
    calibrate_on_spectra: bool | None = None
    order: FileOrder | None = None
