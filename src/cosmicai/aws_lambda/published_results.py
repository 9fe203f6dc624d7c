"""Published records that ranks left at `result_path`, whichever program wrote them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .. import storage
from ..records import decode_json
from ..runs.published import OWN_KEY, count_galaxies
from ..runs.store import RunFolder, ignore
from ..storage.parallel import map_in_order
from ..storage.s3 import reader_threads

PublishedRecord = dict[str, Any]
_Content: Any = PublishedRecord | list[PublishedRecord]
# Earlier versions of this program wrote `0-2.json` for a second attempt.
_RESULT = re.compile(r"([0-9]+)(?:-([0-9]+))?\.json")


def read_results(results: RunFolder, without: Collection[int] = ()) -> dict[int, list[PublishedRecord]]:
    """Return the records in the files `<rank>.json` by rank, in the order of the ranks, `without` some of these.

    Raises InputError naming a file that holds neither a record nor a list of records.
    """
    matches = filter(None, (_RESULT.fullmatch(entry.name) for entry in storage.list_files(results.uri)))
    every = sorted((int(match[1]), int(match[2] or 1), results.path(match[0])) for match in matches)
    files = [file for file in every if file[0] not in without]
    texts = map_in_order(storage.read_bytes, (path for *_, path in files), reader_threads(results.uri))
    found: dict[int, list[PublishedRecord]] = {}
    for (rank, attempt, path), text in zip(files, texts, strict=True):
        remedy = "expected the record of a rank; remove it, and invoke the rank again"
        content = decode_json(text, _Content, where=path, remedy=remedy)
        if attempt == 1 or not any(map(is_own, found.get(rank, ()))):  # a record of all attempts holds the later ones
            found.setdefault(rank, []).extend(content if isinstance(content, list) else [content])
    return found


def is_own(record: Mapping[str, Any]) -> bool:
    """Return whether a published record was written by this program."""
    return OWN_KEY in record


def read_other_results(results: RunFolder, run: RunFolder) -> dict[int, list[PublishedRecord]]:
    """Return the records by rank that another program wrote, for ranks that did nothing in the run itself."""
    own = {record.rank for record in run.records(ignore).values() if record.galaxies}
    found = read_results(results, own)
    return {rank: records for rank, records in found.items() if not all(map(is_own, records))}


def count_results(found: Mapping[int, Iterable[PublishedRecord]]) -> tuple[int, int]:
    """Return the number of records and that of their galaxies, by the published reading."""
    records = [record for own in found.values() for record in own]
    return len(records), sum(map(count_galaxies, records))


def combine(results: RunFolder, found: Mapping[int, Iterable[PublishedRecord]]) -> None:
    """Write the records of all ranks in one list, as the published summarizer does."""
    results.write_json(results.combined_path, [record for own in found.values() for record in own])
