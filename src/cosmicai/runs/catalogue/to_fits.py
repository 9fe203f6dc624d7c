"""The catalogue as a FITS binary table, with UCDs (TUCDn), descriptions (TCOMMn), provenance and checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ...console import printable_line
from ...surveys.ingest.fits_checksum import encode_checksum, sum_words
from ...surveys.quality import FLAG_MEANINGS
from .columns import Column
from .metadata import DIGITS
from .source import CatalogueSource, column_values, missing_values, require_ascii

EXTENSION = "CATALOGUE"
KEYWORDS = {  # by names of provenance
    "weights": "WEIGHTS", "weights_sha256": "WTSHA256", "plan": "PLAN", "survey": "SURVEY",
    "engine": "ENGINE", "precision": "PRECIS", "views": "VIEWS", "git_commit": "COMMIT", "image_digest": "IMAGE",
    "date": "DATE", "synthetic": "SYNTHET",
}  # fmt: skip
BLOCK = 2880  # bytes
# Arrow's type: FITS format and dtype in the file, the next larger one where FITS has none.
_FORMATS = {
    "bool": ("L", "S1"), "uint8": ("B", "u1"), "int8": ("I", ">i2"), "int16": ("I", ">i2"), "uint16": ("J", ">i4"),
    "int32": ("J", ">i4"), "uint32": ("K", ">i8"), "int64": ("K", ">i8"), "uint64": ("K", ">i8"),
    "float": ("E", ">f4"), "double": ("D", ">f8"),
}  # fmt: skip
_UINT64_ZERO = 2**63  # FITS stores unsigned 64-bit integers less this


def write_fits(source: CatalogueSource, path: Path) -> int:
    """Write the catalogue to a file and return its number of rows. Raises InputError for text beyond ASCII."""
    from astropy.io import fits

    dtypes = [_dtype(column) for column in source.columns]
    row_type = np.dtype([(str(number), dtype) for number, dtype in enumerate(dtypes)])
    header = _build_header(source)
    primary = fits.PrimaryHDU().header.tostring().encode()
    with path.open("w+b") as file:
        file.write(primary + _to_bytes(header))
        begin = file.tell()
        for table in source.tables():
            rows = np.zeros(table.num_rows, row_type)
            for number, column in enumerate(source.columns):
                rows[str(number)] = _stored(table, column)
            file.write(rows.tobytes())
        span = file.tell() - begin
        file.write(b"\0" * (-span % BLOCK))
        file.flush()
        _write_checksums(file, header, len(primary), begin)
    return source.rows


def _build_header(source: CatalogueSource) -> Any:
    from astropy.io import fits

    described = [
        fits.Column(
            column.name, _format(column), column.unit or None, null=None if _text_width(column) else column.null,
            bzero=_UINT64_ZERO if _is_offset(column) else None,
        )
        for column in source.columns
    ]  # fmt: skip
    header = fits.BinTableHDU.from_columns(described, nrows=0, name=EXTENSION).header
    header["NAXIS2"] = source.rows
    for number, column in enumerate(source.columns, start=1):
        for keyword, text in (("TUCD", column.ucd), ("TCOMM", column.description)):
            if text:
                header[f"{keyword}{number}"] = _ascii(text)
    if any(column.ucd.startswith("pos.eq") for column in source.columns):
        header["RADESYS"] = "ICRS"
    for name, keyword in KEYWORDS.items():
        if name in source.provenance:
            header[keyword] = _ascii(source.provenance[name])
    for bit, meaning in FLAG_MEANINGS.items():
        header[f"FLAG{bit:d}"] = meaning
    header["CHECKSUM"], header["DATASUM"] = "0" * 16, "0"
    return header


def _ascii(text: str) -> str:
    return printable_line(text).encode("ascii", "backslashreplace").decode()


def _to_bytes(header: Any) -> bytes:
    return bytes(header.tostring().encode())


def _is_offset(column: Column) -> bool:
    """Return whether a column is stored less _UINT64_ZERO."""
    return str(column.type) == "uint64" and column.null is None


def _text_width(column: Column) -> int:
    """Return the bytes of a column of text, else 0.

    Unsigned 64-bit integers with missing values are written as their digits: of such integers astropy does not
    find what TNULL says.
    """
    if column.is_text:
        return max(1, column.width)
    return DIGITS if str(column.type) == "uint64" and column.null is not None else 0


def _format(column: Column) -> str:
    return f"{width}A" if (width := _text_width(column)) else _FORMATS[str(column.type)][0]


def _dtype(column: Column) -> str:
    return f"S{width}" if (width := _text_width(column)) else _FORMATS[str(column.type)][1]


def _stored(table: pa.Table, column: Column) -> Any:
    """Return the values of a column as they stand in the file."""
    values = column_values(table, column)
    if column.is_text:
        require_ascii(values, column, "FITS")
    elif _text_width(column):
        return np.where(missing_values(table, column), b"", values.astype(f"S{DIGITS}"))
    elif values.dtype == np.bool_:
        return np.where(values, b"T", b"F")
    elif _is_offset(column):
        return (values ^ np.uint64(_UINT64_ZERO)).view(np.int64)
    return values


def _write_checksums(file: BinaryIO, header: Any, header_begin: int, begin: int) -> None:
    """Put the sums of header and data into the header, which keeps its length."""
    end = file.seek(0, 2)
    data_sum = sum_words(file, begin, end - begin)
    header["DATASUM"] = str(data_sum)
    file.seek(header_begin)
    file.write(_to_bytes(header))
    file.flush()
    header["CHECKSUM"] = encode_checksum(sum_words(file, header_begin, end - header_begin))
    file.seek(header_begin)
    file.write(_to_bytes(header))
