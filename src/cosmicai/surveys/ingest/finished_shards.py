"""Shards that are complete before their survey is: what each was made of, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ... import storage
from ...errors import StorageError
from ..columns import ColumnSpec, join_specs
from ..identity import INT64, combine_sources, convert_objids, no_objids
from ..shard import Galaxies
from ..shard_writing import write_shard
from ..survey import ShardEntry, Survey
from .report import Tally


class Layout(msgspec.Struct, frozen=True):
    """What the shards of one survey have in common: the dtype of the ids, if any, redshifts, and columns."""

    objid: str
    has_redshift: bool
    columns: list[tuple[str, str, str, int | None]]

    @staticmethod
    def of(objid: np.dtype[Any] | None, has_redshift: bool, columns: dict[str, ColumnSpec]) -> Layout:
        """Return the layout of shards with these ids and columns."""
        listed = [(name, spec.dtype.str, spec.unit, spec.null) for name, spec in columns.items()]
        return Layout("" if objid is None else objid.str, has_redshift, listed)

    def dtype(self) -> np.dtype[Any] | None:
        """Return the dtype of the ids, None if there are none."""
        return np.dtype(self.objid) if self.objid else None

    def specs(self) -> dict[str, ColumnSpec]:
        """Return how columns are stored, by their paths."""
        return {name: ColumnSpec(np.dtype(dtype), unit, null) for name, dtype, unit, null in self.columns}

    def fields(self) -> tuple[str, ...]:
        """Return the fields of a shard."""
        return ("image", "magnitude", *["redshift"] * self.has_redshift, "objid")


class Note(msgspec.Struct, frozen=True):
    """What is known of a shard that is complete: what it was made of, and what is to say about its galaxies."""

    made_of: str
    entry: ShardEntry
    layout: Layout
    missing: list[int]
    unusable: int
    incomplete: int
    unknown: int
    unplaced: int
    notices: list[tuple[str, str]]

    def tally(self) -> Tally:
        """Return the counts of the shard's galaxies."""
        missing = np.array(self.missing, np.int64)
        return Tally(list(self.notices), missing, self.unusable, self.incomplete, self.unknown, self.unplaced)


def write_batches(path: Path, batches: Sequence[Galaxies], layout: Layout) -> ShardEntry:
    """Write a shard of these galaxies and return its entry."""
    count = sum(map(len, batches))
    digest = write_shard(path, batches, count, layout.fields(), layout.dtype() or INT64, layout.specs())
    return ShardEntry(path.name, count, path.stat().st_size, storage.sha256(str(path)), digest)


def shard_path(folder: Path, number: int) -> Path:
    """Return the path of a shard, counted from 0."""
    return folder / f"{number + 1:06d}.h5"


def read_note(folder: Path, number: int) -> Note | None:
    """Return the note on a shard, None if there is none that can be read, or if the shard is not as it was written."""
    path = shard_path(folder, number)
    try:
        note = msgspec.json.decode(storage.read_bytes(str(path.with_suffix(".json"))), type=Note)
    except (StorageError, msgspec.DecodeError):
        return None
    is_whole = path.is_file() and path.stat().st_size == note.entry.bytes
    return note if is_whole and storage.sha256(str(path)) == note.entry.sha256 else None


def common_layout(notes: Sequence[Note]) -> Layout:
    """Return the layout of a survey. Raises InputError if ids or columns of its shards are of different kinds."""
    dtypes = {f"{note.entry.name}": dtype for note in notes if (dtype := note.layout.dtype()) is not None}
    columns = join_specs([(note.entry.name, note.layout.specs()) for note in notes])
    return Layout.of(
        combine_sources(dtypes) if dtypes else None, any(note.layout.has_redshift for note in notes), columns
    )


def conform(folder: Path, note: Note, layout: Layout) -> ShardEntry:
    """Return the entry of a shard, which is written again where its ids or columns are narrower than the survey's."""
    if note.layout == layout:
        return note.entry
    path = folder / note.entry.name
    dtype, columns = layout.dtype(), layout.specs()
    survey = Survey(str(folder), (note.entry,))
    [galaxies] = survey.read_batches(note.entry.galaxies, columns)
    if dtype is not None:
        own = galaxies.objid if note.layout.objid else no_objids(len(galaxies), dtype)
        galaxies = replace(galaxies, objid=convert_objids(own, dtype))
    return write_batches(path, [galaxies], layout)
