"""Write a shard, with the checksums of its rows (see `surveys.shard` for the format)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import describe_os_errors
from ..storage import atomic_write
from .bands import BANDS
from .checksums import ChecksumWriter, create_checksums, write_checksums
from .identity import INT64, convert_objids, is_text
from .shard import FIELDS, FORMAT, Galaxies


def write_shard(
    path: Path,
    batches: Iterable[Galaxies],
    galaxies: int,
    fields: Iterable[str],
    objid_dtype: np.dtype[Any] = INT64,
) -> str:
    """Write a shard of exactly `galaxies` galaxies from batches, holding one batch in memory; whole or not at all.

    Return its digest. `fields` names the datasets to write, `objid_dtype` is int64 or `S<n>`. Raises StorageError if
    there is no space or no permission, ValueError if the batches hold another number of galaxies, or ids that do not
    fit.
    """
    import h5py

    row, fields = 0, tuple(fields)
    checksums = ChecksumWriter(galaxies, fields)
    with atomic_write(str(path)) as temporary:
        with _describe_hdf5_errors(path):
            # Since HDF5 1.8 headers have checksums of their own. No other process knows of the file: it needs no lock.
            file = h5py.File(temporary, "w", locking=False, libver=("v108", "v108"))
        try:
            with _describe_hdf5_errors(path):
                file.attrs["format"], file.attrs["bands"] = FORMAT, BANDS
                create_checksums(file, galaxies, fields)
                dtypes = {name: dtype for name, (_, (dtype, *_), _) in FIELDS.items()}
                if is_text(objid_dtype):
                    dtypes["objid"] = h5py.string_dtype("utf-8", objid_dtype.itemsize)
                datasets = {
                    name: file.create_dataset(name, (galaxies, *FIELDS[name][0]), dtypes[name]) for name in fields
                }
            for batch in batches:  # outside the handler below: an error of the source is not one of writing
                if row + len(batch) <= galaxies:
                    columns = {name: getattr(batch, name) for name in datasets}
                    if "objid" in columns:
                        columns["objid"] = convert_objids(batch.objid, objid_dtype)
                    # Copied, since an array of text else keeps a dtype that h5py does not know as text.
                    for name, values in columns.items():
                        columns[name] = values.astype(dtypes[name], copy=is_text(values.dtype))
                    checksums.add(list(columns.values()))
                    with _describe_hdf5_errors(path):
                        for name, dataset in datasets.items():
                            dataset[row : row + len(batch)] = columns[name]
                row += len(batch)
            with _describe_hdf5_errors(path):
                digest = write_checksums(file, fields, checksums.table)
        finally:
            with _describe_hdf5_errors(path):
                file.close()
        if row != galaxies:
            raise ValueError(f"{path}: {row} galaxies were given, {galaxies} announced")
    return digest


@contextmanager
def _describe_hdf5_errors(path: Path) -> Iterator[None]:
    """Do as `describe_os_errors` for writing with HDF5, which may raise RuntimeError for the system's errors."""
    with describe_os_errors(str(path), "write"):
        try:
            yield
        except RuntimeError as error:
            raise OSError(str(error)) from error
