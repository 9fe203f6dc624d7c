"""Image columns of FITS tables: one vector column of all bands, or one for each band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InputError
from ..bands import BAND_NAMES, BANDS, band_letter, order_to_ugriz, parse_bands
from ..mask_arrays import is_mask
from ..shard import IMAGE_SHAPE
from ..units import FluxUnit
from .fits_hdus import Hdu, list_labels
from .fits_headers import stated_bands, stated_flux_unit, stated_pixel_scale
from .fits_select import list_chosen_tables, strip_band
from .fits_statements import BandUnits, combine_units
from .fits_tables import TableColumn, list_columns, read_columns, stream_columns
from .fits_values import read_table_values
from .names import ALIASES, ambiguous, band_sets
from .source import IngestOptions, Source, is_auxiliary

_SMALLEST = math.prod(IMAGE_SHAPE[1:])  # numbers in an image of one band


@dataclass(frozen=True)
class ImageTable:
    """A table with images: one column of all bands, or five in the order u, g, r, i, z."""

    table: Hdu
    columns: tuple[TableColumn, ...]

    @property
    def by_band(self) -> bool:
        """Return whether each band has a column of its own."""
        return len(self.columns) > 1


def find_image_table(source: str, hdus: Sequence[Hdu], options: IngestOptions) -> ImageTable | None:
    """Return the table with an image column, None if there is none. Raises InputError if it is not clear which."""
    found = [
        ImageTable(table, columns)
        for table in list_chosen_tables(hdus, options)
        if (columns := _image_columns(source, table, options))
    ]
    if len(found) > 1:
        raise InputError(
            f"{source} has several tables with images: {list_labels(each.table for each in found)}; choose one with "
            "--hdu NAME or --hdu NUMBER"
        )
    return found[0] if found else None


def _image_columns(source: str, table: Hdu, options: IngestOptions) -> tuple[TableColumn, ...]:
    columns = {column.name: column for column in list_columns(source, table) if column.name}
    vectors = {name: each for name, each in columns.items() if each.kind in "PQ" or each.repeat >= _SMALLEST}
    if "image" in options.names:
        return _given(columns, options.names["image"])
    images = {name: each for name, each in vectors.items() if not is_auxiliary(name)}
    strong, weak = ALIASES["image"]
    sets = band_sets(images)
    candidates = [(name,) for name in images if name.lower() in strong] + list(sets.values())
    candidates = candidates or [(name,) for name in images if name.lower() in weak]
    if not candidates:
        _require_no_missing_band(source, table, list(images))
    if len(candidates) > 1:
        patterns = {names: pattern for pattern, names in sets.items()}
        raise ambiguous(source, "image", [patterns.get(names, names[0]) for names in candidates])
    return tuple(columns[name] for name in candidates[0]) if candidates else ()


def _given(columns: dict[str, TableColumn], given: str) -> tuple[TableColumn, ...]:
    """Return the columns that the user's name of the image means, one or five by a pattern with `{band}`; or none."""
    lower = {name.lower(): each for name, each in columns.items()}
    wanted = [given.replace("{band}", band) for band in BANDS] if "{band}" in given else [given]
    found = [columns.get(name, lower.get(name.lower())) for name in wanted]
    return tuple(each for each in found if each is not None) if None not in found else ()


def _require_no_missing_band(source: str, table: Hdu, names: Sequence[str]) -> None:
    """Raise InputError if columns differ by the band alone, but are not those of all five bands."""
    stems: dict[str, list[str]] = {}
    for name in names:
        if len(letter := band_letter(name)) == 1:
            stems.setdefault(strip_band(name, letter), []).append(name)
    for members in stems.values():
        if len(members) > 1:
            order_to_ugriz(f"{source}: the image columns of table {table.label}", members)


def read_image_table(source: str, hdus: Sequence[Hdu], found: ImageTable, options: IngestOptions) -> Source:
    """Return the galaxies of a table with images; the other columns are their values.

    Raises InputError if the images have no shape that is known, or if their columns differ.
    """
    table, columns, headers = found.table, found.columns, [found.table.cards, hdus[0].cards]
    shapes = {_inner_shape(source, column, found.by_band) for column in columns}
    if len(shapes) > 1:
        raise InputError(
            f"{source}: {', '.join(f'{column.name} {_inner_shape(source, column, True)}' for column in columns)} have "
            "different shapes; expected one"
        )
    shape = shapes.pop()
    stated = stated_flux_unit(headers)
    units = [FluxUnit(column.unit or stated.text, stated.zero_point) for column in columns]
    combined = BandUnits(units[0])
    if found.by_band:
        combined = combine_units(source, [f"{source}: {column.name}" for column in columns], units, may_differ=False)
    factors = combined.factors or (1.0,) * len(columns)
    masks = _mask_columns(source, found, shape)
    images = [column.name for column in (*columns, *(each for group in masks.values() for each in group))]
    values = read_table_values(source, hdus, table, options, images)
    return Source(
        {"image": stream_columns(source, table, columns, shape, factors), **values.fields},
        bands=tuple(BANDS) if found.by_band else _bands(source, table, headers),
        magnitude_bands=values.magnitude_bands,
        flux_unit=combined.unit,
        magnitude_unit=values.magnitude_unit,
        pixel_scale=stated_pixel_scale(source, headers),
        masks={name: stream_columns(source, table, group, shape, (1.0,) * len(group)) for name, group in masks.items()},
        columns=values.columns,
        column_units=values.column_units,
        others=values.others,
        notices=(*combined.notices, *values.notices),
    )


def _inner_shape(source: str, column: TableColumn, by_band: bool) -> tuple[int, ...]:
    """Return the shape of the images in a column: that of TDIM, else of squares, (H, W) or (5, H, W)."""
    expected = "(H, W)" if by_band else "(5, H, W) or (H, W, 5)"
    shape = column.dimensions
    if column.kind in "PQ":
        raise InputError(
            f"{source}: {column.name} holds arrays of variable length; expected images of one size, "
            f"{expected}, write the column anew"
        )
    if shape and math.prod(shape) == column.repeat:
        while len(shape) > 2 + (not by_band) and shape[0] == 1:
            shape = shape[1:]
    elif not shape:
        planes = 1 if by_band else len(BANDS)
        side = math.isqrt(column.repeat // planes)
        shape = ((side, side) if by_band else (planes, side, side)) if planes * side * side == column.repeat else ()
    if len(shape) != 2 + (not by_band) or math.prod(shape) != column.repeat:
        stated = f"the dimensions {column.dimensions}" if column.dimensions else "no dimensions (TDIM)"
        raise InputError(
            f"{source}: {column.name} has {column.repeat} numbers for each galaxy and {stated}; expected {expected}"
        )
    return shape


def _bands(source: str, table: Hdu, headers: Sequence[dict[str, object]]) -> tuple[str, ...]:
    """Return the order of the bands that the headers state, or a column with a text for each galaxy."""
    texts = [each.name for each in list_columns(source, table) if each.kind == "A" and each.name.lower() in BAND_NAMES]
    orders = {stated_bands(source, headers)}
    for name, values in read_columns(source, table, texts).items():
        try:
            order = parse_bands(values)
        except ValueError as error:
            raise InputError(f"{source}: {name} states {error}; expected one order") from None
        orders |= {order} if len(order) >= len(BANDS) else set()
    orders = {order for order in orders if order}
    if len({tuple(map(band_letter, order)) for order in orders}) > 1:
        raise InputError(f"{source}: it states several orders of bands; expected one, leave the others out")
    return orders.pop() if orders else ()


def _mask_columns(source: str, found: ImageTable, shape: tuple[int, ...]) -> dict[str, tuple[TableColumn, ...]]:
    """Return the columns that say which pixels of the images are sound, by their name without the band."""
    beside = {
        column.name: column
        for column in list_columns(source, found.table)
        if is_mask(column.name) and column not in found.columns and column.kind in "LBIJKED"
        and column.repeat == math.prod(shape)
    }  # fmt: skip
    if not found.by_band:
        return {name: (column,) for name, column in beside.items() if column.dimensions in ((), shape)}
    return {
        strip_band(names[0], band_letter(names[0])): tuple(beside[name] for name in names)
        for names in band_sets(beside).values()
    }
