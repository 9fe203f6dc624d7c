"""The partitions of the AstroMAE project: `.pt` files, each a pickled TensorDataset(image, magnitude, redshift).

They are read in place: the pickle only gives the positions of the values in the file. It is never executed.
"""

from __future__ import annotations

from ..errors import InputError
from ..models.pickle_scan import PARTITION_LIMITS
from ..models.torch_archive import StandIn, TensorRef, read_archive
from ..storage.ranges import RangeReader

ALLOWED_CLASSES = frozenset({"torch.utils.data.dataset.TensorDataset"})
ORDER = ("image", "magnitude", "redshift")


def locate_fields(uri: str, reader: RangeReader) -> dict[str, TensorRef]:
    """Return the positions of image, magnitude and (if present) redshift in a partition.

    Raises InputError if it holds another number of tensors, else as `locate_tensors`.
    """
    tensors = locate_tensors(uri, reader)
    if len(tensors) not in (2, 3):
        mask = f"; if a mask is behind them, convert the file with `cosmicai ingest {uri} --out SURVEY --mask mask`"
        raise InputError(
            f"{uri} holds {len(tensors)} tensors; expected image, magnitude and redshift, in this order"
            f"{mask if len(tensors) > len(ORDER) else ''}"
        )
    return dict(zip(ORDER, tensors, strict=False))


def locate_tensors(uri: str, reader: RangeReader) -> tuple[TensorRef, ...]:
    """Return the positions of all tensors of a partition, in the order of its TensorDataset.

    Raises UnsafePickleError if the pickle names any other global than a TensorDataset needs, InputError if the file
    is damaged or holds something else.
    """
    root = read_archive(uri, reader, ALLOWED_CLASSES, PARTITION_LIMITS).root
    tensors = root.state.get("tensors") if isinstance(root, StandIn) else None
    if not isinstance(tensors, tuple) or not all(isinstance(tensor, TensorRef) for tensor in tensors):
        raise InputError(f"{uri} holds no TensorDataset; expected one of image, magnitude and redshift")
    return tensors
