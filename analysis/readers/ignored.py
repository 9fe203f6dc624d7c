"""Files of known kinds that tell of no runs, each with the reason for which it is left out."""

from __future__ import annotations

from cosmicai import storage

from ..tables import Found, LeftOut
from .results import SYSTEM
from .source import Source

_ADJUSTED = {"total_duration (s)", "inference_duration (s)", "total_bits"}
_PAYLOAD = {"data_bucket", "data_prefix"}
_SERIES = ("batch_size", "total_time", "throughput", "cpu_memory_mb", "estimated_cost_usd")


def matches(source: Source) -> bool:
    """Whether a file is of such a kind."""
    return source.file == SYSTEM or is_job_log(source) or reason(source) is not None


def read(source: Source) -> Found:
    """Nothing; System_Info.json is read with the results beside it, and a job's log with its records."""
    why = reason(source)
    return Found() if why is None else Found(left_out=(LeftOut(source.uri, why),))


def reason(source: Source) -> str | None:
    """Why a file is left out, None if it is of no such kind."""
    if source.file == "sweep.json":
        return "it is a table made of run folders, which are read themselves"
    if source.values.keys() >= _PAYLOAD:
        return "it is what a state machine is started with, and no measurement"
    if source.columns and not source.rows():
        return "it is a table without rows"
    if _ADJUSTED.issubset(source.columns):
        return "it repeats result_stats.csv with rates over the durations of state_machine_logs.csv, which are read"
    if source.columns == _SERIES:
        return "it repeats the results of the series, which are read themselves"
    if is_job_log(source) and not has_records(source):
        return "it is the log of a job, which tells no times, and the job's records are not beside it"
    return None


def is_job_log(source: Source) -> bool:
    """Whether a file is the log of a job with the endless loader."""
    return source.name.endswith(".out") and "Processed 1 GB." in source.text


def has_records(source: Source) -> bool:
    """Whether there are records beside a log whose name begins as that of the log."""
    folder, kind = source.uri.rpartition("/")[0], source.file.partition("_")[0]
    return any(entry.name.endswith(".json") for entry in storage.list_files(folder, f"{kind}_"))
