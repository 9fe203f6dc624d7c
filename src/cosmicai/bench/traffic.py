"""How many bytes the folded network moves per galaxy if no two operations are fused."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..models.fold import FoldedWeights
from ..models.folded import FoldedAstroMAE

BATCHES = 8, 24  # galaxies; their difference leaves out the weights, which are read once per batch


def count_traffic(folded: FoldedWeights, dtype: torch.dtype) -> float:
    """Return bytes per galaxy: the inputs and the result of each operation of the folded network in eager torch.

    Weights are left out, and views count nothing. Fused kernels and caches move less, so that a network may run faster
    than this and the memory's bandwidth would let it.
    """
    network, config = FoldedAstroMAE(folded, dtype), folded.config
    counted = []
    for batch in BATCHES:
        image = torch.zeros(batch, config.bands, config.image_size, config.image_size, dtype=dtype)
        magnitude = torch.full((batch, config.magnitudes), 20.0, dtype=torch.float64)
        with torch.inference_mode(), _Counter() as counter:
            network(image, magnitude)
        counted.append(counter.bytes)
    return float(np.diff(counted)[0] / np.diff(BATCHES)[0])


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        read, written = (
            [x for x in tree_leaves(values) if isinstance(x, torch.Tensor)] for values in ((args, kwargs), result)
        )
        shared = {x.untyped_storage().data_ptr() for x in read}
        is_view = not function._schema.is_mutable and all(x.untyped_storage().data_ptr() in shared for x in written)
        if not is_view:
            self.bytes += sum(x.nbytes for x in (*read, *written))
        return result
