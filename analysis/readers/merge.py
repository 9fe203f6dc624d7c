"""Merge what several published sources state about the same run, so that no run is there twice.

Records, averages and durations of a run lie in different files, and their folders in a clone of the published
repository are others than in other copies. So they are joined by what they say of themselves: partition, data size and
repeat. Where several fit, those belong together that lie next to each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from ..tables import LAPTOP, LeftOut, MeasuredRun, Row

MatchKey = tuple[Any, ...]
Merged = tuple[list[MeasuredRun], list[LeftOut]]

_FROM_DURATION = ("wall_seconds", "working_seconds", "asked_ranks", "machine")  # columns that a duration contributes
_SETTINGS = ("study", "partition_mb", "data_gb", "repeat")
_TABLES = ("statistics", "durations", "array", "platforms")  # kinds of which each run is a row of a table
_ROW = (
    *("platform", "device", "machine", "partition_mb", "data_gb", "batch_size", "repeat", "concurrency"),
    *("wall_seconds", "working_seconds", "rank_seconds", "mean_cpu_seconds", "allocated_mb", "galaxies"),
    *("galaxies_per_second", "summed_galaxies_per_second", "dollars"),
)
_DURATION = ("platform", "machine", "partition_mb", "data_gb", "repeat", "wall_seconds", "working_seconds")


def merge_runs(measured: Sequence[MeasuredRun]) -> Merged:
    """Return each run once, and what was left out for that.

    Left out are copies, and averages of runs whose records were found. A duration is added to the records, else to the
    averages, of its run. Of two durations that of the state machine's log is used, which also has the time of the map,
    as the published averages of both do; the other one remains a run of its own, and so does a duration without such a
    run.
    """
    originals, copies = drop_copies(measured)
    runs, repeated = drop_repeated_averages(originals)
    return _add_durations(runs), [*copies, *repeated]


def build_match_key(run: Row) -> MatchKey:
    """Return the key by which sources describe the same run: on Lambda partition, data size and repeat, else its name.

    In the study of batch sizes the tables state the number of galaxies instead of partition and data size. Results of
    one machine are known by the name of their file, to which the table of their times refers.
    """
    found: MatchKey = (run["run"],)
    if run["platform"] == "lambda" and run["kind"] in ("combined", "statistics", "durations"):
        if run["study"] == "data size":
            found = tuple(run.get(name) for name in ("platform", "study", "partition_mb", "data_gb", "repeat"))
        elif run["study"] == "batch size" and run["kind"] != "durations":
            found = tuple(run.get(name) for name in ("platform", "study", "batch_size", "galaxies", "repeat"))
    elif run["platform"] == "slurm" and run["kind"] == "statistics":
        found = tuple(run.get(name) for name in ("platform", "kind", "data_gb", "repeat"))
    elif run["platform"] == LAPTOP and run["kind"] in ("results", "durations"):
        found = ("results", run["run"].rpartition("/")[2])
    return (run["run"],) if None in found else found


def drop_copies(measured: Sequence[MeasuredRun]) -> Merged:
    """Return the runs without copies: runs of whose records, or row of a table, another file has all.

    Of two equal ones the first is kept. Runs whose names state different settings are no copies; the one that repeats
    the records of another says so in its contradictions.
    """
    digests = [one.digests or _digest_row(one.run) for one in measured]
    owners: dict[int, MeasuredRun] = {}
    kept: dict[int, MeasuredRun] = {}
    copies: Counter[tuple[str, str]] = Counter()
    for place in sorted(range(len(measured)), key=lambda place: -len(digests[place])):
        one, own = measured[place], digests[place]
        owner = owners.get(next(iter(own))) if own else None
        if owner is None or owner.run["source"] == one.run["source"] or any(owners.get(d) is not owner for d in own):
            owners |= {digest: one for digest in own if digest not in owners}
            kept[place] = one
        elif all(one.run.get(column) == owner.run.get(column) for column in _SETTINGS):
            copies[one.run["source"], owner.run["source"]] += 1
        else:
            text = f"its records are also those of {owner.run['run']}, by its name another run"
            kept[place] = replace(one, contradictions=(*one.contradictions, text))
    left_out = [
        LeftOut(
            source,
            f"{'it repeats' if count == 1 else 'they repeat'} {original}, which is read",
            f"{count} rows" if count > 1 else "",
        )
        for (source, original), count in copies.items()
    ]
    return [kept[place] for place in sorted(kept)], left_out


def _digest_row(run: Row) -> frozenset[int]:
    """Return the digest of a row of a table, of what all versions of the table state; empty for other kinds of runs."""
    if run["kind"] not in _TABLES:
        return frozenset()
    if run["kind"] == "durations" and run["study"] != "world size":
        return frozenset({hash((run["run"].rpartition("/")[2], *map(run.get, _DURATION)))})
    return frozenset({hash(tuple(map(run.get, (*_ROW, "world_size"))))})


def drop_repeated_averages(measured: Sequence[MeasuredRun]) -> Merged:
    """Return the runs without averages of runs whose records, or averages in another table, are read.

    Of several averages those are kept that state most; rows of the platform comparison are averages too if the run is
    on Lambda. What is contradictory in averages that are left out is so of the run that is kept.
    """
    records = {build_match_key(one.run): one.run for one in measured if one.run["kind"] == "combined"}
    averages = [one.run for one in measured if one.run["kind"] == "statistics"]
    fullest = {
        build_match_key(run): run for run in sorted(averages, key=lambda run: sum(run[n] is not None for n in run))
    }
    compared = {_identify_by_memory(run) for run in (*records.values(), *averages)}
    kept: list[MeasuredRun] = []
    repeated: Counter[tuple[str, str]] = Counter()
    contradictions: defaultdict[MatchKey, list[str]] = defaultdict(list)
    for one in measured:
        key, kind = build_match_key(one.run), (one.run["kind"], one.run["platform"])
        if kind == ("platforms", "lambda") and _identify_by_memory(one.run) in compared:
            repeated[one.run["source"], "their runs are in other published files, which are read instead"] += 1
        elif kind[0] != "statistics":
            kept.append(one)
        elif key in records:
            same = _round_memory(records[key]) == _round_memory(one.run)
            contradictions[key] += one.contradictions
            reason = "the records of their runs were found and are read instead"
            repeated[one.run["source"], reason if same else f"{reason}, though their values differ"] += 1
        elif fullest[key] is not one.run:
            contradictions[key] += one.contradictions
            repeated[one.run["source"], f"{fullest[key]['source']} states the same runs and is read instead"] += 1
        else:
            kept.append(one)
    left_out = [LeftOut(source, reason, f"{count} rows") for (source, reason), count in repeated.items()]
    for place, one in enumerate(kept):
        if one.run["kind"] in ("combined", "statistics") and (texts := contradictions.get(build_match_key(one.run))):
            kept[place] = replace(one, contradictions=tuple(dict.fromkeys([*one.contradictions, *texts])))
    return kept, left_out


def _identify_by_memory(run: Row) -> MatchKey:
    """Return what published tables of Lambda agree in: data size, repeat and memory."""
    return run.get("data_gb"), run.get("repeat"), _round_memory(run)


def _round_memory(run: Row) -> float | None:
    """Return the allocated memory to hundredths of MB, as the tables have it."""
    memory = run.get("allocated_mb")
    return None if memory is None else round(memory, 2)


def _add_durations(runs: Sequence[MeasuredRun]) -> list[MeasuredRun]:
    """Return the runs with the durations that describe them; each duration goes to the nearest run of its key."""
    durations = [one.run for one in runs if one.run["kind"] == "durations"]
    durations.sort(key=lambda run: run.get("working_seconds") is None)
    by_key: defaultdict[MatchKey, list[Row]] = defaultdict(list)
    for one in runs:
        if one.run["kind"] != "durations":
            by_key[build_match_key(one.run)].append(one.run)
    added: dict[str, dict[str, Any]] = {}
    used: set[int] = set()
    for duration in durations:
        without = [run for run in by_key.get(build_match_key(duration), ()) if run["run"] not in added]
        if without:
            nearest = max(without, key=lambda run: _count_common_folders(run, duration))
            added[nearest["run"]] = {name: duration[name] for name in _FROM_DURATION if duration.get(name) is not None}
            used.add(id(duration))
    merged = [
        replace(one, run={**one.run, **added.get(one.run["run"], {})} if one.run["kind"] != "durations" else one.run)
        for one in runs
        if id(one.run) not in used
    ]
    counted = [run for run in durations if run.get("asked_ranks") is not None]
    return [_add_file_count(one, counted) for one in merged]


def _add_file_count(one: MeasuredRun, counted: Iterable[Row]) -> MeasuredRun:
    """Return the run with the number of files of its data size, which on Lambda is the planned number of ranks.

    It is that of the nearest tables, unless these state different ones.
    """
    run = one.run
    if "asked_ranks" in run or run["platform"] != "lambda" or run["study"] != "data size":
        return one
    size = run.get("partition_mb"), run.get("data_gb")
    files: defaultdict[int, set[int]] = defaultdict(set)
    for row in counted:
        if size == (row["partition_mb"], row["data_gb"]):
            files[_count_common_folders(run, row)].add(row["asked_ranks"])
    counts = files[max(files)] if files else set()
    return replace(one, run={**run, "asked_ranks": counts.pop()}) if len(counts) == 1 else one


def _count_common_folders(run: Row, other: Row) -> int:
    """Return how many folders the files of two runs have in common, from the root."""
    pairs = zip(str(run["source"]).split("/"), str(other["source"]).split("/"), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
