"""`cosmicai bench container`: what a container costs beside plain Python, at its start and in a run."""

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
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..measurement.subprocesses import output_of
from ..runs.create import begin
from ..runs.demo import write_synthetic_survey
from ..runs.store import RunFolder
from .emulator import emulated
from .galaxies import SEED
from .timing import interleaved, spread

COLUMNS = (
    Column("name", "where"),
    Column("first_seconds", "first redshifts s", ".2f"),
    Column("first_seconds_min", "min", ".2f"),
    Column("first_seconds_max", "max", ".2f"),
    Column("cold_first_seconds", "cold", ".2f"),
    Column("command_seconds", "whole run s", ".2f"),
    Column("command_ratio", "x Python", ".3f"),
    Column("galaxies_per_second", "galaxies/s", ",.0f"),
    Column("rate_ratio", "x Python", ".3f"),
)
FIRST = 64  # galaxies, one inner batch


class _Place:
    """Somewhere to run the same programs: a command that starts Python, and a cache of its own."""

    def __init__(self, python: list[str], folder: Path, weights: str, galaxies: int) -> None:
        self._python, self._folder, self._weights, self._numbers = python, folder, weights, count()
        folder.mkdir()
        self._survey = write_synthetic_survey(str(folder / "survey"), galaxies, SEED, galaxies).uri
        self._few = write_synthetic_survey(str(folder / "few"), FIRST, SEED, FIRST)

    def begun(self) -> str:
        """A new run of FIRST galaxies with nothing done yet."""
        return begin(self._few, self._weights, str(self._folder / str(next(self._numbers)))).uri

    def first(self, run: str) -> float:
        """Seconds from the start of the command to the first redshifts."""
        at = time.time()
        told = self._output("cosmicai.measurement.first_prediction", run)
        return float(json.loads(told)["first_prediction_at"]) - at

    def whole(self) -> tuple[float, float]:
        """Seconds of the command for all galaxies, and galaxies per second from the first read to the last write."""
        out, at = str(self._folder / str(next(self._numbers))), time.perf_counter()
        self._output("cosmicai", "infer", self._survey, "--weights", self._weights, "--out", out)
        seconds = time.perf_counter() - at
        summary = RunFolder(out).complete_summary()
        assert summary
        return seconds, float(summary["totals"]["galaxies_per_second"])

    def _output(self, *arguments: str) -> str:
        return output_of([*self._python, "-m", *arguments], {"COSMICAI_CACHE": str(self._folder / "cache")})


def bench_container(
    image: str, weights: str, galaxies: int, repeats: int, emulator: str | None, tell: Callable[[str], None]
) -> Report:
    """Does the same in plain Python and in an image of Apptainer, in turns.

    `first` counts from the start of the command to the first redshifts, with the compiled network in the cache;
    `cold_first` is the first such time, with nothing compiled and the image's file not in the system's cache. `command`
    is all of `cosmicai infer` for so many galaxies in one partition, `galaxies_per_second` its rate from the first read
    to the last write. With an `emulator` of AWS Lambda there is a row of the image under it: from the event that starts
    it to the answer, when the redshifts of FIRST galaxies are written. Raises InputError for bad input.
    """
    here = machine()
    if not Path(image).is_file():
        raise InputError(f"{image} is not there; make it with containers/sif.sh")
    with TemporaryDirectory(prefix="cosmicai-bench-") as name:
        folder = Path(name)
        seen = [str(folder), *([] if weights == "demo" else [str(Path(weights).resolve().parent)])]
        options = [*(["--no-privs"] if os.getuid() == 0 else []), *(f"--bind={path}" for path in seen)]
        python = _Place([sys.executable], folder / "python", weights, galaxies)
        boxed = _Place(["apptainer", "exec", *options, image, "python"], folder / "image", weights, galaxies)
        cold = [_forgetting(image, place.first, place.begun()) for place in (python, boxed)]
        turns: list[Callable[[], Any]] = []
        for place in (python, boxed):
            turns += [partial(place.first, place.begun()), place.whole]
        if emulator:
            serve = ["apptainer", "run", *options, "--pwd=/", image, "handlers.infer"]
            answer = partial(_answer, Path(emulator), serve, folder / "log", boxed)
            cold.append(_forgetting(image, answer, folder / "image/lambda"))
            turns.append(partial(answer, folder / "image/cache"))
        measured = interleaved(turns, repeats, tell)
    bare = measured[1]
    rows = [_row("Python", cold[0], measured[0], bare, bare), _row("image", cold[1], measured[2], measured[3], bare)]
    if emulator:
        rows.append(_row("image, Lambda's emulator", cold[2], measured[4], [], []))
    facts = {"image": image, "weights": weights, "galaxies": galaxies, "repeats": repeats}
    return Report("Container", COLUMNS, rows, here, facts, {"weights": weights, "galaxies": f"{galaxies:,}"})


def _row(
    name: str,
    cold: float,
    first: list[float],
    whole: list[tuple[float, float]],
    bare: list[tuple[float, float]],
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, **spread("first_seconds", first), "cold_first_seconds": cold}
    figures = ("command_seconds", "command_ratio"), ("galaxies_per_second", "rate_ratio")
    for column, (value, ratio) in enumerate(figures):
        own, other = ([turn[column] for turn in turns] for turns in (whole, bare))
        row[value], row[ratio] = (median(own), median(own) / median(other)) if whole else (None, None)
    return row


def _forgetting(image: str, measure: Callable[..., float], *arguments: object) -> float:
    """A measurement that finds nothing of the image in the system's cache."""
    with Path(image).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return measure(*arguments)


def _answer(emulator: Path, serve: list[str], log: Path, place: _Place, cache: Path) -> float:
    """Seconds to the answer of a function that is not running yet. Raises InputError if it fails."""
    with emulated(emulator, serve, os.environ | {"COSMICAI_CACHE": str(cache)}, log) as function:
        event, at = {"run": place.begun(), "rank": 0, "world_size": 1}, time.perf_counter()
        answer = function(event)
        seconds = time.perf_counter() - at
    if answer.get("galaxies") != FIRST:
        raise InputError(f"the function failed: {answer.get('errorMessage', answer)}")
    return seconds
