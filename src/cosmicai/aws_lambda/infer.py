"""The function that does one rank's share of a run: it streams partitions from S3 through an engine that it keeps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .. import storage
from ..engines.base import Choice, Engine, calls_at_once
from ..engines.registry import open_engine
from ..errors import InputError
from ..models.weights import WeightsFile
from ..ranks.environment import rank_from_environment
from ..ranks.invocation import Invocation
from ..ranks.memory import memory_of_ranks_mb
from ..runs.create import begin
from ..runs.plan import Plan, WorkItem
from ..runs.schedule import share
from ..runs.store import RunFolder
from ..surveys.shard import IMAGE_SHAPE
from ..surveys.survey import Survey, entries
from ..worker.loop import work
from ..worker.prefetch import fetched_rows
from .fmi_session import do_together, together_of
from .invocation_log import announced
from .weights import weights_of

SHARE = ("run", "rank", "world_size")  # keys of an event for a rank of any planned run
PUBLISHED = ("S3_BUCKET", "RESULT_PATH", "RANK", "WORLD_SIZE", "DATA_BUCKET", "DATA_PREFIX", "DATA_PATH", "BATCH_SIZE")
# Seconds before the time limit by which all is written, and no more of the limit than this share.
MARGIN, MARGIN_SHARE = 4.0, 0.1
MOST_FETCHES = 8  # from S3 at once, if there is memory


class OutOfTime(Exception):
    """The time limit is near and something is left: call the function again."""


class ItemsFailed(Exception):
    """Some items cannot be read."""


class TooSlow(Exception):
    """Not even one item was done within the time limit."""


_kept: dict[tuple[Any, ...], Engine] = {}


def kept_engine(choice: Choice, weights: WeightsFile, threads: int, quantized: bytes | None) -> Engine:
    """As `open_engine`; a warm process has the network of its last call ready, and never two of them in memory."""
    key = (choice, weights, threads, quantized)
    if key not in _kept:
        _kept.clear()
        _kept[key] = open_engine(*key)
    return _kept[key]


class Deadline:
    """Gives a rank its items as long as there is time, as the `Launcher` of `run.work`."""

    def __init__(self, items: Iterable[WorkItem], invocation: Invocation) -> None:
        self._items, self._seconds_left = iter(items), invocation.seconds_left
        self._margin = min(MARGIN, MARGIN_SHARE * self._seconds_left())
        self._given: dict[str, float] = {}
        self._longest = 0.0  # seconds from giving an item out to its end
        self._finished = 0

    def next_item(self) -> str | None:
        """The next item, None if there is none for which the time suffices. The first one is always tried."""
        enough = not self._given or self._seconds_left() > self._longest + self._margin
        item = next(self._items, None) if enough else None
        if item is None:
            return None
        self._given[item.name] = time.perf_counter()
        return item.name

    def finished(self, item: str) -> None:
        """Learns how long items take, with the time that they wait for each other."""
        self._longest = max(self._longest, time.perf_counter() - self._given[item])
        self._finished += 1

    def failed(self, item: str) -> None:
        """Is no reason to hurry."""

    def alive(self) -> None:
        """Raises OutOfTime, or TooSlow if nothing was finished, when what was begun will not be done in time."""
        if self._seconds_left() > self._margin / 2:
            return
        if not self._finished:
            raise TooSlow("not one item was done within the time limit; give the function more time or memory")
        raise OutOfTime("the time limit came before the end of an item; what was finished is kept")

    def hang_up(self) -> None:
        """Nobody waits."""


def infer(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Does what is missing of one rank's share of a run, and returns the rank's record.

    The event is the published one (see `payload.events`), or {"run", "rank", "world_size"} for a rank of any run folder
    that holds a plan. Without a plan, as after the published initializer, the event itself says all, and the rank has a
    run folder of its own. If the event says so (see module `together`) the ranks of a map deal all items by a counter,
    and each ends once its own share is done. The invocation fails with OutOfTime or TooSlow if the time limit is near,
    ItemsFailed naming what cannot be read, InputError if the event, plan, weights or engine cannot be used.
    """
    own = _planned_share(event) if "run" in event else _published_share(event)
    invocation = announced("infer", own.run, context, own.rank)
    left = own.left()
    if not left and (earlier := own.publish()):
        return earlier
    here = replace(
        rank_from_environment(), rank=own.rank, world_size=own.world_size, platform="lambda",
        job=invocation.request_id,
    )  # fmt: skip
    memory = min(event.get("MEMORY") or invocation.memory_mb, invocation.memory_mb)

    def do(items: Iterable[WorkItem]) -> dict[str, Any]:
        return work(
            own.run, here, launcher=Deadline(items, invocation), invocation=invocation, open_engine=kept_engine,
            fetches=fetches_within(own.run.plan(), here.threads, memory), data_path=event.get("DATA_PATH"),
        )  # fmt: skip

    record, silence, together = None, None, together_of(event)
    if together:
        record, silence = do_together(together, own.run, invocation, do)
        left = [item for item in own.left() if record is None or not own.run.has_failure(item)]
    if record is None or left:
        record = do(left)
        if silence:
            record = own.run.amend_record(record, fmi={"ended": silence})
    own.publish(record)
    if (together or record["items"] < len(left)) and (left := own.left()):
        failures = [failure for item in left if (failure := own.run.failure(item))]
        if len(failures) == len(left):  # else the others are to be tried first
            first = f"{failures[0]['item']}: {failures[0]['reason']}"
            raise ItemsFailed(f"of rank {own.rank}'s {len(own.items)} items {len(failures)} failed, the first {first}")
        raise OutOfTime(f"{len(left)} of rank {own.rank}'s {len(own.items)} items are left; call it again")
    return record


def fetches_within(plan: Plan, threads: int, memory_mb: float) -> int:
    """How many fetches from S3 may be under way at once in a function of so much memory, in MB.

    Beside them there are the network and those galaxies that are being predicted.
    """
    rows, at_once = calls_at_once(plan.choice, threads, plan.batch_size)
    fetch_mb = fetched_rows(plan, rows) * math.prod(IMAGE_SHAPE) * 4 / 2**20
    free = memory_mb - (memory_of_ranks_mb(plan.engine, 1) or 0) - (at_once + 1) * fetch_mb
    return max(1, min(MOST_FETCHES, int(free / fetch_mb)))


@dataclass(frozen=True)
class _Share:
    """What a call has to do: some items of a run, whose published results may go elsewhere."""

    run: RunFolder
    items: list[WorkItem]
    rank: int
    world_size: int
    results: RunFolder

    def publish(self, last: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """Writes the published results of all attempts of the rank that did something, of which one may have died
        before it could, and returns the record of the last attempt, which may be known."""
        records = [last] if last and last["attempt"] == 1 else self.run.records_of(self.rank)
        for record in records:
            if record["galaxies"]:
                self.results.write_published(record)
        return records[-1] if records else None

    def left(self) -> list[WorkItem]:
        """The items that are not done."""
        done = self.run.parts_of(self.items)
        return [item for item in self.items if item not in done]


def _planned_share(event: dict[str, Any]) -> _Share:
    uri, rank, world_size = (event.get(name) for name in SHARE)
    if not isinstance(uri, str) or type(rank) is not int or type(world_size) is not int or not 0 <= rank < world_size:
        expected = '{"run": "s3://BUCKET/RUN", "rank": 0, "world_size": 8}'
        raise InputError(f"the event {event} is not one rank's share of a run; expected one such as {expected}")
    run = RunFolder(storage.absolute(uri))
    return _Share(run, share(run.plan().items, rank, world_size), rank, world_size, run)


def _published_share(event: dict[str, Any]) -> _Share:
    if missing := [name for name in PUBLISHED if event.get(name) in (None, "", [])]:
        raise InputError(f"the event has no {missing[0]}; expected the keys {', '.join(PUBLISHED)}")
    try:
        rank, world_size, batch_size = (int(event[name]) for name in ("RANK", "WORLD_SIZE", "BATCH_SIZE"))
    except (TypeError, ValueError) as error:
        raise InputError(f"RANK, WORLD_SIZE or BATCH_SIZE of the event is no whole number ({error})") from None
    if not 0 <= rank < world_size:
        raise InputError(f"the event is for rank {rank} of {world_size}; expected a RANK from 0 to {world_size - 1}")
    paths = event["DATA_PATH"] if isinstance(event["DATA_PATH"], list) else [event["DATA_PATH"]]
    prefix = str(event["DATA_PREFIX"]).strip("/")
    folder = f"{prefix}/"
    if outside := [path for path in paths if not str(path).startswith(folder)]:
        raise InputError(
            f"the event's DATA_PATH {outside[0]!r} does not lie in its DATA_PREFIX {event['DATA_PREFIX']!r}"
        )
    names = [path.removeprefix(folder) for path in paths]
    survey = f"s3://{event['DATA_BUCKET']}/{prefix}"
    results = RunFolder(storage.absolute(f"s3://{event['S3_BUCKET']}/{event['RESULT_PATH']}"))
    run = results
    if not results.has_plan():
        run = RunFolder(results.path("ranks", str(rank)))
        weights = weights_of(event["S3_BUCKET"], event.get("S3_OBJECT_NAME", ""), None, run)
        begin(
            Survey(survey, entries(survey, names)), weights, run.uri, device="cpu", batch_size=batch_size, resume=True
        )
    plan = run.plan()
    numbers = {shard.name: index for index, shard in enumerate(plan.shards)}
    if plan.survey != survey or (strange := [name for name in names if name not in numbers]):
        what = f"{survey}/{strange[0]}" if plan.survey == survey else survey
        raise InputError(f"the plan of {run.uri} knows no {what}; give each execution a result_path of its own")
    wanted = {numbers[name] for name in names}
    return _Share(run, [item for item in plan.items if item.shard in wanted], rank, world_size, results)
