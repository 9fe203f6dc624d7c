"""Read the catalogue of a run, local or on S3."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import InputError
from ...storage import exists
from ...storage.ranges import as_file, open_ranges
from ...surveys.identity import ObjIds
from ..store import RunFolder
from .facts import objid_column, read_groups
from .source import CatalogueSource, column_values, missing_values

if TYPE_CHECKING:
    from astropy.table import Table


def read_catalogue(run: RunFolder, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the catalogue, or only these columns, a row group at a time.

    Raises InputError if it does not exist yet or cannot be read.
    """
    with open_catalogue(run) as file:
        yield from read_groups(file, columns)


@contextmanager
def open_catalogue(run: RunFolder) -> Iterator[pq.ParquetFile]:
    """Open the catalogue. Raises InputError if it does not exist yet, cannot be read, or if `run` is no run folder."""
    if not exists(run.catalogue_path):
        run.plan()  # raises for what is not a run folder
        raise InputError(f"{run.uri} has no catalogue yet; make it with `cosmicai summarize {run.uri}`")
    with open_catalogue_file(run.catalogue_path, f"write it again with `cosmicai summarize {run.uri}`") as file:
        yield file


@contextmanager
def open_catalogue_file(uri: str, remedy: str) -> Iterator[pq.ParquetFile]:
    """Open a catalogue by its address; `remedy` says what to do if it cannot be read, for the InputError."""
    with open_ranges(uri) as reader:
        try:
            file = pq.ParquetFile(as_file(reader))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{uri} is damaged ({str(error).partition('. ')[0]}); {remedy}") from None
        with file:
            yield file


def read_catalogue_objids(run: RunFolder) -> Iterator[ObjIds]:
    """Yield the ids of the catalogue, a row group at a time. Raises InputError if it does not exist yet."""
    return map(objid_column, read_catalogue(run, ["objid"]))


def count_rows(run: RunFolder) -> int:
    """Return the number of rows of the catalogue. Raises InputError if it does not exist yet or cannot be read."""
    with open_catalogue(run) as file:
        return int(file.metadata.num_rows)


def read_table(file: pq.ParquetFile) -> Table:
    """Return an open catalogue as a table of astropy, with units, descriptions, and missing integers masked.

    All of it is in memory.
    """
    from astropy.table import Column as PlainColumn
    from astropy.table import MaskedColumn, Table

    source = CatalogueSource(file)
    rows, columns = file.read(), source.columns
    table = Table(meta=source.provenance)
    for column in columns:
        values = column_values(rows, column)
        described = {"unit": column.unit or None, "description": column.description or None}
        if column.null is None:
            table[column.name] = PlainColumn(np.char.decode(values) if column.is_text else values, **described)
        else:
            missing = missing_values(rows, column)
            table[column.name] = MaskedColumn(values, mask=missing, fill_value=column.null, **described)
    return table
