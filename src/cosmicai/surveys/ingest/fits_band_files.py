"""Galaxies in five FITS files, one for each band."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ...errors import InputError
from ..bands import BANDS
from ..mask_arrays import is_mask
from .fits_hdus import Hdu, list_labels
from .fits_headers import stated_flux_unit, stated_pixel_scale
from .fits_images import require_one_shape, stack_bands
from .fits_open import explain_fits_errors, open_hdus
from .fits_planes import open_plane
from .fits_positions import find_wcs_centre, separation
from .fits_select import (
    IMAGE_NAMES,
    find_band,
    find_chosen_image,
    is_plane,
    require_hdus,
    select_table,
    stated_band,
    strip_band,
)
from .fits_statements import combine_scales, combine_units
from .fits_values import read_header_values, read_table_values
from .source import IngestOptions, Source, SourceArray, is_auxiliary


@dataclass(frozen=True)
class _BandFile:
    source: str
    band: str
    hdus: tuple[Hdu, ...]
    image: Hdu

    @property
    def cards(self) -> list[dict[str, object]]:
        """The headers that may state something of the image."""
        return [self.image.cards, *[self.hdus[0].cards] * (self.image is not self.hdus[0])]


@contextmanager
def open_band_files(sources: Sequence[str], options: IngestOptions) -> Iterator[Source]:
    """Open the files of u, g, r, i and z, in this order: each with an image (H, W), (1, H, W) or (N, H, W).

    What belongs to the galaxies beside their images is in the first file: for one galaxy in its header, for several in
    a table. Raises InputError naming a file if it is damaged or of another band than it is given as, and if the files
    differ in their shapes, places or pixel scales.
    """
    if len(sources) != len(BANDS):
        raise InputError(f"{len(sources)} files are given; expected five, those of u, g, r, i and z in this order")
    with ExitStack() as stack:
        files = []
        for source, band in zip(sources, BANDS, strict=True):
            with explain_fits_errors(source):
                hdus = open_hdus(stack, source)
                files.append(_BandFile(source, band, hdus, _select_image(source, band, hdus, options)))
        with explain_fits_errors(sources[0]):
            found = _combine(files, options)
        yield found


def _select_image(source: str, band: str, hdus: tuple[Hdu, ...], options: IngestOptions) -> Hdu:
    """Return the one image of a file, and raise InputError if it is of another band."""
    require_hdus(source, hdus, options)
    chosen = find_chosen_image(source, hdus, options)
    images = [hdu for hdu in hdus if hdu.is_image and len(hdu.shape) in (2, 3) and not is_auxiliary(hdu.name)]
    named = [hdu for hdu in images if hdu.name.lower() in IMAGE_NAMES]
    candidates = [chosen] if chosen is not None else named or images
    if len(candidates) > 1:
        raise InputError(
            f"{source} has several candidates for image: {list_labels(candidates)}; choose one with --hdu NAME or "
            "--hdu NUMBER"
        )
    if not candidates or len(candidates[0].shape) not in (2, 3):
        raise InputError(f"{source} has no image; expected that of the band {band}, (H, W) or (N, H, W)")
    image = candidates[0]
    for stated in (find_band(source, image), stated_band(source, hdus[0])):
        if stated and stated != band:
            raise InputError(
                f"{source} states the band {stated} and is given as that of {band}; give the five files in the order "
                "u g r i z, or correct the header"
            )
    return image


def _combine(files: Sequence[_BandFile], options: IngestOptions) -> Source:
    first, sources = files[0], [file.source for file in files]
    single = is_plane(first.image)
    shapes = [file.image.shape[-2:] if is_plane(file.image) else file.image.shape for file in files]
    require_one_shape(first.source, sources, shapes)
    units = combine_units(first.source, sources, [stated_flux_unit(file.cards) for file in files], may_differ=True)
    scale = combine_scales(first.source, [stated_pixel_scale(file.source, file.cards) for file in files])
    if single:
        _require_one_place(files)
        values = read_header_values(first.source, first.hdus, first.image, options)
    else:
        table = select_table(first.source, first.hdus, first.image.shape[0], options)
        values = read_table_values(first.source, first.hdus, table, options)
    masks, text = _masks(files)
    images = [open_plane(file.source, file.image) for file in files]
    return Source(
        {"image": stack_bands(images, units.factors), **values.fields},
        bands=tuple(BANDS),
        magnitude_bands=values.magnitude_bands,
        flux_unit=units.unit,
        magnitude_unit=values.magnitude_unit,
        pixel_scale=scale,
        masks=masks,
        columns=values.columns,
        column_units=values.column_units,
        others=values.others,
        notices=(*units.notices, *values.notices, *text),
    )


def _require_one_place(files: Sequence[_BandFile]) -> None:
    """Raise InputError if the WCS of a file lies off that of another by more than a quarter of its diagonal."""
    places = [(file, *find_wcs_centre(file.image)) for file in files]
    known = [(file, centre, radius) for file, centre, radius in places if centre is not None]
    for file, centre, radius in known[1:]:
        if separation(centre, known[0][1]) > radius / 2:
            raise InputError(
                f"{file.source} shows another place on the sky than {known[0][0].source} by its WCS; expected files of "
                "one galaxy"
            )


def _masks(files: Sequence[_BandFile]) -> tuple[dict[str, SourceArray], list[str]]:
    """Return the masks that all files have in the shape of their image, and a notice about those that some lack."""
    found: dict[str, dict[str, SourceArray]] = {}
    for file in files:
        for hdu in file.hdus:
            if hdu is not file.image and hdu.is_image and hdu.shape == file.image.shape and is_mask(hdu.name):
                found.setdefault(strip_band(hdu.name, file.band), {})[file.band] = open_plane(file.source, hdu)
    whole = {name: stack_bands(list(bands.values())) for name, bands in found.items() if len(bands) == len(BANDS)}
    partial = [f"{name} of {' '.join(bands)}" for name, bands in found.items() if len(bands) < len(BANDS)]
    text = f"{files[0].source}: {', '.join(partial)} is not there for every band and not used"
    return whole, [text] if partial else []
