"""Published `.pt` partitions whose tensors are of another dtype, shape or order than a shard that is read in place."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...models.torch_archive import TensorRef
from ...storage.ranges import RangeReader, open_ranges
from ..mask_arrays import fits_image
from ..published_partition import ORDER, locate_tensors
from .source import IngestOptions, Source, check_dtype, from_sliceable


@contextmanager
def open_partition(source: str, _options: IngestOptions) -> Iterator[Source]:
    """Open a pickled TensorDataset(image, magnitude, redshift), known by their order, with or without masks behind.

    Raises InputError if it holds other tensors, else as `locate_tensors`.
    """
    with open_ranges(source) as reader:
        tensors = locate_tensors(source, reader)
        count = next((number for number in range(2, len(tensors)) if _is_mask(tensors, number)), len(tensors))
        if count not in (2, 3) or not all(_is_mask(tensors, number) for number in range(count, len(tensors))):
            raise InputError(
                f"{source} holds {len(tensors)} tensors; expected image, magnitude and redshift, in this order, and "
                "behind them nothing but masks of one value per pixel"
            )
        rows = {field: _TensorRows(source, one, reader) for field, one in zip(ORDER, tensors[:count], strict=False)}
        for field, array in rows.items():
            check_dtype(source, field, np.dtype(array.dtype))
        masks = tensors[count:]
        names = ["mask"] if len(masks) == 1 else [f"mask{number}" for number in range(1, len(masks) + 1)]
        yield Source(
            {field: from_sliceable(array) for field, array in rows.items()},
            masks={
                name: from_sliceable(_TensorRows(source, mask, reader)) for name, mask in zip(names, masks, strict=True)
            },
        )


def _is_mask(tensors: tuple[TensorRef, ...], number: int) -> bool:
    return fits_image(tensors[number].shape, tensors[0].shape)


class _TensorRows:
    """A tensor of any dtype and strides as something that can be sliced by rows, from the first to the last one.

    The checksum of a tensor that lies in the file as it is read is compared with its last row.
    """

    def __init__(self, source: str, tensor: TensorRef, reader: RangeReader) -> None:
        self.shape, self.dtype = tensor.shape, "<f4" if tensor.dtype == "bfloat16" else tensor.dtype
        self._source, self._tensor, self._reader = source, replace(tensor, crc32=None), reader
        as_read = tensor.is_contiguous and not tensor.negated and tensor.dtype != "bfloat16"
        self._expected, self._crc = tensor.crc32 if as_read else None, 0

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        whole, stride = self._tensor, self._tensor.strides[0] * self._tensor.itemsize
        shape = (rows.stop - rows.start, *whole.shape[1:])
        values = replace(whole, offset=whole.offset + rows.start * stride, shape=shape).read(self._reader)
        if self._expected is not None:
            self._crc = zlib.crc32(values.tobytes(), self._crc)
            if rows.stop == whole.shape[0] and self._crc != self._expected:
                raise InputError(f"{self._source} is damaged (the checksum of a tensor is wrong); copy it again")
        return values
