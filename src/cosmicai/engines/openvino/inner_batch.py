"""The faster of two inner batches, measured once per machine and network and kept in the cache folder."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median

import msgspec
import numpy as np

from ...errors import InputError
from ...records import decode_json
from .compiled_cache import UnusableFile, get_or_create
from .compiled_part import NetworkGraphs, cache_name, compile_part
from .graph import PARTS

MIN_SPEEDUP = 1.03  # of the larger inner batch, which needs more memory
REPEATS = 3
LARGEST_FILE = 2**12  # bytes that are read of a file; one has about a hundred


class MeasuredBatch(msgspec.Struct, frozen=True):
    """The faster inner batch, and galaxies per second of one thread by inner batch."""

    inner_batch: int
    galaxies_per_second: dict[int, float]


def choose_measured(graphs: NetworkGraphs, precision: str, candidates: Sequence[int]) -> int:
    """Return the faster of two inner batches, the smaller one first, by the cache folder or a short measurement.

    A damaged file in the cache folder is measured again. Raises InputError if the weights cannot be used.
    """
    smaller, larger = candidates
    name = f"{cache_name(graphs.key, 'whole', precision, smaller)}-or-{larger}.json"
    return get_or_create(name, partial(_measure, graphs, precision, smaller, larger), partial(_read, smaller, larger))


def _read(smaller: int, larger: int, file: io.BufferedIOBase) -> int:
    """Return the inner batch that a file names. Raises UnusableFile unless it is the one that its rates give."""
    try:
        measured = decode_json(file.read(LARGEST_FILE), MeasuredBatch, where="it", remedy="measured again")
    except InputError as error:
        raise UnusableFile(str(error)) from None
    rates = measured.galaxies_per_second
    if rates.keys() != {smaller, larger} or not all(0 < rate < math.inf for rate in rates.values()):
        raise UnusableFile(f"it is damaged, expected the rates of the inner batches {smaller} and {larger}")
    if measured.inner_batch != _choose(rates, smaller, larger):
        raise UnusableFile("it is damaged, its inner batch is not the faster one")
    return measured.inner_batch


def _choose(rates: Mapping[int, float], smaller: int, larger: int) -> int:
    return larger if rates[larger] > MIN_SPEEDUP * rates[smaller] else smaller


def _measure(graphs: NetworkGraphs, precision: str, smaller: int, larger: int) -> bytes:
    rates = {
        batch: batch / sum(_time_part(graphs, part, precision, batch) for part in PARTS) for batch in (smaller, larger)
    }
    return json.dumps({"inner_batch": _choose(rates, smaller, larger), "galaxies_per_second": rates}).encode()


def _time_part(graphs: NetworkGraphs, part: str, precision: str, batch: int) -> float:
    """Return the median seconds of a part for one inner batch on one thread, after a warm-up."""
    request, seconds = compile_part(graphs, part, precision, batch).create_infer_request(), []
    inputs = [np.zeros(tensor.shape, np.float32) for tensor in request.input_tensors]
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        request.infer(inputs)
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])
