"""`cosmicai bench memory`: the peak memory of a process by the size of the partitions that it reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..errors import InputError
from ..measurement.engine_spec import EngineSpec, parse_engine_specs
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import run_module_with_peak
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.weights import find_weights
from ..runs.store import RunFolder
from ..surveys.shard import FIELDS, Galaxies
from ..surveys.survey import galaxies_per_partition, write_survey
from .galaxies import generate_noise
from .published_loop import make_published_dataset

COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("partition_mb", "partition MB", "g"),
    MeasurementColumn("galaxies", "galaxies", ","),
    MeasurementColumn("peak_rss_worker_mb", "peak MB, worker", ",.0f"),
    MeasurementColumn("peak_rss_command_mb", "peak MB, command", ",.0f"),
    MeasurementColumn("galaxies_per_second", "galaxies/s", ",.0f"),
)


def bench_memory(
    weights: str, partition_mb: Sequence[float], survey_mb: float, engines: str, notify: Callable[[str], None]
) -> MeasurementTable:
    """Run one `cosmicai infer` per engine and partition size on surveys of noise, each in a process of its own.

    `peak_rss_worker_mb` is the peak resident memory until the last prediction is written, from the run's record;
    `peak_rss_command_mb` is the peak until the process ends, including catalogue and plot. MB are 2^20 bytes. The
    published loop reads one partition, as in production; its rate is from opening the file to the last prediction.
    Surveys are in the temporary folder (TMPDIR), one at a time. Raises InputError if options are invalid.
    """
    specs, weights = parse_engine_specs(engines), find_weights(weights).uri
    here = describe_machine()
    rows: list[dict[str, Any]] = []
    for size in partition_mb:
        with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
            rows += _measure_partitions(Path(folder), size, survey_mb, weights, specs, notify)
    facts = {"weights": weights, "survey_mb": survey_mb}
    return MeasurementTable("Memory", COLUMNS, rows, here, facts, {"weights": weights})


def _measure_partitions(
    folder: Path,
    size: float,
    survey_mb: float,
    weights: str,
    specs: Sequence[EngineSpec],
    notify: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    rows, galaxies = galaxies_per_partition(size), galaxies_per_partition(survey_mb)
    notify(f"partitions of {size:g} MB")
    survey = write_survey(str(folder / "survey"), generate_noise(galaxies), galaxies, rows, FIELDS)
    torch.save(make_published_dataset(Galaxies.concatenate(generate_noise(rows))), folder / "1.pt")
    printed, peak = run_module_with_peak("cosmicai.bench.published_loop", str(folder / "1.pt"), weights)
    found = json.loads(printed)
    yield _make_row("published loop", size, found["galaxies"], found["peak_rss_mb"], peak, found["galaxies_per_second"])
    for spec in specs:
        run = RunFolder(str(folder / spec.name))
        try:
            _, peak = run_module_with_peak(
                "cosmicai", "infer", survey.uri, "--weights", weights, "--out", run.uri, "--engine", spec.engine,
                "--precision", spec.precision, "--accept-precision-loss",
            )  # fmt: skip
        except InputError as error:
            notify(f"{spec.name} is left out: {error}")
            continue
        record = run.records()["0"]
        if record.precision != spec.precision:
            notify(f"{spec.name} is left out: this machine does not support it")
            continue
        yield _make_row(spec.name, size, record.galaxies, record.peak_rss_mb, peak, record.galaxies_per_second)


def _make_row(
    name: str, size: float, galaxies: int, worker: float, command: float, per_second: float
) -> dict[str, Any]:
    return {
        "name": name, "partition_mb": size, "galaxies": galaxies, "peak_rss_worker_mb": worker,
        "peak_rss_command_mb": command, "galaxies_per_second": per_second,
    }  # fmt: skip
