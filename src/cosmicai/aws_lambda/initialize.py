"""The function that plans a run: who does which partition."""

from __future__ import annotations

import os
from typing import Any

from .. import storage
from ..errors import InputError
from ..runs.create import begin
from ..runs.store import RunFolder
from ..surveys.survey import Survey, entries, open_survey
from .fmi_session import endpoint_of, talking_events
from .invocation_log import noted
from .payload import Payload, deal, dealt_by_hand, events, read_payload
from .weights import weights_of

MAX_CONCURRENCY = 100
# So much may fail before the map stops, so that what makes all fail costs little: a share, and at least some ranks.
STOP_AT_PERCENTAGE, STOP_AT_RANKS = 20.0, 5


def initialize(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Plans a run, and says what each rank is called with.

    The event is the published payload, to which the answer is the published initializer's; the bucket then also has
    its `payload.json`. Our state machine asks with {"request": payload, "execution": {...}}, and the answer only says
    where the events are, since Step Functions hands on no more than 256 KB. Raises InputError if the payload, the
    partitions or the weights cannot be used, or results of another plan are there already.
    """
    ours = "request" in event
    given = event["request"] if ours else event
    payload = read_payload(given)
    run = RunFolder(payload.run)
    with noted("initialize", run, context):
        return _planned(given, payload, run, ours)


def _planned(given: dict[str, Any], payload: Payload, run: RunFolder, ours: bool) -> dict[str, Any]:
    notices: list[str] = []
    endpoint = endpoint_of(payload)
    at_once = payload.max_concurrency or int(os.environ.get("COSMICAI_MAX_CONCURRENCY", MAX_CONCURRENCY))
    survey, shares = _dealt(payload, run, notices, at_once if endpoint else None)
    weights = weights_of(payload.bucket, payload.S3_object_name, payload.weights, run)
    begin(
        survey, weights, run.uri, device="cpu", precision=payload.precision, batch_size=payload.batch_size,
        accept_precision_loss=payload.accept_precision_loss, resume=True, tell=notices.append,
    )  # fmt: skip
    plan = run.plan()
    body = events(payload, shares, plan.batch_size)
    data_map = {call["RANK"]: call["DATA_PATH"] for call in body}
    if endpoint and not ours:
        body = talking_events(body, endpoint, run)
    published = given | {"world_size": len(body), "data_map": data_map, "body": body}
    run.write_json(run.payload_path, published)
    if not ours:
        run.write_json(f"s3://{payload.bucket}/payload.json", published)  # where published functions read it
        return {"statusCode": 200, "body": body}
    done = run.parts()
    unfinished = {plan.shards[item.shard].name for item in plan.items if item not in done}
    limit = {"MEMORY": payload.memory} if payload.memory else {}
    left = [call | limit for call, names in zip(body, shares, strict=True) if unfinished.intersection(names)]
    if endpoint:
        left = talking_events(left, endpoint, run)
    run.write_json(run.map_items_path, left)
    bucket, _, key = run.map_items_path.removeprefix("s3://").partition("/")
    stop_at = max(STOP_AT_PERCENTAGE, payload.tolerated_failure_percentage, 100 * STOP_AT_RANKS / max(1, len(left)))
    return {
        "run": run.uri,
        "items": {"bucket": bucket, "key": key},
        "ranks": len(body),
        "galaxies": plan.galaxies,
        "max_concurrency": at_once,
        "stop_at_failure_percentage": min(100.0, stop_at),
        "tolerated_failure_percentage": payload.tolerated_failure_percentage,
        "notices": notices,
    }


def _dealt(payload: Payload, run: RunFolder, notices: list[str], most: int | None) -> tuple[Survey, list[list[str]]]:
    """The survey, and the names of the shards of each rank, of which there are at most so many if that is given.

    Raises InputError if the survey cannot be opened, or if more ranks are asked for.
    Where there is a plan already, what has become unreadable since is no reason not to go on with all the rest.
    """
    if payload.data_map is not None:
        shares = dealt_by_hand(payload.data_map, payload.data_prefix)
        _require_at_once(len(shares), most)
        names = sorted((name for share in shares for name in share), key=storage.natural_key)
        return Survey(payload.survey, entries(payload.survey, names)), shares
    try:
        survey = open_survey(payload.survey, payload.file_limit)
    except InputError as error:
        if not run.has_plan() or run.plan().survey != payload.survey:
            raise
        notices.append(f"the plan goes on without a look at the survey: {error}")
        survey = Survey(payload.survey, run.plan().shards)
    if survey.uri != payload.survey:
        raise InputError(f"{payload.survey} is a file; expected a data_prefix, or name files in data_map")
    names = [shard.name for shard in survey.shards]
    world_size = payload.world_size or min(len(names), most or len(names))
    _require_at_once(min(world_size, len(names)), most)
    return survey, deal(names, world_size)


def _require_at_once(ranks: int, most: int | None) -> None:
    if most is not None and ranks > most:
        raise InputError(
            f"with fmi_enabled all {ranks} ranks must be there at once, and max_concurrency is {most}; give a "
            "world_size of no more than that, or a greater max_concurrency"
        )
