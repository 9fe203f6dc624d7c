"""The HDUs of FITS files: plain ones are found in the bytes of a small file, all others by astropy."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from .fits_cards import read_cards

_BLOCK = 2880  # bytes; headers and data fill whole blocks
_CARD = 80
_END = b"END" + b" " * (_CARD - 3)
_BITS = (8, 16, 32, 64, -32, -64)
_MOST_AXES = 999


@dataclass(frozen=True)
class Hdu:
    """One header and data unit.

    `text` is the header as it is written and `cards` are its values. `shape` is that of an image, empty for tables and
    for what is neither. The data are `span` bytes from `begin` of `stream`, behind the header from `header_begin`.
    `raw` is astropy's own object, None where it was not needed to find the HDU.
    """

    number: int
    name: str
    text: str
    cards: dict[str, Any]
    shape: tuple[int, ...]
    is_image: bool
    is_table: bool
    header_begin: int
    begin: int
    span: int
    stream: Any
    raw: Any = None
    is_compressed: bool = False

    @property
    def label(self) -> str:
        """Return number and name, as a message lists it."""
        return f"{self.number} {self.name}".strip()


def list_labels(hdus: Iterable[Hdu]) -> str:
    """Return HDUs for a message."""
    return ", ".join(hdu.label for hdu in hdus)


def describe_hdu(number: int, raw: Any) -> Hdu:
    """Return an HDU that astropy found."""
    from astropy.io import fits

    if not hasattr(raw, "fileinfo"):  # an HDU of which astropy knows no more than that it is corrupted
        raise ValueError(f"the header of HDU {number} is damaged")
    images, info = fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU, raw.fileinfo()
    is_image = isinstance(raw, images) and not isinstance(raw, fits.GroupsHDU)
    is_table = not is_image and isinstance(raw, fits.BinTableHDU | fits.TableHDU)
    text = raw.header.tostring(padding=False, endcard=False)
    return Hdu(
        number, str(raw.name), text, read_cards(text), tuple(int(length) for length in raw.shape) if is_image else (),
        is_image, is_table, info["hdrLoc"], info["datLoc"], info["datSpan"], info["file"], raw,
        isinstance(raw, fits.CompImageHDU),
    )  # fmt: skip


def scan_hdus(data: bytes) -> tuple[Hdu, ...] | None:
    """Return the HDUs in the bytes of a file if all are plain images and binary tables, and whole; None otherwise.

    Then astropy is to say what is wrong or unusual: this takes a tenth of its time for what most files are.
    """
    hdus: list[Hdu] = []
    stream, position = BytesIO(data), 0
    while position < len(data) or not hdus:
        end = _find_end(data, position)
        if end is None or not data[position:end].isascii():
            return None
        text = data[position:end].decode("ascii")
        begin = position + -(-(end + _CARD - position) // _BLOCK) * _BLOCK
        hdu = _plain_hdu(len(hdus), text, read_cards(text), position, begin, stream)
        if hdu is None or begin + hdu.span > len(data):
            return None
        hdus.append(hdu)
        position = begin + hdu.span
    return tuple(hdus)


def _find_end(data: bytes, begin: int) -> int | None:
    """Return where the END card of the header from `begin` lies."""
    at = data.find(_END, begin)
    while at >= 0 and (at - begin) % _CARD:
        at = data.find(_END, at + 1)
    return at if at >= 0 else None


def _plain_hdu(
    number: int, text: str, cards: dict[str, Any], header_begin: int, begin: int, stream: BytesIO
) -> Hdu | None:
    kind = "IMAGE" if number == 0 and text.startswith("SIMPLE  =") and cards["SIMPLE"] is True else ""
    if number and text.startswith("XTENSION="):
        kind = str(cards["XTENSION"])
    axes, bits = cards.get("NAXIS"), cards.get("BITPIX")
    if kind not in ("IMAGE", "BINTABLE") or bits not in _BITS or type(axes) is not int or not 0 <= axes <= _MOST_AXES:
        return None
    sides = [cards.get(f"NAXIS{axis}") for axis in range(axes, 0, -1)]
    heap = cards.get("PCOUNT", 0)
    is_usual = cards.get("GCOUNT", 1) == 1 and type(heap) is int and not cards.keys() & {"GROUPS", "ZIMAGE", "ZTABLE"}
    if not is_usual or not all(type(side) is int and side >= 0 for side in sides):
        return None
    if heap < 0 or (kind == "IMAGE" and heap) or (kind == "BINTABLE" and (axes != 2 or bits != 8)):
        return None
    name = str(cards.get("EXTNAME") or ("" if number else "PRIMARY")).strip().upper()
    shape = tuple(int(side) for side in sides if side is not None)
    size = math.prod(shape) * abs(bits) // 8 + heap if axes else 0
    span = -(-size // _BLOCK) * _BLOCK
    is_image = kind == "IMAGE"
    return Hdu(
        number, name, text, cards, shape if is_image else (), is_image, not is_image, header_begin, begin, span, stream
    )
