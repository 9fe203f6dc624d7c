"""FITS files in the shapes in which astronomers have their cutouts.

Many galaxies are a cube (N, 5, H, W) with a table of N rows, or image columns of a table. One galaxy is a cube
(5, H, W), or an image for each band, with its values in the header. What a file says is obeyed: bands, units, scaling,
blank values, checksums, the pixel scale of its WCS. Astropy is imported only when a FITS file is opened: it is optional
and slow to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ...errors import InputError
from ..mask_arrays import fits_image, is_mask
from .fits_hdus import Hdu, list_labels
from .fits_headers import stated_bands, stated_flux_unit, stated_pixel_scale
from .fits_image_columns import find_image_table, read_image_table
from .fits_images import open_image
from .fits_open import explain_fits_errors, open_hdus
from .fits_planes import read_planes
from .fits_select import find_chosen_image, is_plane, require_hdus, select_cube, select_planes, select_table
from .fits_tables import list_columns
from .fits_values import read_header_values, read_table_values
from .names import list_names
from .source import IngestOptions, Source, SourceArray


@contextmanager
def open_fits(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open a FITS file of any kind, and raise InputError if it is none, damaged, or not clear.

    It holds a cube (N, 5, H, W) and a table of N rows with MAGNITUDE (5-vector) or MAG_U ... MAG_Z and, if known,
    REDSHIFT, OBJID, RA and DEC; or such a table with images in a column IMAGE or in five, IMAGE_U ... IMAGE_Z; or one
    galaxy, a cube (5, H, W) or five images known by EXTNAME or FILTER, with MAG_U ... MAG_Z and so on in its header.
    """
    with ExitStack() as stack:
        with explain_fits_errors(source):
            hdus = open_hdus(stack, source)
            found = _find_source(source, hdus, options)
        yield found


def _find_source(source: str, hdus: Sequence[Hdu], options: IngestOptions) -> Source:
    require_hdus(source, hdus, options)
    chosen = find_chosen_image(source, hdus, options)
    if chosen is not None and not is_plane(chosen):
        if len(chosen.shape) not in (3, 4):
            raise _wrong_shape(source, chosen)
        return _read_cube(source, hdus, chosen, options)
    if chosen is None and "image" in options.names:
        table = find_image_table(source, hdus, options)
        if table is None:
            raise InputError(f"{source} has no HDU {options.names['image']}; it has {list_labels(hdus)}")
        return read_image_table(source, hdus, table, options)
    if chosen is None and (cube := select_cube(source, hdus)) is not None:
        return _read_cube(source, hdus, cube, options)
    if planes := select_planes(source, hdus, options):
        return read_planes(source, hdus, planes, options)
    if chosen is not None:
        raise _wrong_shape(source, chosen)
    if (table := find_image_table(source, hdus, options)) is not None:
        return read_image_table(source, hdus, table, options)
    tables = [column.name for hdu in hdus if hdu.is_table for column in list_columns(source, hdu)]
    holds = f", its tables hold {list_names(tables)}" if tables else ""
    raise InputError(
        f"{source} has no image{holds}; expected a cube (N, 5, H, W), or (5, H, W) for one galaxy, or an image for "
        "each of u g r i z by EXTNAME or FILTER, or an image column of a table"
    )


def _wrong_shape(source: str, hdu: Hdu) -> InputError:
    return InputError(f"{source}: HDU {hdu.label} has the shape {hdu.shape}; expected a cube of cutouts")


def _read_cube(source: str, hdus: Sequence[Hdu], image: Hdu, options: IngestOptions) -> Source:
    headers = [image.cards, *[hdus[0].cards] * (image is not hdus[0])]
    single = len(image.shape) == 3
    if single:
        values = read_header_values(source, hdus, image, options)
    else:
        values = read_table_values(source, hdus, select_table(source, hdus, image.shape[0], options), options)
    return Source(
        {"image": open_image(source, image, single), **values.fields},
        bands=stated_bands(source, headers),
        magnitude_bands=values.magnitude_bands,
        flux_unit=stated_flux_unit(headers),
        magnitude_unit=values.magnitude_unit,
        pixel_scale=stated_pixel_scale(source, headers),
        masks=_masks(source, hdus, image, single),
        columns=values.columns,
        column_units=values.column_units,
        others=values.others,
        notices=values.notices,
    )


def _masks(source: str, hdus: Sequence[Hdu], image: Hdu, single: bool) -> dict[str, SourceArray]:
    """Return the masks beside an image by their names, or by name and number where a name occurs twice."""
    galaxies = (1,) if single else ()
    shape = (*galaxies, *image.shape)
    beside = [hdu for hdu in hdus if hdu is not image and hdu.is_image and is_mask(hdu.name)]
    masks = [hdu for hdu in beside if fits_image((*galaxies, *hdu.shape), shape)]
    names = [hdu.name for hdu in masks]
    return {
        hdu.name if names.count(hdu.name) == 1 else f"{hdu.name}-{hdu.number}": open_image(source, hdu, single)
        for hdu in masks
    }
