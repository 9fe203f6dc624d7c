"""The galaxies of a training: which rows are for training, for validation and for the test, and their order.

The survey is read in chunks and never held whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..calibration.domain import GALAXIES
from ..errors import InputError
from ..surveys.quality import flag_inputs
from ..surveys.shard import Galaxies
from ..surveys.survey import ShardEntry, Survey
from .recipe import TrainingOptions

CHUNK = 1024  # rows read at once
POOL = 4  # chunks whose rows are shuffled together


@dataclass(frozen=True)
class TrainingChunk:
    """Rows start to stop of a shard, and which of them are for validation and for the test; the others train."""

    shard: ShardEntry
    start: int
    stop: int
    validation: range
    test: range


@dataclass(frozen=True)
class Sample:
    """The chunks of a survey, the numbers of its galaxies, and the statistics of those for training."""

    chunks: list[TrainingChunk]
    trained: int
    validated: int
    tested: int
    left_out: int
    redshift: float  # mean; it and the following are of the training galaxies
    magnitude: NDArray[np.float64]  # (5,) mean
    spread: NDArray[np.float64]  # (5,) standard deviation of the magnitudes
    pixel: NDArray[np.float64]  # (5,) root mean square of the pixels


def split_chunks(survey: Survey, options: TrainingOptions) -> Iterator[TrainingChunk]:
    """Split a survey into chunks, each with its validation and its test rows in one random run each.

    So they are spread over the survey, and are yet read at once.
    """
    rng = np.random.default_rng([options.seed, 0])
    for shard in survey.shards:
        for start in range(0, shard.galaxies, CHUNK):
            stop = min(start + CHUNK, shard.galaxies)
            rows = stop - start
            validated = max(1, round(rows * options.validation_fraction))
            tested = min(round(rows * options.test_fraction), rows - validated)
            # Rows in front of the first run, and of those outside of both in front of the second.
            first, second = sorted((start + rng.integers(rows - validated - tested + 1, size=2)).tolist())
            if rng.integers(2):
                validation, test = (
                    range(first, first + validated),
                    range(second + validated, second + validated + tested),
                )
            else:
                validation, test = range(second + tested, second + tested + validated), range(first, first + tested)
            yield TrainingChunk(shard, start, stop, validation, test)


def _is_usable(galaxies: Galaxies) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(galaxies.redshift) & (flag_inputs(galaxies.image, galaxies.magnitude) == 0))


def _select(galaxies: Galaxies, rows: NDArray[Any]) -> Galaxies:
    return Galaxies(galaxies.image[rows], galaxies.magnitude[rows], galaxies.redshift[rows], galaxies.objid[rows])


def _read_rows(survey: Survey, chunk: TrainingChunk, rows: range) -> Galaxies:
    """Read these rows of the chunk's shard, the usable ones."""
    with survey.open(chunk.shard) as shard:
        galaxies = shard.read(rows.start, rows.stop)
    return _select(galaxies, _is_usable(galaxies))


def _read_training_rows(survey: Survey, chunk: TrainingChunk) -> Galaxies:
    with survey.open(chunk.shard) as shard:
        galaxies = shard.read(chunk.start, chunk.stop)
    selected = _is_usable(galaxies)
    for held_out in (chunk.validation, chunk.test):
        selected[held_out.start - chunk.start : held_out.stop - chunk.start] = False
    return _select(galaxies, selected)


def scan_survey(survey: Survey, options: TrainingOptions) -> Sample:
    """Read the survey once and return its sample. Raises InputError if too few galaxies are usable."""
    chunks = list(split_chunks(survey, options))
    trained = validated = tested = 0
    redshift, sums = 0.0, np.zeros((3, 5))
    for chunk in chunks:
        training = _read_training_rows(survey, chunk)
        trained += len(training)
        validated += len(_read_rows(survey, chunk, chunk.validation))
        tested += len(_read_rows(survey, chunk, chunk.test))
        redshift += float(training.redshift.sum())
        sums[0] += training.magnitude.sum(axis=0)
        sums[1] += (training.magnitude**2).sum(axis=0)
        sums[2] += np.square(training.image, dtype=np.float64).mean(axis=(2, 3)).sum(axis=0)
    left_out = survey.galaxies - trained - validated - tested
    if trained < 2 or validated < 2:
        raise InputError(
            f"{survey.uri}: {trained} galaxies are left to train and {validated} to validate ({left_out} have no "
            "redshift or bad pixels or magnitudes); expected two of each at least, use a larger survey with redshifts"
        )
    mean, square, pixel = sums / trained
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    return Sample(chunks, trained, validated, tested, left_out, redshift / trained, mean, spread, np.sqrt(pixel))


def read_training_batches(survey: Survey, sample: Sample, size: int, rng: np.random.Generator) -> Iterator[Galaxies]:
    """Read the training galaxies in random order: chunks are shuffled, then the rows of POOL chunks at a time.

    All batches have `size` galaxies, unless there are fewer in total.
    """
    order, remainder = rng.permutation(len(sample.chunks)), None
    for first in range(0, len(order), POOL):
        parts = [_read_training_rows(survey, sample.chunks[number]) for number in order[first : first + POOL]]
        pool = Galaxies.concatenate(parts if remainder is None else [remainder, *parts])
        rows = rng.permutation(len(pool))
        whole = len(rows) - len(rows) % size
        for start in range(0, whole, size):
            yield _select(pool, rows[start : start + size])
        remainder = _select(pool, rows[whole:])
    if remainder is not None and sample.trained < size:
        yield remainder


def read_domain_batches(survey: Survey, sample: Sample) -> Iterator[Galaxies]:
    """Read about as many training galaxies as a domain is measured on, evenly spread, those of one chunk at a time."""
    step = -(-sample.trained // GALAXIES)
    for chunk in sample.chunks[::step]:
        galaxies = _read_training_rows(survey, chunk)
        if len(galaxies):
            yield galaxies


def read_held_out_batches(
    survey: Survey, chunks: Iterable[TrainingChunk], part: Literal["validation", "test"]
) -> Iterator[Galaxies]:
    """Read the galaxies of these chunks for validation or for the test, those of one chunk at a time."""
    for chunk in chunks:
        galaxies = _read_rows(survey, chunk, getattr(chunk, part))
        if len(galaxies):
            yield galaxies
