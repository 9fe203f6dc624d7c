"""Merge what several published sources state about the same run.

Durations and statistics of runs lie in tables in or above the folders with the records. So a table is taken to
describe runs below its own folder, and no others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ..tables import LeftOut, MeasuredRun, Row

_FROM_DURATION = ("wall_seconds", "working_seconds", "asked_ranks", "machine")  # columns that a duration contributes
_KINDS = ("combined", "statistics", "durations", "results")

MatchKey = tuple[Any, ...]


def merge_runs(measured: Sequence[MeasuredRun]) -> tuple[list[MeasuredRun], list[LeftOut]]:
    """Return each run once; statistics of runs whose records were found are left out, counted by file.

    A duration is added to the records, else to the statistics, of the run with the same match key. Of two durations
    that of the state machine's log is used, which also has the time of the map, as the published averages of both do;
    the other one remains a run of its own, and so does a duration without such a run.
    """
    runs, left_out = _drop_repeated(measured)
    durations = [one for one in runs if one.run["kind"] == "durations"]
    files = _count_files(durations)
    durations.sort(key=lambda one: "working_seconds" not in one.run)
    by_key: defaultdict[MatchKey, list[Row]] = defaultdict(list)
    for one in durations:
        by_key[build_match_key(one)].append(one.run)
    merged: list[MeasuredRun] = []
    used: set[str] = set()
    for one in runs:
        if one.run["kind"] != "durations":
            found = (
                run for run in by_key.get(build_match_key(one), ()) if run["run"] not in used and _covers(run, one.run)
            )
            if (duration := next(found, None)) is not None:
                used.add(duration["run"])
                values = {name: duration[name] for name in _FROM_DURATION if duration.get(name) is not None}
                one = MeasuredRun({**one.run, **values}, one.ranks)
        merged.append(one)
    kept = (one for one in merged if one.run["kind"] != "durations" or one.run["run"] not in used)
    return [_add_file_count(one, files) for one in kept], left_out


def build_match_key(one: MeasuredRun) -> MatchKey:
    """Return the key by which sources describe the same run: on Lambda partition, data size and repeat, else its name.

    In the study of batch sizes the tables state the number of galaxies instead of partition and data size.
    """
    run = one.run
    found: MatchKey = (run["run"],)
    if run["platform"] == "lambda" and run["kind"] in _KINDS:
        if run["study"] == "data size":
            found = tuple(run.get(name) for name in ("platform", "study", "partition_mb", "data_gb", "repeat"))
        elif run["study"] == "batch size" and run["kind"] != "durations":
            found = tuple(run.get(name) for name in ("platform", "study", "batch_size", "galaxies", "repeat"))
    return (run["run"],) if None in found else found


def _drop_repeated(measured: Sequence[MeasuredRun]) -> tuple[list[MeasuredRun], list[LeftOut]]:
    """Return the runs without those statistics that repeat records, and these as left out."""
    recorded: defaultdict[MatchKey, list[Row]] = defaultdict(list)
    for one in measured:
        if one.run["kind"] == "combined":
            recorded[build_match_key(one)].append(one.run)
    kept: list[MeasuredRun] = []
    repeated: Counter[str] = Counter()
    for one in measured:
        is_statistics = one.run["kind"] == "statistics"
        if is_statistics and any(_covers(one.run, run) for run in recorded.get(build_match_key(one), ())):
            repeated[one.run["source"]] += 1
        else:
            kept.append(one)
    reason = "the records of their runs were found and are read instead"
    return kept, [LeftOut(source, reason, f"{count} rows") for source, count in repeated.items()]


def _count_files(durations: Sequence[MeasuredRun]) -> dict[MatchKey, int | None]:
    """Return the number of files of a data size, by folder of the table, partition and size; None if repeats differ."""
    found: dict[MatchKey, int | None] = {}
    for run in (one.run for one in durations if "asked_ranks" in one.run):
        key = (_folder_of(run), run["partition_mb"], run["data_gb"])
        found[key] = run["asked_ranks"] if found.get(key, run["asked_ranks"]) == run["asked_ranks"] else None
    return found


def _add_file_count(one: MeasuredRun, files: dict[MatchKey, int | None]) -> MeasuredRun:
    """Return the run with the number of files of its data size, which on Lambda is the planned number of ranks."""
    if "asked_ranks" in one.run or one.run["platform"] != "lambda" or one.run["study"] != "data size":
        return one
    settings = one.run.get("partition_mb"), one.run.get("data_gb")
    counts = {count for (folder, *key), count in files.items() if tuple(key) == settings and _is_below(one.run, folder)}
    return MeasuredRun({**one.run, "asked_ranks": counts.pop()}, one.ranks) if len(counts) == 1 else one


def _folder_of(run: Row) -> str:
    """Return the folder of the file that describes a run."""
    return str(run["source"]).rpartition("/")[0]


def _is_below(run: Row, folder: str) -> bool:
    return f"{_folder_of(run)}/".startswith(f"{folder}/")


def _covers(table: Row, run: Row) -> bool:
    """Return whether a row of a table may describe a run, which is then at or below the table's folder."""
    return _is_below(run, _folder_of(table))
