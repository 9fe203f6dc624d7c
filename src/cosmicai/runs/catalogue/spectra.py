"""The galaxies of a run that have spectroscopic redshifts, as a calibration needs them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...calibration.fit import SpectroscopicSample
from ...errors import InputError
from ...storage.parallel import map_in_order
from ...storage.s3 import reader_threads
from ...surveys.quality import Flag, known_redshifts
from ...surveys.survey import Survey
from ..part import Part
from ..plan import Plan
from .writing import Piece, PredictionStream, split_shards

LARGEST = 1_000_000  # galaxies of a sample; of larger runs it takes every second, third, ... one


def read_spectroscopic_sample(plan: Plan, parts: Iterable[Part | None]) -> SpectroscopicSample:
    """Return the galaxies that have both redshifts, of the parts of a plan in its order.

    Galaxies with a flag are left out, but for those outside of the training domain: a survey of one's own may be unlike
    that of the training as a whole, and intervals can be calibrated on it all the same. None stands for a missing part.
    Galaxies of shards that cannot be read are left out.
    """
    survey, predictions = Survey(plan.survey, plan.shards), PredictionStream(plan, parts)
    pieces, step = split_shards(plan.shards), -(-plan.galaxies // LARGEST)
    found = []
    read = partial(_read_piece, survey, step)
    for piece, known in zip(pieces, map_in_order(read, pieces, reader_threads(plan.survey)), strict=True):
        part = predictions.take(piece.stop - piece.start)
        if known is None:
            continue
        magnitude, spec = known
        redshift, flag = part.redshift_phot[::step], part.flag[::step]
        rows = np.isfinite(redshift) & (flag & ~np.uint8(Flag.OUTSIDE_DOMAIN) == 0) & np.isfinite(spec)
        found.append(SpectroscopicSample(magnitude[rows], redshift[rows].astype(np.float64), spec[rows]))
    if not found:
        return SpectroscopicSample(np.empty((0, 5)), np.empty(0), np.empty(0))
    return SpectroscopicSample(
        np.concatenate([one.magnitude for one in found]),
        np.concatenate([one.redshift_phot for one in found]),
        np.concatenate([one.redshift_spec for one in found]),
    )


def _read_piece(survey: Survey, step: int, piece: Piece) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return magnitudes and spectroscopic redshifts of every `step`-th row, None if they cannot be read."""
    try:
        with survey.open(survey.shards[piece.shard]) as shard:
            magnitude, redshift = (
                np.array(shard.read_field(name, piece.start, piece.stop)[::step], np.float64)
                for name in ("magnitude", "redshift")
            )
            return magnitude, known_redshifts(redshift)
    except InputError:
        return None
