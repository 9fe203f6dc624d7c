"""The quantiles of all redshifts of a catalogue, which may hold a few of them only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...calibration.intervals import predict_quantiles
from ...calibration.records import Calibration
from ...errors import InputError
from ...records import decode_json
from ...storage import read_if_exists
from ...storage.parallel import map_in_order
from ...storage.s3 import reader_threads
from ...surveys.survey import Survey
from ..plan import Plan
from ..store import RunFolder
from .columns import QUANTILES
from .facts import number_column
from .source import CatalogueSource
from .writing import Piece, no_magnitudes, split_shards

Quantiles = NDArray[np.float32]


def find_distributions(run: RunFolder, source: CatalogueSource) -> Callable[[], Iterator[Quantiles]] | None:
    """Return what yields the quantiles (rows, 25) of every row group, None if the run has no calibration.

    They are those of the catalogue, or computed from its redshifts, the calibration and the magnitudes of the survey.
    Galaxies whose shard cannot be read, or whose bin is not calibrated, have NaN.
    """
    if set(QUANTILES) <= {column.name for column in source.columns}:
        return partial(_read_columns, source)
    if not run.has_plan():
        return None
    plan = run.plan()
    calibration = read_calibration(run, plan)
    return None if calibration is None else partial(_compute, source, plan, calibration)


def read_calibration(run: RunFolder, plan: Plan) -> Calibration | None:
    """Return the calibration of the catalogue of a run, None if it has none. Raises InputError if it is damaged."""
    if not plan.calibrate_on_spectra:
        return plan.calibration
    data, remedy = read_if_exists(path := run.calibration_path), f"write it again with `cosmicai summarize {run.uri}`"
    return None if data is None else decode_json(data, Calibration, where=path, remedy=remedy)


def _read_columns(source: CatalogueSource) -> Iterator[Quantiles]:
    for table in source.tables(list(QUANTILES)):
        yield np.column_stack([number_column(table, name) for name in QUANTILES])


def _compute(source: CatalogueSource, plan: Plan, calibration: Calibration) -> Iterator[Quantiles]:
    read = partial(_read_magnitudes, Survey(plan.survey, plan.shards))
    pieces = map_in_order(read, split_shards(plan.shards), reader_threads(plan.survey))
    rest = no_magnitudes(0)
    for table in source.tables(["redshift_phot"]):
        while len(rest) < table.num_rows:
            rest = np.concatenate([rest, next(pieces)])
        magnitude, rest = rest[: table.num_rows], rest[table.num_rows :]
        yield predict_quantiles(calibration, magnitude, number_column(table, "redshift_phot").astype(np.float64))


def _read_magnitudes(survey: Survey, piece: Piece) -> NDArray[np.float64]:
    try:
        with survey.open(survey.shards[piece.shard]) as shard:
            return np.array(shard.read_field("magnitude", piece.start, piece.stop), np.float64)
    except InputError:
        return no_magnitudes(piece.stop - piece.start)
