"""What a Parquet file states of its images: in its metadata, and in columns beside them with a value per galaxy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BAND_NAMES, band_letter, parse_bands
from ..hdf5 import PIXEL_SCALE_NAMES, stated_bands, stated_flux_unit, stated_pixel_scale, to_number
from ..units import ZERO_POINT_NAMES, FluxUnit
from .names import last_part
from .parquet_columns import Column, ParquetColumns

_FLUX_UNIT_NAMES = ("bunit", "flux_unit", "flux_units", "image_unit", "image_units", "unit", "units")
_VALUES = (*_FLUX_UNIT_NAMES, *ZERO_POINT_NAMES, *PIXEL_SCALE_NAMES)
_STRUCT_SCALE = "scale"  # of pixels, in an image of the Multimodal Universe
_PIECE_ROWS = 4096


def find_statements(columns: Mapping[str, Column], image: Column, used: Collection[str]) -> dict[str, Column]:
    """Return the columns that state something of the image: its bands, or if they lie beside it, its unit and scale."""
    return {name: column for name, column in columns.items() if name not in used and _is_statement(column, image)}


def _is_statement(column: Column, image: Column) -> bool:
    name = last_part(column.name).lower()
    if column.dtype.kind not in "iufO" or (not column.is_scalar and column.dtype.kind == "O" and not column.is_text):
        return False
    is_beside = _container(column) == _container(image)
    return name in BAND_NAMES or (is_beside and (name in _VALUES or (bool(image.member) and name == _STRUCT_SCALE)))


def _container(column: Column) -> str:
    return column.name.partition("[")[0] if column.member else ""


def read_bands(
    source: str, file: ParquetColumns, image: Column, statements: Mapping[str, Column]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the bands of all images, and the rows that do not state theirs beside the image.

    Raises InputError naming the row if they differ between rows, or several orders are stated.
    """
    orders = {stated_bands(source, [image.metadata, file.metadata], {})} - {()}
    unstated = np.empty(0, np.int64)
    for name, column in statements.items():
        if last_part(name).lower() in BAND_NAMES:
            order, missing = _read_order(source, file, column)
            orders |= {order} - {()}
            if order and _container(column) == _container(image):
                unstated = missing
    if len({tuple(map(band_letter, order)) for order in orders}) > 1:
        raise InputError(f"{source}: it states several orders of bands; expected one, leave the others out")
    return next(iter(orders), ()), unstated


def _read_order(source: str, file: ParquetColumns, column: Column) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the order of bands that all rows of a column state, and the rows that state none."""
    first: NDArray[Any] | None = None
    letters: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    missing = []
    for start, values in _pieces(file, column):
        if values.dtype.kind != "O":
            try:
                parse_bands(values)
            except ValueError as error:
                raise InputError(f"{source}: {column.name} states {error}; write their names") from None
            continue
        is_null = (values == None).all(axis=1)  # noqa: E711 - element by element
        missing.append(start + np.flatnonzero(is_null))
        if first is None and not is_null.all():
            first = values[~is_null][0]
            order = _parse(source, column, start, first)
            letters = tuple(map(band_letter, order))
        for row in np.flatnonzero(~is_null & (values != first).any(axis=1)):
            other = _parse(source, column, start + int(row), values[row])
            if tuple(map(band_letter, other)) != letters:
                raise InputError(
                    f"{source}: {column.name} of row {start + row} is {' '.join(other)}, before it is "
                    f"{' '.join(order)}; expected one order of bands in all rows, split the file by it"
                )
    return order, np.concatenate([np.empty(0, np.int64), *missing])


def _parse(source: str, column: Column, row: int, values: NDArray[Any]) -> tuple[str, ...]:
    if any(value is None for value in values):
        raise InputError(f"{source}: {column.name} of row {row} leaves bands out; expected a name for each")
    return parse_bands(values[0]) if len(values) == 1 else tuple(map(_text, values))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def read_flux_unit(source: str, file: ParquetColumns, image: Column, statements: Mapping[str, Column]) -> FluxUnit:
    """Return the unit of the pixels and the zero point. Raises InputError if several are stated."""
    stated = stated_flux_unit([image.metadata, file.metadata])
    unit = _read_value(source, file, statements, _FLUX_UNIT_NAMES, stated.text or None)
    zero_point = _read_value(source, file, statements, ZERO_POINT_NAMES, stated.zero_point)
    return FluxUnit("" if unit is None else str(unit), to_number(zero_point))


def read_pixel_scale(
    source: str, file: ParquetColumns, image: Column, statements: Mapping[str, Column]
) -> float | None:
    """Return the side of a pixel in arcsec. Raises InputError if several are stated."""
    stated = stated_pixel_scale([image.metadata, file.metadata])
    return to_number(_read_value(source, file, statements, (*PIXEL_SCALE_NAMES, _STRUCT_SCALE), stated))


def _read_value(
    source: str, file: ParquetColumns, statements: Mapping[str, Column], names: Iterable[str], stated: Any
) -> Any:
    """Return the one value that all rows of columns with these names have, and that the metadata has if `stated`."""
    value = stated
    for column in statements.values():
        if last_part(column.name).lower() not in names:
            continue
        for start, values in _pieces(file, column):
            known = values != None if values.dtype.kind == "O" else ~np.isnan(values)  # noqa: E711
            if value is None and known.any():
                value = _plain(values[known][0])
            differs = known & (values != value) if values.dtype.kind == "O" else known & ~np.isclose(values, value or 0)
            if (rows := np.flatnonzero(differs.any(axis=1))).size:
                other = _plain(values[rows[0]][differs[rows[0]]][0])
                raise InputError(
                    f"{source}: {column.name} of row {start + rows[0]} is {other}, and {value} is stated as well; "
                    "expected one value for all galaxies, split the file by it"
                )
    return value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _pieces(file: ParquetColumns, column: Column) -> Iterator[tuple[int, NDArray[Any]]]:
    """Read a column in pieces (rows, values of a row), each with its first row; nothing if it has no values."""
    if not column.is_scalar and file.find_levels(column) is None:
        return
    array = file.read_scalars(column) if column.is_scalar else file.read_array(column)
    for start in range(0, file.rows, _PIECE_ROWS):
        values = array.read_next(min(_PIECE_ROWS, file.rows - start))
        if values.dtype.kind in "iu":
            values = np.ma.filled(values.astype(np.float64), np.nan)
        yield start, values.reshape(len(values), -1)
