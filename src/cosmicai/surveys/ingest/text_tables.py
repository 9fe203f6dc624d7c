"""Catalogues as text, CSV, TSV and ECSV: parsed by Arrow in pieces, and only the columns that are needed.

The numbers of CSV are inferred from how they are spelled, and only where no spelling is lost: an id such as 007 stays
text. Spaces around a cell of CSV are not part of it. Arrow and astropy are imported only when a file is opened.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from ...errors import InputError
from .arrow_columns import CatalogueTable, TableColumn, by_name, describe, first_line, is_exact, join, to_numpy

_BLOCK = 4 * 2**20  # bytes of text that are parsed at once; no row can be longer
_NULLS = ("", "null", "NULL", "NaN", "nan", "--", "N/A", "n/a", "NA")
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
_INTEGER = r"0|-?[1-9][0-9]{0,18}"  # the one spelling that str(int) returns
_FLOAT = r"-0|[+-]?([0-9]+\.[0-9]*|\.[0-9]+|([0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+|(?i:inf(inity)?))"


@dataclass(frozen=True)
class _Layout:
    """How a table of text is written: `types` are the Arrow types that ECSV states by column, None for other files."""

    path: str
    delimiter: str
    first_lines: int  # comments and empty lines before the line of the names
    types: dict[str, Any] | None = None


def open_csv(path: str, text: Collection[str], delimiter: str = ",") -> CatalogueTable:
    """Open a CSV or TSV file, whose columns `text` are never taken for numbers."""
    layout = _Layout(path, delimiter, len(_first_lines(path)))
    names = _header(layout)
    columns = by_name(path, [TableColumn(name.strip()) for name in names])
    raw = dict(zip(columns, names, strict=True))
    opened = CatalogueTable(path, _count_rows(layout, names), columns, partial(_read_text, layout, raw, ()))
    return replace(opened, read=partial(_read_text, layout, raw, {opened.find(name).name for name in text}))


def open_ecsv(path: str) -> CatalogueTable:
    """Open an ECSV file: its header is read by astropy, its rows by Arrow as the types that the header states."""
    from astropy.table.meta import get_header_from_yaml

    lines = _first_lines(path)
    if not lines or not re.match(r"#\s*%ECSV \d", lines[0]):
        raise InputError(f"{path} does not begin with `# %ECSV`; expected an ECSV file, or name it .csv")
    header = get_header_from_yaml([line[1:].rstrip("\r\n") for line in lines[1:] if line.startswith("#")])
    stated = [(each, *_ecsv_type(path, each)) for each in header["datatype"]]
    columns = by_name(path, [describe(each, shape) for each, _, shape in stated])
    layout = _Layout(path, header.get("delimiter", " "), len(lines), {each["name"]: kind for each, kind, _ in stated})
    if (names := _header(layout)) != list(columns):
        raise InputError(
            f"{path}: its header states {list(columns)}, its rows have the columns {names}; write it again"
        )
    raw = {name: name for name in names}
    return CatalogueTable(path, _count_rows(layout, names), columns, partial(_read_text, layout, raw, ()))


def _ecsv_type(path: str, stated: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """Return the Arrow type of a column and the shape of its rows; vectors are JSON in text of ECSV."""
    import pyarrow as pa

    kind, subtype = stated["datatype"], str(stated.get("subtype") or "")
    vector = re.fullmatch(r"((?:u?int|float)\d+)\[(\d+)\]", subtype)
    if kind == "string" and vector:
        return pa.list_(pa.type_for_alias(vector[1]), int(vector[2])), (int(vector[2]),)
    if subtype or not re.fullmatch(r"bool|u?int(8|16|32|64)|float(16|32|64)|string", kind):
        return None, ()  # refused if it is read
    return pa.type_for_alias(kind), ()


def _first_lines(path: str) -> list[str]:
    """Return the comments and empty lines at the beginning of a file."""
    with gzip.open(path) if _is_gzip(path) else Path(path).open("rb") as stream:
        lines = (line.decode("utf-8-sig") for line in iter(lambda: stream.readline(_BLOCK), b""))
        return list(takewhile(lambda line: line.startswith("#") or not line.strip(), lines))


def _is_gzip(path: str) -> bool:
    return path.lower().endswith(".gz")


@contextmanager
def _open_rows(layout: _Layout, names: Sequence[str] | None = None) -> Iterator[Any]:
    """Open the rows of a table of text, of these columns as text or of all columns as Arrow infers them."""
    import pyarrow as pa
    from pyarrow import csv

    convert = {"strings_can_be_null": False, "null_values": []}
    if names is not None:
        convert |= {"include_columns": list(names), "column_types": dict.fromkeys(names, pa.string())}
    with (
        _explain_long_rows(layout.path),
        pa.input_stream(layout.path, compression="gzip" if _is_gzip(layout.path) else None) as stream,
        csv.open_csv(
            stream,
            # Several threads would leave the number of a broken row out of the message.
            csv.ReadOptions(use_threads=False, block_size=_BLOCK, skip_rows=layout.first_lines),
            csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True),
            csv.ConvertOptions(**convert),
        ) as rows,
    ):
        yield rows


@contextmanager
def _explain_long_rows(path: str) -> Iterator[None]:
    """Raise InputError for a row that does not end, which Arrow describes by its blocks."""
    try:
        yield
    except ValueError as error:
        if "straddling" not in str(error):
            raise
        raise InputError(f"{path} has a row of more than {_BLOCK} bytes; close the quote that is open in it") from None


def _header(layout: _Layout) -> list[str]:
    with _open_rows(layout) as rows:
        return list(rows.schema.names)


def _count_rows(layout: _Layout, names: list[str]) -> int:
    """Return the number of rows. Raises InputError for a cell of several lines: mostly a quote that is not closed."""
    import pyarrow.compute as pc

    count = 0
    with _open_rows(layout, names) as rows:
        for batch in rows:
            for name, cells in zip(names, batch.columns, strict=True):
                if pc.any(pc.match_substring_regex(cells, r"[\r\n]")).as_py():
                    raise InputError(
                        f"{layout.path}: column {name} has a cell of several lines after row {count}; expected one "
                        "line per row, close the quote or remove the line break"
                    )
            count += batch.num_rows
    return count


def _read_text(
    layout: _Layout, raw: dict[str, str], text: Collection[str], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    """Return columns of a table of text. What looks like numbers at first and is text further down is read again."""
    pieces: dict[str, list[Any]] = {name: [] for name in names}
    with _open_rows(layout, [raw[name] for name in names]) as rows:
        for batch in rows:
            for name, cells in zip(names, batch.columns, strict=True):
                pieces[name].append(_convert(layout, name, cells, name in text))
    found = {name: join(pieces.pop(name), f"{layout.path}: {name}") for name in names}
    if again := [name for name, values in found.items() if values is None]:
        found |= _read_text(layout, raw, again, again)
    return cast(dict[str, NDArray[Any]], found)


def _convert(layout: _Layout, name: str, cells: Any, is_text: bool) -> Any:
    """Return cells of text as `to_numpy` does, as the type that ECSV states or that the spelling has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    where = f"{layout.path}: {name}"
    if layout.types is None:
        cells = _set_null(pc.utf8_trim(cells, " \t"), _NULLS)
        return to_numpy(cells if is_text else _infer(cells), where)
    kind = layout.types[name]
    if kind is None:
        raise InputError(f"{where} has a datatype that is not supported; expected numbers, text, or vectors of numbers")
    if kind == pa.string():
        return to_numpy(cells, where)
    cells = _set_null(cells, [""])
    try:
        if pa.types.is_fixed_size_list(kind):
            return to_numpy(pa.array([each and json.loads(each) for each in cells.to_pylist()], kind), where)
        return to_numpy(pc.cast(cells, kind), where)
    except (ValueError, TypeError) as error:
        raise InputError(f"{where} is not {kind} as its header states ({first_line(error)}); correct it") from None


def _set_null(cells: Any, nulls: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    is_null = pc.is_in(cells, value_set=pa.array(nulls, pa.string()))
    return pc.if_else(is_null, pa.scalar(None, pa.string()), cells)


def _infer(cells: Any) -> Any:
    """Return cells of text as bool, int64 or float64 where their spelling loses nothing, else as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if cells.null_count == len(cells):
        return pa.nulls(len(cells))
    if pc.all(pc.is_in(cells, value_set=pa.array([None, *_TRUE, *_FALSE]))).as_py():
        return pc.cast(cells, pa.bool_())
    integral = pc.match_substring_regex(cells, f"^({_INTEGER})$")
    try:
        if pc.all(integral).as_py():
            return pc.cast(cells, pa.int64())
        if pc.all(pc.or_(integral, pc.match_substring_regex(cells, f"^({_FLOAT})$"))).as_py():
            integers = pc.cast(pc.filter(cells, integral), pa.int64()).to_numpy(zero_copy_only=False)
            return pc.cast(cells, pa.float64()) if is_exact(integers) else cells
    except pa.ArrowInvalid:  # beyond int64
        pass
    return cells
