"""The user's catalogue, a table with one row per galaxy: FITS, CSV, TSV, ECSV, Parquet or VOTable, by its ending.

Columns are read as the file holds them. Integers keep their width and never pass through floating point, what is null
is masked, NaN or an empty text, and text is UTF-8. Astropy and Arrow are imported only when a file is opened.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, describe_os_errors
from ...storage.local import open_regular
from .arrow_columns import CatalogueTable, TableColumn, by_name, encode_text, first_line, open_parquet
from .fits_checksum import verify_checksums
from .fits_hdus import describe_hdu
from .fits_tables import read_columns
from .text_tables import open_csv, open_ecsv

__all__ = ["CatalogueTable", "TableColumn", "open_catalogue"]

Columns = dict[str, NDArray[Any]]
_Opener = Callable[[str, Collection[str], str | None], CatalogueTable]
# Integers that FITS writes as those of the other sign and an offset: the type that they stand for, by both.
_OFFSET_INTEGERS = {("B", -(2**7)): "i1", ("I", 2**15): "u2", ("J", 2**31): "u4"}
_PIECE = 2**20
_REMOTE = re.compile(rb"""<([^\s<>/]+:)?STREAM(\s+[^\s=<>]+\s*=\s*("[^"]*"|'[^']*'))*\s+href\s*=""")


def open_catalogue(path: str, text: Collection[str] = (), hdu: str | None = None) -> CatalogueTable:
    """Open a catalogue and return what it holds. Its rows are counted, and read by the `read` of the result.

    `read` takes the names of columns, for which letter case matters only where the table has names that differ in
    nothing else, and returns the columns by these names. A column that is named in `text` is text whatever it holds:
    as it is spelled in CSV and TSV, and elsewhere an integer by its decimal digits. `hdu` is the name or the number of
    the table in a FITS file or VOTable that has several; tables of a VOTable are counted from 0.
    Raises InputError if the file is damaged, unclear or of another kind; a column is checked when it is read.
    """
    opener = _find_opener(path)
    with describe_os_errors(path, "read"):
        file = open_regular(path)
        size = os.fstat(file).st_size
        os.close(file)
    if size == 0:
        raise InputError(f"{path} is empty; expected a table with one row per galaxy, copy it again")
    if hdu is not None and opener not in (_open_fits, _open_votable):
        raise InputError(f"{path} holds one table, not several; leave out the choice of the table {hdu}")
    with _refuse_damage(path):
        opened = opener(path, text, hdu)
    return replace(opened, read=partial(_read, opened, {opened.find(name).name for name in text}))


def _find_opener(path: str) -> _Opener:
    kind = next((ending for ending in _OPENERS if path.lower().endswith(ending)), None)
    if kind is None:
        raise InputError(f"{path} is of an unknown kind; expected a catalogue ending in {', '.join(_OPENERS)}")
    return _OPENERS[kind]


@contextmanager
def _refuse_damage(path: str) -> Iterator[None]:
    """Turn what a library raises at a file, which may be anything where it is damaged, into an InputError."""
    try:
        yield
    except (InputError, ImportError):
        raise
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied; change its permissions") from None
    except MemoryError:
        raise InputError(f"{path} needs more memory than there is, or is damaged; read fewer columns") from None
    except Exception as error:
        raise InputError(
            f"{path} is damaged or not of the kind that its name says ({first_line(error)}); copy it again"
        ) from error


def _read(opened: CatalogueTable, text: set[str], names: Sequence[str]) -> Columns:
    """Return whole columns of an open table by these names."""
    exact = {name: opened.find(name).name for name in names}
    if not exact:
        return {}
    with _refuse_damage(opened.path):
        found = opened.read(list(dict.fromkeys(exact.values())))
        for name, values in found.items():
            if len(values) != opened.rows:
                raise InputError(
                    f"{opened.path}: {name} has {len(values)} values for {opened.rows} rows; the table is damaged or "
                    "changed while it was read, copy it again"
                )
            found[name] = _normalize(values, f"{opened.path}: {name}", name in text)
    return {name: found[key] for name, key in exact.items()}


def _normalize(values: NDArray[Any], where: str, is_text: bool) -> NDArray[Any]:
    """Return a column in the byte order of the machine, with a mask only where something is null."""
    if values.ndim > 2:
        raise InputError(f"{where} holds an array of {values.shape[1:]} per row; expected a number, text or a vector")
    if not np.ma.is_masked(values):
        values = np.ma.getdata(values)
    if not is_text or values.dtype.kind == "S":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind not in "iu" or values.ndim > 1:
        raise InputError(f"{where} is {values.dtype}, whose spelling is not known; expected integers or text")
    return encode_text((None if each is None else str(each) for each in values.tolist()), where)


def _choose(path: str, tables: dict[int, str], name: str | None) -> int:
    """Return the number of the only table, or of the one that is called `name`."""
    listed = ", ".join(f"{number} {title}".strip() for number, title in tables.items())
    if not tables:
        raise InputError(f"{path} has no table; expected one with a row per galaxy")
    if name is None:
        if len(tables) > 1:
            raise InputError(f"{path} has several tables: {listed}; choose one with --table NAME or --table NUMBER")
        return next(iter(tables))
    found = [number for number, title in tables.items() if title.lower() == name.lower() or str(number) == name]
    if len(found) != 1:
        problem = "several tables" if found else "no table"
        raise InputError(f"{path} has {problem} {name}; it has {listed}, choose one with --table NUMBER")
    return found[0]


# FITS.


def _open_fits(path: str, _: Collection[str], hdu: str | None) -> CatalogueTable:
    with _fits_table(path, hdu, verify=True) as table:
        header, columns = table.header, by_name(path, map(TableColumn, table.columns.names))
        layout = table.columns.dtype
        for number, name in enumerate(columns):
            unit, text = str(table.columns[number].unit or ""), str(header.get(f"TCOMM{number + 1}", ""))
            columns[name] = TableColumn(name, unit, tuple(layout[number].shape), text)
        return CatalogueTable(path, int(header["NAXIS2"]), columns, partial(_read_fits, path, hdu))


@contextmanager
def _fits_table(path: str, name: str | None, verify: bool = False) -> Iterator[Any]:
    """Open the table of a FITS file that is read."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters of a header is checked
        warnings.filterwarnings("error", "File may have been truncated")
        with fits.open(path, memmap=False, do_not_scale_image_data=True) as file:
            if verify:
                verify_checksums(path, None, [describe_hdu(number, each) for number, each in enumerate(file)])
            tables = {number: hdu.name for number, hdu in enumerate(file) if not hdu.is_image}
            table = file[_choose(path, tables, name)]
            if table.header.get("ZTABLE"):
                raise InputError(f"{path}: the table {table.name} is compressed; uncompress it with funpack")
            yield table


def _read_fits(path: str, hdu: str | None, names: Sequence[str]) -> Columns:
    with _fits_table(path, hdu) as table:
        layout = table.columns.dtype
        for name in names:
            number = table.columns.names.index(name)
            if len(layout[number].shape) > (layout[number].base.kind not in "SU"):
                raise InputError(
                    f"{path}: {name} holds an array of {layout[number].shape} per row; expected numbers, text, or "
                    "vectors of numbers"
                )
        found = read_columns(path, describe_hdu(0, table), names)
        return {name: _from_fits(path, table, name, found.pop(name)) for name in names}


def _from_fits(path: str, table: Any, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Return a column of FITS with integers in the width that they stand for, and text up to its end."""
    number = table.columns.names.index(name) + 1
    if values.dtype.kind in "SU":
        stored = np.char.encode(values, "utf-8") if values.dtype.kind == "U" else values
        return encode_text((each.partition(b"\0")[0].rstrip(b" ") for each in stored), f"{path}: {name}")
    kind = re.sub(r"^\d*", "", str(table.header[f"TFORM{number}"]).strip())[:1]
    if values.dtype.kind == "i" and table.header.get(f"TSCAL{number}", 1) == 1:
        zero = table.header.get(f"TZERO{number}", 0)
        return values.astype(_OFFSET_INTEGERS.get((kind, zero), values.dtype), copy=False)
    return values


# VOTable.


def _open_votable(path: str, _: Collection[str], name: str | None) -> CatalogueTable:
    _check_votable(path)
    tables = _parse_votable(path, [0])  # the rows of one column, to count them
    number = _choose(path, {i: str(table.name or table.ID or "") for i, table in enumerate(tables)}, name)
    fields = tables[number].all_fields
    columns = by_name(
        path,
        [
            TableColumn(str(each.name or each.ID), str(each.unit or ""), _votable_shape(each), each.description or "")
            for each in fields
        ],
    )
    rows, stated = len(tables[number].array), tables[number].nrows
    if stated not in (None, rows):  # a stream of binary rows may end anywhere
        raise InputError(f"{path} holds {rows} rows where it states {stated}; it was cut off, copy it again")
    places = {name: place for place, name in enumerate(columns)}
    read = partial(_read_votable, path, number if len(tables) > 1 else None, places)
    return CatalogueTable(path, rows, columns, read)


def _parse_votable(path: str, columns: list[int] | None = None, table_number: int | None = None) -> list[Any]:
    """Return the tables of a VOTable, with the rows of these columns, or of all."""
    from astropy.io import votable
    from astropy.io.votable import exceptions

    # Where astropy changes a value: no number becomes NaN, text is cut, an empty cell is 0, an integer the largest.
    changes = (exceptions.W30, exceptions.W46, exceptions.W49, exceptions.W51)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy warns of every deviation from the standard, however small
        for each in changes:
            warnings.simplefilter("error", each)
        try:
            parsed = votable.parse(path, columns=columns, table_number=table_number, verify="warn")
        except changes as error:
            reason = first_line(error).removesuffix("  Treating as empty.")
            raise InputError(f"{path} has a value that its column cannot hold ({reason}); correct it") from None
    return list(parsed.iter_tables())


def _check_votable(path: str) -> None:
    """Raise InputError unless a file is XML that holds its rows itself: astropy would fetch them from the network."""
    before = b""
    with Path(path).open("rb") as stream:
        while piece := stream.read(_PIECE):
            if not before and (b"\0" in piece or not piece.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<")):
                raise InputError(f"{path} is not a VOTable in UTF-8; uncompress it or write it again")
            before = before[-_PIECE:] + piece
            if _REMOTE.search(before):
                raise InputError(f"{path} refers to another file for its rows; write a VOTable that holds them itself")


def _votable_shape(field: Any) -> tuple[int, ...]:
    """Return the shape of a row of a field, of which text is a scalar; a vector of no fixed length has none."""
    size = str(field.arraysize or "1")
    if field.datatype in ("char", "unicodeChar") or size == "1":
        return ()
    return tuple(int(each) for each in reversed(size.split("x")) if each.isdecimal())


def _read_votable(path: str, table: int | None, places: dict[str, int], names: Sequence[str]) -> Columns:
    """Return columns of the only table, or of one of several, of which astropy cannot leave out columns."""
    wanted = sorted(places[name] for name in names)  # in any other order astropy confuses them
    array = _parse_votable(path, None if table is not None else wanted, table)[table or 0].array
    found = {}
    for name in names:
        place = places[name] if table is not None else wanted.index(places[name])
        found[name] = _from_votable(np.ma.asanyarray(array[array.dtype.names[place]]), f"{path}: {name}")
    return found


def _from_votable(values: Any, where: str) -> NDArray[Any]:
    data, missing = np.ma.getdata(values), np.ma.getmaskarray(values)
    if data.dtype.kind in "biu":
        return np.ma.MaskedArray(data, missing)
    if data.dtype.kind == "f":
        return np.where(missing, data.dtype.type(np.nan), data)
    texts = data.tolist()
    if data.ndim == 1 and all(isinstance(each, str | bytes) for each in texts):
        return encode_text(("" if gone else each for each, gone in zip(texts, missing, strict=True)), where)
    raise InputError(f"{where} holds {data.dtype} or vectors of no fixed length; expected numbers, text, or vectors")


_OPENERS: dict[str, _Opener] = {
    ".fits": _open_fits,
    ".fit": _open_fits,
    ".fits.gz": _open_fits,
    ".fz": _open_fits,
    ".csv": lambda path, text, _: open_csv(path, text),
    ".csv.gz": lambda path, text, _: open_csv(path, text),
    ".tsv": lambda path, text, _: open_csv(path, text, "\t"),
    ".ecsv": lambda path, *_: open_ecsv(path),
    ".parquet": lambda path, *_: open_parquet(path),
    ".pq": lambda path, *_: open_parquet(path),
    ".vot": _open_votable,
    ".votable": _open_votable,
    ".xml": _open_votable,
}
