"""Read published records of all ranks of a run from one list: combined_data.json, and the course teams' files.

The records of a run that were not put together, RANK.json for each rank, are read as one list.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from cosmicai.errors import InputError

from ..tables import RANK_TYPES, LeftOut, MeasuredRun, Row, SourceContents, validate_row
from .own_records import describe_rank, describe_run
from .settings import find_settings, is_of_slurm
from .source import Source
from .values import count_galaxies, get_integer, get_number, get_paths, get_rate

COMBINED, PLAN = "combined_data.json", "plan.json"
_KEY = "execution_time (seconds/batch)"
_S3 = {"s3_mean_seconds": "s3_avg_time", "s3_min_seconds": "s3_min_time", "s3_max_seconds": "s3_max_time"}
_RANK_FILE = re.compile(r"[0-9]+\.json")


def join_rank_files(sources: Iterable[Source]) -> list[Source]:
    """Return the sources with the files of each run's ranks as one source, after all others.

    Such a file holds the record of one rank and is named RANK.json, if it was not renamed. Those are of one run that
    lie in one folder and whose records state the same result path.
    """
    others: list[Source] = []
    runs: defaultdict[tuple[str, str | None], list[Source]] = defaultdict(list)
    for source in sources:
        if _is_rank_file(source):
            runs[source.uri.rpartition("/")[0], _result_path(source.records[0])].append(source)
        else:
            others.append(source)
    return [*others, *(Source(parts[0].uri, parts[0].name, tuple(parts)) for parts in runs.values())]


def _is_rank_file(source: Source) -> bool:
    """Return whether a file holds the record of one rank; false for a file that cannot be read."""
    if source.file == PLAN or not source.file.endswith(".json"):
        return False
    try:
        return bool(
            len(source.records) == 1
            and _is_record(source.records[0])
            and (source.values or _RANK_FILE.fullmatch(source.file))
        )
    except InputError:
        return False


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its name or its keys."""
    return source.file == COMBINED or any(map(_is_record, source.records))


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and _KEY in value


def read(source: Source) -> SourceContents:
    """Return the run and its ranks.

    Raises ValueError if no record can be used, or if two runs have equally many records.
    """
    if (not source.parts and not isinstance(source.json, list)) or not (records := source.records):
        raise ValueError("it is not a list of records; expected the records of a run's ranks")
    own = find_result_path(records)
    ranks: list[Row] = []
    left_out: list[LeftOut] = []
    digests: set[int] = set()
    for place, record in enumerate(records):
        try:
            if (path := _result_path(record) if isinstance(record, dict) else own) != own:
                raise ValueError(f"it is of another run: its `result_path` is {path!r}, that of most is {own!r}")
            row = build_rank_row(place, record)
            validate_row(row, RANK_TYPES)
            ranks.append(row)
            digests.add(hash(json.dumps(record, sort_keys=True)))
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"record {place}"))
    if not ranks:
        raise ValueError(f"none of its {len(records)} records can be used; of the first, {left_out[0].reason}")
    on_rivanna = is_of_slurm(source)
    devices = {str(record["device"]) for record in records if isinstance(record, dict) and "device" in record}
    run = find_settings(source, own, ranks[0]["item"]) | {
        "run": source.folder if source.parts or source.file == COMBINED else source.stem,
        "source": source.uri,
        "origin": "published",
        "kind": "combined",
        "platform": "slurm" if on_rivanna else "lambda",
        "device": devices.pop() if len(devices) == 1 else None,
        "machine": "Rivanna" if on_rivanna else "AWS Lambda",
        "engine": "published",
        "precision": "float32",
        "world_size": len(records),
        "galaxies": sum(rank["galaxies"] for rank in ranks),
        **_add_memory(ranks),
        **describe_run(records),
    }
    if len(batch_sizes := {rank["batch_size"] for rank in ranks}) == 1:
        run["batch_size"] = batch_sizes.pop()
    return SourceContents((MeasuredRun(run, tuple(ranks), frozenset(digests)),), tuple(left_out))


def find_result_path(records: Sequence[Any]) -> str | None:
    """Return the result path that most records state. Raises ValueError if two paths occur equally often."""
    counts = Counter(_result_path(record) for record in records if isinstance(record, dict)).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        (one, count), (other, _) = counts
        raise ValueError(f"it holds two runs, with {count} records each: {one!r} and {other!r}; keep them apart")
    return counts[0][0] if counts else None


def _result_path(record: dict[str, Any]) -> str | None:
    """Return where a record's run wrote; a damaged value of another type as text."""
    path = record.get("result_path")
    return path if path is None or isinstance(path, str) else repr(path)


def build_rank_row(place: int, record: dict[str, Any]) -> Row:
    """Return a rank's row. Raises ValueError, naming the key, if a published key is missing or not a number."""
    row: dict[str, Any] = {
        "rank": place,
        "item": get_paths(record, "data_path"),
        "batches": get_integer(record, "num_batches"),
        "batch_size": get_integer(record, "batch_size"),
        "cpu_seconds": get_number(record, "total_cpu_time (seconds)"),
        "galaxies_per_second": get_rate(record, "sample_persec", "throughput_bps"),
        "allocated_mb": get_number(record, "total_cpu_memory (MB)"),
    }
    # This is CPU time too and is not used; but if it has another unit, the other values may have one as well.
    get_number(record, _KEY)
    # The rate is galaxies over CPU time, so their product is the exact number of galaxies.
    row["galaxies"] = count_galaxies(row["galaxies_per_second"], row["cpu_seconds"])
    if "total_process_memory (MB)" in record:
        row["peak_rss_mb"] = get_number(record, "total_process_memory (MB)")
    if "s3_num_requests" in record:
        row |= {
            "s3_requests": get_integer(record, "s3_num_requests"),
            "s3_seconds": get_number(record, "s3_total_time"),
            **{name: get_number(record, key) for name, key in _S3.items() if key in record},
        }
    return {**row, **describe_rank(record, row)}


def _add_memory(ranks: Sequence[Row]) -> Row:
    """Return the memory that all ranks together were given; nothing if that of one is unknown."""
    sizes = [rank["allocated_mb"] for rank in ranks]
    return {} if None in sizes else {"allocated_mb": math.fsum(sizes)}
