"""`cosmicai bench memory`: how much a process needs at most, by the size of the partitions it reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..errors import InputError
from ..measurement.engine_spec import Wanted, parse_engines
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..measurement.subprocesses import child_with_peak
from ..models.weights import find_weights
from ..runs.store import RunFolder
from ..surveys.shard import FIELDS, Galaxies
from ..surveys.survey import galaxies_per_partition, write_survey
from .galaxies import noise
from .published_loop import published_dataset

COLUMNS = (
    Column("name", "engine"),
    Column("partition_mb", "partition MB", "g"),
    Column("galaxies", "galaxies", ","),
    Column("peak_rss_worker_mb", "peak MB, worker", ",.0f"),
    Column("peak_rss_command_mb", "peak MB, command", ",.0f"),
    Column("galaxies_per_second", "galaxies/s", ",.0f"),
)


def bench_memory(
    weights: str, partition_mb: Sequence[float], survey_mb: float, engines: str, tell: Callable[[str], None]
) -> Report:
    """One `cosmicai infer` per engine and size of partition, on surveys of noise, each in a process of its own.

    `peak_rss_worker_mb` is the largest resident memory up to the last prediction that is written, as the run's record
    has it, `peak_rss_command_mb` that of the process to its end, catalogue and plot included; both count the pages of
    mapped files. MB are 2^20 bytes. The published loop gets one partition, as it does in production: its rate is from
    opening the file to the last prediction. Surveys lie in the temporary folder (TMPDIR), one at a time. Raises
    InputError for bad input.
    """
    wanted, weights = parse_engines(engines), find_weights(weights).uri
    here = machine()
    rows: list[dict[str, Any]] = []
    for size in partition_mb:
        with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
            rows += _rows(Path(folder), size, survey_mb, weights, wanted, tell)
    facts = {"weights": weights, "survey_mb": survey_mb}
    return Report("Memory", COLUMNS, rows, here, facts, {"weights": weights})


def _rows(
    folder: Path, size: float, survey_mb: float, weights: str, wanted: Sequence[Wanted], tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    rows, galaxies = galaxies_per_partition(size), galaxies_per_partition(survey_mb)
    tell(f"partitions of {size:g} MB")
    survey = write_survey(str(folder / "survey"), noise(galaxies), galaxies, rows, FIELDS)
    torch.save(published_dataset(Galaxies.concatenate(noise(rows))), folder / "1.pt")
    printed, peak = child_with_peak("cosmicai.bench.published_loop", str(folder / "1.pt"), weights)
    found = json.loads(printed)
    yield _row("published loop", size, found["galaxies"], found["peak_rss_mb"], peak, found["galaxies_per_second"])
    for own in wanted:
        run = RunFolder(str(folder / own.name))
        try:
            _, peak = child_with_peak(
                "cosmicai", "infer", survey.uri, "--weights", weights, "--out", run.uri, "--engine", own.engine,
                "--precision", own.precision, "--accept-precision-loss",
            )  # fmt: skip
        except InputError as error:
            tell(f"{own.name} is left out: {error}")
            continue
        record = run.records()["0"]
        if record["precision"] != own.precision:
            tell(f"{own.name} is left out: this machine does not have it")
            continue
        yield _row(own.name, size, record["galaxies"], record["peak_rss_mb"], peak, record["sample_persec"])


def _row(name: str, size: float, galaxies: int, worker: float, command: float, per_second: float) -> dict[str, Any]:
    return {
        "name": name, "partition_mb": size, "galaxies": galaxies, "peak_rss_worker_mb": worker,
        "peak_rss_command_mb": command, "galaxies_per_second": per_second,
    }  # fmt: skip
