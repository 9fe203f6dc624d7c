"""HDF5 files of any layout: the datasets may lie in groups, be chunked, compressed, or of another dtype than ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import h5py

from ...errors import InputError
from ..shard import HDF5_ERRORS
from .source import SourceFields, find_fields, from_sliceable


@contextmanager
def open_hdf5(source: str, names: Mapping[str, str]) -> Iterator[SourceFields]:
    """Open an HDF5 file, its fields known by the full paths of their datasets. Raises InputError if it is damaged."""
    available: list[str] = []

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            available.append(name)

    with ExitStack() as stack:
        try:
            file = stack.enter_context(h5py.File(source, "r"))
            file.visititems(collect)
            found = find_fields(source, available, names)
            fields = {field: from_sliceable(file[name]) for field, name in found.items()}
        except HDF5_ERRORS as error:
            problem = "is truncated" if "truncated" in str(error) else "is not an HDF5 file or is damaged"
            raise InputError(f"{source} {problem}; copy it again") from None
        yield fields
