"""The galaxies of a training: which rows are for training, which for validation, and their order.

The survey is read in chunks and never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..surveys.quality import flag_inputs
from ..surveys.shard import Galaxies
from ..surveys.survey import ShardEntry, Survey
from .recipe import TrainingOptions

CHUNK = 1024  # rows read at once
POOL = 4  # chunks whose rows are shuffled together


@dataclass(frozen=True)
class TrainingChunk:
    """Rows start to stop of a shard; those from validation_start to validation_stop are for validation."""

    shard: ShardEntry
    start: int
    stop: int
    validation_start: int
    validation_stop: int


@dataclass(frozen=True)
class Sample:
    """The chunks of a survey, the numbers of its galaxies, and the statistics of those for training."""

    chunks: list[TrainingChunk]
    trained: int
    validated: int
    left_out: int
    redshift: float  # mean; it and the following are of the training galaxies
    magnitude: NDArray[np.float64]  # (5,) mean
    spread: NDArray[np.float64]  # (5,) standard deviation of the magnitudes
    pixel: NDArray[np.float64]  # (5,) root mean square of the pixels


def split_chunks(survey: Survey, options: TrainingOptions) -> Iterator[TrainingChunk]:
    """Split a survey into chunks, each with its validation rows in one random run: spread out, yet read at once."""
    rng = np.random.default_rng([options.seed, 0])
    for shard in survey.shards:
        for start in range(0, shard.galaxies, CHUNK):
            stop = min(start + CHUNK, shard.galaxies)
            count = max(1, round((stop - start) * options.validation_fraction))
            first = start + int(rng.integers(stop - start - count + 1))
            yield TrainingChunk(shard, start, stop, first, first + count)


def _is_usable(galaxies: Galaxies) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(galaxies.redshift) & (flag_inputs(galaxies.image, galaxies.magnitude) == 0))


def _select(galaxies: Galaxies, rows: NDArray[Any]) -> Galaxies:
    return Galaxies(galaxies.image[rows], galaxies.magnitude[rows], galaxies.redshift[rows], galaxies.objid[rows])


def _read_chunk(survey: Survey, chunk: TrainingChunk) -> tuple[Galaxies, Galaxies]:
    """Read the usable galaxies of a chunk, and return those for training and those for validation."""
    with survey.open(chunk.shard) as shard:
        galaxies = shard.read(chunk.start, chunk.stop)
    usable, row = _is_usable(galaxies), np.arange(chunk.start, chunk.stop)
    in_validation = (row >= chunk.validation_start) & (row < chunk.validation_stop)
    return _select(galaxies, usable & ~in_validation), _select(galaxies, usable & in_validation)


def scan_survey(survey: Survey, options: TrainingOptions) -> Sample:
    """Read the survey once and return its sample. Raises InputError if too few galaxies are usable."""
    chunks = list(split_chunks(survey, options))
    trained = validated = 0
    redshift, sums = 0.0, np.zeros((3, 5))
    for chunk in chunks:
        training, validation = _read_chunk(survey, chunk)
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


def read_training_batches(survey: Survey, sample: Sample, size: int, rng: np.random.Generator) -> Iterator[Galaxies]:
    """Read the training galaxies in random order: chunks are shuffled, then the rows of POOL chunks at a time.

    All batches have `size` galaxies, unless there are fewer in total.
    """
    order, remainder = rng.permutation(len(sample.chunks)), None
    for first in range(0, len(order), POOL):
        parts = [_read_chunk(survey, sample.chunks[number])[0] for number in order[first : first + POOL]]
        pool = Galaxies.concatenate(parts if remainder is None else [remainder, *parts])
        rows = rng.permutation(len(pool))
        whole = len(rows) - len(rows) % size
        for start in range(0, whole, size):
            yield _select(pool, rows[start : start + size])
        remainder = _select(pool, rows[whole:])
    if remainder is not None and sample.trained < size:
        yield remainder


def read_validation_batches(survey: Survey, sample: Sample) -> Iterator[Galaxies]:
    """Read the validation galaxies of one chunk at a time."""
    for chunk in sample.chunks:
        galaxies = _read_chunk(survey, replace(chunk, start=chunk.validation_start, stop=chunk.validation_stop))[1]
        if len(galaxies):
            yield galaxies
