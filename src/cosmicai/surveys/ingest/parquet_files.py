"""Parquet files with a column of cutouts, as of the Multimodal Universe and of Hugging Face data sets.

The cutouts are nested lists (5, H, W) or (H, W, 5), tensors, or structs that say the band of each picture beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BANDS
from ..columns import POSITION
from ..hdf5 import stated_bands, stated_magnitude_unit
from ..mask_arrays import fits_image, is_mask
from ..units import require_degrees
from .kept import select_columns
from .names import find_fields, last_part, list_names, require_fields, split_masks
from .parquet_columns import PARQUET_ERRORS, Column, ParquetColumns
from .parquet_statements import find_statements, read_bands, read_flux_unit, read_pixel_scale
from .source import IngestOptions, Source, SourceArray, check_dtype, stack_columns, with_mask

_PIXELS = ("flux", "array", "image", "data", "values", "pixels")  # the pixels in a struct of an image


@contextmanager
def open_parquet(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open a Parquet file with one galaxy per row. Raises InputError if it is damaged, or not clear."""
    with ExitStack() as stack:
        try:
            file = ParquetColumns(source, stack)
            columns = file.list_columns()
        except PermissionError:
            raise InputError(f"{source} cannot be read: permission denied; change its permissions") from None
        except PARQUET_ERRORS:
            raise InputError(f"{source} is not a whole Parquet file; copy it again") from None
        if not file.rows:
            raise InputError(f"{source} has no rows; expected one per galaxy")
        yield _select(source, file, columns, options)


def _select(source: str, file: ParquetColumns, columns: Mapping[str, Column], options: IngestOptions) -> Source:
    """Return what columns hold of our fields, those to keep, and what is stated."""
    every = columns
    plain, hidden = split_masks([name for name, column in every.items() if column.is_scalar])
    columns = {name: column for name, column in every.items() if name in plain or not column.is_scalar}

    def read(name: str) -> SourceArray:
        array = file.read_scalars(every[name])
        return with_mask(array, file.read_scalars(every[hidden[name]])) if name in hidden else array

    found = find_fields(source, columns, options.names, options.wanted)
    require_fields(source, found, columns, options.required)
    image = _select_pixels(source, columns, columns[found["image"][0]])
    used = {image.name, *(name for names in found.values() for name in names)}
    statements = find_statements(columns, image, used)
    bands, unstated = read_bands(source, file, image, statements)
    fields = {"image": _image_array(source, file, image, unstated)}
    for field, names in found.items():
        if field != "image":
            fields[field] = stack_columns([_field_array(source, file, field, columns[name], read) for name in names])
    masks = _masks(file, columns, used, fields["image"].shape)
    problems = {
        name: "" if column.is_scalar else f"is of type {str(column.type)[:60]}" for name, column in columns.items()
    }
    kept, notices = select_columns(source, problems, {*used, *masks, *statements}, options)
    units = {short: stated_magnitude_unit(columns[name].metadata) for short, name in kept.items()}
    magnitudes = [columns[name].metadata for name in found.get("magnitude", ())]
    return Source(
        fields,
        bands=bands,
        magnitude_bands=_magnitude_bands(source, magnitudes),
        flux_unit=read_flux_unit(source, file, image, statements),
        magnitude_unit=next(filter(None, map(stated_magnitude_unit, magnitudes)), ""),
        pixel_scale=read_pixel_scale(source, file, image, statements),
        masks={name.replace("[", ".").removesuffix("]"): array for name, array in masks.items()},
        columns={short: read(name) for short, name in kept.items()},
        column_units={short: unit for short, unit in units.items() if unit},
        others=tuple(name for name in columns if name not in {*used, *kept.values()}),
        notices=notices,
    )


def _select_pixels(source: str, columns: Mapping[str, Column], image: Column) -> Column:
    """Return the column of pixels, in a column of structs the member that has them."""
    prefix = f"{image.name}["
    members = {name: column for name, column in columns.items() if name.startswith(prefix)}
    pixels = [name for name in members if last_part(name).lower() in _PIXELS]
    if members and len(pixels) != 1:
        raise InputError(
            f"{source}: image is a struct with {list_names(members)}, of which {' and '.join(pixels) or 'none'} can be "
            "its pixels; name them with --field image=NAME"
        )
    selected = members[pixels[0]] if members else image
    if selected.is_scalar or selected.dtype.kind not in "iuf":
        raise InputError(
            f"{source}: image ({selected.name}) is of type {str(selected.type)[:60]}; expected lists of numbers "
            "(5, H, W) or (H, W, 5)"
        )
    return selected


def _image_array(source: str, file: ParquetColumns, image: Column, unstated: NDArray[np.int64]) -> SourceArray:
    """Return the cutouts. A galaxy whose bands are not stated must have none: its pixels could be of any band."""
    array = file.read_array(image)
    if len(array.shape) == 2:
        raise InputError(
            f"{source}: {image.name} holds lists of {array.shape[1]} numbers; expected nested lists (5, H, W) or "
            "(H, W, 5), or their shape in the metadata of the column under the name shape"
        )
    if not len(unstated):
        return array
    position = 0

    def read_next(count: int) -> NDArray[Any]:
        nonlocal position
        values = array.read_next(count)
        rows = unstated[(unstated >= position) & (unstated < position + len(values))]
        seen = rows[[not np.isnan(values[row - position]).all() for row in rows]] if len(rows) else rows
        if len(seen):
            raise InputError(f"{source}: row {seen[0]} has an image and does not state its bands; write them for it")
        position += len(values)
        return values

    return replace(array, read_next=read_next)


def _field_array(
    source: str, file: ParquetColumns, field: str, column: Column, read: Callable[[str], SourceArray]
) -> SourceArray:
    """Return a field other than the image. Raises InputError if it is of another kind than numbers, or text for ids."""
    if not (column.is_scalar or field == "magnitude"):
        raise InputError(
            f"{source}: {field} ({column.name}) is of type {str(column.type)[:60]}; expected one value per galaxy"
        )
    check_dtype(source, field, column.dtype)
    if field in POSITION:
        require_degrees(f"{source}: {field}", stated_magnitude_unit(column.metadata))
    return read(column.name) if column.is_scalar else file.read_array(column)


def _masks(
    file: ParquetColumns, columns: Mapping[str, Column], used: Collection[str], shape: tuple[int, ...]
) -> dict[str, SourceArray]:
    """Return the arrays beside the image, of its shape, that say which of its pixels are sound."""
    named = [column for name, column in columns.items() if is_mask(last_part(name)) and name not in used]
    lists = [column for column in named if not column.is_scalar and column.dtype.kind in "iuf"]
    arrays = {column.name: file.read_array(column) for column in lists if file.find_levels(column)}
    return {name: array for name, array in arrays.items() if fits_image(array.shape, shape)}


def _magnitude_bands(source: str, metadata: list[dict[str, str]]) -> tuple[str, ...]:
    """Return the bands of the magnitudes where a column of lists states them, or the names of five columns do."""
    if len(metadata) > 1:
        return tuple(BANDS)
    return stated_bands(f"{source}: magnitude", metadata, {}) if metadata else ()
