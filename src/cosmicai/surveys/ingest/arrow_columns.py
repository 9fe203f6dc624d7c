"""What every table of a catalogue is once it is open; arrays of Arrow as those of NumPy, and Parquet files.

Nulls are masked in integers and booleans, NaN in floating point and empty in text; integers never pass through floating
point. Arrow is imported only when a file is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

_BATCH = 2**16  # rows
_LARGEST_TEXT = 2**30  # bytes of one column of text
_LISTED = 40  # columns that a message names
_EXACT = 2**53  # the largest magnitude up to which float64 holds every integer


@dataclass(frozen=True)
class TableColumn:
    """What is known of a column without reading rows; `unit` is spelled as in the file, and `shape` is that of a row.

    Scalars have the shape (), vectors of five values (5,). `unit` and `description` are empty where nothing is stated.
    """

    name: str
    unit: str = ""
    shape: tuple[int, ...] = ()
    description: str = ""


@dataclass(frozen=True)
class CatalogueTable:
    """A catalogue with one row per galaxy. `read` returns whole columns (N,) or (N, k) by the names it is given."""

    path: str
    rows: int
    columns: dict[str, TableColumn]  # in the order of the table
    read: Callable[[Sequence[str]], dict[str, NDArray[Any]]]

    def find(self, name: str) -> TableColumn:
        """Return the column of this name, or the only one that differs in letter case alone. Raises InputError."""
        fitting = [each for each in self.columns if each.lower() == name.lower()]
        if name in fitting or len(fitting) == 1:
            return self.columns[name if name in fitting else fitting[0]]
        if fitting:
            raise InputError(f"{self.path}: column {name} may be {' or '.join(fitting)}; spell it as the file does")
        shown, more = ", ".join(list(self.columns)[:_LISTED]), len(self.columns) - _LISTED
        raise InputError(
            f"{self.path} has no column {name}; expected one of {shown}{f' and {more} more' if more > 0 else ''}"
        )


def by_name(path: str, columns: Iterable[TableColumn]) -> dict[str, TableColumn]:
    """Return columns by their names. Raises InputError if two have the same name, or if there are none."""
    found: dict[str, TableColumn] = {}
    for column in columns:
        if column.name in found:
            raise InputError(f"{path} has two columns {column.name!r}; rename one so that it is clear which is meant")
        found[column.name] = column
    if not found:
        raise InputError(f"{path} has no columns; expected a table with one row per galaxy")
    return found


def encode_text(values: Iterable[str | bytes | None], where: str, rows: int = 0) -> NDArray[np.bytes_]:
    """Return text as UTF-8 of the longest length among it, empty where it is None.

    Raises InputError if it is not UTF-8, holds NUL characters, or would be too large for `rows` rows of this length.
    """
    encoded = [b"" if each is None else each.encode() if isinstance(each, str) else each for each in values]
    longest = max(map(len, encoded), default=0)
    if longest * max(rows, len(encoded)) > _LARGEST_TEXT:
        raise InputError(f"{where} holds a text of {longest} bytes, too long for a column of text; leave it out")
    joined = b"\n".join(encoded)
    try:
        joined.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where} holds text that is not UTF-8; write the file with this encoding") from None
    if b"\0" in joined:
        raise InputError(f"{where} holds text with NUL characters; copy or write the file again")
    return np.array(encoded, f"S{max(1, longest)}")


def first_line(error: Exception) -> str:
    """Return what an error of a library says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def to_numpy(array: Any, where: str, rows: int = 0) -> Any:
    """Return an Arrow array as (N,) or (N, k) of NumPy, masked or NaN where null; only its length if it has no type."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_null(kind):
        return len(array)
    if pa.types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        size = kind.list_size
        values = to_numpy(array.values.slice(array.offset * size, len(array) * size), where).reshape(-1, size)
        missing = array.is_null().to_numpy(zero_copy_only=False)[:, None] & np.ones(size, np.bool_)
    elif _is_number(kind) or pa.types.is_boolean(kind):
        missing = array.is_null().to_numpy(zero_copy_only=False)
        if array.null_count:
            array = array.fill_null(False if pa.types.is_boolean(kind) else np.zeros((), kind.to_pandas_dtype())[()])
        values = array.to_numpy(zero_copy_only=False)
    elif _is_text(kind):
        return encode_text(array.to_pylist(), where, rows)
    else:
        raise InputError(f"{where} is of type {kind}; expected numbers, text, or vectors of numbers, convert it first")
    if not missing.any():
        return values
    if values.dtype.kind == "f":
        return np.where(missing, values.dtype.type(np.nan), values)
    return np.ma.MaskedArray(values, missing | np.ma.getmaskarray(values))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return str(kind) in ("string", "large_string", "string_view", "binary", "large_binary", "binary_view") or bool(
        pa.types.is_fixed_size_binary(kind)
    )


def join(pieces: list[Any], where: str) -> NDArray[Any] | None:
    """Return the pieces of a column as one array, or None if some are text and others not.

    A piece that is a number has so many nulls. A column without any value is float64.
    """
    arrays = [piece for piece in pieces if not isinstance(piece, int)]
    kinds = {array.dtype.kind for array in arrays}
    if len(kinds) > 1 and (kinds != {"i", "f"} or not all(is_exact(a) for a in arrays if a.dtype.kind == "i")):
        return None
    dtype = np.result_type(*arrays) if arrays else np.dtype(np.float64)
    if dtype.kind == "S" and dtype.itemsize * sum(map(np.size, arrays)) > _LARGEST_TEXT:
        raise InputError(f"{where} holds a text of {dtype.itemsize} bytes, too long for a column of text; leave it out")
    parts = [_nulls(piece, dtype) if isinstance(piece, int) else _widen(piece, dtype) for piece in pieces]
    if not parts:
        return np.empty(0, dtype)
    masked = any(isinstance(part, np.ma.MaskedArray) for part in parts)
    values = np.concatenate([np.ma.getdata(part) for part in parts])
    return np.ma.MaskedArray(values, np.concatenate([np.ma.getmaskarray(part) for part in parts])) if masked else values


def _nulls(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "fS":
        return np.full(count, np.nan if dtype.kind == "f" else b"", dtype)
    return np.ma.MaskedArray(np.zeros(count, dtype), np.ones(count, np.bool_))


def _widen(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return integers with nulls as floats with NaN if this is the dtype, and other values as they are."""
    if dtype.kind == "f" and isinstance(values, np.ma.MaskedArray):
        return np.ma.filled(values.astype(dtype), np.nan)
    return values


def is_exact(integers: NDArray[Any]) -> bool:
    """Return whether float64 holds these integers as they are."""
    return not len(integers) or bool(integers.min() >= -_EXACT and integers.max() <= _EXACT)


def describe(stated: dict[str, Any], shape: tuple[int, ...]) -> TableColumn:
    """Return a column of which a header states its name and maybe unit and description."""
    return TableColumn(stated["name"], str(stated.get("unit") or ""), shape, str(stated.get("description") or ""))


def open_parquet(path: str) -> CatalogueTable:
    """Open a Parquet file, whose units are in the metadata of its fields or those that astropy writes."""
    with _open_parquet(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    stated: dict[str, Any] = {}
    masks: dict[str, str] = {}
    if table := (schema.metadata or {}).get(b"table_meta_yaml"):
        from astropy.table.meta import get_header_from_yaml

        header = get_header_from_yaml(table.decode().splitlines())
        stated = {each["name"]: each for each in header["datatype"]}
        masks = _stated_masks(header, schema.names)
    columns = []
    for field in (field for field in schema if field.name not in masks.values()):
        own = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        shape = (field.type.list_size,) if hasattr(field.type, "list_size") else ()
        columns.append(describe({**stated.get(field.name, {}), **own, "name": field.name}, shape))
    return CatalogueTable(path, rows, by_name(path, columns), partial(_read_parquet, path, masks))


def _stated_masks(header: dict[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Return the columns of booleans in which astropy writes what is masked in other columns, by the names of these."""
    written = dict(header.get("meta") or {}).get("__serialized_columns__", {})
    masks = {name: dict(parts["mask"])["name"] for name, parts in written.items() if "mask" in parts}
    return {name: mask for name, mask in masks.items() if name in names and mask in names}


@contextmanager
def _open_parquet(path: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        yield file


def _read_parquet(path: str, masks: dict[str, str], wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    import pyarrow

    names = [*wanted, *(masks[name] for name in wanted if name in masks)]
    pieces: dict[str, list[Any]] = {name: [] for name in names}
    with _open_parquet(path) as file:
        rows = file.metadata.num_rows
        for batch in file.iter_batches(_BATCH, columns=list(names), use_threads=False):
            for name in names:
                pieces[name].append(to_numpy(batch.column(name), f"{path}: {name}", rows))
        if not rows:  # which has no batches, but types
            empty = file.schema_arrow.empty_table()
            pieces = {name: [to_numpy(empty.column(name).combine_chunks(), f"{path}: {name}")] for name in names}
    columns = {name: cast(NDArray[Any], join(pieces.pop(name), f"{path}: {name}")) for name in names}
    pyarrow.default_memory_pool().release_unused()  # of a million rows, as much again as the columns
    return {
        name: _set_masked(columns[name], columns[masks[name]]) if name in masks else columns[name] for name in wanted
    }


def _set_masked(values: NDArray[Any], masked: NDArray[Any]) -> NDArray[Any]:
    """Return a column with what a column of booleans says masked, NaN or empty."""
    missing = np.ma.filled(masked, True).astype(np.bool_)
    missing = (
        missing[:, None] & np.ones(values.shape[1:], np.bool_) if values.ndim > 1 and missing.ndim == 1 else missing
    )
    if values.dtype.kind in "fS":
        return np.where(missing, values.dtype.type(np.nan if values.dtype.kind == "f" else b""), values)
    return np.ma.MaskedArray(values, missing | np.ma.getmaskarray(values))
