"""Arrays beside an image that say which of its pixels are sound: known by their names and shapes, in every format."""

from __future__ import annotations

from .bands import BANDS

MASK_WORDS = ("mask", "dq", "ivar", "invvar", "badpix", "wht", "weight", "flags")


def is_mask(name: str) -> bool:
    """Return whether an array of this name says which pixels of an image are sound."""
    words = name.lower().replace("-", "_").split("_")
    return any(word in MASK_WORDS for word in (name.lower(), *words))


def fits_image(shape: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Return whether an array of this shape has one value per pixel of an image, for each band or for all at once.

    The image is (N, 5, H, W) or (N, H, W, 5). So may be the array, whichever the image is; where one value holds for
    all bands it has one band, or no axis for it.
    """
    bands = len(BANDS)
    if len(image) != 4 or bands not in (image[1], image[-1]):
        return shape == image
    galaxies, height, width = (image[0], *image[2:]) if image[1] == bands else image[:3]
    plane = (galaxies, height, width)
    each = [(galaxies, count, height, width) for count in (bands, 1)]
    return shape in (plane, *each, (*plane, bands), (*plane, 1))
