"""Galaxies for benchmarks: of a survey, synthetic, or noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from ..runs.precision import sample_galaxies
from ..surveys import synthetic
from ..surveys.shard import FIELDS, IMAGE_SHAPE, Galaxies
from ..surveys.survey import Survey, open_survey, write_survey

SEED = 7
CHUNK = 1024  # galaxies generated or read at a time


def load_galaxies(survey: str | None, count: int) -> Galaxies:
    """Return `count` usable galaxies, spread over the survey and repeated if it has fewer, or synthetic ones.

    Raises InputError if the survey has no usable galaxy.
    """
    if survey is None:
        return Galaxies.concatenate(synthetic.generate_batches(count, SEED))
    found = sample_galaxies(open_survey(survey), count)
    if not len(found):
        raise InputError(f"{survey} holds no usable galaxy; choose another survey")
    return Galaxies(*(np.resize(column, (count, *column.shape[1:])) for column in _columns(found)))


def read_galaxies(survey: Survey) -> Galaxies:
    """Return all galaxies of a survey, copied into memory."""
    return Galaxies(*map(np.array, _columns(Galaxies.concatenate(survey.read_batches(CHUNK)))))


def _columns(galaxies: Galaxies) -> Iterator[np.ndarray]:
    return (getattr(galaxies, name) for name in FIELDS)


def write_galaxies(out: str, galaxies: Galaxies) -> Survey:
    """Write a survey of one shard. Raises InputError if `out` is not empty."""
    return write_survey(out, [galaxies], len(galaxies), len(galaxies), FIELDS)


def generate_noise(count: int) -> Iterator[Galaxies]:
    """Yield chunks of noise in the shape of galaxies, generated as fast as a disk can write them."""
    rng = np.random.default_rng(SEED)
    for start in range(0, count, CHUNK):
        rows = min(CHUNK, count - start)
        yield Galaxies(
            rng.standard_normal((rows, *IMAGE_SHAPE), np.float32),
            rng.uniform(15, 22, (rows, 5)),
            rng.uniform(0.01, 0.6, rows),
            np.arange(start, start + rows),
        )
