"""The catalogue as a VOTable with its rows in binary (BINARY2), in which missing integers are marked as such."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .columns import Column
from .metadata import DATATYPES, DIGITS, build_votable
from .source import CatalogueSource, column_values, missing_values, require_ascii

_DTYPES = {
    "boolean": "S1", "unsignedByte": "u1", "short": ">i2", "int": ">i4", "long": ">i8", "float": ">f4", "double": ">f8",
}  # fmt: skip
_MARK = "ROWS"  # where they go in the XML without rows
_LINE = 57  # bytes in a line of base64


def write_votable(source: CatalogueSource, path: Path) -> int:
    """Write the catalogue to a file and return its number of rows. Raises InputError for text beyond ASCII."""
    root = build_votable(source.columns, source.provenance)
    data = ElementTree.SubElement(root[-1][-1], "DATA")
    stream = ElementTree.SubElement(ElementTree.SubElement(data, "BINARY2"), "STREAM", encoding="base64")
    stream.text = _MARK
    before, after = ElementTree.tostring(root, "unicode").split(f">{_MARK}<")
    rest = b""
    with path.open("wb") as file:
        file.write(f'<?xml version="1.0" encoding="UTF-8"?>\n{before}>\n'.encode())
        for table in source.tables():
            rows = rest + _pack_rows(table, source.columns).tobytes()
            whole = len(rows) // _LINE * _LINE
            file.write(base64.encodebytes(rows[:whole]))
            rest = rows[whole:]
        file.write(base64.encodebytes(rest) + f"<{after}\n".encode())
    return source.rows


def _pack_rows(table: pa.Table, columns: Sequence[Column]) -> NDArray[Any]:
    """Return rows as a structured array: one bit per column that says whether it is missing, then the values."""
    dtypes: list[Any] = [("missing", "u1", (-(-len(columns) // 8),))]
    dtypes += [(f"column {number}", _dtype(column)) for number, column in enumerate(columns)]
    rows = np.zeros(table.num_rows, dtypes)
    missing = np.zeros((table.num_rows, len(columns)), np.bool_)
    for number, column in enumerate(columns):
        values = column_values(table, column)
        if column.is_text:
            require_ascii(values, column, "a VOTable")
        if column.null is not None:
            missing[:, number] = missing_values(table, column)
        rows[f"column {number}"] = np.where(values, b"T", b"F") if values.dtype == np.bool_ else values
    rows["missing"] = np.packbits(missing, axis=1)
    return rows


def _dtype(column: Column) -> str:
    datatype = DATATYPES.get(str(column.type))
    if datatype:
        return _DTYPES[datatype]
    return f"S{max(1, column.width) if column.is_text else DIGITS}"
