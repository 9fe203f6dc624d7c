"""The catalogue as one HDF5 table, `catalogue`, as astropy writes it: `Table.read(path, path="catalogue")`.

A column of integers with missing ones has a second one, `NAME.mask`, by which astropy masks them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .columns import Column
from .metadata import describe_table, to_yaml
from .source import CatalogueSource, missing_values, structure_rows

TABLE = "catalogue"
CHUNK_BYTES = 2**19
_CLASS, _STORED = "astropy.table.column.MaskedColumn", "!astropy.table.SerializedColumn"


def write_hdf5(source: CatalogueSource, path: Path) -> int:
    """Write the catalogue to a file and return its number of rows."""
    import h5py

    masked = [column for column in source.columns if column.null is not None]
    columns = [*source.columns, *(Column(f"{column.name}.mask", pa.bool_()) for column in masked)]
    dtypes = [_dtype(column) for column in columns]
    row_type = np.dtype(list(zip([column.name for column in columns], dtypes, strict=True)))
    rows = max(1, min(source.rows, CHUNK_BYTES // row_type.itemsize))
    start = 0
    with h5py.File(path, "w", locking=False) as file:  # no other process knows of it
        dataset = file.create_dataset(TABLE, (source.rows,), row_type, chunks=(rows,) if source.rows else None)
        header = _describe(source, columns, masked).encode().splitlines()
        file.create_dataset(f"{TABLE}.__table_column_meta__", data=np.array(header))
        for table in source.tables():
            found = np.zeros(table.num_rows, row_type)
            plain = structure_rows(table, source.columns, dtypes[: len(source.columns)])
            for name in plain.dtype.names or ():
                found[name] = plain[name]
            for column in masked:
                found[f"{column.name}.mask"] = missing_values(table, column)
            dataset[start : start + table.num_rows] = found
            start += table.num_rows
    return source.rows


def _dtype(column: Column) -> Any:
    return f"S{max(1, column.width)}" if column.is_text else np.dtype(column.type.to_pandas_dtype())


def _describe(source: CatalogueSource, columns: list[Column], masked: list[Column]) -> str:
    """Return the header of the table as astropy reads it, with YAML's tags for masked columns, which JSON lacks."""
    header = describe_table(columns, source.provenance)
    serialized = ", ".join(
        f"{to_yaml(column.name)}: {{__class__: {_CLASS}, data: {_STORED} {{name: {to_yaml(column.name)}}}, "
        f"mask: {_STORED} {{name: {to_yaml(f'{column.name}.mask')}}}}}"
        for column in masked
    )
    meta = (
        to_yaml(header["meta"])[:-1] + f", __serialized_columns__: {{{serialized}}}}}"
        if masked
        else to_yaml(header["meta"])
    )
    return "\n".join(["datatype:", *(f"- {to_yaml(column)}" for column in header["datatype"]), f"meta: {meta}"])
