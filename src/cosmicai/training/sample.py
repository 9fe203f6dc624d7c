"""The galaxies of a training: which rows train, which validate, and in what order they come.

The survey is read in chunks and never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..surveys.quality import input_flags
from ..surveys.shard import Galaxies
from ..surveys.survey import ShardEntry, Survey
from .options import TrainingOptions

CHUNK = 1024  # rows read at once
POOL = 4  # chunks whose rows are shuffled together


@dataclass(frozen=True)
class Chunk:
    """Rows start to stop of a shard; those from held to held_stop validate, the others train."""

    shard: ShardEntry
    start: int
    stop: int
    held: int
    held_stop: int


@dataclass(frozen=True)
class Sample:
    """The chunks of a survey, how many of its galaxies take part, and their statistics."""

    chunks: list[Chunk]
    trained: int
    validated: int
    left_out: int
    redshift: float  # mean, like the following of the galaxies that train
    magnitude: NDArray[np.float64]  # (5,) mean
    spread: NDArray[np.float64]  # (5,) standard deviation of the magnitudes
    pixel: NDArray[np.float64]  # (5,) root mean square of the pixels


def cut(survey: Survey, options: TrainingOptions) -> Iterator[Chunk]:
    """Every chunk holds one run of rows back, at a random place: as spread out as single rows, and one read."""
    rng = np.random.default_rng([options.seed, 0])
    for shard in survey.shards:
        for start in range(0, shard.galaxies, CHUNK):
            stop = min(start + CHUNK, shard.galaxies)
            count = max(1, round((stop - start) * options.validation_fraction))
            held = start + int(rng.integers(stop - start - count + 1))
            yield Chunk(shard, start, stop, held, held + count)


def _usable(galaxies: Galaxies) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(galaxies.redshift) & (input_flags(galaxies.image, galaxies.magnitude) == 0))


def _take(galaxies: Galaxies, rows: NDArray[Any]) -> Galaxies:
    return Galaxies(galaxies.image[rows], galaxies.magnitude[rows], galaxies.redshift[rows], galaxies.objid[rows])


def _read(survey: Survey, chunk: Chunk) -> tuple[Galaxies, Galaxies]:
    """The usable galaxies of a chunk: those that train, those that validate."""
    with survey.open(chunk.shard) as shard:
        galaxies = shard.read(chunk.start, chunk.stop)
    usable, row = _usable(galaxies), np.arange(chunk.start, chunk.stop)
    held = (row >= chunk.held) & (row < chunk.held_stop)
    return _take(galaxies, usable & ~held), _take(galaxies, usable & held)


def examine(survey: Survey, options: TrainingOptions) -> Sample:
    """Reads the survey once. Raises InputError if no galaxy is left to train or to validate."""
    chunks = list(cut(survey, options))
    trained = validated = 0
    redshift, sums = 0.0, np.zeros((3, 5))
    for chunk in chunks:
        training, validation = _read(survey, chunk)
        trained, validated = trained + len(training), validated + len(validation)
        redshift += float(training.redshift.sum())
        sums[0] += training.magnitude.sum(axis=0)
        sums[1] += (training.magnitude**2).sum(axis=0)
        sums[2] += np.square(training.image, dtype=np.float64).mean(axis=(2, 3)).sum(axis=0)
    left_out = survey.galaxies - trained - validated
    if not trained or validated < 2:
        raise InputError(
            f"{survey.uri}: {trained} galaxies are left to train and {validated} to validate ({left_out} have no "
            "redshift or bad pixels or magnitudes); expected some of both, use a larger survey with redshifts"
        )
    mean, square, pixel = sums / trained
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    return Sample(chunks, trained, validated, left_out, redshift / trained, mean, spread, np.sqrt(pixel))


def batches(survey: Survey, sample: Sample, size: int, rng: np.random.Generator) -> Iterator[Galaxies]:
    """The training galaxies in random order: chunks are shuffled, then the rows of POOL chunks at a time.

    Whole batches only, unless there is not even one.
    """
    order, rest = rng.permutation(len(sample.chunks)), None
    for first in range(0, len(order), POOL):
        parts = [_read(survey, sample.chunks[number])[0] for number in order[first : first + POOL]]
        pool = Galaxies.concatenate(parts if rest is None else [rest, *parts])
        rows = rng.permutation(len(pool))
        whole = len(rows) - len(rows) % size
        for start in range(0, whole, size):
            yield _take(pool, rows[start : start + size])
        rest = _take(pool, rows[whole:])
    if rest is not None and sample.trained < size:
        yield rest


def validation_galaxies(survey: Survey, sample: Sample) -> Iterator[Galaxies]:
    """The galaxies that validate, a chunk's at a time."""
    for chunk in sample.chunks:
        galaxies = _read(survey, replace(chunk, start=chunk.held, stop=chunk.held_stop))[1]
        if len(galaxies):
            yield galaxies
