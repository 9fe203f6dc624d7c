"""The function that does the share of one rank: it streams partitions from S3 through an engine that it keeps warm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ..console import notify
from ..engines.base import Engine, EngineChoice, choose_concurrency
from ..engines.registry import open_engine
from ..errors import InputError
from ..models.weights import WeightsFile
from ..ranks.environment import rank_from_environment
from ..ranks.memory import memory_of_ranks_mb
from ..runs.create import create_run
from ..runs.plan import Plan, WorkItem
from ..runs.published import add_uncounted, merge_attempts
from ..runs.record import Record
from ..runs.request import RunRequest
from ..runs.schedule import static_assignment
from ..runs.store import RunFolder
from ..surveys.shard import IMAGE_SHAPE
from ..surveys.survey import describe_files
from ..worker import loop
from ..worker.prefetch import rows_per_fetch
from ..worker.sources import DeadlineSource, OutOfTime, StaticSource, WorkSource
from .events import PlannedRankEvent, RankEvent, read_rank_event
from .fmi_session import run_session
from .invocation_log import announce
from .run_location import locate_folder, locate_run, normalize_result_path
from .weights_selection import select_weights

MAX_FETCHES = 8  # from S3 at the same time, if there is memory


class ItemsFailed(Exception):
    """Some items cannot be read."""


_kept: dict[tuple[Any, ...], Engine] = {}


def keep_engine(choice: EngineChoice, weights: WeightsFile, threads: int, quantized: bytes | None) -> Engine:
    """Open an engine as `open_engine` does, or return the one that a warm process has from its last invocation.

    There are never two networks in memory.
    """
    key = (choice, weights, threads, quantized)
    if key not in _kept:
        _kept.clear()
        _kept[key] = open_engine(*key)
    return _kept[key]


def infer(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Do what is missing of one rank's share of a run, and return the record of the rank.

    The event is that of `payload.make_events`, or {"run", "rank", "world_size"} for a rank of any run folder that holds
    a plan. Without a plan, as after the published initializer, the event defines the work, and the rank has a run
    folder of its own (see `run_location`). If the event names an FMI session, the ranks of the map share all items by a
    counter, and each ends once its own share is done. The invocation fails with OutOfTime or TooSlow if the time limit
    is near, with ItemsFailed naming what cannot be read, and with InputError if event, plan, weights or engine cannot
    be used.
    """
    request = read_rank_event(event)
    share = _planned_share(request) if isinstance(request, PlannedRankEvent) else _published_share(request)
    invocation = announce("infer", share.run, context, share.rank)
    missing = share.missing()
    if not missing and (earlier := share.publish(request.fmi is not None)):
        return dict(msgspec.to_builtins(earlier))
    rank = replace(
        rank_from_environment(), rank=share.rank, world_size=share.world_size, platform="lambda",
        job=invocation.request_id,
    )  # fmt: skip
    memory_mb = min(request.memory or invocation.memory_mb, invocation.memory_mb)

    def work(source: WorkSource) -> Record:
        options = loop.WorkerOptions(
            invocation=invocation, open_engine=keep_engine, data_path=share.data_path,
            fetches=max_fetches(share.run.plan(), rank.threads, memory_mb), result_path=share.results.result_path,
        )  # fmt: skip
        return loop.run(share.run, rank, DeadlineSource(source, invocation.seconds_left), options)

    record, disconnected = None, None
    if request.fmi:
        record, disconnected = run_session(request.fmi, share.run, invocation, work)
        missing = [item for item in share.missing() if record is None or not share.run.has_failure(item)]
    if record is None or missing:
        record = work(StaticSource(missing))
        if disconnected:
            record = share.run.amend_record(record, fmi={"ended": disconnected})
    share.publish(request.fmi is not None, record)
    if request.fmi or record.items < len(missing):
        share.require_complete()
    return dict(msgspec.to_builtins(record))


def max_fetches(plan: Plan, threads: int, memory_mb: float) -> int:
    """Return how many fetches from S3 may be under way at the same time in a function with this memory, in MB.

    The memory also holds the network, the galaxies that are being predicted and, with several views, a copy of these.
    """
    rows, at_once = choose_concurrency(plan.choice, threads, plan.batch_size)
    fetch_mb = rows_per_fetch(plan, rows) * math.prod(IMAGE_SHAPE) * 4 / 2**20
    free = memory_mb - (memory_of_ranks_mb(plan.engine, 1) or 0) - (at_once * min(plan.views, 2) + 1) * fetch_mb
    return max(1, min(MAX_FETCHES, int(free / fetch_mb)))


@dataclass(frozen=True)
class _Share:
    """The work of one invocation: some items of a run, whose published results go to the folder `results`."""

    run: RunFolder
    items: Sequence[WorkItem]
    rank: int
    world_size: int
    results: RunFolder
    data_path: str | list[str] | None = None

    def publish(self, is_shared: bool, last: Record | None = None) -> Record | None:
        """Write the published result of all attempts of the rank if they did something, and return the last record.

        `last` is that record, if it is known: the records of earlier attempts are read only if there were any. Unless
        other ranks share its items, the items that are done say what attempts did that were killed.
        """
        records = [last] if last and last.attempt == 1 else self.run.records_of(self.rank, notify)
        if not (ranks := merge_attempts(records)):
            return None
        if ranks[0].unfinished and not is_shared:
            done = self.run.plan().galaxies_of(self.run.parts_of(self.items))
            ranks = add_uncounted(ranks, done, max(item.galaxies for item in self.items))
        if ranks[0].galaxies:
            self.results.write_published(ranks[0])
        return ranks[0].attempts[-1]

    def missing(self) -> list[WorkItem]:
        """Return the items that are not done."""
        done = self.run.parts_of(self.items)
        return [item for item in self.items if item not in done]

    def require_complete(self) -> None:
        """Raise ItemsFailed if all missing items have failed, OutOfTime if some of them have not been tried."""
        if not (missing := self.missing()):
            return
        failures = [failure for item in missing if (failure := self.run.failure(item))]
        if len(failures) == len(missing):
            first = f"{failures[0].item}: {failures[0].reason}"
            raise ItemsFailed(
                f"of rank {self.rank}'s {len(self.items)} items {len(failures)} failed, the first {first}"
            )
        raise OutOfTime(
            f"{len(missing)} of rank {self.rank}'s {len(self.items)} items are left; invoke the function again"
        )


def _planned_share(event: PlannedRankEvent) -> _Share:
    """Return the share of a rank of a run that holds a plan."""
    location = locate_folder(event.run)
    items = static_assignment(location.run.plan().items, event.rank, event.world_size)
    return _Share(location.run, items, event.rank, event.world_size, location.results)


def _published_share(event: RankEvent) -> _Share:
    """Return the share that a published event names; without a plan, create a run folder for this rank.

    Raises InputError if the event contradicts itself or the plan.
    """
    rank, world_size = int(event.rank), int(event.world_size)
    if not 0 <= rank < world_size:
        raise InputError(f"the event is for rank {rank} of {world_size}; expected a RANK from 0 to {world_size - 1}")
    paths = event.data_path if isinstance(event.data_path, list) else [event.data_path]
    prefix = event.data_prefix.strip("/")
    folder = f"{prefix}/"
    if outside := [path for path in paths if not path.startswith(folder)]:
        raise InputError(f"the event's DATA_PATH {outside[0]!r} does not lie in its DATA_PREFIX {event.data_prefix!r}")
    names = [path.removeprefix(folder) for path in paths]
    survey = f"s3://{event.data_bucket}/{prefix}"
    result_path = normalize_result_path(event.result_path, "the event's RESULT_PATH")
    location = locate_run(event.s3_bucket, result_path)
    if location.is_hidden and not location.run.has_plan():
        location = locate_run(event.s3_bucket, result_path, "ranks", str(rank))
        run = location.run
        weights = select_weights(event.s3_bucket, event.s3_object_name or "", None, run)
        request = RunRequest(survey, run.uri, weights, device="cpu", batch_size=int(event.batch_size), resume=True)
        create_run(request, describe_files(survey, names), inspect=False)
    run = location.run
    plan = run.plan()
    numbers = {shard.name: index for index, shard in enumerate(plan.shards)}
    if plan.survey != survey or (unknown := [name for name in names if name not in numbers]):
        address = f"{survey}/{unknown[0]}" if plan.survey == survey else survey
        raise InputError(f"the plan of {run.uri} does not include {address}; give each execution its own result_path")
    shards = {numbers[name] for name in names}
    items = [item for item in plan.items if item.shard in shards]
    return _Share(run, items, rank, world_size, location.results, event.data_path)
