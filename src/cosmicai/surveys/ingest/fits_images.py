"""Images of FITS files by rows: physical values in floating point, NaN where the file says BLANK."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from .fits_hdus import Hdu
from .fits_open import explain_fits_errors
from .source import SourceArray, from_sliceable

_DTYPES = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}  # by BITPIX


def open_image(source: str, hdu: Hdu, single: bool) -> SourceArray:
    """Return an image (N, ...) as it is, or the only row (1, ...) of one of a `single` galaxy."""
    return from_sliceable(_ScaledRows(source, hdu, single))


class _ScaledRows:
    """The rows of an image HDU."""

    def __init__(self, source: str, hdu: Hdu, single: bool) -> None:
        cards = hdu.cards
        self._source, self._single = source, single
        stored = np.dtype(_DTYPES[cards["BITPIX"]])
        self._read = _raw_reader(hdu, stored)
        self._scale, self._zero = float(cards.get("BSCALE", 1)), float(cards.get("BZERO", 0))
        self._blank = cards.get("BLANK") if stored.kind in "iu" else None
        self._scaled = self._blank is not None or (self._scale, self._zero) != (1, 0)
        self.shape = (1, *hdu.shape) if single else hdu.shape
        self.dtype = np.dtype(np.float64) if self._scaled else stored

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        with explain_fits_errors(self._source):
            if self._single:
                raw = self._read(0, self.shape[1])[None][rows]
            else:
                raw = self._read(rows.start, min(rows.stop, self.shape[0]))
        if not self._scaled:
            return raw
        values = raw * self._scale + self._zero
        return np.asarray(values if self._blank is None else np.where(raw == self._blank, np.nan, values))


def _raw_reader(hdu: Hdu, stored: np.dtype[Any]) -> Callable[[int, int], NDArray[Any]]:
    """Return a function that returns the stored rows from the first to before the last."""
    if hdu.is_compressed:
        return lambda first, last: np.asarray(hdu.raw.section[first:last])
    row, shape = math.prod(hdu.shape[1:]), hdu.shape[1:]
    stream, begin = hdu.stream, hdu.begin

    def read(first: int, last: int) -> NDArray[Any]:
        stream.seek(begin + first * row * stored.itemsize)
        data = stream.read((last - first) * row * stored.itemsize)
        if len(data) != (last - first) * row * stored.itemsize:
            raise EOFError("the image ends early")
        return np.frombuffer(data, stored).reshape(last - first, *shape)

    return read


def stack_bands(arrays: Sequence[SourceArray], factors: Sequence[float] | None = None) -> SourceArray:
    """Return images (N, 5, H, W) of five (N, H, W), multiplied by a factor for each where `factors` are given."""
    dtype = np.result_type(*(array.dtype.newbyteorder("=") for array in arrays))
    if factors is not None:
        dtype = np.dtype(np.float64)

    def read_next(count: int) -> NDArray[Any]:
        planes = [array.read_next(count) for array in arrays]
        stacked = np.empty((len(planes[0]), len(planes), *arrays[0].shape[1:]), dtype)
        for number, plane in enumerate(planes):
            stacked[:, number] = plane if factors is None else plane.astype(np.float64) * factors[number]
        return stacked

    return SourceArray((arrays[0].shape[0], len(arrays), *arrays[0].shape[1:]), dtype, read_next)


def require_one_shape(source: str, labels: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise InputError unless the images of the bands have one shape; `labels` say which is which."""
    if len(set(shapes)) > 1:
        listed = ", ".join(f"{label} {shape}" for label, shape in zip(labels, shapes, strict=True))
        raise InputError(f"{source}: the images of the bands have different shapes ({listed}); expected one shape")
