"""The columns of a catalogue: their types, units, UCDs and descriptions, in one place for every format.

In Parquet each of them is a field whose metadata hold what Arrow's types do not: see `Column`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from ...calibration.records import INTERVAL_LEVELS, LEVELS
from ...surveys.columns import FOLDER, ColumnSpec
from ...surveys.identity import is_text

KEPT = "_kept"  # follows the name of a kept column whose own name is taken


@dataclass(frozen=True)
class Column:
    """A column of the catalogue. `ucd` is its Unified Content Descriptor (IVOA UCD1+ 1.6).

    `null` is what stands for a missing integer in formats that cannot leave one out; `width` is the number of bytes of
    the longest text. Missing numbers are NaN or null, missing texts are empty.
    """

    name: str
    type: pa.DataType
    description: str = ""
    unit: str = ""
    ucd: str = ""
    null: int | None = None
    width: int = 0

    @property
    def is_text(self) -> bool:
        """Whether the column holds text."""
        return bool(pa.types.is_string(self.type))

    def to_field(self) -> pa.Field:
        """Return the column as a field of an Arrow schema."""
        notes = {"description": self.description, "unit": self.unit, "ucd": self.ucd}
        notes |= {"null": "" if self.null is None else str(self.null), "width": str(self.width or "")}
        return pa.field(self.name, self.type, metadata={name: text for name, text in notes.items() if text})

    @staticmethod
    def from_field(field: pa.Field) -> Column:
        """Return the column of a field; one of a catalogue of an earlier version has no metadata."""
        notes = {name.decode(): text.decode() for name, text in (field.metadata or {}).items()}
        known = STANDARD.get(field.name) or _DISTRIBUTION.get(field.name) or Column(field.name, field.type)
        if not notes:
            return replace(known, type=field.type)
        null, width = notes.get("null"), int(notes.get("width", 0))
        texts = {name: notes.get(name, "") for name in ("description", "unit", "ucd")}
        return Column(field.name, field.type, **texts, null=None if null is None else int(null), width=width)


STANDARD = {
    column.name: column
    for column in (
        Column("objid", pa.int64(), "Identifier in the source; -1 or empty: none", "", "meta.id;meta.main"),
        Column("ra", pa.float64(), "Right ascension (ICRS)", "deg", "pos.eq.ra;meta.main"),
        Column("dec", pa.float64(), "Declination (ICRS)", "deg", "pos.eq.dec;meta.main"),
        Column("redshift_phot", pa.float32(), "Photometric redshift; NaN: see flag", "", "src.redshift.phot;meta.main"),
        Column(
            "redshift_spread", pa.float32(), "Standard deviation of redshifts of 8 views", "",
            "stat.stdev;src.redshift.phot",
        ),
        Column("redshift_spec", pa.float64(), "Spectroscopic redshift; NaN: unknown", "", "src.redshift"),
        Column("flag", pa.uint8(), "Sum of bits (see flags in the metadata); 0: none", "", "meta.code.qual"),
        Column("shard", pa.string(), "File of the survey that holds the galaxy", "", "meta.file"),
        Column("row", pa.int64(), "Row of the galaxy in this file, from 0", "", "meta.record"),
    )
}  # fmt: skip
# Bounds of the intervals that hold the redshift with 68% and 95% probability, by the level of their quantiles; then
# all quantiles, which are named by thousandths. Catalogues of calibrated weights have them.
INTERVALS = {
    f"redshift_phot_{side}{percent}": level
    for percent, bounds in INTERVAL_LEVELS.items()
    for side, level in zip("lu", bounds, strict=True)
}
QUANTILES = {f"redshift_phot_q{round(1000 * level):03d}": level for level in LEVELS}


def _interval_column(name: str, level: float) -> Column:
    side, ucd = ("Lower", "stat.min") if level < 0.5 else ("Upper", "stat.max")
    text = f"{side} bound of the {name[-2:]}% interval of the redshift; NaN: see flag"
    return Column(name, pa.float32(), text, "", f"{ucd};src.redshift.phot")


def _quantile_column(name: str, level: float) -> Column:
    return Column(name, pa.float32(), f"Quantile {level:g} of the redshift; NaN: see flag", "", "src.redshift.phot")


_DISTRIBUTION = {name: _interval_column(name, level) for name, level in INTERVALS.items()} | {
    name: _quantile_column(name, level) for name, level in QUANTILES.items()
}


@dataclass(frozen=True)
class Columns:
    """The columns of a catalogue in their order.

    `kept` are those of them that the user kept, by the paths of their datasets in a shard.
    """

    all: tuple[Column, ...]
    objid_dtype: np.dtype[Any]
    specs: Mapping[str, ColumnSpec]
    kept: Mapping[str, Column]

    def schema(self, metadata: Mapping[str, str]) -> pa.Schema:
        """Return the Arrow schema with these metadata of the file."""
        return pa.schema([column.to_field() for column in self.all], dict(metadata))


def choose_columns(
    objid_dtype: np.dtype[Any],
    specs: Mapping[str, ColumnSpec],
    shards: Iterable[str],
    extra: Collection[str] = (),
) -> Columns:
    """Return the columns of the catalogue of a survey.

    `objid_dtype` is int64 or `S<n>`, `specs` are positions and kept columns by the paths of their datasets, `shards`
    the names of the files, `extra` those columns of INTERVALS, QUANTILES and the spread of views that it has.
    """
    objid, shard = STANDARD["objid"], STANDARD["shard"]
    if is_text(objid_dtype):
        objid = replace(objid, type=pa.string(), width=objid_dtype.itemsize)
    shard = replace(shard, width=max((len(name.encode()) for name in shards), default=0))
    taken, kept = {name.lower() for name in (*STANDARD, *_DISTRIBUTION)}, {}
    for path, spec in specs.items():
        if path.startswith(FOLDER):
            column = _kept_column(path.removeprefix(FOLDER), spec, taken)
            taken.add(column.name.lower())  # FITS tells no names apart by their case
            kept[path] = column
    position = [STANDARD[path] for path in specs if path not in kept]
    bounds, quantiles = ([_DISTRIBUTION[name] for name in kind if name in extra] for kind in (INTERVALS, QUANTILES))
    spread = [STANDARD[name] for name in ("redshift_spread",) if name in extra]
    redshifts = [STANDARD["redshift_phot"], *bounds, *spread, STANDARD["redshift_spec"], STANDARD["flag"], *quantiles]
    ordered = (objid, *position, *redshifts, *kept.values(), shard, STANDARD["row"])
    return Columns(ordered, objid_dtype, specs, kept)


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name of a column, with KEPT behind it as often as it is among `taken`, names in lower case."""
    while name.lower() in taken:
        name += KEPT
    return name


def _kept_column(name: str, spec: ColumnSpec, taken: set[str]) -> Column:
    own = free_name(name, taken)
    description = "Kept from the source" if own == name else f"Kept from the source, where it is named {name}"
    if spec.null is not None:
        description += "; null: missing"
    if is_text(spec.dtype):
        return Column(own, pa.string(), description, spec.unit, width=spec.dtype.itemsize)
    return Column(own, pa.from_numpy_dtype(spec.dtype), description, spec.unit, null=spec.null)
