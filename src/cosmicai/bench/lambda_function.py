"""`cosmicai bench lambda`: the function under Lambda's own emulator, from its event to its answer, over S3."""

from __future__ import annotations

import io
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .. import storage
from ..errors import InputError
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..measurement.subprocesses import child_json
from ..models.weights import DEMO, find_weights
from ..runs.create import begin
from ..storage.s3 import is_s3
from ..surveys.shard import Galaxies
from ..surveys.survey import galaxies_per_partition, open_survey
from .emulator import Function, emulated
from .galaxies import noise
from .published_loop import published_dataset
from .timing import interleaved, spread

COLUMNS = (
    Column("name", "what"),
    Column("galaxies", "galaxies", ","),
    Column("seconds", "seconds", ".2f"),
    Column("seconds_min", "min", ".2f"),
    Column("seconds_max", "max", ".2f"),
    Column("peak_rss_mb", "peak MB", ",.0f"),
    Column("s3_reads", "S3 reads", ","),
    Column("gb_seconds_per_million", "GB-s per million", ",.0f"),
    Column("gb_seconds_ratio", "of published", ".2f"),
)
FIRST = 64  # galaxies, one inner batch
HANDLER = "cosmicai.aws_lambda.infer.infer"
FEW, WHOLE = "few", "partition"  # folders on S3


def bench_lambda(
    folder: str,
    weights: str,
    partition_mb: float,
    memory: int,
    repeats: int,
    emulator: str,
    tell: Callable[[str], None],
) -> Report:
    """The function in a process that starts for the event (cold) or is there (warm), and the published method.

    Seconds are from the event to the answer: for FIRST galaxies, which is the time to the first redshifts, and for a
    partition of noise. The compiled network is in the cache but for `nothing cached`. The published method is a process
    that reads a partition whole from S3 and computes as the published loop. GB-seconds are seconds times `memory` in
    MB, which should be what Lambda gives for this machine's cores (1,769 MB for each). All lies in a new folder below
    `folder` on S3, wherever boto3 finds that. Raises InputError for bad input or if a function fails.
    """
    if not is_s3(folder):
        raise InputError(f"{folder} is not on S3; expected s3://BUCKET/FOLDER (AWS_ENDPOINT_URL may name a server)")
    here, local = machine(), find_weights(weights).uri
    folder = storage.join(folder, secrets.token_hex(4))
    if weights != DEMO:
        weights = storage.join(folder, "weights.safetensors")
        storage.write_bytes(weights, storage.read_bytes(local))
    sizes = {FEW: FIRST, WHOLE: galaxies_per_partition(partition_mb)}
    for name, galaxies in sizes.items():
        _write_partition(storage.join(folder, name, "1.pt"), galaxies)
    with TemporaryDirectory(prefix="cosmicai-bench-") as own:
        place = _Place(folder, weights, memory, Path(emulator), Path(own))
        published = ("cosmicai.bench.published_loop", storage.join(folder, WHOLE, "1.pt"), local)
        with place.served("cache") as warm:
            turns: dict[tuple[str, str], Callable[[], dict[str, Any]]] = {
                ("first redshifts, cold", FEW): partial(place.cold, FEW, "cache"),
                ("first redshifts, nothing cached", FEW): partial(place.cold, FEW, None),
                ("first redshifts, warm", FEW): partial(place.call, warm, FEW),
                (f"{partition_mb:g} MB, cold", WHOLE): partial(place.cold, WHOLE, "cache"),
                (f"{partition_mb:g} MB, warm", WHOLE): partial(place.call, warm, WHOLE),
                (f"{partition_mb:g} MB, published method", WHOLE): partial(_timed, child_json, *published),
            }
            measured = interleaved(list(turns.values()), repeats, tell)
    rows = [_row(name, sizes[what], memory, values) for (name, what), values in zip(turns, measured, strict=True)]
    for row in rows:
        row["gb_seconds_ratio"] = row["gb_seconds_per_million"] / rows[-1]["gb_seconds_per_million"]
    facts = {"weights": local, "memory_mb": memory, "repeats": repeats, "s3": os.environ.get("AWS_ENDPOINT_URL", "AWS")}
    return Report("Lambda", COLUMNS, rows, here, facts, {name: str(value) for name, value in facts.items()})


@dataclass(frozen=True)
class _Place:
    """Where the function runs, and the runs that it is called for."""

    folder: str
    weights: str
    memory: int
    emulator: Path
    local: Path
    numbers: count[int] = field(default_factory=count)

    def served(self, cache: str) -> AbstractContextManager[Function]:
        """The function, which starts at its first event."""
        command = [sys.executable, "-m", "awslambdaric", HANDLER]
        own = {"COSMICAI_CACHE": str(self.local / cache), "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory)}
        return emulated(self.emulator, command, os.environ | own, self.local / f"log-{next(self.numbers)}")

    def cold(self, what: str, cache: str | None) -> dict[str, Any]:
        """A call that starts the function; without a cache one that finds nothing."""
        with self.served(cache or f"cache-{next(self.numbers)}") as function:
            return self.call(function, what)

    def call(self, function: Function, what: str) -> dict[str, Any]:
        """The rank's record and the seconds of the call. Raises InputError if it fails."""
        survey = open_survey(storage.join(self.folder, what))
        run = begin(survey, self.weights, storage.join(self.folder, "runs", str(next(self.numbers))), device="cpu")
        record = _timed(function, {"run": run.uri, "rank": 0, "world_size": 1})
        if record.get("galaxies") != survey.galaxies:
            raise InputError(f"the function failed: {record.get('errorMessage', record)}")
        return record


def _timed(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    begun = time.perf_counter()
    return function(*arguments) | {"call_seconds": time.perf_counter() - begun}


def _write_partition(uri: str, galaxies: int) -> None:
    """A partition of noise as the published ones are."""
    data = io.BytesIO()
    torch.save(published_dataset(Galaxies.concatenate(noise(galaxies))), data)
    storage.write_bytes(uri, data.getbuffer())


def _row(name: str, galaxies: int, memory: int, calls: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [call["call_seconds"] for call in calls]
    return {
        "name": name,
        "galaxies": galaxies,
        **spread("seconds", seconds),
        "peak_rss_mb": max(call["peak_rss_mb"] for call in calls),
        "s3_reads": calls[-1].get("s3_num_requests"),
        "gb_seconds_per_million": median(seconds) * memory / 1024 / galaxies * 1e6,
    }
