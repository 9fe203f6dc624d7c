"""The worker: what every rank of every launcher runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from ..engines.base import Choice, Engine, calls_at_once
from ..engines.registry import open_engine
from ..models.weights import WeightsFile
from ..ranks.communicator import Communicator
from ..ranks.environment import Rank
from ..ranks.invocation import Invocation
from ..runs.plan import Plan, WorkItem
from ..runs.record import Recorder
from ..runs.schedule import agree_on_missing, counted, largest_first, share
from ..runs.store import PART_COLUMNS, Part, RunFolder
from ..surveys.quality import Flag
from .interrupts import deferred
from .prefetch import FETCHES, Ahead, Rows, Unreadable, read_items
from .supervised import Launcher, Nobody


def work(
    run: RunFolder,
    rank: Rank,
    advance: Callable[[int], None] = lambda _: None,
    *,
    communicator: Communicator | None = None,
    launcher: Launcher | None = None,
    schedule: str = "dynamic",
    invocation: Invocation | None = None,
    open_engine: Callable[[Choice, WeightsFile, int, bytes | None], Engine] = open_engine,
    fetches: int = FETCHES,
    data_path: str | list[str] | None = None,
) -> dict[str, Any]:
    """Does this rank's part of what is not done yet, and returns its record.

    Which items those are a launcher says, or with the schedule "dynamic" the communicator's counter, or else all ranks
    know it beforehand; "dynamic" ranks of one submission that cannot talk then do what others have left. `advance` is
    told how many more galaxies are predicted. An item whose shard cannot be read is set aside in `failures/`. Whoever
    keeps an engine for several calls says how one is opened; `fetches` from S3 are under way at once; the record names
    `data_path`, by default the survey. Raises InputError if the plan, the weights or the engine cannot be used or
    results cannot be written.
    """
    plan = run.plan()
    recorder = Recorder(
        rank, plan.batch_size, plan.choice, plan.precision_check, run.uri, data_path or plan.survey,
        invocation=invocation,
    )  # fmt: skip
    run.create_record(recorder)
    items = _items(run, plan, rank, communicator, launcher, schedule)
    # Only a rank that has something to do opens the engine.
    if (first := next(items, None)) is not None:
        reader = partial(read_items, plan, chain([first], items), fetches=fetches)
        _do(run, plan, reader, recorder, advance, launcher or Nobody(), open_engine)
    recorder.state = "finished"
    return run.write_record(recorder)


def _items(
    run: RunFolder,
    plan: Plan,
    rank: Rank,
    communicator: Communicator | None,
    launcher: Launcher | None,
    schedule: str,
) -> Iterator[WorkItem]:
    if launcher is not None:
        return filter(None, map(WorkItem.from_name, iter(launcher.next_item, None)))
    if communicator is None:
        return _without_talking(run, plan, rank, schedule)
    done = run.parts() if communicator.rank == 0 else set()
    missing = agree_on_missing(plan.items, done, communicator)
    if schedule == "static":
        return iter(share(missing, rank.rank, rank.world_size))
    return counted(largest_first(missing), communicator)


def _without_talking(run: RunFolder, plan: Plan, rank: Rank, schedule: str) -> Iterator[WorkItem]:
    """The items that every rank knows to be this one's and, unless all are dealt beforehand, those that ranks which
    died, are late, or never come have left, of which each is claimed by one rank."""
    # Dealt from all items, since a rank that starts later than another finds more of them done.
    mine, done = share(plan.items, rank.rank, rank.world_size), run.parts()
    yield from (item for item in mine if item not in done and not run.has_part(item))
    if rank.submission is None or schedule == "static":
        return
    done = run.parts() | set(mine)  # of which the last ones are not written yet
    left = [item for item in plan.items if item not in done]
    # Others go forwards, so this one goes backwards, each from somewhere else.
    first = len(left) * (rank.rank + 1) // rank.world_size
    for item in reversed(left[first:] + left[:first]):
        if not run.has_part(item) and not run.has_failure(item) and run.claim(item, rank):
            yield item


def _do(
    run: RunFolder,
    plan: Plan,
    read: Callable[..., Iterator[Rows | Unreadable]],
    recorder: Recorder,
    advance: Callable[[int], None],
    watcher: Launcher | Nobody,
    open_engine: Callable[[Choice, WeightsFile, int, bytes | None], Engine],
) -> None:
    """Predicts these items: reading, predicting and writing overlap; the record says what this thread waited for."""
    rows, at_once = calls_at_once(plan.choice, recorder.rank.threads, plan.batch_size)
    predicted: list[Part] = []
    with ExitStack() as stack:
        check = stack.enter_context(deferred())
        reader = stack.enter_context(ThreadPoolExecutor(1, "reader"))
        caller = stack.enter_context(ThreadPoolExecutor(at_once, "caller"))
        galaxies = Ahead(read(rows=rows, in_use=(at_once + 2) * plan.batch_size), reader)
        stack.callback(watcher.hang_up)  # else the reader may wait for an item while we wait for the reader
        with recorder.phase("load"):
            quantized = run.read_quantized(plan.quantized) if plan.quantized else None
            engine = open_engine(plan.choice, plan.weights_file, recorder.rank.threads, quantized)
        recorder.precision = engine.precision
        for piece in _predicted(engine, caller, at_once, galaxies, recorder):
            check()
            if isinstance(piece, Unreadable):
                predicted = []
                run.write_failure(piece.item, recorder.rank.rank, piece.reason)
                watcher.failed(piece.item.name)
                continue
            predicted.append(piece.part)
            advance(len(piece.part.objid))
            watcher.alive()
            if piece.is_last:
                with recorder.phase("write"):
                    is_first = run.write_part(plan, piece.item, _joined(predicted))
                predicted = []
                # Only now: what an item that failed had predicted is done again and counts then.
                recorder.add(piece.item, engine.peak_gpu_mb(), is_first)
                run.write_record(recorder)
                watcher.finished(piece.item.name)


@dataclass(frozen=True)
class _Piece:
    item: WorkItem
    is_last: bool
    part: Part


def _predicted(
    engine: Engine,
    caller: ThreadPoolExecutor,
    at_once: int,
    galaxies: Ahead[Rows | Unreadable],
    recorder: Recorder,
) -> Iterator[_Piece | Unreadable]:
    """Predictions piece by piece, in the order of the items; instead of the rest of an item why it cannot be read."""
    under_way: deque[tuple[Rows, Future[Part]] | Unreadable] = deque()
    more = True
    while more or under_way:
        oldest = under_way[0] if under_way else None
        if more and len(under_way) < at_once and not isinstance(oldest, Unreadable):
            # Whichever comes first, since the next item may be given to us only when the last one is finished.
            if oldest is not None:
                with recorder.phase("predict"):
                    either: list[Future[Any]] = [galaxies.coming, oldest[1]]
                    wait(either, return_when=FIRST_COMPLETED)
            if oldest is None or galaxies.coming.done():
                with recorder.phase("read"):
                    rows = galaxies.take()
                if rows is None:
                    more = False
                elif isinstance(rows, Unreadable):
                    under_way.append(rows)
                else:
                    under_way.append((rows, caller.submit(predict_rows, engine, rows)))
                continue
        under_way.popleft()
        if isinstance(oldest, tuple):
            with recorder.phase("predict"):
                part = oldest[1].result()
            yield _Piece(oldest[0].item, oldest[0].is_last, part)
        elif oldest is not None:
            yield oldest


def predict_rows(engine: Engine, rows: Rows) -> Part:
    """Predictions of some rows; a flagged galaxy keeps its place and has no redshift."""
    galaxies, flag = rows.galaxies, rows.flag.copy()
    redshift = engine.predict(galaxies.image, galaxies.magnitude).astype(np.float32, copy=False)
    flag[(flag == 0) & ~np.isfinite(redshift)] = Flag.NONFINITE_PREDICTION
    redshift[flag != 0] = np.nan
    # Copies, since a column read from a local file keeps its mapping, and a file descriptor, for as long as it lives.
    return Part(galaxies.objid.copy(), redshift, galaxies.redshift.copy(), flag)


def _joined(parts: list[Part]) -> Part:
    return Part(*(np.concatenate([getattr(part, name) for part in parts]) for name in PART_COLUMNS))
