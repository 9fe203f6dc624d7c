"""The catalogue as a copy of itself, with row groups as they are."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from .source import CatalogueSource


def write_parquet(source: CatalogueSource, path: Path) -> int:
    """Write the catalogue to a file and return its number of rows."""
    with pq.ParquetWriter(path, source.schema, compression="zstd") as writer:
        for table in source.tables():
            writer.write_table(table)
    return source.rows
