"""Write a shard, with the checksums of its rows (see `surveys.shard` for the format)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import describe_os_errors
from ..storage import atomic_write
from .bands import BANDS
from .checksums import ChecksumWriter, create_checksums, write_checksums
from .columns import ColumnSpec
from .identity import INT64, convert_objids, is_text
from .shard import FIELDS, FORMAT, Galaxies


def write_shard(
    path: Path,
    batches: Iterable[Galaxies],
    galaxies: int,
    fields: Iterable[str],
    objid_dtype: np.dtype[Any] = INT64,
    columns: Mapping[str, ColumnSpec] | None = None,
) -> str:
    """Write a shard of exactly `galaxies` galaxies from batches, holding one batch in memory; whole or not at all.

    Return its digest. `fields` names the datasets to write, `objid_dtype` is int64 or `S<n>`, and `columns` are those
    of the batches, by their paths. Raises StorageError if there is no space or no permission, ValueError if the batches
    hold another number of galaxies, or ids that do not fit.
    """
    import h5py

    columns = columns or {}
    row, names = 0, (*fields, *columns)
    checksums = ChecksumWriter(galaxies, names)
    with atomic_write(str(path)) as temporary:
        with _describe_hdf5_errors(path):
            # Since HDF5 1.8 headers have checksums of their own. No other process knows of the file: it needs no lock.
            file = h5py.File(temporary, "w", locking=False, libver=("v108", "v108"))
        try:
            with _describe_hdf5_errors(path):
                file.attrs["format"], file.attrs["bands"] = FORMAT, BANDS
                create_checksums(file, galaxies, names)
                dtypes = _dtypes(objid_dtype, columns)
                datasets = {
                    name: file.create_dataset(name, (galaxies, *_row_shape(name)), dtypes[name]) for name in names
                }
                for name, spec in columns.items():
                    datasets[name].attrs.update({"unit": spec.unit} if spec.unit else {})
                    datasets[name].attrs.update({} if spec.null is None else {"null": spec.dtype.type(spec.null)})
            for batch in batches:  # outside the handler below: an error of the source is not one of writing
                if row + len(batch) <= galaxies:
                    values = {name: batch.columns[name] if name in columns else getattr(batch, name) for name in names}
                    if "objid" in values:
                        values["objid"] = convert_objids(batch.objid, objid_dtype)
                    # Copied, since an array of text else keeps a dtype that h5py does not know as text.
                    for name, array in values.items():
                        values[name] = array.astype(dtypes[name], copy=is_text(array.dtype))
                    checksums.add(list(values.values()))
                    with _describe_hdf5_errors(path):
                        for name, dataset in datasets.items():
                            dataset[row : row + len(batch)] = values[name]
                row += len(batch)
            with _describe_hdf5_errors(path):
                digest = write_checksums(file, names, checksums.table)
        finally:
            with _describe_hdf5_errors(path):
                file.close()
        if row != galaxies:
            raise ValueError(f"{path}: {row} galaxies were given, {galaxies} announced")
    return digest


def _row_shape(name: str) -> tuple[int, ...]:
    return FIELDS[name][0] if name in FIELDS else ()


def _dtypes(objid_dtype: np.dtype[Any], columns: Mapping[str, ColumnSpec]) -> dict[str, Any]:
    """Return the dtypes of all datasets, text in the way in which HDF5 knows it as UTF-8."""
    import h5py

    plain = {name: np.dtype(dtype) for name, (_, (dtype, *_), _) in FIELDS.items()}
    plain |= {"objid": objid_dtype} | {name: spec.dtype for name, spec in columns.items()}
    return {
        name: h5py.string_dtype("utf-8", dtype.itemsize) if is_text(dtype) else dtype for name, dtype in plain.items()
    }


@contextmanager
def _describe_hdf5_errors(path: Path) -> Iterator[None]:
    """Do as `describe_os_errors` for writing with HDF5, which may raise RuntimeError for the system's errors."""
    with describe_os_errors(str(path), "write"):
        try:
            yield
        except RuntimeError as error:
            raise OSError(str(error)) from error
