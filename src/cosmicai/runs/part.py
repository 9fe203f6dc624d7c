"""The predictions of one work item, and the HDF5 file that holds them.

A part says nothing of who its galaxies are: that is read from the survey when the catalogue is written. Parts of
earlier versions, which hold ids and spectroscopic redshifts too, are still read.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..surveys.hdf5_heap import has_endless_heap
from ..surveys.identity import is_text
from .plan import Plan, WorkItem

PART_COLUMNS = {"redshift_phot": "<f4", "flag": "|u1"}
SPREAD = "redshift_spread"  # of runs with several views
PART_FORMAT = "cosmicai-part/3"
WITH_IDS = "cosmicai-part/2"
WITHOUT_DIGEST = "cosmicai-part/1"
_COLUMNS_WITH_IDS = {"objid": "<i8", "redshift_phot": "<f4", "redshift_spec": "<f8", "flag": "|u1"}  # or text ids
_COLUMNS = {PART_FORMAT: PART_COLUMNS, WITH_IDS: _COLUMNS_WITH_IDS, WITHOUT_DIGEST: _COLUMNS_WITH_IDS}
_DTYPES = _COLUMNS_WITH_IDS | {SPREAD: "<f4"}
_opened = count()
_AGAIN = "remove it and finish the run with --resume"

Values = Mapping[str, NDArray[Any]]


class DamagedPartError(InputError):
    """A file is not the part of its item as it was written."""


@dataclass(frozen=True)
class Part:
    """The predictions of one work item: redshift_phot (N,) float32, flag (N,) uint8 (see `surveys.quality`).

    `redshift_spread` (N,) float32 is the standard deviation over the views, None in a run with one view. `is_checked`
    says whether they were compared with a digest when they were read; the first parts had none.
    """

    redshift_phot: NDArray[np.float32]
    flag: NDArray[np.uint8]
    redshift_spread: NDArray[np.float32] | None = None
    is_checked: bool = True

    def select(self, rows: slice) -> Part:
        """Return the predictions of these rows."""
        spread = None if self.redshift_spread is None else self.redshift_spread[rows]
        return Part(self.redshift_phot[rows], self.flag[rows], spread, self.is_checked)


def concatenate_parts(parts: Sequence[Part]) -> Part:
    """Return the predictions of one or more parts one after the other; all or none of them have a spread."""
    spreads = [part.redshift_spread for part in parts if part.redshift_spread is not None]
    return Part(
        np.concatenate([part.redshift_phot for part in parts]),
        np.concatenate([part.flag for part in parts]),
        np.concatenate(spreads) if spreads else None,
    )


def encode_part(plan: Plan, item: WorkItem, part: Part) -> bytes:
    """Return the file of a part, which names the plan and the item, and has a digest of both and of its columns."""
    import h5py

    values = {name: getattr(part, name).astype(_DTYPES[name], copy=False) for name in _part_columns(plan)}
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update(format=PART_FORMAT, plan=plan.digest, shard=plan.shards[item.shard].name)
        file.attrs.update(item=item.name, start=item.start, stop=item.stop, digest=_digest(plan, item, values))
        for name, column in values.items():
            file.create_dataset(name, data=column)
    return buffer.getvalue()


def decode_part(data: bytes, plan: Plan, item: WorkItem, path: str) -> Part:
    """Return the part in a file.

    Raises DamagedPartError naming `path` if it is damaged or of another item, InputError if it is of another plan.
    """
    if has_endless_heap(data):
        raise DamagedPartError(f"{path} is damaged (a global heap); {_AGAIN}")
    try:
        attributes, values = _read_file(data, item.galaxies)
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise DamagedPartError(f"{path} is damaged ({error}); {_AGAIN}") from None
    if attributes.get("plan") != plan.digest:
        raise InputError(f"{path} belongs to another plan; {_AGAIN}")
    place = {"shard": plan.shards[item.shard].name, "start": item.start, "stop": item.stop}
    if any(attributes.get(name) != value for name, value in place.items()) or not values:
        raise DamagedPartError(f"{path} belongs to another item; {_AGAIN}")
    version = str(attributes.get("format"))
    if SPREAD in values and SPREAD not in _part_columns(plan):
        raise DamagedPartError(f"{path} is damaged (it has {SPREAD}, and the plan has one view); {_AGAIN}")
    if SPREAD not in values and SPREAD in _part_columns(plan):
        raise DamagedPartError(f"{path} is damaged (it has no {SPREAD}); {_AGAIN}")
    if any(column.dtype != _DTYPES[name] and name != "objid" for name, column in values.items()):
        raise DamagedPartError(f"{path} is damaged (a column has another dtype); {_AGAIN}")
    if version not in _COLUMNS or (version == WITHOUT_DIGEST and "digest" in attributes):
        raise DamagedPartError(f'{path} is damaged (its format is "{version}", expected "{PART_FORMAT}"); {_AGAIN}')
    if version != WITHOUT_DIGEST and attributes.get("digest") != _digest(plan, item, values):
        raise DamagedPartError(f"{path} is damaged (its columns differ from their digest); {_AGAIN}")
    return Part(values["redshift_phot"], values["flag"], values.get(SPREAD), version != WITHOUT_DIGEST)


def _part_columns(plan: Plan) -> tuple[str, ...]:
    return (*PART_COLUMNS, SPREAD) if plan.views > 1 else tuple(PART_COLUMNS)


def _read_file(data: bytes, rows: int) -> tuple[dict[str, Any], Values]:
    """Return attributes and columns of a part; no columns if they are not of this many rows. Raises as h5py.

    By h5py's functions of low level, which take a fifth of the time: a summary reads a part for every 2,048 galaxies.
    """
    import h5py

    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(data)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    # HDF5 takes files in memory of the same name for one file.
    file = h5py.h5f.open(b"part %d" % next(_opened), h5py.h5f.ACC_RDONLY, access)
    try:
        attributes = {}
        for number in range(h5py.h5a.get_num_attrs(file)):
            attribute = h5py.h5a.open(file, index=number)
            value = np.empty(attribute.shape, attribute.dtype)
            attribute.read(value)
            found = value[()]
            attributes[attribute.name.decode()] = found.decode() if isinstance(found, bytes) else found
        names = list(_COLUMNS.get(str(attributes.get("format")), PART_COLUMNS))
        names += [SPREAD] if SPREAD.encode() in file else []
        columns = {name: h5py.h5d.open(file, name.encode()) for name in names}
        # Compared before they are read: a damaged header may announce any number of rows.
        if any(column.shape != (rows,) for column in columns.values()):
            return attributes, {}
        values = {name: np.empty(rows, column.dtype) for name, column in columns.items()}
        for name, column in columns.items():
            column.read(h5py.h5s.ALL, h5py.h5s.ALL, values[name])
        return attributes, values
    finally:
        file.close()


def _digest(plan: Plan, item: WorkItem, values: Values) -> str:
    """Return the SHA-256 of the plan's digest, the item, and dtype and values of every column, in hexadecimal."""
    digest = hashlib.sha256(f"{plan.digest} {item.name} {plan.shards[item.shard].name}".encode())
    for name, column in values.items():
        if not is_text(column.dtype):
            column = column.astype(_DTYPES[name], copy=False)
        digest.update(f" {name} {column.dtype.str} {len(column)} ".encode())
        digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
