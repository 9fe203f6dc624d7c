"""What a summary says of a catalogue, found by reading the finished file in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...surveys.identity import ObjIds, count_duplicates
from ...surveys.quality import Flag
from ..metrics import Metrics, RunningMetrics

_PIECE = 2**22


@dataclass(frozen=True)
class CatalogueFacts:
    """Numbers of galaxies and of those with each flag, metrics, ids that several galaxies have, and a digest.

    `metrics` are None without spectroscopic redshifts. The digest is the SHA-256 of the file without its footer, that
    is, of all values and of nothing else: the footer says with what and when the file was made.
    """

    galaxies: int
    flagged: dict[str, int]
    metrics: Metrics | None
    duplicate_objid: int
    digest: str


def read_facts(path: Path) -> CatalogueFacts:
    """Read the facts of a catalogue in a local file."""
    counts, metrics = np.zeros(256, np.int64), RunningMetrics()
    with pq.ParquetFile(path) as file:
        for table in read_groups(file, ["redshift_phot", "redshift_spec", "flag"]):
            phot, spec, flag = (number_column(table, name) for name in ("redshift_phot", "redshift_spec", "flag"))
            counts += np.bincount(flag, minlength=256)
            metrics.add(phot, spec)
        found = metrics.result()
        duplicates = count_duplicates(lambda: map(objid_column, read_groups(file, ["objid"])))
    flagged = {bit.name: int(counts[np.arange(256) & bit != 0].sum()) for bit in Flag if bit.name}
    return CatalogueFacts(int(counts.sum()), flagged, found, duplicates.ids, _digest_rows(path))


def read_groups(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of an open catalogue, all columns or these, a row group at a time."""
    return (file.read_row_group(group, columns) for group in range(file.num_row_groups))


def objid_column(table: pa.Table) -> ObjIds:
    """Return the ids of a row group (see `surveys.identity`); null, as in earlier versions, is no id."""
    column = table["objid"].combine_chunks()
    if pa.types.is_string(column.type):
        return np.array([b"" if text is None else text.encode() for text in column.to_pylist()], np.bytes_)
    return number_column(table, "objid")


def number_column(table: pa.Table, name: str) -> NDArray[Any]:
    """Return the numbers (N,) of a column of a row group, none of which is missing.

    From its bytes: pyarrow's own conversion would import pandas, if it is installed, to compare types.
    """
    column = table[name].combine_chunks()
    dtype = np.dtype(column.type.to_pandas_dtype())
    return np.frombuffer(column.buffers()[1], dtype)[column.offset : column.offset + len(column)]


def _digest_rows(path: Path) -> str:
    digest, left = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        file.seek(left - 8)
        footer = int.from_bytes(file.read(4), "little")  # its length; "PAR1" follows
        file.seek(0)
        left -= footer + 8
        while left:
            piece = file.read(min(_PIECE, left))
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()
