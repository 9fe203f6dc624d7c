"""A run folder of ours: its plan, parts, records and summary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import NoneType
from typing import Any

from cosmicai import storage
from cosmicai.models.weights import DEMO
from cosmicai.runs.cost import billed_seconds
from cosmicai.runs.record import PHASES, WORKING
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summary import count_coverage, machine_of
from cosmicai.storage.parallel import in_order
from cosmicai.storage.s3 import requests_at_once

from ..tables import GALAXY_BYTES, GB, Found, LeftOut, Measured, Row
from .source import Source
from .values import signed

SLURM = ("slurm", "slurm-array")  # platforms of records
STARTED = ("local", "mpi")  # that may be inside a job of SLURM
_METRICS = {"mae": "mae", "mse": "mse", "bias": "bias", "nmad": "precision", "r2": "r2", "outliers": "outliers"}
_INTEGER, _NUMBER = (int,), (int, float)
_TYPES = {
    **dict.fromkeys(("rank", "attempt", "galaxies", "batches", "batch_size", "s3_requests"), _INTEGER),
    **dict.fromkeys(("seconds", "cpu_seconds", "galaxies_per_second", "peak_rss_mb"), _NUMBER),
    **dict.fromkeys(("peak_gpu_mb", "s3_seconds", "memory_mb", "billed_seconds"), (*_NUMBER, NoneType)),
    **dict.fromkeys(("item", "host", "state"), (str,)),
    **{f"{name}_seconds": _NUMBER for name in PHASES},
}
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")

Record = Mapping[str, Any]


def matches(source: Source) -> bool:
    """Whether a file is of this kind, by its name."""
    return source.file == "plan.json"


def read(source: Source) -> Found:
    """The run to which the plan belongs. Raises InputError or ValueError if the plan or the summary is damaged.

    A run without a summary is still going, or was broken off: its times are not known yet.
    """
    run = RunFolder(source.uri.removesuffix("/plan.json"))
    plan, summary = run.plan(), run.summary()
    coverage = count_coverage(plan, run.parts())
    records, left_out = read_records(run)
    reports = {report["request_id"]: report["billed_ms"] / 1000 for report in run.invocations()}
    ranks: list[Row] = []
    usable: list[Record] = []
    machines: set[str] = set()
    for name, record in records.items():
        try:
            machine, rank = machine_of(record), rank_row(record, reports)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            left_out.append(LeftOut(source.uri, f"it has no usable {error}", f"record {name}"))
            continue
        machines.add(machine)
        ranks.append(rank)
        usable.append(record)
    if summary is None:
        done = f"{coverage['done']:,} of {coverage['asked']:,} galaxies are done"
        left_out.append(LeftOut(source.uri, f"the run has no summary yet: {done}, and it may be going on", "its times"))
    if coverage["unplanned_parts"]:
        left_out.append(LeftOut(source.uri, "the plan does not know them", f"{coverage['unplanned_parts']} parts"))
    row = _setting(run, usable) | {
        "run": source.folder,
        "machine": "; ".join(sorted(machines)) or None,
        "galaxies": coverage["done"],
        "duplicate": coverage["duplicate"],
        "complete": bool(summary and summary["complete"]) and coverage["done"] == coverage["asked"],
        "billed_seconds": _billed_seconds(run, usable, reports),
        **_totals(run, summary or {}),
    }
    return Found((Measured(row, tuple(ranks)),), tuple(left_out))


def read_records(run: RunFolder) -> tuple[dict[str, Record], list[LeftOut]]:
    """The records of all ranks and attempts by name, and those that are damaged."""
    found: dict[str, Record] = {}
    left_out: list[LeftOut] = []
    folder = run.path("records")
    names = [entry.name for entry in storage.list_files(folder) if entry.name.endswith(".json")]
    texts = in_order(storage.read_bytes, (f"{folder}/{name}" for name in names), requests_at_once(run.uri))
    for name, text in zip(names, texts, strict=True):
        try:
            found[name.removesuffix(".json")] = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            left_out.append(LeftOut(f"{folder}/{name}", f"it is no JSON of a record ({error})"))
    return found, left_out


def rank_row(record: Record, reports: Mapping[str, float]) -> Row:
    """A rank's row; `reports` are the seconds that CloudWatch says were billed, by request.

    Raises KeyError, TypeError, ValueError or AttributeError, naming the key, if one is missing.
    """
    seconds, call, files = record["seconds"], record["lambda"] or {}, record["data_path"]
    row = {
        "rank": record["rank"],
        "attempt": record["attempt"],
        "item": files if isinstance(files, str) else ", ".join(files),
        "host": record["host"],
        "state": record["state"],
        "started_at": record["started_at"],
        "ended_at": record["updated_at"],
        "galaxies": record["galaxies"],
        "batches": record["num_batches"],
        "batch_size": record["batch_size"],
        "seconds": sum(seconds[name] for name in WORKING),
        "cpu_seconds": record["total_cpu_time (seconds)"],
        **{f"{name}_seconds": seconds[name] for name in PHASES},
        "galaxies_per_second": record["sample_persec"],
        "peak_rss_mb": record["peak_rss_mb"],
        "peak_gpu_mb": record["peak_gpu_mb"] if record["device"] == "cuda" else None,
        "s3_requests": sum(record["s3_requests"].values()),
        "s3_seconds": record.get("s3_total_time"),
        "memory_mb": call.get("memory_mb"),
        "billed_seconds": _billed(call, reports) if call else None,
    }
    for name, kinds in _TYPES.items():
        if type(row[name]) not in kinds:
            raise ValueError(f"`{name}`: {row[name]!r}")
    for name in ("started_at", "ended_at"):
        datetime.fromisoformat(row[name])
    return row


def _setting(run: RunFolder, records: Sequence[Record]) -> dict[str, Any]:
    """Where and how the run was done, from its plan and records; nothing where records differ."""
    plan = run.plan()
    shard = max((entry.galaxies for entry in plan.shards), default=0)
    return {
        "source": run.uri,
        "origin": "ours",
        "kind": "run",
        "study": "single",
        "platform": _same(map(_platform, records)),
        "device": plan.device,
        "engine": plan.engine,
        "precision": plan.precision,
        "weights": DEMO if plan.weights == DEMO else plan.weights_sha256[:16],
        "partition_mb": round(shard * GALAXY_BYTES / 2**20, 1),
        "data_gb": plan.galaxies * GALAXY_BYTES / GB,
        "batch_size": plan.batch_size,
        "world_size": max((record.get("world_size") or 0 for record in records), default=None),
        "asked_galaxies": plan.galaxies,
        "git_commit": _same(record.get("git_commit") for record in records),
        "image_digest": _same(record.get("image_digest") for record in records),
    }


def _totals(run: RunFolder, summary: Record) -> dict[str, Any]:
    """What the summary tells, nothing where there is none."""
    totals, metrics, cost = (summary.get(name) or {} for name in ("totals", "metrics", "cost"))
    return {
        "wall_seconds": signed(totals, "wall_seconds"),
        "working_seconds": signed(totals, "working_seconds"),
        "dollars": signed(cost.get("dollars") or {}, "total"),
        "catalogue": run.catalogue_path if summary else None,
        **{name: signed(metrics, key) for name, key in _METRICS.items()},
    }


def _same(values: Iterable[str | None]) -> str | None:
    """The value that all have, None where they differ."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def _platform(record: Record) -> str:
    """Where a rank worked. Ranks that a launcher started inside a job of SLURM tell the number of that job."""
    platform, job = record.get("platform"), str(record.get("job"))
    if platform == "lambda":
        return "lambda"
    return "slurm" if platform in SLURM or (platform in STARTED and _JOB.fullmatch(job)) else "laptop"


def _billed(call: Record, reports: Mapping[str, float]) -> float:
    """What was billed for a call: as CloudWatch says, else as the function itself noted, which is less."""
    return reports.get(call["request_id"]) or billed_seconds(call["seconds"])


def _billed_seconds(run: RunFolder, records: Iterable[Record], reports: Mapping[str, float]) -> float | None:
    """The seconds billed for all calls of a run, those that planned and summarized it too; None if there were none."""
    calls = [record["lambda"] for record in records if record.get("lambda")]
    if not calls and not reports:
        return None
    calls += [note["lambda"] for note in run.functions()]
    billed = {call["request_id"]: _billed(call, reports) for call in calls}
    return sum({**billed, **reports}.values())
