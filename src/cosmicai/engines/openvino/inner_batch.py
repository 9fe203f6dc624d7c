"""The faster of two inner batches, measured once per machine and network and kept in the cache folder."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from statistics import median

import msgspec
import numpy as np

from ...errors import InputError
from ...records import decode_json
from .compiled_cache import get_or_create
from .compiled_part import NetworkGraphs, cache_name, compile_part
from .graph import PARTS

MIN_SPEEDUP = 1.03  # of the larger inner batch, which needs more memory
REPEATS = 3


class MeasuredBatch(msgspec.Struct, frozen=True):
    """The faster inner batch, and galaxies per second of one thread by inner batch."""

    inner_batch: int
    galaxies_per_second: dict[int, float]


def choose_measured(graphs: NetworkGraphs, precision: str, candidates: Sequence[int]) -> int:
    """Return the faster of two inner batches, the smaller one first, by the cache folder or a short measurement.

    A damaged file in the cache folder is measured again. Raises InputError if the weights cannot be used.
    """
    smaller, larger = candidates
    name = f"{cache_name(graphs.sha256, 'whole', precision, smaller)}-or-{larger}.json"
    for _ in range(2):
        path = get_or_create(name, partial(_measure, graphs, precision, smaller, larger))
        batch = _read(path.read_bytes(), str(path), candidates)
        if batch is not None:
            return batch
        path.unlink(missing_ok=True)
    raise InputError(f"{path} was damaged as soon as it was written; check the disk and run again")


def _read(data: bytes, where: str, candidates: Sequence[int]) -> int | None:
    """Return the inner batch that a file names, or None if it does not hold one of the candidates."""
    try:
        measured = decode_json(data, MeasuredBatch, where=where, remedy="remove it")
    except InputError:
        return None
    return measured.inner_batch if measured.inner_batch in candidates else None


def _measure(graphs: NetworkGraphs, precision: str, smaller: int, larger: int) -> bytes:
    rates = {
        batch: batch / sum(_time_part(graphs, part, precision, batch) for part in PARTS) for batch in (smaller, larger)
    }
    best = larger if rates[larger] > MIN_SPEEDUP * rates[smaller] else smaller
    return json.dumps({"inner_batch": best, "galaxies_per_second": rates}).encode()


def _time_part(graphs: NetworkGraphs, part: str, precision: str, batch: int) -> float:
    """Return the median seconds of a part for one inner batch on one thread, after a warm-up."""
    request, seconds = compile_part(graphs, part, precision, batch).create_infer_request(), []
    inputs = [np.zeros(tensor.shape, np.float32) for tensor in request.input_tensors]
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        request.infer(inputs)
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])
