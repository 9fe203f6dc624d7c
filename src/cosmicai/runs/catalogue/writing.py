"""Write catalogue.parquet: one row per galaxy of the plan, in the order of the survey.

Parts hold the predictions; who a galaxy is, where it lies and what the user kept of it is read from the shards, a piece
at a time. The rows of items that are not done are there, too, with the flag NOT_DONE, so that row numbers always match
those of the survey.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...calibration.coverage import CoverageReport, RunningCoverage
from ...calibration.intervals import predict_quantiles
from ...calibration.records import Calibration
from ...errors import InputError
from ...storage.parallel import map_in_order
from ...storage.s3 import reader_threads
from ...surveys.bands import BANDS
from ...surveys.columns import FOLDER, ColumnSpec, join_specs
from ...surveys.identity import INT64, ObjIds, no_objids, widest
from ...surveys.quality import Flag, known_redshifts
from ...surveys.shard import Shard
from ...surveys.survey import ShardEntry, Survey, read_column_as
from ..part import SPREAD, Part, concatenate_parts
from ..plan import Plan
from .arrays import column_array, number_array, objid_array, repeated_text
from .columns import INTERVALS, QUANTILES, Columns, choose_columns
from .metadata import parquet_metadata

ROW_GROUP = 2**17  # fixed, so that the rows do not depend on how the work was cut

ReadParts = Callable[[], Iterable[Part | None]]


class _OtherColumnsError(Exception):
    """A shard has ids or columns that those before it did not have.

    With `are_missing` it cannot be read, and some columns have no value that stands for a missing one.
    """

    def __init__(self, *, are_missing: bool = False) -> None:
        self.are_missing = are_missing


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a shard."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Known:
    """What a survey knows of the galaxies of a piece: columns of the catalogue, spectroscopic redshifts, magnitudes.

    The magnitudes (N, 5) are NaN where they are not known, or not needed.
    """

    arrays: Mapping[str, pa.Array]
    redshift_spec: NDArray[np.float64]
    magnitude: NDArray[np.float64]


@dataclass(frozen=True)
class WrittenCatalogue:
    """What only the writing of a catalogue shows: reasons for shards that cannot be read, and coverage of intervals."""

    unreadable: dict[str, str]
    coverage: CoverageReport | None


def split_shards(shards: Sequence[ShardEntry]) -> list[Piece]:
    """Return pieces of at most ROW_GROUP rows that hold all rows of all shards in order."""
    return [
        Piece(index, start, min(start + ROW_GROUP, entry.galaxies))
        for index, entry in enumerate(shards)
        for start in range(0, entry.galaxies, ROW_GROUP)
    ]


def write_catalogue(
    path: Path, plan: Plan, read_parts: ReadParts, provenance: Mapping[str, str], calibration: Calibration | None = None
) -> WrittenCatalogue:
    """Write the catalogue of a plan to a local file, with no more than a few row groups of it in memory.

    `read_parts` yields the predictions of all items of the plan, in its order, None for those that are missing. It may
    be called again. With a `calibration` the catalogue has intervals. A shard may be unreadable, or have changed since
    the plan was made: its galaxies keep their redshifts, and have no id, no interval and no values of other columns.
    Raises InputError if shards hold the same column in different units or kinds, StorageError if the file cannot be
    written.
    """
    survey = Survey(plan.survey, plan.shards)
    distribution = () if calibration is None else (*INTERVALS, *(QUANTILES if plan.quantiles else ()))
    extra = (*distribution, *((SPREAD,) if plan.views > 1 else ()))
    columns, are_missing = _first_columns(survey, extra), False
    while True:  # once, unless the survey is a folder of files from several sources, or a shard cannot be read
        try:
            return _write(path, plan, columns, read_parts(), provenance, calibration)
        except _OtherColumnsError as error:
            are_missing |= error.are_missing
            columns = _all_columns(survey, are_missing, extra)


def _first_columns(survey: Survey, extra: Collection[str]) -> Columns:
    """Return the columns of the catalogue by the header of the first shard that can be read."""
    shards = [entry.name for entry in survey.shards]
    for entry in survey.shards:
        with suppress(InputError):
            dtype, specs = _describe_shard(survey, entry)
            return choose_columns(dtype or INT64, specs, shards, extra)
    return choose_columns(INT64, {}, shards, extra)


def _all_columns(survey: Survey, are_missing: bool, extra: Collection[str]) -> Columns:
    """Return the columns of the catalogue by the headers of all shards that can be read.

    If some `are_missing`, each has a value that stands for a missing one.
    """

    def describe(entry: ShardEntry) -> tuple[str, np.dtype[Any] | None, dict[str, ColumnSpec]] | None:
        try:
            return entry.name, *_describe_shard(survey, entry)
        except InputError:
            return None

    found = [one for one in map_in_order(describe, survey.shards, reader_threads(survey.uri)) if one]
    objid_dtype = widest(dtype for _, dtype, _ in found if dtype is not None)
    without: list[tuple[str, dict[str, ColumnSpec]]] = [("", {})] if are_missing else []
    specs = join_specs([(name, own) for name, _, own in found] + without)
    return choose_columns(objid_dtype, specs, [entry.name for entry in survey.shards], extra)


def _describe_shard(survey: Survey, entry: ShardEntry) -> tuple[np.dtype[Any] | None, dict[str, ColumnSpec]]:
    with survey.open(entry) as shard:
        return shard.objid_dtype, shard.columns


def _write(
    path: Path, plan: Plan, columns: Columns, parts: Iterable[Part | None], provenance: Mapping[str, str],
    calibration: Calibration | None,
) -> WrittenCatalogue:  # fmt: skip
    """Raise _OtherColumnsError if a shard has other columns than these."""
    pieces = split_shards(plan.shards)
    schema = columns.schema(parquet_metadata(columns.all, provenance))
    predictions = PredictionStream(plan, parts)
    read = partial(_read_piece, Survey(plan.survey, plan.shards), columns, calibration is not None)
    intervals = None if calibration is None else _Intervals(calibration, columns)
    pending: list[pa.Table] = []
    unreadable: dict[str, str] = {}
    rows = 0
    # Numbers that hardly repeat would only be slowed down by a dictionary.
    repeated = [column.name for column in columns.all if column.is_text or column.type.bit_width <= 16]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated) as writer:
        for piece, known in zip(pieces, map_in_order(read, pieces, reader_threads(plan.survey)), strict=True):
            count, entry = piece.stop - piece.start, plan.shards[piece.shard]
            if isinstance(known, InputError):
                if any(spec.dtype.kind in "iub" and spec.null is None for spec in columns.specs.values()):
                    raise _OtherColumnsError(are_missing=True)
                unreadable[entry.name] = str(known)
                known = _unknown(columns, count)
            predicted = predictions.take(count)
            redshift, flag, arrays = predicted.redshift_phot, predicted.flag, dict(known.arrays)
            if intervals is not None:
                flag, quantiles = intervals.find(known, redshift, flag)
                arrays |= {name: number_array(values) for name, values in quantiles.items()}
            if predicted.redshift_spread is not None:
                arrays[SPREAD] = number_array(predicted.redshift_spread)
            arrays |= {"redshift_phot": number_array(redshift), "flag": number_array(flag)}
            arrays |= {
                "shard": repeated_text(entry.name, count),
                "row": number_array(np.arange(piece.start, piece.stop)),
            }
            pending.append(pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema))
            rows += count
            while rows >= ROW_GROUP:
                table = pa.concat_tables(pending)
                writer.write_table(table.slice(0, ROW_GROUP).combine_chunks())
                pending, rows = [table.slice(ROW_GROUP)], rows - ROW_GROUP
        if rows:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
    return WrittenCatalogue(unreadable, intervals.coverage.result() if intervals else None)


class PredictionStream:
    """The predictions of parts one after the other, to be taken in pieces of any length."""

    def __init__(self, plan: Plan, parts: Iterable[Part | None]) -> None:
        self._parts, self._views = zip(plan.items, parts, strict=True), plan.views
        self._rest: list[Part] = []
        self._rows = 0

    def take(self, count: int) -> Part:
        """Return the next `count` predictions."""
        while self._rows < count:
            item, part = next(self._parts)
            self._rest.append(part or _missing_part(item.galaxies, self._views))
            self._rows += item.galaxies
        found = concatenate_parts(self._rest)
        self._rest, self._rows = [found.select(slice(count, None))], self._rows - count
        return found.select(slice(count))


def _missing_part(count: int, views: int) -> Part:
    unknown = np.full(count, np.nan, np.float32)
    return Part(unknown, np.full(count, Flag.NOT_DONE, np.uint8), unknown if views > 1 else None)


class _Intervals:
    """The intervals of a catalogue, and their coverage."""

    def __init__(self, calibration: Calibration, columns: Columns) -> None:
        self._calibration, self.coverage = calibration, RunningCoverage(calibration)
        names = {column.name for column in columns.all}
        self._levels = {name: level for name, level in (INTERVALS | QUANTILES).items() if name in names}

    def find(
        self, known: _Known, redshift: NDArray[np.float32], flag: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
        """Return the complete flags (N,) of a piece, and its bounds and quantiles (N,) by the names of columns."""
        levels = list(dict.fromkeys(self._levels.values()))
        quantiles = predict_quantiles(self._calibration, known.magnitude, redshift.astype(np.float64), levels)
        has_none = np.isfinite(redshift) & np.isnan(quantiles[:, 0])
        flag = flag | np.where(has_none, np.uint8(Flag.NOT_CALIBRATED), np.uint8(0))
        self.coverage.add(known.magnitude, redshift, known.redshift_spec, flag)
        return flag, {name: quantiles[:, levels.index(level)] for name, level in self._levels.items()}


def _read_piece(survey: Survey, columns: Columns, with_magnitude: bool, piece: Piece) -> _Known | InputError:
    """Return what the survey knows of these rows, or why they cannot be read; raises as `_write`."""
    start, stop = piece.start, piece.stop
    try:
        with survey.open(survey.shards[piece.shard]) as shard:
            _require_same_columns(shard, columns)
            objid = np.array(shard.read_field("objid", start, stop))
            redshift = known_redshifts(shard.read_field("redshift", start, stop))
            others = {path: read_column_as(shard, path, spec, start, stop) for path, spec in columns.specs.items()}
            magnitude = shard.read_field("magnitude", start, stop) if with_magnitude else no_magnitudes(stop - start)
            return _Known(_to_arrays(columns, objid, redshift, others), redshift, np.array(magnitude, np.float64))
    except InputError as error:
        return error


def _unknown(columns: Columns, count: int) -> _Known:
    """Return what stands in the rows of galaxies of which nothing is known."""
    others, redshift = {path: spec.missing(count) for path, spec in columns.specs.items()}, np.full(count, np.nan)
    arrays = _to_arrays(columns, no_objids(count, columns.objid_dtype), redshift, others)
    return _Known(arrays, redshift, no_magnitudes(count))


def no_magnitudes(count: int) -> NDArray[np.float64]:
    """Return what stands for the magnitudes (count, 5) of galaxies that are not known."""
    return np.full((count, len(BANDS)), np.nan)


def _to_arrays(
    columns: Columns, objid: ObjIds, redshift: NDArray[np.float64], others: Mapping[str, NDArray[Any]]
) -> dict[str, pa.Array]:
    found = {"objid": objid_array(objid, columns.objid_dtype), "redshift_spec": number_array(redshift)}
    for path, values in others.items():
        name = columns.kept[path].name if path.startswith(FOLDER) else path
        found[name] = column_array(values, columns.specs[path])
    return found


def _require_same_columns(shard: Shard, columns: Columns) -> None:
    """Raise _OtherColumnsError if a shard has ids or columns that do not fit into these."""
    own = shard.objid_dtype
    fits = own is None or widest([own, columns.objid_dtype]) == columns.objid_dtype
    if fits and shard.columns == dict(columns.specs):
        return
    try:
        joined = join_specs([("", columns.specs), (shard.uri, shard.columns)])
    except InputError:
        raise _OtherColumnsError from None
    if not fits or joined != dict(columns.specs):
        raise _OtherColumnsError
