"""CHECKSUM and DATASUM of FITS files, verified in pieces so that no cube is held in memory.

The sum is the ones' complement sum of the bytes as big-endian 32-bit numbers (FITS standard 4.0, appendix J). DATASUM
is that of the data, and CHECKSUM makes that of the whole HDU all ones.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ...errors import InputError
from .fits_hdus import Hdu, describe_hdu

_PIECE = 2**22
_ALL_ONES = 2**32 - 1
_PUNCTUATION = ":;<=>?@[\\]^_`"  # which must not occur in a CHECKSUM


def verify_checksums(source: str, data: bytes | None, hdus: Sequence[Hdu]) -> None:
    """Raise InputError naming the HDU if data of a FITS file differ from a checksum that the file states.

    `data` are the bytes of the file, None if they are to be read from it.
    """
    if any(hdu.is_compressed for hdu in hdus):  # the headers of such HDUs are those of the images before
        from astropy.io import fits

        opened = source if data is None else BytesIO(data)
        with fits.open(opened, memmap=False, disable_image_compression=True) as raw:
            _verify(source, data, [describe_hdu(number, each) for number, each in enumerate(raw)])
    else:
        _verify(source, data, hdus)


def _verify(source: str, data: bytes | None, hdus: Sequence[Hdu]) -> None:
    stating = [hdu for hdu in hdus if "CHECKSUM" in hdu.cards or "DATASUM" in hdu.cards]
    if not stating:
        return
    with BytesIO(data) if data is not None else _open_stream(Path(source)) as stream:
        for hdu in stating:  # in their order: a gzip stream goes back by starting anew
            header_sum = sum_words(stream, hdu.header_begin, hdu.begin - hdu.header_begin)
            data_sum = sum_words(stream, hdu.begin, hdu.span)
            stated = str(hdu.cards.get("DATASUM", "")).strip()
            wrong_data = stated.isdecimal() and int(stated) not in (data_sum, data_sum % _ALL_ONES)
            stated = str(hdu.cards.get("CHECKSUM", "")).strip()
            wrong_header = stated not in ("", "0" * 16) and _add(header_sum, data_sum) % _ALL_ONES
            if wrong_data or wrong_header:
                name = "DATASUM" if wrong_data else "CHECKSUM"
                raise InputError(
                    f"{source}: HDU {hdu.label} differs from the {name} that it states: it was damaged or "
                    "edited after it was written; copy it again"
                )


def _open_stream(path: Path) -> BinaryIO:
    with path.open("rb") as probe:
        is_gzip = probe.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if is_gzip else path.open("rb")


def _add(first: int, second: int) -> int:
    total = first + second
    return (total & _ALL_ONES) + (total >> 32)


def encode_checksum(total: int) -> str:
    """Return the text by which CHECKSUM makes the sum of an HDU all ones, given the sum with CHECKSUM = '0' * 16.

    Each byte of the complement is written as four letters or digits that add up to it.
    """
    complement = _ALL_ONES - total
    text = [0] * 16
    for place, byte in enumerate(complement.to_bytes(4, "big")):
        letters = [byte // 4 + ord("0")] * 4
        letters[0] += byte % 4
        while any(chr(letter) in _PUNCTUATION for letter in letters):
            for first in (0, 2):
                if any(chr(letter) in _PUNCTUATION for letter in letters[first : first + 2]):
                    letters[first], letters[first + 1] = letters[first] + 1, letters[first + 1] - 1
        text[place::4] = letters
    return bytes([text[-1], *text[:-1]]).decode()  # since the value begins at a byte that is no multiple of four


def sum_words(stream: BinaryIO, offset: int, length: int) -> int:
    """Return the ones' complement sum of `length` bytes, a multiple of four, from `offset`."""
    stream.seek(offset)
    total = 0
    while length > 0 and (piece := stream.read(min(_PIECE, length))):
        length -= len(piece)
        numbers = np.frombuffer(piece[: len(piece) // 4 * 4], ">u4")
        total += int(numbers.sum(dtype=np.uint64))
    while total > _ALL_ONES:
        total = (total & _ALL_ONES) + (total >> 32)
    return total
