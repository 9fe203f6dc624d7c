"""The predictions of one work item, and the HDF5 file that holds them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..surveys.identity import ObjIds, is_text
from .plan import Plan, WorkItem

PART_COLUMNS = {"objid": "<i8", "redshift_phot": "<f4", "redshift_spec": "<f8", "flag": "|u1"}  # objid may be text
PART_FORMAT = "cosmicai-part/1"


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
    """Return the file of a part, which names the plan and the item."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs.update(format=PART_FORMAT, plan=plan.digest, shard=plan.shards[item.shard].name)
        file.attrs.update(start=item.start, stop=item.stop)
        dtypes = dict(PART_COLUMNS)
        if is_text(part.objid.dtype):
            dtypes["objid"] = h5py.string_dtype("utf-8", part.objid.dtype.itemsize)
        for name, dtype in dtypes.items():
            file.create_dataset(name, data=getattr(part, name).astype(dtype, copy=False))
    return buffer.getvalue()


def decode_part(data: bytes, plan: Plan, item: WorkItem, path: str) -> Part:
    """Return the part in a file. Raises InputError naming `path` if it is damaged or belongs to another plan."""
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            sound = file.attrs["plan"] == plan.digest and len(file["objid"]) == item.galaxies
            columns = {name: file[name][:] for name in PART_COLUMNS}
    except (OSError, KeyError) as error:
        raise InputError(f"{path} is damaged ({error}); remove it and finish the run with --resume") from None
    if not sound or any(len(column) != item.galaxies for column in columns.values()):
        raise InputError(f"{path} belongs to another plan; remove it and finish the run with --resume")
    return Part(**columns)
