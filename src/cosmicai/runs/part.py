"""The predictions of one work item, and the HDF5 file that holds them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..surveys.hdf5_heap import has_endless_heap
from ..surveys.identity import ObjIds, is_text
from .plan import Plan, WorkItem

PART_COLUMNS = {"objid": "<i8", "redshift_phot": "<f4", "redshift_spec": "<f8", "flag": "|u1"}  # objid may be text
PART_FORMAT = "cosmicai-part/2"
WITHOUT_DIGEST = "cosmicai-part/1"
_AGAIN = "remove it and finish the run with --resume"


class DamagedPartError(InputError):
    """A file is not the part of its item as it was written."""


@dataclass(frozen=True)
class Part:
    """The predictions of one work item: objid (N,) int64 or text as in its shard (see `surveys.identity`),
    redshift_phot (N,) float32, redshift_spec (N,) float64 (NaN where unknown), flag (N,) uint8 (see `surveys.quality`).
    """

    objid: ObjIds
    redshift_phot: NDArray[np.float32]
    redshift_spec: NDArray[np.float64]
    flag: NDArray[np.uint8]


def encode_part(plan: Plan, item: WorkItem, part: Part) -> bytes:
    """Return the file of a part, which names the plan and the item, and has a digest of both and of its columns."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update(format=PART_FORMAT, plan=plan.digest, shard=plan.shards[item.shard].name)
        file.attrs.update(item=item.name, start=item.start, stop=item.stop, digest=_digest(plan, item, part))
        dtypes = dict(PART_COLUMNS)
        if is_text(part.objid.dtype):
            dtypes["objid"] = h5py.string_dtype("utf-8", part.objid.dtype.itemsize)
        for name, dtype in dtypes.items():
            file.create_dataset(name, data=getattr(part, name).astype(dtype, copy=False))
    return buffer.getvalue()


def decode_part(data: bytes, plan: Plan, item: WorkItem, path: str) -> Part:
    """Return the part in a file.

    Raises DamagedPartError naming `path` if it is damaged or of another item, InputError if it is of another plan.
    """
    import h5py

    if has_endless_heap(data):
        raise DamagedPartError(f"{path} is damaged (a global heap); {_AGAIN}")
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            attributes = dict(file.attrs)
            for name in PART_COLUMNS:  # before they are read: a damaged header may announce any number of rows
                if (shape := file[name].shape) != (item.galaxies,):
                    attributes["shape"] = shape
            columns = {} if "shape" in attributes else {name: file[name][:] for name in PART_COLUMNS}
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise DamagedPartError(f"{path} is damaged ({error}); {_AGAIN}") from None
    if attributes.get("plan") != plan.digest:
        raise InputError(f"{path} belongs to another plan; {_AGAIN}")
    place = {"shard": plan.shards[item.shard].name, "start": item.start, "stop": item.stop}
    if any(attributes.get(name) != value for name, value in place.items()) or not columns:
        raise DamagedPartError(f"{path} belongs to another item; {_AGAIN}")
    if any(column.dtype != PART_COLUMNS[name] and name != "objid" for name, column in columns.items()):
        raise DamagedPartError(f"{path} is damaged (a column has another dtype); {_AGAIN}")
    part, version = Part(**columns), attributes.get("format")
    if version not in (PART_FORMAT, WITHOUT_DIGEST) or (version == WITHOUT_DIGEST and "digest" in attributes):
        raise DamagedPartError(f'{path} is damaged (its format is "{version}", expected "{PART_FORMAT}"); {_AGAIN}')
    if version == PART_FORMAT and attributes.get("digest") != _digest(plan, item, part):
        raise DamagedPartError(f"{path} is damaged (its columns differ from their digest); {_AGAIN}")
    return part


def _digest(plan: Plan, item: WorkItem, part: Part) -> str:
    """Return the SHA-256 of the plan's digest, the item, and dtype and values of every column, in hexadecimal."""
    digest = hashlib.sha256(f"{plan.digest} {item.name} {plan.shards[item.shard].name}".encode())
    for name, dtype in PART_COLUMNS.items():
        values = getattr(part, name)
        if not (name == "objid" and is_text(values.dtype)):
            values = values.astype(dtype, copy=False)
        digest.update(f" {name} {values.dtype.str} {len(values)} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
