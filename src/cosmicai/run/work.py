"""The worker: what every rank of every launcher runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from .. import storage
from ..engine.base import Engine
from ..engine.choose import check_engine, open_engine
from ..errors import InputError
from ..galaxies.quality import Flag, input_flags
from ..galaxies.shard import Galaxies
from ..galaxies.survey import Survey
from ..model.weights import Weights, absolute_weights, load_weights
from ..ranks.environment import Rank
from .folder import PART_COLUMNS, Part, RunFolder
from .plan import Plan, WorkItem, make_plan, share
from .record import Recorder


def begin(
    survey: Survey,
    weights: str,
    out: str,
    *,
    engine: str = "reference",
    device: str = "cpu",
    batch_size: int = 512,
    limit_files: int | None = None,
    resume: bool = False,
) -> RunFolder:
    """Makes the run folder and its plan, or joins the one that is there with `resume`.

    Raises InputError if the weights cannot be used or the folder belongs to another plan.
    """
    loaded = load_weights(weights)
    plan = make_plan(survey, absolute_weights(weights), loaded.sha256, engine, device, batch_size, limit_files)
    check_engine(engine, loaded, device)  # what cannot run is refused before anything is written
    run = RunFolder(storage.absolute(out))
    run.begin(plan, resume)
    return run


def work(run: RunFolder, rank: Rank, advance: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
    """Does this rank's share of what is not done yet, and returns its record.

    `advance` is told the galaxies of every finished batch. An item whose shard cannot be read is set aside in
    `failures/`. Raises InputError if the plan, the weights or the engine cannot be used or results cannot be written.
    """
    plan = run.plan()
    attempt = run.next_attempt(rank.rank)
    path = run.record_path(rank.rank, attempt)
    recorder = Recorder(rank, attempt, plan.batch_size, plan.engine, plan.precision, plan.device, run.uri, plan.survey)
    run.write_json(path, recorder.record())
    done = run.parts()
    mine = [item for item in share(plan, rank.rank, rank.world_size) if item not in done]
    if mine:
        with recorder.phase("load"):
            engine = open_engine(plan.engine, _planned_weights(plan), plan.device, rank.threads)
    for item in mine:
        try:
            part, batches = predict_item(plan, item, engine, recorder, advance)
        except InputError as error:
            run.write_failure(item, rank.rank, str(error))
            continue
        with recorder.phase("write"):
            run.write_part(plan, item, part)
        # Only now: what an item that failed had predicted is done again and counts then.
        recorder.items += 1
        recorder.batches += batches
        recorder.galaxies += item.galaxies
        recorder.peak_gpu_mb = engine.peak_gpu_mb()
        run.write_json(path, recorder.record())
    recorder.state = "finished"
    record = recorder.record()
    run.write_json(path, record)
    return record


def _planned_weights(plan: Plan) -> Weights:
    weights = load_weights(plan.weights)
    if weights.sha256 != plan.weights_sha256:
        raise InputError(f"{plan.weights} has changed since the run was planned; put the old file back or start anew")
    return weights


def predict_item(
    plan: Plan, item: WorkItem, engine: Engine, recorder: Recorder, advance: Callable[[int], None]
) -> tuple[Part, int]:
    """The predictions of one item and how many batches they took, holding one batch of galaxies in memory.

    Raises InputError if the item cannot be read.
    """
    batches = []
    with ExitStack() as opened:
        with recorder.phase("read"):
            shard = opened.enter_context(Survey(plan.survey, plan.shards).open(plan.shards[item.shard]))
        for start in range(item.start, item.stop, plan.batch_size):
            with recorder.phase("read"):
                galaxies = shard.read(start, min(start + plan.batch_size, item.stop))
            with recorder.phase("predict"):
                batches.append(predict_batch(engine, galaxies))
            advance(len(galaxies))
    columns = (np.concatenate([getattr(batch, name) for batch in batches]) for name in PART_COLUMNS)
    return Part(*columns), len(batches)


def predict_batch(engine: Engine, galaxies: Galaxies) -> Part:
    """Predictions of one batch. Flagged galaxies keep their place, blanked, so that no neighbour's batch changes."""
    flag = input_flags(galaxies.image, galaxies.magnitude)
    bad = flag != 0
    if bad.any():
        galaxies.image[bad] = 0
        galaxies.magnitude[bad] = 0
    redshift = engine.predict(galaxies.image, galaxies.magnitude).astype(np.float32, copy=False)
    flag[~bad & ~np.isfinite(redshift)] = Flag.NONFINITE_PREDICTION
    redshift[flag != 0] = np.nan
    return Part(galaxies.objid, redshift, galaxies.redshift, flag)
