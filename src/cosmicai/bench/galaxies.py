"""Galaxies to measure with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from ..runs.precision import sample
from ..surveys import synthetic
from ..surveys.shard import FIELDS, IMAGE_SHAPE, Galaxies
from ..surveys.survey import Survey, open_survey, write_survey

SEED = 7
CHUNK = 1024  # galaxies of noise at once


def galaxies_in_memory(survey: str | None, count: int) -> Galaxies:
    """So many sound galaxies, spread over the survey and repeated where it has fewer; without one synthetic ones.

    Raises InputError if the survey has none.
    """
    if survey is None:
        return Galaxies.concatenate(synthetic.batches(count, SEED))
    found = sample(open_survey(survey), count)
    if not len(found):
        raise InputError(f"{survey} holds no sound galaxy; nothing to measure")
    return Galaxies(*(np.resize(column, (count, *column.shape[1:])) for column in _columns(found)))


def read_all(survey: Survey) -> Galaxies:
    """All galaxies of a survey, copied into memory."""
    return Galaxies(*map(np.array, _columns(Galaxies.concatenate(survey.batches(CHUNK)))))


def _columns(galaxies: Galaxies) -> Iterator[np.ndarray]:
    return (getattr(galaxies, name) for name in FIELDS)


def write_galaxies(out: str, galaxies: Galaxies) -> Survey:
    """A survey of one shard. Raises InputError if `out` is not empty."""
    return write_survey(out, [galaxies], len(galaxies), len(galaxies), FIELDS)


def noise(count: int) -> Iterator[Galaxies]:
    """Noise in the shape of galaxies, made as fast as a disk takes it."""
    rng = np.random.default_rng(SEED)
    for start in range(0, count, CHUNK):
        rows = min(CHUNK, count - start)
        yield Galaxies(
            rng.standard_normal((rows, *IMAGE_SHAPE), np.float32),
            rng.uniform(15, 22, (rows, 5)),
            rng.uniform(0.01, 0.6, rows),
            np.arange(start, start + rows),
        )
