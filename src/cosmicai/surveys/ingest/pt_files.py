"""Published `.pt` partitions whose tensors are of another dtype, shape or order than a shard that is read in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.torch_archive import TensorRef
from ...storage.ranges import RangeReader, open_ranges
from ..published_partition import locate_fields
from .source import IngestOptions, Source, check_dtype, from_sliceable


@contextmanager
def open_partition(source: str, _options: IngestOptions) -> Iterator[Source]:
    """Open a pickled TensorDataset(image, magnitude, redshift), known by their order; raises as `locate_fields`."""
    with open_ranges(source) as reader:
        rows = {field: _TensorRows(tensor, reader) for field, tensor in locate_fields(source, reader).items()}
        for field, array in rows.items():
            check_dtype(source, field, np.dtype(array.dtype))
        yield Source({field: from_sliceable(array) for field, array in rows.items()})


class _TensorRows:
    """A tensor of any dtype and strides as something that can be sliced by rows."""

    def __init__(self, tensor: TensorRef, reader: RangeReader) -> None:
        self.shape, self.dtype = tensor.shape, "<f4" if tensor.dtype == "bfloat16" else tensor.dtype
        self._tensor, self._reader = tensor, reader

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        whole, stride = self._tensor, self._tensor.strides[0] * self._tensor.itemsize
        shape = (rows.stop - rows.start, *whole.shape[1:])
        return replace(whole, offset=whole.offset + rows.start * stride, shape=shape).read(self._reader)
