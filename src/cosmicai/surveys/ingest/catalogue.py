"""The user's catalogue of galaxies beside their cutouts: which of its columns are ids, magnitudes, positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BANDS, order_to_ugriz, parse_bands
from ..columns import POSITION, check_name, is_name
from .catalogue_tables import CatalogueTable, open_catalogue
from .names import ALIASES, find_fields, list_names, match_name, require_fields, select_kept
from .source import IngestOptions, Source, SourceArray, from_sliceable, stack_columns

_FIELDS = tuple(name for name in ALIASES if name != "image")


@dataclass(frozen=True)
class Catalogue:
    """The columns of a catalogue that an ingest needs, as arrays of all its rows.

    `fields` are the columns of each field of ours, of which magnitudes may have five, with `field_units`, and `kept`
    are those for the survey, with `units`; `files` names each galaxy's cutout, where the user said in which column.
    """

    path: str
    rows: int
    fields: dict[str, tuple[NDArray[Any], ...]]
    kept: dict[str, NDArray[Any]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    field_units: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    files: NDArray[Any] | None = None

    def describe(self, opened: Source, row: int = 0) -> Source:
        """Return a source of images with the fields and columns of the catalogue's rows from `row` on."""
        rows = slice(row, row + opened.fields["image"].shape[0])
        if rows.stop > self.rows:
            raise InputError(
                f"{self.path} has {self.rows:,} rows, there are {rows.stop:,} galaxies or more; expected one row for "
                "each galaxy, in their order"
            )
        fields = {name: stack_columns([_rows(column, rows) for column in own]) for name, own in self.fields.items()}
        return replace(
            opened,
            fields={"image": opened.fields["image"], **fields},
            magnitude_bands=tuple(BANDS),  # those of a table do not go with the order of the pixels in files
            magnitude_unit=self.field_units.get("magnitude", ""),
            columns={name: _rows(column, rows) for name, column in self.kept.items()},
            column_units=self.units,
            position_units=self.field_units,
        )

    def select(self, rows: Sequence[int] | NDArray[np.intp]) -> Catalogue:
        """Return these rows of the catalogue, in this order."""
        at = np.asarray(rows, np.intp)
        fields = {name: tuple(column[at] for column in own) for name, own in self.fields.items()}
        kept = {name: column[at] for name, column in self.kept.items()}
        return replace(self, rows=len(rows), fields=fields, kept=kept, files=None)


def read_catalogue(
    path: str, options: IngestOptions, file_column: str | None = None, table_name: str | None = None
) -> Catalogue:
    """Read the columns of a catalogue that the user named, or that have one of the usual names.

    `table_name` is the name or number of the table, in a file of several.
    Raises InputError if it has no magnitudes, or lacks a column, or if several fit.
    """
    table = open_catalogue(path, hdu=table_name)
    if len(table.columns) == 1 and (found_separator := next((c for c in ";\t|" if c in "".join(table.columns)), "")):
        raise InputError(
            f"{path} has one column, named {next(iter(table.columns))!r}; expected commas between columns and not "
            f"{found_separator!r}, or tabs in a file that ends in .tsv"
        )
    found = find_fields(path, table.columns, {k: v for k, v in options.names.items() if k != "image"}, _FIELDS)
    require_fields(path, found, table.columns, ("magnitude",))
    used = {name for field_ in ("objid", "redshift", "ra", "dec") for name in found.get(field_, ())}
    kept = list(select_kept(path, table.columns, used, options.keep).values())  # by their whole names, as S/N
    notices: tuple[str, ...] = ()
    if options.keep == ("all",):
        left_out = [name for name in kept if table.columns[name].shape or not is_name(name)]
        kept = [name for name in kept if name not in left_out]
        named = [name.strip() or "a column without a name" for name in left_out]
        said = f"{list_names(named)} hold several values per galaxy, or have a name that none can have here"
        notices = (f"{said}, and are not kept",) * bool(left_out)
    for name in kept:
        check_name(name, path)
    file_name = match_name(path, table.columns, file_column, "file") if file_column else None
    wanted = [*(name for own in found.values() for name in own), *kept, *[file_name or ""] * bool(file_name)]
    values = table.read(list(dict.fromkeys(wanted)))
    units = {name: table.columns[name].unit for name in kept}
    field_units = {name: table.columns[own[0]].unit for name, own in found.items() if name in POSITION}
    field_units["magnitude"] = next(filter(None, (table.columns[name].unit for name in found["magnitude"])), "")
    fields = {name: tuple(values[own_name] for own_name in own) for name, own in found.items()}
    _check_shapes(path, table, fields)
    if options.magnitude_bands is not None:
        fields["magnitude"] = _order_magnitudes(path, fields["magnitude"], options.magnitude_bands)
    files = values[file_name] if file_name else None
    columns = {name: values[name] for name in kept}
    return Catalogue(path, table.rows, fields, columns, units, field_units, notices, files)


def _check_shapes(path: str, table: CatalogueTable, fields: Mapping[str, tuple[NDArray[Any], ...]]) -> None:
    if not table.rows:
        raise InputError(f"{path} has no rows; expected one for each galaxy")
    for name, columns in fields.items():
        expected = (len(BANDS),) if name == "magnitude" and len(columns) == 1 else ()
        for column in columns:
            if column.shape[1:] != expected:
                raise InputError(f"{path}: {name} has the shape {column.shape}; expected {(table.rows, *expected)}")
            if name != "objid" and column.dtype.kind not in "iuf":
                raise InputError(
                    f"{path}: {name} {_describe_text(column)}; expected numbers, and nothing where there is none"
                )


def _describe_text(column: NDArray[Any]) -> str:
    """Return what a column holds that is no number."""
    if column.dtype.kind != "S":
        return f"is of dtype {column.dtype}"
    for row, value in enumerate(column.tolist()):
        try:
            float(value or b"nan")
        except ValueError:
            return f"is {value.decode()!r} in row {row}"
    return "is text"


def _order_magnitudes(path: str, columns: tuple[NDArray[Any], ...], stated: str) -> tuple[NDArray[Any], ...]:
    """Return magnitudes in the order u g r i z. Raises InputError if five columns are to be in another order."""
    order = order_to_ugriz("--magnitude-bands", parse_bands(stated))
    if len(columns) == 1:
        return (columns[0][:, list(order)],)
    if order != tuple(range(len(BANDS))):
        raise InputError(
            f"{path}: its magnitudes are five columns, in the order u g r i z, which contradicts --magnitude-bands; "
            "leave the option out"
        )
    return columns


def _rows(column: NDArray[Any], rows: slice) -> SourceArray:
    return from_sliceable(column[rows])
