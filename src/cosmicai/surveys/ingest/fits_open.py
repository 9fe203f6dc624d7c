"""Opening FITS files: small ones are read and decompressed at once, large ones stay on disk; checksums are verified."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

from ...errors import InputError
from .fits_checksum import verify_checksums
from .fits_hdus import Hdu, describe_hdu, scan_hdus

_SMALL = 16 * 2**20  # bytes of a file that is held in memory
_LARGEST_TILE = 128 * 2**20
_LONGEST_REASON = 200  # characters


@contextmanager
def explain_fits_errors(source: str) -> Iterator[None]:
    """Raise InputError for whatever the body raises: astropy has no one kind of error for damaged files."""
    try:
        yield
    except (InputError, ModuleNotFoundError):  # the latter is said where all missing packages are
        raise
    except PermissionError:
        raise InputError(f"{source} cannot be read: permission denied; change its permissions") from None
    except Exception as error:  # any kind: a wrong card can be a missing key, a wrong type or index, a huge array
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        if "ignore_missing_simple" in reason:  # an advice for programmers
            reason = "it does not begin with SIMPLE"
        raise InputError(f"{source} is not a FITS file or is damaged ({reason}); copy it again") from None


def open_hdus(stack: ExitStack, source: str) -> tuple[Hdu, ...]:
    """Return the HDUs of a file that `stack` closes, their checksums verified where they are stated.

    Call it within `explain_fits_errors`. Raises InputError if a checksum differs, and any error if it is damaged.
    """
    if not Path(source).is_file():
        raise InputError(f"{source} is not a file; check the path")
    data = _read_small(Path(source))
    hdus = (None if data is None else scan_hdus(data)) or _open_by_astropy(stack, source, data)
    verify_checksums(source, data, hdus)
    return hdus


def _open_by_astropy(stack: ExitStack, source: str, data: bytes | None) -> tuple[Hdu, ...]:
    from astropy.io import fits

    opened = source if data is None else BytesIO(data)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "File may have been truncated")
        file = stack.enter_context(fits.open(opened, memmap=False, do_not_scale_image_data=True))
        hdus = tuple(describe_hdu(number, raw) for number, raw in enumerate(file))
    end = hdus[-1].begin + hdus[-1].span
    if data is not None and data.startswith(b"XTENSION", end):  # which astropy leaves out with a warning
        raise InputError(f"{source}: the HDU behind {hdus[-1].label} is damaged; copy the file again")
    for hdu in hdus:
        if hdu.is_compressed:
            _require_small_tiles(source, hdu)
    return hdus


def _read_small(path: Path) -> bytes | None:
    """Return the bytes of a small file, decompressed; None if it is large, or becomes large when decompressed."""
    if path.stat().st_size > _SMALL:
        return None
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    parts, room = [], _SMALL
    while data[:2] == b"\x1f\x8b":  # a gzip file may have several members
        stream = zlib.decompressobj(31)  # which verifies the CRC-32 of the member
        parts.append(stream.decompress(data, room + 1))
        room -= len(parts[-1])
        if room < 0:
            return None
        if not stream.eof:
            raise EOFError("the compressed data end early")
        data = stream.unused_data
    if data.strip(b"\0"):
        raise ValueError("there are other bytes behind the compressed data")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _require_small_tiles(source: str, hdu: Hdu) -> None:
    """Raise InputError for a compressed image of huge tiles, each of which must be held in memory."""
    tile = tuple(int(length) for length in hdu.raw.tile_shape)
    if math.prod(tile) * 8 > _LARGEST_TILE:
        raise InputError(
            f"{source}: HDU {hdu.label} is compressed in tiles of {tile} pixels, which are too large; compress it by "
            "galaxies"
        )
