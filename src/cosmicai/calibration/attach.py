"""Weights with a calibration and a training domain."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime

from ..errors import InputError
from ..models.weights import Weights
from ..storage import basename
from ..surveys.shard import Galaxies
from ..surveys.survey import Survey
from .domain import GALAXIES
from .records import CALIBRATION, DOMAIN, Calibration, Origin, TrainingDomain, to_note

EPOCH = "SOURCE_DATE_EPOCH"  # of reproducible builds: seconds since 1970 that stand in place of the clock
_CHUNK = 512  # rows read at once


def attach(weights: Weights, calibration: Calibration | None, domain: TrainingDomain | None) -> Weights:
    """Return the same weights with this calibration and domain among their notes, in place of earlier ones."""
    found = {CALIBRATION: calibration, DOMAIN: domain}
    notes = {name: text for name, text in weights.notes.items() if name not in found}
    return replace(weights, notes=notes | {name: to_note(record) for name, record in found.items() if record})


def describe_source(survey: Survey, views: int = 1) -> Origin:
    """Return what a calibration on galaxies of this survey notes of them, with the date of `today`.

    The digest is a SHA-256 of the names, sizes and digests of the shards.
    """
    shards = [[shard.name, shard.galaxies, shard.bytes, shard.digest or ""] for shard in survey.shards]
    digest = hashlib.sha256(json.dumps(shards).encode()).hexdigest()
    return Origin(basename(survey.uri.rstrip("/")), digest, today(), views)


def today() -> str:
    """Return the date in UTC (ISO 8601), by SOURCE_DATE_EPOCH if it is set. Raises InputError if that is no number."""
    text = os.environ.get(EPOCH)
    try:
        return (datetime.fromtimestamp(int(text), UTC) if text else datetime.now(UTC)).date().isoformat()
    except (ValueError, OverflowError, OSError):
        raise InputError(f"{EPOCH} is {text!r}; expected seconds since 1970, or unset it") from None


def sample_survey(survey: Survey) -> Iterable[Galaxies]:
    """Yield batches of at most about GALAXIES galaxies, evenly spread over a survey; unreadable shards are left out."""
    step = -(-survey.galaxies // GALAXIES)
    number = 0
    for entry in survey.shards:
        starts = []
        for start in range(0, entry.galaxies, _CHUNK):
            starts += [start] if number % step == 0 else []
            number += 1
        if not starts:
            continue
        try:
            with survey.open(entry) as shard:
                for start in starts:
                    yield shard.read(start, min(start + _CHUNK, entry.galaxies))
        except InputError:
            continue
