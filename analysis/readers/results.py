"""Results.json of the published code: one process on a single machine, its times and how good its redshifts are.

There are two dialects of its keys; what only one of them tells is not there in runs of the other. System_Info.json
beside it tells of the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from cosmicai import storage
from cosmicai.runs.record import BITS_PER_GALAXY

from ..tables import Found, Measured
from .source import Source
from .values import number, signed, text, whole

SYSTEM = "System_Info.json"
_KEYS = {"batch size", "number of batches", "device"}
_METRICS = {"mae": "MAE", "mse": "MSE", "bias": "Bias", "nmad": "Precision", "r2": "R2"}
_SERIES = re.compile(r".*_batch_[0-9]+_Results\.json")


def matches(source: Source) -> bool:
    """Whether a file is of this kind, by its keys."""
    return source.values.keys() >= _KEYS


def read(source: Source) -> Found:
    """The run and its only rank. Raises ValueError, naming the key, if one is missing or no number."""
    values = source.values
    rank: dict[str, Any] = {
        "rank": 0,
        "batches": whole(values, "number of batches"),
        "batch_size": whole(values, "batch size"),
    }
    if "total execution time" in values:
        rank["seconds"] = number(values, "total execution time")
    if "total cpu time (second)" in values:
        rank["cpu_seconds"] = number(values, "total cpu time (second)")
        rank["allocated_mb"] = number(values, "cpu memory (MB)")
    bits = number(values, "throughput" if "throughput" in values else "throughput(bps)")
    rank["galaxies_per_second"] = bits / BITS_PER_GALAXY
    # The rate is galaxies over the first of these that is there.
    if (clock := rank.get("seconds", rank.get("cpu_seconds"))) is None:
        raise ValueError("it has neither `total execution time` nor `total cpu time (second)`")
    rank["galaxies"] = _count(bits / BITS_PER_GALAXY, clock)
    run = {
        "run": source.stem,
        "source": source.uri,
        "origin": "published",
        "kind": "results",
        "study": "batch size" if _SERIES.fullmatch(source.file) else "single",
        "platform": "laptop",
        "device": text(values, "device"),
        "machine": machine(source.beside(SYSTEM)),
        "engine": "published",
        "precision": "float32",
        "world_size": 1,
        "galaxies": rank["galaxies"],
        "working_seconds": rank.get("seconds"),
        **{name: signed(values, key) for name, key in _METRICS.items()},
    }
    return Found((Measured(run, (rank,)),))


def _count(per_second: float, seconds: float) -> int | None:
    """Galaxies of a rate and a time, None where that is rounded to hundredths and leaves open how many they were."""
    error = per_second * 0.005 if seconds == round(seconds, 2) else 0.0
    return round(per_second * seconds) if error < 0.5 else None


def with_galaxies(measured: Sequence[Measured]) -> list[Measured]:
    """The runs, with the number of galaxies where another of the same folder knows it that has the very same metrics.

    All digits of all metrics agree only where the same network saw the same galaxies.
    """
    known: dict[tuple[Any, ...], int] = {}
    for one in measured:
        if one.run["kind"] == "results" and one.run["galaxies"] is not None:
            known.setdefault(_sample(one), one.run["galaxies"])
    return [
        Measured({**one.run, "galaxies": known.get(_sample(one))}, one.ranks)
        if one.run["kind"] == "results" and one.run["galaxies"] is None and one.run["mae"]
        else one
        for one in measured
    ]


def _sample(one: Measured) -> tuple[Any, ...]:
    folder = str(one.run["source"]).rpartition("/")[0]
    return (folder, *(one.run[name] for name in _METRICS))


def machine(uri: str) -> str | None:
    """What a System_Info.json says of a machine; None if there is none, or if it is damaged."""
    data = storage.read_if_there(uri)
    try:
        values = json.loads(data or b"")
        cores, memory = values["CPU Info"]["Physical Cores"], values["Memory Info"]["Total Memory"]
        return f"{values['Processor']}, {cores} cores, {memory}, {values['System']} {values['Release']}"
    except (ValueError, KeyError, TypeError):
        return None
