"""Write and read the catalogue: one row per completed galaxy, in the order of the survey.

The column `objid` is int64, -1 where the source gives no id. If the ids of any shard are text, the whole column is
text: numbers are written as their digits, and a galaxy without an id has a null (an empty text in FITS and HDF5).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..console import printable_line
from ..errors import InputError, describe_os_errors
from ..storage import atomic_write, exists
from ..storage.outputs import require_replaceable
from ..storage.parallel import map_in_order
from ..storage.ranges import as_file, open_ranges
from ..storage.s3 import reader_threads
from ..storage.spreadsheet import quote_formulas
from ..surveys.identity import ObjIds, convert_objids, has_objid, is_text, widest
from .part import Part
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


TEXT_SCHEMA = SCHEMA.set(0, pa.field("objid", pa.string()))


class _TextIdsError(Exception):
    """A part has text ids, and those of the parts before it were written as numbers."""


def write_catalogue(
    run: RunFolder, plan: Plan, items: list[WorkItem]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.uint8]]:
    """Write catalogue.parquet from the parts of these items, with no more than a row group of it in memory.

    Return redshift_phot (N,) float32, redshift_spec (N,) float64 and flag (N,) uint8 of all rows, for the metrics.
    Raises InputError if a part is damaged.
    """
    try:
        return _write(run, plan, items, as_text=False)
    except _TextIdsError:  # rarely: the shards of a survey have ids of one kind, which the first part tells
        return _write(run, plan, items, as_text=True)


def _write(
    run: RunFolder, plan: Plan, items: list[WorkItem], as_text: bool
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.uint8]]:
    """Do as `write_catalogue`, with ids as text if `as_text` or if those of the first part are.

    Raises _TextIdsError if those of a later part are, but not of the first.
    """
    columns_for_metrics, path = [], run.catalogue_path
    parts = map_in_order(partial(run.read_part, plan), items, reader_threads(run.uri))
    first = next(parts, None)
    as_text = as_text or (first is not None and is_text(first.objid.dtype))
    schema = TEXT_SCHEMA if as_text else SCHEMA
    with (
        atomic_write(path) as temporary,
        describe_os_errors(path, "write"),
        pq.ParquetWriter(temporary, schema.with_metadata(_describe_provenance(plan)), compression="zstd") as writer,
    ):
        pending: list[pa.Table] = []
        rows = 0
        for item, part in zip(items, chain([first] if first else [], parts), strict=True):
            columns_for_metrics.append((part.redshift_phot, part.redshift_spec, part.flag))
            pending.append(_make_table(plan, item, part, schema))
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


def _make_table(plan: Plan, item: WorkItem, part: Part, schema: pa.Schema) -> pa.Table:
    """Return the rows of a part. Raises _TextIdsError if its ids are text and the schema has numbers."""
    if schema is TEXT_SCHEMA:
        objid = _text_array(part.objid)
    elif is_text(part.objid.dtype):
        raise _TextIdsError
    else:
        objid = _number_array(part.objid)
    numbers: list[NDArray[Any]] = [part.redshift_phot, part.redshift_spec, part.flag]
    columns = [
        objid,
        *map(_number_array, numbers),
        _repeated_text(plan.shards[item.shard].name, item.galaxies),
        _number_array(np.arange(item.start, item.stop)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


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


def _text_array(objid: ObjIds) -> pa.Array:
    """Return ids as text, null where there is none."""
    text = convert_objids(objid, widest([objid.dtype, np.dtype("S1")]))
    known = has_objid(text)
    ends = np.concatenate([[0], np.cumsum(np.char.str_len(text))]).astype(np.int32)
    valid = None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))
    data = pa.py_buffer(b"".join(text.tolist()))
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(ends), data, valid)


def _repeated_text(text: str, count: int) -> pa.Array:
    data = text.encode()
    ends = np.arange(count + 1, dtype=np.int32) * np.int32(len(data))
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(data * count))


def read_catalogue(run: RunFolder, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the catalogue, or only these columns, a row group at a time. Raises InputError if it does not exist yet."""
    with _open_catalogue(run) as file:
        yield from _read_groups(file, columns)


@contextmanager
def _open_catalogue(run: RunFolder) -> Iterator[pq.ParquetFile]:
    if not exists(run.catalogue_path):
        run.plan()  # raises for what is not a run folder
        raise InputError(f"{run.uri} has no catalogue yet; make it with `cosmicai summarize {run.uri}`")
    with open_ranges(run.catalogue_path) as reader:
        with _describe_damage(run.uri, run.catalogue_path):
            file = pq.ParquetFile(as_file(reader))
        with file:
            yield file


@contextmanager
def _describe_damage(run: str, path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        remedy = f"write it again with `cosmicai summarize {run}`"
        raise InputError(f"{path} is damaged ({str(error).partition('.')[0]}); {remedy}") from None


def _read_groups(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.Table]:
    return (file.read_row_group(group, columns) for group in range(file.num_row_groups))


def read_catalogue_objids(run: RunFolder) -> Iterator[ObjIds]:
    """Yield the ids of the catalogue, a row group at a time. Raises InputError if it does not exist yet."""
    for table in read_catalogue(run, ["objid"]):
        column = table["objid"].combine_chunks()
        if pa.types.is_string(column.type):
            yield np.array([b"" if text is None else text.encode() for text in column.to_pylist()], np.bytes_)
        else:
            yield np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column)]


def convert_catalogue(run: RunFolder, kind: str, out: str) -> int:
    """Write the catalogue as "csv", "hdf5" or "fits", whole or not at all, and return its number of rows.

    CSV and HDF5 are written a row group at a time; FITS is written in one piece. Raises InputError if the catalogue
    does not exist yet, if it has text that FITS does not hold, or if `out` is not a file that may be replaced.
    """
    require_replaceable(out)
    writer = {"csv": _to_csv, "hdf5": _to_hdf5, "fits": _to_fits}[kind]
    with _open_catalogue(run) as file, atomic_write(out) as temporary, describe_os_errors(out, "write"):
        return writer(file.schema_arrow, _read_groups(file), temporary)


def _without_nulls(table: pa.Table) -> pa.Table:
    """Return the table with empty text in place of null."""
    if not table["objid"].null_count:
        return table
    return table.set_column(0, "objid", table["objid"].fill_null(""))


def _to_csv(schema: pa.Schema, tables: Iterator[pa.Table], path: Path) -> int:
    from pyarrow import csv

    rows = 0
    with csv.CSVWriter(path, quote_formulas(schema.empty_table()).schema) as writer:
        for table in tables:
            writer.write_table(quote_formulas(table))
            rows += table.num_rows
    return rows


def _to_hdf5(schema: pa.Schema, tables: Iterator[pa.Table], path: Path) -> int:
    import h5py

    rows = 0
    with h5py.File(path, "w", locking=False) as file:  # no other process knows of it
        for table in map(_without_nulls, tables):
            for name, kind in zip(schema.names, schema.types, strict=True):
                values = table[name].to_numpy()
                file.attrs.update(_read_provenance(table))
                if name not in file:
                    dtype = h5py.string_dtype() if pa.types.is_string(kind) else values.dtype
                    file.create_dataset(name, (0,), dtype, maxshape=(None,), chunks=(ROW_GROUP,))
                file[name].resize(rows + table.num_rows, axis=0)
                file[name][rows:] = values
            rows += table.num_rows
    return rows


def _to_fits(schema: pa.Schema, tables: Iterator[pa.Table], path: Path) -> int:
    from astropy.table import Table

    table = pa.concat_tables([schema.empty_table(), *map(_without_nulls, tables)])
    columns = {name: table[name].to_numpy() for name in schema.names}
    for name, kind in zip(schema.names, schema.types, strict=True):
        if pa.types.is_string(kind):
            columns[name] = columns[name].astype(str)
            if any(not value.isascii() for value in columns[name]):
                raise InputError(f"{name} has text beyond ASCII, which FITS does not hold; write csv or hdf5")
    # In ASCII, as FITS demands, and under names of at most 8 letters.
    found = {
        name: printable_line(text).encode("ascii", "backslashreplace").decode()
        for name, text in _read_provenance(table).items()
    }
    meta = {keyword: found[name] for name, keyword in FITS_KEYWORDS.items() if name in found}
    Table(columns, meta=meta).write(path, format="fits")
    return int(table.num_rows)
