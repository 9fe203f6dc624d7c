"""Datasets of HDF5 files, and fields of compound ones, by rows, unpacked as the netCDF conventions say."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..hdf5 import read_attribute, to_number
from ..hdf5_absence import RawRows
from .hdf5_members import Member


class MemberRows:
    """A dataset or a field of a compound one by rows, unpacked as the netCDF conventions' attributes say."""

    def __init__(self, member: Member) -> None:
        dataset, attributes = member.dataset, member.dataset.attrs
        if dataset.external:
            self._rows = RawRows(dataset)
        else:
            self._rows = dataset.fields(member.column) if member.column else dataset
        self._column = member.column if dataset.external else ""
        dtype = dataset.dtype[member.column] if member.column else dataset.dtype
        base, inner = dtype.subdtype if dtype.subdtype else (dtype, ())
        self.shape = (*dataset.shape, *inner)
        self._scale, self._offset = _factor(dataset, "scale_factor", 1), _factor(dataset, "add_offset", 0)
        self._fills = _fill_values(attributes)
        self._unsigned = base.kind == "i" and str(read_attribute([attributes], ("_unsigned",))).lower() == "true"
        self.scaled = self._unsigned or (self._scale, self._offset) != (1, 0)
        self.packed = (self._scale, self._offset) != (1, 0) or bool(self._fills) or self._unsigned
        self.dtype = np.dtype(np.float64) if self.packed and base.kind in "iuf" else base

    def _read(self, rows: slice) -> NDArray[Any]:
        raw = np.asarray(self._rows[rows])
        return raw[self._column] if self._column else raw

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        raw = self._read(rows)
        if not self.packed or raw.dtype.kind not in "iuf":
            return raw
        raw = raw.view(raw.dtype.str.replace("i", "u")) if self._unsigned else raw
        missing = _find_missing(raw, self._fills)
        values = raw.astype(np.float64) * self._scale + self._offset
        values[missing] = np.nan
        return values


def _factor(dataset: Any, name: str, default: float) -> float:
    value = read_attribute([dataset.attrs], (name,))
    if value is None:
        return default
    if (number := to_number(value)) is None:
        raise InputError(f"{dataset.file.filename}: {dataset.name} states {name} = {value}; expected one number")
    return number


def _fill_values(attributes: Any) -> list[Any]:
    """Return the numbers other than NaN that stand for missing values."""
    stated = [attributes[name] for name in attributes if name.lower() in ("_fillvalue", "missing_value")]
    return [value for values in stated for value in np.ravel(values).tolist() if isinstance(value, int | float)]


def _find_missing(raw: NDArray[Any], fills: list[Any]) -> NDArray[np.bool_]:
    """Return where raw values are one of the fill values, stated in floating point or with another sign."""
    missing = np.zeros(raw.shape, np.bool_)
    for fill in fills:
        missing |= raw == (fill if raw.dtype.kind == "i" else np.asarray(fill).astype(raw.dtype))
    return missing


class UnscaledRows(MemberRows):
    """Ids and columns to keep: integers and text stay what they are, and fill values are masked."""

    def __init__(self, member: Member) -> None:
        super().__init__(member)
        self.dtype = member.dataset.dtype[member.column] if member.column else member.dataset.dtype
        if self.scaled:
            raise InputError(
                f"{member.dataset.file.filename}: objid ({member.full_name}) is packed; expected ids as int64 or text"
            )

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        raw = self._read(rows)
        is_number = bool(self._fills) and raw.dtype.kind in "iuf"
        return np.ma.MaskedArray(raw, _find_missing(raw, self._fills)) if is_number else raw
