"""The catalogue as CSV, and as ECSV, which has units, descriptions and provenance in its header."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import compute, csv

from ...storage.spreadsheet import quote_formulas
from .metadata import describe_table, to_yaml
from .source import CatalogueSource


def write_csv(source: CatalogueSource, path: Path) -> int:
    """Write the catalogue to a file and return its number of rows; text never becomes a formula in a spreadsheet."""
    with csv.CSVWriter(path, quote_formulas(source.schema.empty_table()).schema) as writer:
        for table in source.tables():
            writer.write_table(quote_formulas(table))
    return source.rows


def write_ecsv(source: CatalogueSource, path: Path) -> int:
    """Write the catalogue to a file (ECSV 1.0) and return its number of rows."""
    header = describe_table(source.columns, source.provenance)
    columns = [f"- {to_yaml(column)}" for column in header["datatype"]]
    lines = ["%ECSV 1.0", "---", "delimiter: ','", "datatype:", *columns, f"meta: {to_yaml(header['meta'])}"]
    with path.open("wb") as file:
        file.write("".join(f"# {line}\n" for line in lines).encode())
        with csv.CSVWriter(file, _python_booleans(source.schema.empty_table()).schema) as writer:
            for table in source.tables():
                writer.write_table(_python_booleans(table))
    return source.rows


def _python_booleans(table: pa.Table) -> pa.Table:
    """Return the table with booleans as "True" and "False", as ECSV writes them."""
    for index, field in enumerate(table.schema):
        if pa.types.is_boolean(field.type):
            text = compute.if_else(table.column(index), "True", "False")
            table = table.set_column(index, pa.field(field.name, pa.string()), text)
    return table
