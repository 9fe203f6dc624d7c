"""The worker: what every rank of every launcher runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np

from ..engine.base import Engine, calls_at_once
from ..engine.choose import open_engine
from ..galaxies.quality import Flag
from ..ranks.environment import Rank
from .folder import PART_COLUMNS, Part, RunFolder
from .plan import Plan, WorkItem, share
from .reading import Rows, Unreadable, ahead, read_items
from .record import Recorder


def work(run: RunFolder, rank: Rank, advance: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Does this rank's share of what is not done yet, and returns its record.

    `advance` is told how many more galaxies are predicted. An item whose shard cannot be read is set aside in
    `failures/`. Raises InputError if the plan, the weights or the engine cannot be used or results cannot be written.
    """
    plan = run.plan()
    attempt = run.next_attempt(rank.rank)
    recorder = Recorder(rank, attempt, plan.batch_size, plan.choice, plan.precision_check, run.uri, plan.survey)
    run.write_json(run.record_path(rank.rank, attempt), recorder.record())
    done = run.parts()
    mine = [item for item in share(plan, rank.rank, rank.world_size) if item not in done]
    if mine:
        _do(run, plan, mine, recorder, advance)
    recorder.state = "finished"
    record = recorder.record()
    run.write_json(run.record_path(rank.rank, attempt), record)
    return record


def _do(run: RunFolder, plan: Plan, items: list[WorkItem], recorder: Recorder, advance: Callable[[int], None]) -> None:
    """Predicts these items: reading, predicting and writing overlap; the record says what this thread waited for."""
    rows, at_once = calls_at_once(plan.choice, recorder.rank.threads, plan.batch_size)
    with ExitStack() as stack:
        reader = stack.enter_context(ThreadPoolExecutor(1, "reader"))
        caller = stack.enter_context(ThreadPoolExecutor(at_once, "caller"))
        galaxies = ahead(read_items(plan, iter(items), rows, (at_once + 2) * plan.batch_size), reader)
        with recorder.phase("load"):
            quantized = run.read_quantized(plan.quantized) if plan.quantized else None
            engine = open_engine(plan.choice, plan.weights_file, recorder.rank.threads, quantized)
        recorder.precision = engine.precision
        for item, outcome in _predicted(engine, caller, at_once, galaxies, recorder, advance):
            if isinstance(outcome, str):
                run.write_failure(item, recorder.rank.rank, outcome)
                continue
            with recorder.phase("write"):
                run.write_part(plan, item, _joined(outcome))
            # Only now: what an item that failed had predicted is done again and counts then.
            recorder.items += 1
            recorder.batches += -(-item.galaxies // plan.batch_size)
            recorder.galaxies += item.galaxies
            recorder.peak_gpu_mb = engine.peak_gpu_mb()
            run.write_json(run.record_path(recorder.rank.rank, recorder.attempt), recorder.record())


def _predicted(
    engine: Engine,
    caller: ThreadPoolExecutor,
    at_once: int,
    galaxies: Iterator[Rows | Unreadable],
    recorder: Recorder,
    advance: Callable[[int], None],
) -> Iterator[tuple[WorkItem, list[Part] | str]]:
    """Each item with its predictions, or with the reason why it could not be read, in the order of the items."""
    under_way: deque[tuple[WorkItem, bool, Future[Part]] | Unreadable] = deque()
    finished: list[Part] = []
    more = True
    while more or under_way:
        if more and len(under_way) < at_once:
            with recorder.phase("read"):
                rows = next(galaxies, None)
            if rows is None:
                more = False
            elif isinstance(rows, Unreadable):
                under_way.append(rows)
            else:
                under_way.append((rows.item, rows.is_last, caller.submit(predict_rows, engine, rows)))
            continue
        oldest = under_way.popleft()
        if isinstance(oldest, Unreadable):
            finished = []
            yield oldest.item, oldest.reason
            continue
        item, is_last, future = oldest
        with recorder.phase("predict"):
            finished.append(future.result())
        advance(len(finished[-1].objid))
        if is_last:
            yield item, finished
            finished = []


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
