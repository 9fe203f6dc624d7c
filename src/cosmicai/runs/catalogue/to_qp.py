"""The redshifts as an ensemble of qp, in HDF5: a normal distribution per galaxy, which RAIL evaluates.

The group `meta` names the form of the distributions, `data` has their parameters (N, 1), and `ancil` what else is known
of each galaxy: `id` as bytes, the spectroscopic `redshift`, `zmode`, the redshift of the catalogue, and `flag`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...errors import InputError
from .columns import INTERVALS, Column
from .source import CatalogueSource, column_values
from .to_hdf5 import CHUNK_BYTES

LOWER, UPPER = INTERVALS[:2]
FORM, VERSION = b"norm", 0  # of qp's parameterizations
_DIGITS = 20  # of an int64 with its sign
_NAMES = ["objid", "redshift_phot", LOWER, UPPER, "redshift_spec", "flag"]


def write_qp(source: CatalogueSource, path: Path) -> int:
    """Write the redshifts to a file and return the number of galaxies in it.

    Galaxies without a redshift, or without an uncertainty that is finite and above 0, are left out. Raises InputError
    if the catalogue has no uncertainties, or if no galaxy is left.
    """
    import h5py

    columns = {column.name: column for column in source.columns}
    absent = [name for name in (LOWER, UPPER) if name not in columns]
    if absent:
        raise InputError(
            f"the catalogue has no column {' and no column '.join(absent)}: an ensemble of qp holds distributions, and "
            "these redshifts have no uncertainties; write them as they are, for example with --to hdf5"
        )
    rows = sum(int(_usable(table).sum()) for table in source.tables(_NAMES))
    if rows == 0:
        raise InputError(
            f"none of the {source.rows} galaxies of the catalogue has both a redshift and an uncertainty above 0 "
            f"({LOWER} to {UPPER}), so there is nothing to write for qp; their flags say why"
        )
    objid, start = columns["objid"], 0
    with h5py.File(path, "w", locking=False) as file:  # no other process knows of it
        file.attrs.update(source.provenance)
        file["meta/pdf_name"], file["meta/pdf_version"] = np.array([FORM]), np.array([VERSION])
        for table in source.tables(_NAMES):
            found = _select(table, objid, _usable(table))
            count = len(found["ancil/id"])
            for name, values in found.items():
                if name not in file:
                    chunk = min(rows, CHUNK_BYTES // values.dtype.itemsize)
                    shape = values.shape[1:]
                    file.create_dataset(name, (rows, *shape), values.dtype, chunks=(chunk, *shape))
                file[name][start : start + count] = values
            start += count
    return rows


def _usable(table: pa.Table) -> NDArray[np.bool_]:
    """Return which galaxies (N,) have a redshift and an uncertainty."""
    redshift, scale = _numbers(table, "redshift_phot"), _scale(table)
    return np.isfinite(redshift) & np.isfinite(scale) & (scale > 0)


def _scale(table: pa.Table) -> NDArray[np.float64]:
    """Return half of the widths (N,) of the intervals that hold 68% of the probability."""
    return (_numbers(table, UPPER) - _numbers(table, LOWER)) / 2


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(), np.float64)


def _select(table: pa.Table, objid: Column, rows: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return the datasets of the galaxies among `rows`, by their names in the file."""
    ids = column_values(table, objid)
    redshift = _numbers(table, "redshift_phot")[rows]
    return {
        "data/loc": redshift[:, None],
        "data/scale": _scale(table)[rows, None],
        "ancil/id": ids[rows] if objid.is_text else ids[rows].astype(f"S{_DIGITS}"),
        "ancil/redshift": _numbers(table, "redshift_spec")[rows],
        "ancil/zmode": redshift,
        "ancil/flag": table["flag"].to_numpy()[rows],
    }
