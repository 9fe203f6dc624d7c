"""Write and read the catalogue: one row per completed galaxy, in the order of the survey."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import InputError, describe_os_errors
from ..storage import atomic_write, exists
from ..storage.parallel import map_in_order
from ..storage.ranges import as_file, open_ranges
from ..storage.s3 import reader_threads
from .plan import Plan, WorkItem
from .store import RunFolder

FITS_KEYWORDS = {"cosmicai.weights": "WEIGHTS", "cosmicai.weights_sha256": "WTSHA256"}  # by names of metadata
ROW_GROUP = 2**17  # fixed, so that the file does not depend on how the work was cut
SCHEMA = pa.schema(
    [
        ("objid", pa.int64()),
        ("redshift_phot", pa.float32()),
        ("redshift_spec", pa.float64()),
        ("flag", pa.uint8()),
        ("shard", pa.string()),
        ("row", pa.int64()),
    ]
)


def write_catalogue(
    run: RunFolder, plan: Plan, items: list[WorkItem]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.uint8]]:
    """Write catalogue.parquet from the parts of these items, with no more than a row group of it in memory.

    Return redshift_phot (N,) float32, redshift_spec (N,) float64 and flag (N,) uint8 of all rows, for the metrics.
    Raises InputError if a part is damaged.
    """
    columns_for_metrics, path = [], run.catalogue_path
    with (
        atomic_write(path) as temporary,
        describe_os_errors(path, "write"),
        pq.ParquetWriter(temporary, SCHEMA.with_metadata(_describe_provenance(plan)), compression="zstd") as writer,
    ):
        pending: list[pa.Table] = []
        rows = 0
        parts = map_in_order(partial(run.read_part, plan), items, reader_threads(run.uri))
        for item, part in zip(items, parts, strict=True):
            columns_for_metrics.append((part.redshift_phot, part.redshift_spec, part.flag))
            name = plan.shards[item.shard].name
            numbers: list[NDArray[Any]] = [part.objid, part.redshift_phot, part.redshift_spec, part.flag]
            columns = [
                *map(_number_array, numbers),
                _repeated_text(name, item.galaxies),
                _number_array(np.arange(item.start, item.stop)),
            ]
            pending.append(pa.Table.from_arrays(columns, schema=SCHEMA))
            rows += item.galaxies
            while rows >= ROW_GROUP:
                table = pa.concat_tables(pending)
                writer.write_table(table.slice(0, ROW_GROUP).combine_chunks())
                pending, rows = [table.slice(ROW_GROUP)], rows - ROW_GROUP
        if rows:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
    if not columns_for_metrics:
        return np.empty(0, np.float32), np.empty(0, np.float64), np.empty(0, np.uint8)
    phot, spec, flag = (np.concatenate(column) for column in zip(*columns_for_metrics, strict=True))
    return phot, spec, flag


def _describe_provenance(plan: Plan) -> dict[str, str]:
    """Return the metadata of the file, which has no addresses: they differ between machines."""
    weights = plan.weights_file
    return {"cosmicai.weights": weights.label, "cosmicai.weights_sha256": weights.sha256}


def _read_provenance(table: pa.Table) -> dict[str, str]:
    """Return the metadata of a catalogue; one of an earlier version has none."""
    metadata = table.schema.metadata or {}
    return {name: metadata[name.encode()].decode() for name in FITS_KEYWORDS if name.encode() in metadata}


# Arrays are made from bytes: pyarrow's own conversions would import pandas, if it is installed, to compare types.
def _number_array(values: NDArray[Any]) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _repeated_text(text: str, count: int) -> pa.Array:
    data = text.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(data))
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(data * count))


def read_catalogue(run: RunFolder) -> Iterator[pa.Table]:
    """Yield the catalogue a row group at a time. Raises InputError if it does not exist yet."""
    if not exists(run.catalogue_path):
        raise InputError(f"{run.uri} has no catalogue yet; make it with `cosmicai summarize {run.uri}`")
    with open_ranges(run.catalogue_path) as reader, pq.ParquetFile(as_file(reader)) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def convert_catalogue(run: RunFolder, kind: str, out: str) -> int:
    """Write the catalogue as "csv", "hdf5" or "fits", whole or not at all, and return its number of rows.

    CSV and HDF5 are written a row group at a time; FITS is written in one piece.
    """
    writer = {"csv": _to_csv, "hdf5": _to_hdf5, "fits": _to_fits}[kind]
    with atomic_write(out) as temporary, describe_os_errors(out, "write"):
        return writer(read_catalogue(run), temporary)


def _to_csv(tables: Iterator[pa.Table], path: Path) -> int:
    from pyarrow import csv

    rows = 0
    with csv.CSVWriter(path, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _to_hdf5(tables: Iterator[pa.Table], path: Path) -> int:
    import h5py

    rows = 0
    with h5py.File(path, "w") as file:
        for table in tables:
            for name in SCHEMA.names:
                values = table[name].to_numpy()
                file.attrs.update(_read_provenance(table))
                if name not in file:
                    dtype = h5py.string_dtype() if name == "shard" else values.dtype
                    file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(ROW_GROUP,))
                file[name].resize(rows + table.num_rows, axis=0)
                file[name][rows:] = values
            rows += table.num_rows
    return rows


def _to_fits(tables: Iterator[pa.Table], path: Path) -> int:
    from astropy.table import Table

    table = pa.concat_tables(tables)
    columns = {name: table[name].to_numpy() for name in SCHEMA.names}
    columns["shard"] = columns["shard"].astype(str)
    # In ASCII, as FITS demands, and under names of at most 8 letters.
    found = {name: text.encode("ascii", "backslashreplace").decode() for name, text in _read_provenance(table).items()}
    meta = {keyword: found[name] for name, keyword in FITS_KEYWORDS.items() if name in found}
    Table(columns, meta=meta).write(path, format="fits")
    return int(table.num_rows)
