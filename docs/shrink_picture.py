"""Write a plot as a small PNG for the README: `python docs/shrink_picture.py PLOT PICTURE`."""

from __future__ import annotations

import sys

from PIL import Image

WIDTH, COLOURS = 480, 128


def shrink(plot: str, picture: str) -> None:
    """Write the image in the file `plot` to the PNG file `picture`, WIDTH pixels wide."""
    with Image.open(plot) as image:
        height = round(image.height * WIDTH / image.width)
        small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    shrink(*sys.argv[1:])
