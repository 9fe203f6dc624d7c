"""CHECKSUM and DATASUM of FITS files, verified in pieces so that no cube is held in memory.

The sum is the ones' complement sum of the bytes as big-endian 32-bit numbers (FITS standard 4.0, appendix J). DATASUM
is that of the data, and CHECKSUM makes that of the whole HDU all ones.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from ...errors import InputError

_PIECE = 2**22
_ALL_ONES = 2**32 - 1


def verify_checksums(source: str, file: Any) -> None:
    """Raise InputError naming the HDU if data of the open FITS file differ from a checksum that the file states.

    It is raised too if a header is unreadable.
    """
    from astropy.io import fits

    _require_headers(source, file)
    if any(isinstance(hdu, fits.CompImageHDU) for hdu in file):  # whose headers are those of the images before
        with fits.open(source, memmap=False, disable_image_compression=True) as raw:
            _verify(source, raw)
    else:
        _verify(source, file)


def _require_headers(source: str, file: Any) -> None:
    """Raise InputError if a header is unreadable: astropy may begin again at the first HDU after it, for ever."""
    for number, hdu in enumerate(file):
        if not hasattr(hdu, "fileinfo"):  # an HDU of which astropy knows no more than that it is corrupted
            raise InputError(f"{source}: the header of HDU {number} is damaged; copy it again")


def _verify(source: str, file: Any) -> None:
    stating = [hdu for hdu in file if "CHECKSUM" in hdu.header or "DATASUM" in hdu.header]
    if not stating:
        return
    path = Path(source)
    with path.open("rb") as probe:
        is_gzip = probe.read(2) == b"\x1f\x8b"
    with cast(BinaryIO, gzip.open(path)) if is_gzip else path.open("rb") as stream:
        for number, hdu in enumerate(file):
            if hdu not in stating:
                continue
            info = hdu.fileinfo()
            header, data, length = info["hdrLoc"], info["datLoc"], info["datSpan"]
            data_sum = _sum(stream, data, length)
            stated = str(hdu.header.get("DATASUM", "")).strip()
            wrong_data = stated.isdecimal() and int(stated) not in (data_sum, data_sum % _ALL_ONES)
            whole = _add(_sum(stream, header, data - header), data_sum)
            wrong_header = str(hdu.header.get("CHECKSUM", "")).strip() not in ("", "0" * 16) and whole % _ALL_ONES
            if wrong_data or wrong_header:
                name = "DATASUM" if wrong_data else "CHECKSUM"
                raise InputError(
                    f"{source}: HDU {number} {hdu.name} differs from the {name} that it states: it was damaged or "
                    "edited after it was written; copy it again"
                )


def _add(first: int, second: int) -> int:
    total = first + second
    return (total & _ALL_ONES) + (total >> 32)


def _sum(stream: BinaryIO, offset: int, length: int) -> int:
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
