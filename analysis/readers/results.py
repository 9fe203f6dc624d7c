"""Read Results.json of the published code: one process on a single machine, its times and its accuracy.

The published code wrote two variants of its keys; values that only one of them has are missing in runs of the other.
System_Info.json in the same folder describes the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cosmicai import storage
from cosmicai.runs.record import BITS_PER_GALAXY

from ..tables import RANK_TYPES, MeasuredRun, SourceContents, validate_row
from .source import Source
from .values import count_galaxies, get_integer, get_number, get_optional_number, get_text

SYSTEM_INFO = "System_Info.json"
_KEYS = {"batch size", "number of batches", "device"}
_METRICS = {"mae": "MAE", "mse": "MSE", "bias": "Bias", "nmad": "Precision", "r2": "R2"}
_SERIES = re.compile(r".*_batch_[0-9]+_Results\.json")


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its keys."""
    return source.values.keys() >= _KEYS or _has_accuracy_alone(source)


def _has_accuracy_alone(source: Source) -> bool:
    """Return whether a file states metrics and nothing else."""
    return {"MAE", "R2"} <= source.values.keys() <= {*_METRICS.values()}


def read(source: Source) -> SourceContents:
    """Return the run and its only rank; no rank if the file states the accuracy alone.

    Raises ValueError, naming the key, if one is missing or not a number.
    """
    values = source.values
    digest = frozenset({hash((source.file, json.dumps(values, sort_keys=True)))})  # a copy has the same name
    if _has_accuracy_alone(source):
        run = {"platform": None, "galaxies": None, **_describe_run(source), "study": "single"}
        return SourceContents((MeasuredRun(run, digests=digest),))
    rank: dict[str, Any] = {
        "rank": 0,
        "batches": get_integer(values, "number of batches"),
        "batch_size": get_integer(values, "batch size"),
    }
    if "total execution time" in values:
        rank["seconds"] = get_number(values, "total execution time")
    if "total cpu time (second)" in values:
        rank["cpu_seconds"] = get_number(values, "total cpu time (second)")
        rank["allocated_mb"] = get_number(values, "cpu memory (MB)")
    bits = get_number(values, "throughput" if "throughput" in values else "throughput(bps)")
    rank["galaxies_per_second"] = bits / BITS_PER_GALAXY
    # The rate is galaxies over the first of these times that the file has.
    if (seconds := rank.get("seconds", rank.get("cpu_seconds"))) is None:
        raise ValueError("it has neither `total execution time` nor `total cpu time (second)`")
    rank["galaxies"] = _count_galaxies(bits / BITS_PER_GALAXY, seconds)
    validate_row(rank, RANK_TYPES)
    run = _describe_run(source) | {
        "study": "batch size" if _SERIES.fullmatch(source.file) else "single",
        "platform": "laptop",
        "device": get_text(values, "device"),
        "machine": read_machine(source.sibling(SYSTEM_INFO)),
        "world_size": 1,
        "galaxies": rank["galaxies"],
        "working_seconds": rank.get("seconds"),
    }
    return SourceContents((MeasuredRun(run, (rank,), digest),))


def _describe_run(source: Source) -> dict[str, Any]:
    """Return what every such file states: the accuracy of a run of the published code."""
    return {
        "run": source.stem,
        "source": source.uri,
        "origin": "published",
        "kind": "results",
        "engine": "published",
        "precision": "float32",
        **{name: get_optional_number(source.values, key) for name, key in _METRICS.items()},
    }


def _count_galaxies(per_second: float, seconds: float) -> int | None:
    """Return the galaxies of a rate and a time; None if the time is rounded so that their number is ambiguous."""
    error = per_second * 0.005 if seconds == round(seconds, 2) else 0.0  # rounded to hundredths
    return count_galaxies(per_second, seconds) if error < 0.5 else None


def fill_galaxies(measured: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs, with an ambiguous number of galaxies taken from a run of the same folder with equal metrics.

    All digits of all metrics agree only if the same network predicted the same galaxies.
    """
    known: dict[tuple[Any, ...], int] = {}
    for one in measured:
        if one.run["kind"] == "results" and one.run["galaxies"] is not None:
            known.setdefault(_sample_key(one), one.run["galaxies"])
    return [
        replace(one, run={**one.run, "galaxies": known.get(_sample_key(one))})
        if one.run["kind"] == "results" and one.run["galaxies"] is None and one.run["mae"]
        else one
        for one in measured
    ]


def _sample_key(one: MeasuredRun) -> tuple[Any, ...]:
    """Return what identifies the network and galaxies of a run: its folder and all its metrics."""
    folder = str(one.run["source"]).rpartition("/")[0]
    return (folder, *(one.run[name] for name in _METRICS))


def read_machine(uri: str) -> str | None:
    """Return a System_Info.json as the description of a machine; None if the file is missing or damaged."""
    data = storage.read_if_exists(uri)
    try:
        values = json.loads(data or b"")
        cores, memory = values["CPU Info"]["Physical Cores"], values["Memory Info"]["Total Memory"]
        return f"{values['Processor']}, {cores} cores, {memory}, {values['System']} {values['Release']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
