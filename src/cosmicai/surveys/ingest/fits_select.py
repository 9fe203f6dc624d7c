"""Which HDUs of a FITS file are the image, or those of each band, and the table."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import InputError
from ..bands import BANDS, band_letter, order_to_ugriz
from ..mask_arrays import is_mask
from .fits_hdus import Hdu, list_labels
from .fits_headers import stated_bands
from .fits_tables import list_columns
from .names import find_fields
from .source import IngestOptions, is_auxiliary

IMAGE_NAMES = ("image", "images", "sci", "science", "img", "cutout", "cutouts", "cube", "flux")


def require_hdus(source: str, hdus: Sequence[Hdu], options: IngestOptions) -> None:
    """Raise InputError unless all HDUs that the user chose by name or number are in the file."""
    for name in options.hdus:
        if not any(_is_called(hdu, name) for hdu in hdus):
            raise InputError(f"{source} has no HDU {name}; it has {list_labels(hdus)}")


def is_plane(hdu: Hdu) -> bool:
    """Return whether an HDU is an image (H, W) or (1, H, W)."""
    return hdu.is_image and (len(hdu.shape) == 2 or (len(hdu.shape) == 3 and hdu.shape[0] == 1))


def find_chosen_image(source: str, hdus: Sequence[Hdu], options: IngestOptions) -> Hdu | None:
    """Return the image that the user chose by --hdu or --field image=; None if there is none so chosen.

    Raises InputError if several HDUs have the name that was given.
    """
    for name in [*options.hdus, *(name for field, name in options.names.items() if field == "image")]:
        if chosen := [hdu for hdu in hdus if _is_called(hdu, name) and hdu.is_image]:
            _require_one(source, name, chosen)
            return chosen[0]
    return None


def select_cube(source: str, hdus: Sequence[Hdu]) -> Hdu | None:
    """Return the cube of cutouts of a file: by its name, else the only one there is that lies beside no other.

    None if there is no cube. Raises InputError if several could be it.
    """
    cubes = [hdu for hdu in hdus if hdu.is_image and len(hdu.shape) in (3, 4) and not is_plane(hdu)]
    stacks = [hdu for hdu in cubes if len(hdu.shape) == 4] or cubes
    if not stacks:
        return None
    named = [hdu for hdu in stacks if hdu.name.lower() in IMAGE_NAMES]
    candidates = named or [hdu for hdu in stacks if not is_auxiliary(hdu.name)]
    if not candidates and any(find_band(source, hdu) for hdu in hdus if is_plane(hdu)):
        return None  # what lies beside the images of the bands
    if len(candidates) != 1:
        raise InputError(
            f"{source} has several candidates for image: {list_labels(candidates or stacks)}; choose one with "
            "--hdu NAME or --hdu NUMBER"
        )
    return candidates[0]


def find_band(source: str, hdu: Hdu) -> str:
    """Return what an HDU says of the one band of its image, a letter where it is known; empty if it says nothing.

    It is known by EXTNAME, as `u`, `SDSS_U` or `g-band`, or by cards such as FILTER and BAND. Raises InputError if they
    contradict each other.
    """
    letter = band_letter(hdu.name)
    by_name = letter if len(letter) == 1 and letter.isalpha() else ""
    by_cards = stated_band(source, hdu)
    if by_name and by_cards and by_name != by_cards:
        raise InputError(
            f"{source}: HDU {hdu.label} states the band {by_cards} in its header; expected that of its name, correct "
            "one of them"
        )
    return by_cards or by_name


def stated_band(source: str, hdu: Hdu) -> str:
    """Return the band that the cards of a header state, a letter where it is known; empty if they state none."""
    words = " ".join(stated_bands(source, [hdu.cards]))
    return band_letter(words) if words else ""


def select_planes(source: str, hdus: Sequence[Hdu], options: IngestOptions) -> tuple[Hdu, ...]:
    """Return the images of u, g, r, i and z in this order; empty if no image says of which band it is.

    Raises InputError if a band is missing, unknown, or there twice.
    """
    planes = [hdu for hdu in hdus if is_plane(hdu) and not is_auxiliary(hdu.name)]
    if options.hdus and (chosen := [hdu for hdu in planes if any(_is_called(hdu, name) for name in options.hdus)]):
        planes = chosen
    banded = [(hdu, band) for hdu in planes if (band := find_band(source, hdu))]
    if not banded:
        return ()
    images = [hdu for hdu, _ in banded]
    order = order_to_ugriz(f"{source}: HDUs {list_labels(images)}", [band for _, band in banded])
    return tuple(images[position] for position in order)


def select_mask_sets(source: str, hdus: Sequence[Hdu], shape: tuple[int, ...]) -> dict[str, tuple[Hdu, ...]]:
    """Return the masks that are there for each band in this shape, by their common name, in the order u g r i z."""
    sets: dict[str, dict[str, list[Hdu]]] = {}
    for hdu in hdus:
        if is_plane(hdu) and hdu.shape[-2:] == shape and is_mask(hdu.name) and (band := find_band(source, hdu)):
            sets.setdefault(strip_band(hdu.name, band), {}).setdefault(band, []).append(hdu)
    return {
        name: tuple(bands[band][0] for band in BANDS)
        for name, bands in sets.items()
        if set(bands) == set(BANDS) and all(len(each) == 1 for each in bands.values())
    }


def strip_band(name: str, band: str) -> str:
    """Return a name such as MASK_U or mask-g without the part that is the band."""
    parts = name.replace("-", "_").split("_")
    return "_".join(part for part in parts if part.lower() != band)


def select_table(source: str, hdus: Sequence[Hdu], galaxies: int, options: IngestOptions) -> Hdu | None:
    """Return the table of the galaxies: chosen by --hdu, else the only one of their number that has magnitudes."""
    tables = [hdu for hdu in hdus if hdu.is_table]
    for name in options.hdus:
        if chosen := [hdu for hdu in tables if _is_called(hdu, name)]:
            _require_one(source, name, chosen)
            return chosen[0]
    fitting = [hdu for hdu in tables if hdu.cards["NAXIS2"] == galaxies] or tables
    if options.image_only:
        return None
    with_magnitudes = [hdu for hdu in fitting if _has_magnitudes(source, hdu, options)]
    if len(with_magnitudes) > 1:
        raise InputError(
            f"{source} has several tables with magnitudes: {list_labels(with_magnitudes)}; choose one with "
            "--hdu NAME or --hdu NUMBER"
        )
    if not with_magnitudes and len(fitting) > 1:
        raise InputError(f"{source} has no table with magnitudes; it has {list_labels(fitting)}")
    return with_magnitudes[0] if with_magnitudes else (fitting[0] if fitting else None)


def _has_magnitudes(source: str, table: Hdu, options: IngestOptions) -> bool:
    names = [column.name.upper() for column in list_columns(source, table)]
    given = {field: name for field, name in options.names.items() if field == "magnitude"}
    try:
        return "magnitude" in find_fields(source, names, given, ["magnitude"])
    except InputError:  # several candidates, said when the table is read; or the names that are given are elsewhere
        return not given


def _is_called(hdu: Hdu, name: str) -> bool:
    return hdu.name.lower() == name.lower() or (name.isdecimal() and hdu.number == int(name))


def list_chosen_tables(hdus: Sequence[Hdu], options: IngestOptions) -> list[Hdu]:
    """Return the tables that the user chose by --hdu, all of them if none."""
    tables = [hdu for hdu in hdus if hdu.is_table]
    return [hdu for hdu in tables if any(_is_called(hdu, name) for name in options.hdus)] or tables


def _require_one(source: str, name: str, chosen: Sequence[Hdu]) -> None:
    if len(chosen) > 1:
        raise InputError(f"{source} has several HDUs {name}: {list_labels(chosen)}; choose one with --hdu NUMBER")
