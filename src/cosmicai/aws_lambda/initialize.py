"""The function that plans a run and assigns its partitions to ranks."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from msgspec import structs

from .. import storage
from ..errors import InputError
from ..runs.create import create_run
from ..runs.request import RunRequest
from ..runs.store import RunFolder
from ..storage.s3 import split_s3_uri
from ..surveys.survey import FileOrder, Survey, describe_files, open_survey, sort_files
from .account_limit import cap_concurrency
from .fmi_session import add_session, find_endpoint
from .invocation_log import note_invocation
from .payload import Payload, assign_by_data_map, assign_files, make_events, read_payload
from .run_location import locate_own_run, locate_run
from .weights_selection import select_weights

MAX_CONCURRENCY = 100
# What may fail before the map stops, so that an error of all ranks costs little: a percentage, and at least some ranks.
STOP_AT_PERCENTAGE, STOP_AT_RANKS = 20.0, 5


class ItemsLocation(msgspec.Struct, frozen=True):
    """The S3 object that holds the events of the ranks."""

    bucket: str
    key: str


class RunPlanned(msgspec.Struct, frozen=True):
    """The result for this program's state machine."""

    run: str
    items: ItemsLocation
    ranks: int
    galaxies: int
    max_concurrency: int
    stop_at_failure_percentage: float
    tolerated_failure_percentage: float
    notices: list[str]


def initialize(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Plan a run and return how its ranks are to be invoked.

    The event is the published payload, for which the result is that of the published initializer; the bucket then also
    gets its `payload.json`. This program's state machine sends {"request": payload, "execution": {...}}, and the result
    only says where the events are, since Step Functions passes on at most 256 KB. Raises InputError if the payload,
    the partitions or the weights cannot be used, or if the run folder holds results of another plan.
    """
    is_published = "request" not in event
    content = event if is_published else event["request"]
    payload = read_payload(content)
    locate = locate_run if is_published else locate_own_run
    run = locate(payload.bucket, payload.result_path).run
    with note_invocation("initialize", run, context):
        return _plan(content, payload, run, is_published)


def _plan(content: dict[str, Any], payload: Payload, run: RunFolder, is_published: bool) -> dict[str, Any]:
    notices: list[str] = []
    endpoint = find_endpoint(payload)
    max_concurrency = payload.max_concurrency or int(os.environ.get("COSMICAI_MAX_CONCURRENCY", MAX_CONCURRENCY))
    if endpoint:  # all ranks must run at the same time
        max_concurrency = cap_concurrency(max_concurrency, payload.world_size, notices.append)
    order = _choose_order(payload, run)
    survey, shares = _assign_partitions(payload, order, run, notices, max_concurrency if endpoint else None)
    weights = select_weights(payload.bucket, payload.S3_object_name, payload.weights, run)
    request = RunRequest(
        survey.uri, run.uri, weights, device="cpu", precision=payload.precision, batch_size=payload.batch_size,
        accept_precision_loss=payload.accept_precision_loss, views=payload.views, quantiles=payload.quantiles,
        calibrate_on_spectra=payload.calibrate_on_spectra, resume=True, strict=payload.strict,
    )  # fmt: skip
    create_run(request, survey, notify=notices.append, order=order)
    plan = run.plan()
    events = make_events(payload, shares, plan.batch_size)
    data_map = {event.rank: event.data_path for event in events}
    body = add_session(events, endpoint, run) if endpoint and is_published else events
    published = content | {
        "world_size": len(events), "data_map": data_map, "body": [event.to_dict() for event in body],
    }  # fmt: skip
    run.write_json(run.payload_path, published)
    if is_published:
        run.write_json(f"s3://{payload.bucket}/payload.json", published)  # where published functions read it
        return {"statusCode": 200, "body": published["body"]}
    done = run.parts()
    unfinished = {plan.shards[item.shard].name for item in plan.items if item not in done}
    remaining = [
        structs.replace(event, memory=payload.memory)
        for event, names in zip(events, shares, strict=True)
        if unfinished.intersection(names)
    ]
    if not endpoint:
        max_concurrency = cap_concurrency(max_concurrency, len(remaining), notices.append)
    else:
        remaining = add_session(remaining, endpoint, run)
    run.write_json(run.map_items_path, [event.to_dict() for event in remaining])
    stop_at = max(
        STOP_AT_PERCENTAGE, payload.tolerated_failure_percentage, 100 * STOP_AT_RANKS / max(1, len(remaining))
    )
    bucket, key = split_s3_uri(run.map_items_path)
    result = RunPlanned(
        run=run.uri,
        items=ItemsLocation(bucket, key),
        ranks=len(events),
        galaxies=plan.galaxies,
        max_concurrency=max_concurrency,
        stop_at_failure_percentage=min(100.0, stop_at),
        tolerated_failure_percentage=payload.tolerated_failure_percentage,
        notices=notices,
    )
    return dict(msgspec.to_builtins(result))


def _choose_order(payload: Payload, run: RunFolder) -> FileOrder:
    """Return the order in which files are selected and assigned to ranks: without a request that of the plan.

    A new plan has S3's order, as the published initializer, and one with a `data_map`, which assigns them, has none.
    """
    if payload.data_map is not None:
        return "natural"
    return payload.order or (run.plan().order if run.has_plan() else "s3")


def _assign_partitions(
    payload: Payload, order: FileOrder, run: RunFolder, notices: list[str], max_ranks: int | None
) -> tuple[Survey, list[list[str]]]:
    """Return the survey and the names of each rank's shards, for at most `max_ranks` ranks if that is given.

    Raises InputError if the survey cannot be opened, or if more ranks are requested. A run that has a plan already
    continues although shards have become unreadable since.
    """
    if payload.data_map is not None:
        shares = assign_by_data_map(payload.data_map, payload.data_prefix)
        _require_concurrency(len(shares), max_ranks)
        names = sorted((name for share in shares for name in share), key=storage.natural_key)
        return describe_files(payload.survey, names), shares
    try:
        survey = open_survey(payload.survey, payload.file_limit, order)
    except InputError as error:
        if not run.has_plan() or run.plan().survey != payload.survey:
            raise
        notices.append(f"continuing with the shards of the plan, since the survey cannot be opened: {error}")
        survey = Survey(payload.survey, run.plan().shards)
    if survey.uri != payload.survey:
        raise InputError(f"{payload.survey} is a file; expected a data_prefix, or name files in data_map")
    names = sort_files([shard.name for shard in survey.shards], order)
    world_size = payload.world_size or min(len(names), max_ranks or len(names))
    _require_concurrency(min(world_size, len(names)), max_ranks)
    return survey, assign_files(names, world_size)


def _require_concurrency(ranks: int, max_ranks: int | None) -> None:
    """Raise InputError if not all ranks could run at the same time, as they must to be connected."""
    if max_ranks is not None and ranks > max_ranks:
        raise InputError(
            f"with fmi_enabled all {ranks} ranks must run at the same time, and max_concurrency is {max_ranks}; give a "
            "world_size of at most that, or a greater max_concurrency"
        )
