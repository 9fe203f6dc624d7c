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
from numpy.typing import NDArray

from ..calibration.domain import is_outside
from ..calibration.records import TrainingDomain
from ..engines.base import Engine, EngineChoice, choose_concurrency
from ..engines.registry import open_engine
from ..models.weights import WeightsFile
from ..ranks.environment import Rank
from ..ranks.invocation import Invocation
from ..ranks.nvml import sample_gpu
from ..runs.part import Part, concatenate_parts
from ..runs.plan import Plan, WorkItem
from ..runs.record import Record
from ..runs.recorder import Recorder
from ..runs.store import RunFolder
from ..surveys.quality import NO_REDSHIFT, Flag, flag_predictions
from .interrupts import defer_interrupts
from .prefetch import FETCHES, Chunk, Prefetcher, ReadFailure, read_items
from .sources import WorkSource
from .views import predict_views

OpenEngine = Callable[[EngineChoice, WeightsFile, int, bytes | None], Engine]


@dataclass(frozen=True)
class WorkerOptions:
    """How a rank works, but not on what.

    `progress` is called with the number of galaxies after each prediction, `open_engine` opens the engine (a process
    that serves several invocations keeps it), at most `fetches` requests to S3 are made at a time, and `data_path` is
    what the record names as input, by default the survey, and `result_path` where it says that the published results
    are, by default the run folder. `invocation` is set on AWS Lambda.
    """

    progress: Callable[[int], None] = lambda galaxies: None
    invocation: Invocation | None = None
    open_engine: OpenEngine = open_engine
    fetches: int = FETCHES
    data_path: str | list[str] | None = None
    result_path: str | None = None


def run(run_folder: RunFolder, rank: Rank, source: WorkSource, options: WorkerOptions | None = None) -> Record:
    """Predict the items of the source, write their parts into the run folder, and return the rank's record.

    An item whose shard cannot be read is recorded in `failures/` and skipped. Raises InputError if the plan, the
    weights or the engine cannot be used, or if results cannot be written.
    """
    options = options or WorkerOptions()
    plan = run_folder.plan()
    recorder = Recorder(
        rank, plan.batch_size, plan.choice, plan.precision_check, options.result_path or run_folder.result_path,
        options.data_path or plan.survey, invocation=options.invocation,
    )  # fmt: skip
    run_folder.create_record(recorder)
    items = iter(source)
    # Only a rank that has something to do opens the engine.
    if (first := next(items, None)) is not None:
        reader = partial(read_items, plan, chain([first], items), fetches=options.fetches)
        _predict_items(run_folder, plan, reader, recorder, source, options)
    recorder.state = "finished"
    return run_folder.write_record(recorder)


def _predict_items(
    run_folder: RunFolder,
    plan: Plan,
    read: Callable[..., Iterator[Chunk | ReadFailure]],
    recorder: Recorder,
    source: WorkSource,
    options: WorkerOptions,
) -> None:
    """Predict all items; reading, predicting and writing overlap, and the record counts what this thread waits for."""
    rows, calls = choose_concurrency(plan.choice, recorder.rank.threads, plan.batch_size)
    predicted: list[Part] = []
    with ExitStack() as stack:
        check_interrupt = stack.enter_context(defer_interrupts())
        reader = stack.enter_context(ThreadPoolExecutor(1, "reader"))
        caller = stack.enter_context(ThreadPoolExecutor(calls, "caller"))
        chunks = Prefetcher(read(rows=rows, in_use=(calls + 2) * plan.batch_size), reader)
        stack.callback(source.close)  # else this thread would wait for the reader, and the reader for an item
        with recorder.phase("load"):
            quantized = run_folder.read_quantized(plan.quantized) if plan.quantized else None
            engine = options.open_engine(plan.choice, plan.weights_file, recorder.rank.threads, quantized)
        recorder.precision = engine.precision
        if plan.device == "cuda":
            recorder.gpu = stack.enter_context(sample_gpu())
        for result in _predict_chunks(partial(predict_chunk, engine, plan), caller, calls, chunks, recorder):
            check_interrupt()
            if isinstance(result, ReadFailure):
                predicted = []
                rank = recorder.rank
                run_folder.write_failure(result.item, rank.rank, result.reason, rank.submission)
                source.failed(result.item, result.reason)
                continue
            predicted.append(result.part)
            options.progress(len(result.part.flag))
            source.heartbeat()
            if result.is_last:
                if not recorder.items:  # a rank that is killed after its first part has recorded its CPU time
                    run_folder.write_record(recorder)
                with recorder.phase("write"):
                    is_first = run_folder.write_part(plan, result.item, concatenate_parts(predicted))
                predicted = []
                # Counted only now: if an item fails, what was predicted of it is done again, and counts then.
                recorder.add(result.item, engine.peak_gpu_mb(), is_first, result.is_checked)
                run_folder.write_record(recorder)
                source.completed(result.item)


@dataclass(frozen=True)
class _PredictedChunk:
    item: WorkItem
    is_last: bool
    is_checked: bool
    part: Part


def _predict_chunks(
    predict: Callable[[Chunk], Part],
    caller: ThreadPoolExecutor,
    calls: int,
    chunks: Prefetcher[Chunk | ReadFailure],
    recorder: Recorder,
) -> Iterator[_PredictedChunk | ReadFailure]:
    """Yield the predictions chunk by chunk, in the order of the items; a failure replaces the rest of its item."""
    pending: deque[tuple[Chunk, Future[Part]] | ReadFailure] = deque()
    more = True
    while more or pending:
        oldest = pending[0] if pending else None
        if more and len(pending) < calls and not isinstance(oldest, ReadFailure):
            # Wait for either: a source may give out the next item only when the previous one is completed.
            if oldest is not None:
                with recorder.phase("predict"):
                    either: list[Future[Any]] = [chunks.pending, oldest[1]]
                    wait(either, return_when=FIRST_COMPLETED)
            if oldest is None or chunks.pending.done():
                with recorder.phase("read"):
                    chunk = chunks.take()
                if chunk is None:
                    more = False
                elif isinstance(chunk, ReadFailure):
                    pending.append(chunk)
                else:
                    pending.append((chunk, caller.submit(predict, chunk)))
                continue
        pending.popleft()
        if isinstance(oldest, tuple):
            with recorder.phase("predict"):
                part = oldest[1].result()
            chunk = oldest[0]
            yield _PredictedChunk(chunk.item, chunk.is_last, chunk.is_checked, part)
        elif oldest is not None:
            yield oldest


def predict_chunk(engine: Engine, plan: Plan, chunk: Chunk) -> Part:
    """Return the predictions of a chunk; a galaxy without a redshift keeps its row, and has NaN."""
    image, magnitude = chunk.galaxies.image, chunk.galaxies.magnitude
    return Part(*predict_rows(engine, image, magnitude, chunk.flag, plan.views, plan.domain))


def predict_rows(
    engine: Engine,
    image: NDArray[np.float32],
    magnitude: NDArray[np.float64],
    flag: NDArray[np.uint8],
    views: int,
    domain: TrainingDomain | None,
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32] | None]:
    """Return redshifts (B,), the complete flags (B,) and the spread (B,) over the views of cutouts (B, 5, 32, 32).

    `flag` are those of the inputs, which were blanked (`surveys.quality.blank_unusable`). Redshift and spread are NaN
    where there is no redshift; the spread is None with one view. Galaxies outside of the `domain` are flagged, none
    without one.
    """
    redshift, spread = predict_views(engine, image, magnitude, views)
    flag = flag | np.where(flag & NO_REDSHIFT, np.uint8(0), flag_predictions(redshift))
    blank = flag & NO_REDSHIFT != 0
    redshift[blank] = np.nan
    if spread is not None:
        spread[blank] = np.nan
    if domain is not None:
        flag |= (is_outside(domain, image, magnitude, redshift) & ~blank) * np.uint8(Flag.OUTSIDE_DOMAIN)
    return redshift, flag, spread
