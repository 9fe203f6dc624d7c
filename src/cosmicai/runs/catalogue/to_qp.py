"""The redshifts as an ensemble of qp, in HDF5: a distribution per galaxy, which RAIL evaluates.

The group `meta` names the form of the distributions, `data` has their parameters, and `ancil` what else is known of
each galaxy: `id` as bytes, the spectroscopic `redshift`, `zmode`, the redshift of the catalogue, and `flag`. Those of a
run are all quantiles (N, 25); those of a catalogue alone that has the bounds of 68% only are normal distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...calibration.records import LEVELS
from ...errors import InputError
from .columns import Column
from .distributions import find_distributions
from .source import CatalogueSource, column_values
from .to_hdf5 import CHUNK_BYTES

LOWER, UPPER = "redshift_phot_l68", "redshift_phot_u68"
_DIGITS = 20  # of an int64 with its sign
_NAMES = ["objid", "redshift_phot", LOWER, UPPER, "redshift_spec", "flag"]
# By the names of qp's parameterizations. Densities of quantiles are straight lines, extended beyond the outer ones.
_META: dict[str, dict[str, NDArray[Any]]] = {
    "norm": {},
    "quant": {
        "quants": np.array([LEVELS]),
        "pdf_constructor_name": np.array([b"piecewise_linear"]),
        "ensure_extent": np.array([True]),
    },
}

# A row group of the catalogue, and the parameters (N, n) of its distributions by name, NaN where there is none.
Group = tuple[pa.Table, dict[str, NDArray[np.float64]]]


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
    form, read = _choose_form(source)
    rows = sum(int(_usable(table, parameters).sum()) for table, parameters in read())
    if rows == 0:
        raise InputError(
            f"none of the {source.rows} galaxies of the catalogue has both a redshift and an uncertainty above 0 "
            f"({LOWER} to {UPPER}), so there is nothing to write for qp; their flags say why"
        )
    objid, start = columns["objid"], 0
    with h5py.File(path, "w", locking=False) as file:  # no other process knows of it
        file.attrs.update(source.provenance)
        meta = {"pdf_name": np.array([form.encode()]), "pdf_version": np.array([0]), **_META[form]}
        for name, values in meta.items():
            file[f"meta/{name}"] = values
        for table, parameters in read():
            found = _select(table, parameters, objid)
            count = len(found["ancil/id"])
            for name, values in found.items():
                if name not in file:
                    shape = values.shape[1:]
                    chunk = max(1, min(rows, CHUNK_BYTES // (values.dtype.itemsize * int(np.prod(shape)))))
                    file.create_dataset(name, (rows, *shape), values.dtype, chunks=(chunk, *shape))
                file[name][start : start + count] = values
            start += count
    return rows


def _choose_form(source: CatalogueSource) -> tuple[str, Callable[[], Iterator[Group]]]:
    """Return the form of the distributions, and what yields the row groups with their parameters."""
    quantiles = None if source.run is None else find_distributions(source.run, source)
    if quantiles is None:
        return "norm", partial(_read_normal, source)
    return "quant", partial(_read_quantiles, source, quantiles)


def _read_normal(source: CatalogueSource) -> Iterator[Group]:
    for table in source.tables(_NAMES):
        scale = (_numbers(table, UPPER) - _numbers(table, LOWER)) / 2
        scale = np.where(scale > 0, scale, np.nan)
        yield table, {"loc": _numbers(table, "redshift_phot")[:, None], "scale": scale[:, None]}


def _read_quantiles(source: CatalogueSource, quantiles: Callable[[], Iterator[NDArray[np.float32]]]) -> Iterator[Group]:
    for table, found in zip(source.tables(_NAMES), quantiles(), strict=True):
        places = found.astype(np.float64)
        has_width = np.asarray((places[:, 1:] > places[:, :-1]).all(axis=1))
        yield table, {"locs": np.where(has_width[:, None], places, np.nan)}


def _usable(table: pa.Table, parameters: dict[str, NDArray[np.float64]]) -> NDArray[np.bool_]:
    """Return which galaxies (N,) have a redshift and an uncertainty."""
    known = [_numbers(table, "redshift_phot")[:, None], *parameters.values()]
    return np.asarray(np.isfinite(np.hstack(known)).all(axis=1), np.bool_)


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    return np.asarray(table[name].to_numpy(), np.float64)


def _select(table: pa.Table, parameters: dict[str, NDArray[np.float64]], objid: Column) -> dict[str, NDArray[Any]]:
    """Return the datasets of the usable galaxies, by their names in the file."""
    rows, ids = _usable(table, parameters), column_values(table, objid)
    return {
        **{f"data/{name}": values[rows] for name, values in parameters.items()},
        "ancil/id": ids[rows] if objid.is_text else ids[rows].astype(f"S{_DIGITS}"),
        "ancil/redshift": _numbers(table, "redshift_spec")[rows],
        "ancil/zmode": _numbers(table, "redshift_phot")[rows],
        "ancil/flag": table["flag"].to_numpy()[rows],
    }
