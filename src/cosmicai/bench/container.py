"""`cosmicai bench container`: start and run in a container, compared with plain Python."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import capture_output
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..runs.create import create_run
from ..runs.request import RunRequest
from ..runs.store import RunFolder
from ..surveys.synthetic import write_synthetic_survey
from .galaxies import SEED
from .lambda_emulator import require_success, run_emulator
from .timing import measure_interleaved, summarize_spread

COLUMNS = (
    MeasurementColumn("name", "where"),
    MeasurementColumn("first_seconds", "first redshifts s", ".2f"),
    MeasurementColumn("first_seconds_min", "min", ".2f"),
    MeasurementColumn("first_seconds_max", "max", ".2f"),
    MeasurementColumn("cold_first_seconds", "cold", ".2f"),
    MeasurementColumn("command_seconds", "whole run s", ".2f"),
    MeasurementColumn("command_ratio", "x Python", ".3f"),
    MeasurementColumn("galaxies_per_second", "galaxies/s", ",.0f"),
    MeasurementColumn("rate_ratio", "x Python", ".3f"),
)
FIRST = 64  # galaxies, one inner batch


class _Environment:
    """An environment for the same programs: a command that starts its Python, and a cache folder of its own."""

    def __init__(self, python: list[str], folder: Path, weights: str, galaxies: int) -> None:
        self._python, self._folder, self._weights, self._numbers = python, folder, weights, count()
        folder.mkdir()
        self._survey = write_synthetic_survey(str(folder / "survey"), galaxies, SEED, galaxies).uri
        self._few = write_synthetic_survey(str(folder / "few"), FIRST, SEED, FIRST)

    def create_run(self) -> str:
        """Create a run of FIRST galaxies and return its address."""
        out = str(self._folder / str(next(self._numbers)))
        return create_run(RunRequest(self._few.uri, out, self._weights), self._few).uri

    def time_first_prediction(self, run: str) -> float:
        """Return seconds from the start of the command to the first redshifts."""
        begin = time.time()
        printed = self._run("cosmicai.measurement.first_prediction", run)
        return float(json.loads(printed)["first_prediction_at"]) - begin

    def time_whole_run(self) -> tuple[float, float]:
        """Return seconds of the command for all galaxies, and galaxies per second from first read to last write."""
        out, begin = str(self._folder / str(next(self._numbers))), time.perf_counter()
        self._run("cosmicai", "infer", self._survey, "--weights", self._weights, "--out", out)
        seconds = time.perf_counter() - begin
        summary = RunFolder(out).complete_summary()
        assert summary
        return seconds, float(summary.totals.galaxies_per_second)

    def _run(self, *arguments: str) -> str:
        return capture_output([*self._python, "-m", *arguments], {"COSMICAI_CACHE": str(self._folder / "cache")})


def bench_container(
    image: str, weights: str, galaxies: int, repeats: int, emulator: str | None, notify: Callable[[str], None]
) -> MeasurementTable:
    """Measure the same programs in plain Python and in an Apptainer image, interleaved.

    `first` is from the start of the command to the first redshifts, with the compiled network in the cache;
    `cold_first` is the first such time, with nothing compiled and the image file not in the file system's cache.
    `command` is the whole `cosmicai infer` on this number of galaxies in one partition; `galaxies_per_second` is its
    rate from first read to last write. With an `emulator` of AWS Lambda there is a row for the image as a function:
    from the event that starts it to its result, after the redshifts of FIRST galaxies are written. Raises InputError if
    input or options are invalid or the function fails.
    """
    here = describe_machine()
    if not Path(image).is_file():
        raise InputError(f"{image} does not exist; build it with containers/sif.sh")
    with TemporaryDirectory(prefix="cosmicai-bench-") as name:
        folder = Path(name)
        bound = [str(folder), *([] if weights == "demo" else [str(Path(weights).resolve().parent)])]
        options = [*(["--no-privs"] if os.getuid() == 0 else []), *(f"--bind={path}" for path in bound)]
        python = _Environment([sys.executable], folder / "python", weights, galaxies)
        container = _Environment(["apptainer", "exec", *options, image, "python"], folder / "image", weights, galaxies)
        environments = (python, container)
        cold = [_measure_uncached(image, own.time_first_prediction, own.create_run()) for own in environments]
        trials: list[Callable[[], Any]] = []
        for own in environments:
            trials += [partial(own.time_first_prediction, own.create_run()), own.time_whole_run]
        if emulator:
            serve = ["apptainer", "run", *options, "--pwd=/", image, "handlers.infer"]
            time_function = partial(_time_function, Path(emulator), serve, folder / "log", container)
            cold.append(_measure_uncached(image, time_function, folder / "image/lambda"))
            trials.append(partial(time_function, folder / "image/cache"))
        measured = measure_interleaved(trials, repeats, notify)
    bare = measured[1]
    rows = [
        _make_row("Python", cold[0], measured[0], bare, bare),
        _make_row("image", cold[1], measured[2], measured[3], bare),
    ]
    if emulator:
        rows.append(_make_row("image, Lambda's emulator", cold[2], measured[4], [], []))
    facts = {"image": image, "weights": weights, "galaxies": galaxies, "repeats": repeats}
    return MeasurementTable("Container", COLUMNS, rows, here, facts, {"weights": weights, "galaxies": f"{galaxies:,}"})


def _make_row(
    name: str,
    cold: float,
    first: list[float],
    whole: list[tuple[float, float]],
    bare: list[tuple[float, float]],
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, **summarize_spread("first_seconds", first), "cold_first_seconds": cold}
    figures = ("command_seconds", "command_ratio"), ("galaxies_per_second", "rate_ratio")
    for column, (value, ratio) in enumerate(figures):
        own, other = ([result[column] for result in results] for results in (whole, bare))
        row[value], row[ratio] = (median(own), median(own) / median(other)) if whole else (None, None)
    return row


def _measure_uncached(image: str, measure: Callable[..., float], *arguments: object) -> float:
    """Measure while the image file is not in the file system's cache."""
    with Path(image).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return measure(*arguments)


def _time_function(emulator: Path, serve: list[str], log: Path, environment: _Environment, cache: Path) -> float:
    """Return seconds from an event to the result of a function that it starts. Raises InputError if it fails."""
    with run_emulator(emulator, serve, os.environ | {"COSMICAI_CACHE": str(cache)}, log) as function:
        event, begin = {"run": environment.create_run(), "rank": 0, "world_size": 1}, time.perf_counter()
        result = function(event)
        seconds = time.perf_counter() - begin
    require_success(result, FIRST)
    return seconds
