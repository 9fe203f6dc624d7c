"""FITS files of one galaxy with an extension for each band."""

from __future__ import annotations

from collections.abc import Sequence

from ..bands import BANDS
from .fits_hdus import Hdu, list_labels
from .fits_headers import stated_flux_unit, stated_pixel_scale
from .fits_images import open_image, require_one_shape, stack_bands
from .fits_select import is_plane, select_mask_sets
from .fits_statements import combine_scales, combine_units
from .fits_values import read_header_values
from .source import IngestOptions, Source, SourceArray


def read_planes(source: str, hdus: Sequence[Hdu], planes: Sequence[Hdu], options: IngestOptions) -> Source:
    """Return the galaxy whose images in u, g, r, i and z are these HDUs.

    Raises InputError if they have different shapes, units or pixel scales.
    """
    labels = [f"{source}: HDU {hdu.label}" for hdu in planes]
    require_one_shape(source, [hdu.label for hdu in planes], [hdu.shape[-2:] for hdu in planes])
    primary = [hdus[0].cards]
    units = combine_units(source, labels, [stated_flux_unit([hdu.cards, *primary]) for hdu in planes], may_differ=False)
    scale = combine_scales(source, [stated_pixel_scale(source, [hdu.cards, *primary]) for hdu in planes])
    masks = select_mask_sets(source, hdus, planes[0].shape[-2:])
    used = {hdu.number for group in (planes, *masks.values()) for hdu in group}
    unused = [hdu for hdu in hdus if is_plane(hdu) and hdu.number not in used]
    text = f"{source}: the images {list_labels(unused)} are not one for each band and are not used"
    values = read_header_values(source, hdus, planes[0], options)
    return Source(
        {"image": stack_bands([open_plane(source, hdu) for hdu in planes], units.factors), **values.fields},
        bands=tuple(BANDS),
        magnitude_bands=values.magnitude_bands,
        flux_unit=units.unit,
        pixel_scale=scale,
        masks={name: stack_bands([open_plane(source, hdu) for hdu in group]) for name, group in masks.items()},
        columns=values.columns,
        column_units=values.column_units,
        others=values.others,
        notices=(*units.notices, *values.notices, *[text] * bool(unused)),
    )


def open_plane(source: str, hdu: Hdu) -> SourceArray:
    """Return the images (N, H, W) of one band, (1, H, W) of a single galaxy."""
    return open_image(source, hdu, len(hdu.shape) == 2)
