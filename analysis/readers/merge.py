"""What several published sources tell of the same run, put together.

Durations and statistics of runs lie in tables beside or above the folders with their records. So a table is taken to
tell of runs that lie below its own folder, and of no others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from ..tables import LeftOut, Measured, Row

_TOLD = ("wall_seconds", "working_seconds", "asked_ranks", "machine")  # what a duration tells of its run
_KINDS = ("combined", "statistics", "durations", "results")

Place = tuple[Any, ...]


def join(measured: Sequence[Measured]) -> tuple[list[Measured], list[LeftOut]]:
    """The runs, each told of once; statistics of runs whose records are there are left out, counted by file.

    A duration goes to the records, else to the statistics, of the run with the same place. Of two durations that of the
    state machine's log is taken, which also has the time of its map, as the published averages of both do; the other
    remains a run of its own, and so does one without such a run.
    """
    runs, left_out = _without_repeated(measured)
    durations = [one for one in runs if one.run["kind"] == "durations"]
    files = _files(durations)
    durations.sort(key=lambda one: "working_seconds" not in one.run)
    by_place: defaultdict[Place, list[Row]] = defaultdict(list)
    for one in durations:
        by_place[place(one)].append(one.run)
    joined: list[Measured] = []
    used: set[str] = set()
    for one in runs:
        if one.run["kind"] != "durations":
            found = (run for run in by_place.get(place(one), ()) if run["run"] not in used and _covers(run, one.run))
            if (duration := next(found, None)) is not None:
                used.add(duration["run"])
                told = {name: duration[name] for name in _TOLD if duration.get(name) is not None}
                one = Measured({**one.run, **told}, one.ranks)
        joined.append(one)
    kept = (one for one in joined if one.run["kind"] != "durations" or one.run["run"] not in used)
    return [_with_files(one, files) for one in kept], left_out


def place(one: Measured) -> Place:
    """By what different sources tell of the same run: on Lambda partition, data size and repeat, else its name.

    In the study of batch sizes the tables name neither partition nor data size, but the number of galaxies.
    """
    run = one.run
    found: Place = (run["run"],)
    if run["platform"] == "lambda" and run["kind"] in _KINDS:
        if run["study"] == "data size":
            found = tuple(run.get(name) for name in ("platform", "study", "partition_mb", "data_gb", "repeat"))
        elif run["study"] == "batch size" and run["kind"] != "durations":
            found = tuple(run.get(name) for name in ("platform", "study", "batch_size", "galaxies", "repeat"))
    return (run["run"],) if None in found else found


def _without_repeated(measured: Sequence[Measured]) -> tuple[list[Measured], list[LeftOut]]:
    """The runs but for those statistics that repeat what records tell."""
    recorded: defaultdict[Place, list[Row]] = defaultdict(list)
    for one in measured:
        if one.run["kind"] == "combined":
            recorded[place(one)].append(one.run)
    kept: list[Measured] = []
    repeated: Counter[str] = Counter()
    for one in measured:
        is_statistics = one.run["kind"] == "statistics"
        if is_statistics and any(_covers(one.run, run) for run in recorded.get(place(one), ())):
            repeated[one.run["source"]] += 1
        else:
            kept.append(one)
    reason = "the records of their runs are there, and are read themselves"
    return kept, [LeftOut(source, reason, f"{count} rows") for source, count in repeated.items()]


def _files(durations: Sequence[Measured]) -> dict[Place, int | None]:
    """How many files a data size has, by folder of the table, partition and size; None where repeats differ."""
    found: dict[Place, int | None] = {}
    for run in (one.run for one in durations if "asked_ranks" in one.run):
        key = (_folder(run), run["partition_mb"], run["data_gb"])
        found[key] = run["asked_ranks"] if found.get(key, run["asked_ranks"]) == run["asked_ranks"] else None
    return found


def _with_files(one: Measured, files: dict[Place, int | None]) -> Measured:
    """The run with the number of files that its data size has, which on Lambda is that of the ranks."""
    if "asked_ranks" in one.run or one.run["platform"] != "lambda" or one.run["study"] != "data size":
        return one
    settings = one.run.get("partition_mb"), one.run.get("data_gb")
    asked = {count for (folder, *key), count in files.items() if tuple(key) == settings and _is_below(one.run, folder)}
    return Measured({**one.run, "asked_ranks": asked.pop()}, one.ranks) if len(asked) == 1 else one


def _folder(run: Row) -> str:
    """The folder of the file that tells of a run."""
    return str(run["source"]).rpartition("/")[0]


def _is_below(run: Row, folder: str) -> bool:
    return f"{_folder(run)}/".startswith(f"{folder}/")


def _covers(table: Row, run: Row) -> bool:
    """Whether what a table tells may be about a run."""
    return _is_below(run, _folder(table))
