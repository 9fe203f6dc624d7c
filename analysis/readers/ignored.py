"""Recognize files of known kinds that do not describe runs, with the reason for which each is left out."""

from __future__ import annotations

from cosmicai import storage

from ..tables import LeftOut, SourceContents
from .results import SYSTEM_INFO
from .source import Source

_ADJUSTED = {"total_duration (s)", "inference_duration (s)", "total_bits"}
_PAYLOAD = {"data_bucket", "data_prefix"}
_SERIES = ("batch_size", "total_time", "throughput", "cpu_memory_mb", "estimated_cost_usd")


def matches(source: Source) -> bool:
    """Return whether a file is of such a kind."""
    return source.file == SYSTEM_INFO or is_job_log(source) or explain_ignored(source) is not None


def read(source: Source) -> SourceContents:
    """Return no runs, and the reason unless another reader uses the file together with its own.

    System_Info.json is read with the results of its folder, and a job's log with the job's records.
    """
    reason = explain_ignored(source)
    return SourceContents() if reason is None else SourceContents(left_out=(LeftOut(source.uri, reason),))


def explain_ignored(source: Source) -> str | None:
    """Return why a file is left out, or None if it is not of such a kind."""
    if source.file == "sweep.json":
        return "it is a table made from run folders, which are read themselves"
    if source.values.keys() >= _PAYLOAD:
        return "it is the input of a state machine, not a measurement"
    if source.columns and not source.rows():
        return "it is a table without rows"
    if _ADJUSTED.issubset(source.columns):
        return "it repeats result_stats.csv with rates over the durations of state_machine_logs.csv, which are read"
    if source.columns == _SERIES:
        return "it repeats the results of the series, which are read themselves"
    if is_job_log(source) and not has_job_records(source):
        return "it is the log of a job, which states no times, and the job's records are not in its folder"
    return None


def is_job_log(source: Source) -> bool:
    """Return whether a file is the log of a job with the endless loader."""
    return source.name.endswith(".out") and "Processed 1 GB." in source.text


def has_job_records(source: Source) -> bool:
    """Return whether the folder of a log holds records whose name starts like the log's."""
    folder, kind = source.uri.rpartition("/")[0], source.file.partition("_")[0]
    return any(entry.name.endswith(".json") for entry in storage.list_files(folder, f"{kind}_"))
