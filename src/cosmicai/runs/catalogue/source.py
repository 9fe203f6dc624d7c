"""A finished catalogue as the writers of other formats need it, and its rows as structured arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import compute

from ...errors import InputError
from ..store import RunFolder
from .columns import Column
from .facts import read_groups
from .metadata import read_provenance


class CatalogueSource:
    """An open catalogue: its columns, its provenance and its rows; and the run that it is of, if that is there."""

    def __init__(self, file: pq.ParquetFile, run: RunFolder | None = None) -> None:
        self._file, self.run = file, run
        self.rows: int = file.metadata.num_rows

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns; those of an earlier version get their longest text by reading all of it."""
        found = tuple(map(Column.from_field, self.schema))
        return tuple(_measure(column, self.tables([column.name])) for column in found)

    @property
    def schema(self) -> pa.Schema:
        """The schema of the file."""
        return self._file.schema_arrow

    @cached_property
    def provenance(self) -> dict[str, str]:
        """Where the redshifts come from."""
        return read_provenance(self.schema)

    def tables(self, names: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows, all columns or these, a row group at a time."""
        return read_groups(self._file, names)


def _measure(column: Column, tables: Iterator[pa.Table]) -> Column:
    if not column.is_text or column.width:
        return column
    longest = (compute.max(compute.binary_length(table[column.name])).as_py() or 0 for table in tables)
    return replace(column, width=max(longest, default=0))


def structure_rows(table: pa.Table, columns: Sequence[Column], dtypes: Sequence[Any]) -> NDArray[Any]:
    """Return rows as a structured array with these dtypes; in place of a missing integer is the column's `null`."""
    rows = np.zeros(table.num_rows, list(zip([column.name for column in columns], dtypes, strict=True)))
    for column in columns:
        rows[column.name] = column_values(table, column)
    return rows


def column_values(table: pa.Table, column: Column) -> NDArray[Any]:
    """Return the values (N,) of a column: text as UTF-8 `S<n>`, and `null` in place of a missing integer."""
    found = table[column.name].combine_chunks()
    if column.is_text:
        texts = [text.encode() for text in found.fill_null("").to_pylist()]
        return np.array(texts, f"S{max(1, column.width)}")
    filled = found if column.null is None else found.fill_null(column.null)
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def missing_values(table: pa.Table, column: Column) -> NDArray[np.bool_]:
    """Return which values (N,) of a column of integers are missing."""
    return np.asarray(table[column.name].combine_chunks().is_null().to_numpy(zero_copy_only=False))


def require_ascii(values: NDArray[np.bytes_], column: Column, kind: str) -> None:
    """Raise InputError if a text of a column is not ASCII, which this kind of file demands."""
    if not b"".join(values.tolist()).isascii():
        raise InputError(
            f"{column.name} has text beyond ASCII, which {kind} does not hold; write parquet, ecsv, csv or hdf5"
        )
