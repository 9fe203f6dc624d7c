"""Ingest files of one galaxy each, of which there may be a million: read by several processes, resumed after a kill.

The order of the survey is that of the catalogue, or of the files, whatever is read first; its bytes are the same for
any number of processes. A shard that is complete has a note beside it (`000001.json`) that names what it was made of;
the same command takes such shards as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ... import storage
from ...errors import InputError
from ...storage.folder import resumable_folder
from ...version import VERSION
from ..columns import POSITION, ColumnSpec, join_specs
from ..identity import INT64, combine_sources, no_objids, objids
from ..shard import IMAGE_SHAPE, Galaxies
from ..survey import Survey, describe_shards, require_new_survey
from .catalogue import Catalogue
from .cutouts import local_copies
from .finished_shards import Layout, Note, common_layout, conform, read_note, shard_path, write_batches
from .fits_band_files import open_band_files
from .fits_positions import separation
from .gate import open_source
from .matching import Cutout
from .reading import Reading, decide, read_batches, read_cutouts
from .report import IngestReport, Tally
from .source import IngestOptions, Source, SourceArray, from_sliceable

CHUNK = 64  # cutouts that a process reads at a time
# arcsec, half of the 32 pixels that are kept: a galaxy that far away lies outside of them
LARGEST_SEPARATION = 16 * 0.396

ReadChunk = Callable[["Chunk"], "ChunkResult"]
Run = Callable[[ReadChunk, Iterable["Chunk"]], Iterator["ChunkResult"]]


@dataclass(frozen=True)
class Chunk:
    """Cutouts of consecutive galaxies, the rows of the catalogue for them, and how all of its rows are read."""

    cutouts: tuple[Cutout, ...]
    options: IngestOptions
    ids: NDArray[Any] | None
    rows: tuple[Catalogue, Reading] | None


@dataclass(frozen=True)
class ChunkResult:
    """The galaxies of a chunk, of which the ids are numbers or text, or mean nothing where `objid` is None."""

    galaxies: Galaxies
    objid: np.dtype[Any] | None
    has_redshift: bool
    columns: dict[str, ColumnSpec]
    notices: list[tuple[str, str]] = field(default_factory=list)


def ingest_single_files(
    cutouts: Sequence[Cutout],
    out: str,
    galaxies_per_shard: int,
    options: IngestOptions,
    catalogue: Catalogue | None,
    run: Run,
    advance: Callable[[int], None],
) -> IngestReport:
    """Write the galaxies of files with one galaxy each as a survey; what is complete stays when it is interrupted.

    `catalogue` has a row for each cutout, in their order. `run` applies a function to chunks and yields the results in
    order, in other processes if it likes; `advance` is told how many galaxies are done. Raises InputError naming the
    file and the field if one cannot be used, or if `out` holds files already.
    """
    target = require_new_survey(out)
    ids = _ids_by_name(cutouts) if catalogue is None and len(cutouts[0].files) > 1 else None
    rows = None if catalogue is None else (catalogue, read_as(catalogue))  # refused before a file is read
    shards = [
        (start, min(start + galaxies_per_shard, len(cutouts))) for start in range(0, len(cutouts), galaxies_per_shard)
    ]
    with resumable_folder(target) as folder:
        made_of = [_made_of(cutouts, ids, rows, options, *bounds) for bounds in shards]
        notes = [read_note(folder, number) for number in range(len(shards))]
        notes = [note if note and note.made_of == own else None for note, own in zip(notes, made_of, strict=True)]
        advance(sum(note.entry.galaxies for note in notes if note))
        bounds = [
            [(first, min(first + CHUNK, end)) for first in range(start, end, CHUNK)] * (note is None)
            for (start, end), note in zip(shards, notes, strict=True)
        ]
        results = run(read_chunk, (_chunk(cutouts, ids, rows, options, *own) for each in bounds for own in each))
        for number, chunks in enumerate(bounds):
            if chunks:
                parts = list(_count(islice(results, len(chunks)), advance))
                names = [f"one of the files from {cutouts[first].uri} on" for first, _ in chunks]
                note = _write(folder, number, made_of[number], shards[number][0], dict(zip(names, parts, strict=True)))
                storage.write_bytes(str(shard_path(folder, number).with_suffix(".json")), msgspec.json.encode(note))
                notes[number] = note
        complete = [note for note in notes if note]
        layout = common_layout(complete)
        entries = tuple(conform(folder, note, layout) for note in complete)
        storage.write_bytes(str(folder / "survey.json"), describe_shards(entries))
        kept = {"survey.json", *(entry.name for entry in entries)}
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
    said = () if rows is None else (*rows[0].notices, *rows[1].notices)
    tally = Tally([(catalogue.path, notice) for notice in said] if catalogue else [])
    for note in complete:
        tally.merge(note.tally())
    return tally.report(Survey(str(target), entries), layout.has_redshift)


def _count(results: Iterable[ChunkResult], advance: Callable[[int], None]) -> Iterator[ChunkResult]:
    for result in results:
        advance(len(result.galaxies))
        yield result


def read_chunk(chunk: Chunk) -> ChunkResult:
    """Read the galaxies of a chunk. Raises InputError naming the file that cannot be used."""
    return _read_whole(chunk) if chunk.rows is None else _read_images(chunk, *chunk.rows)


def _read_images(chunk: Chunk, catalogue: Catalogue, read_rows: Reading) -> ChunkResult:
    """Read galaxies of which all but the cutouts is in a catalogue, whose rows are looked up once for all of them."""
    images, notices = [], []
    for number, cutout in enumerate(chunk.cutouts):
        reopen = partial(_open, chunk, number)
        with reopen() as opened:
            reading = decide(cutout.uri, opened, chunk.options, reopen)
            with nullcontext(opened) if reading.mask is None else reopen() as source:  # a mask was read to decide
                images.append(read_cutouts(cutout.uri, source, reading, 1))
            _require_same_place(cutout.uri, opened, catalogue, number)
            notices += [(cutout.uri, notice) for notice in reading.notices]
    described = catalogue.describe(Source({"image": from_sliceable(np.concatenate(images))}))
    own = replace(read_rows, galaxies=catalogue.rows)
    batches = read_batches(catalogue.path, described, own, 0, own.objid, own.columns)
    return ChunkResult(Galaxies.concatenate(batches), own.objid, own.has_redshift, own.columns, notices)


def _require_same_place(uri: str, opened: Source, catalogue: Catalogue, row: int) -> None:
    """Raise InputError if a cutout says that it shows another place of the sky than the one in the catalogue's row."""
    if not all(name in source for source in (opened.fields, catalogue.fields) for name in POSITION):
        return
    shown = [float(np.ma.filled(opened.fields[name].read_next(1).astype(np.float64), np.nan)[0]) for name in POSITION]
    wanted = [float(np.ma.filled(catalogue.fields[name][0][row : row + 1], np.nan)[0]) for name in POSITION]
    distance = separation((shown[0], shown[1]), (wanted[0], wanted[1])) * 3600
    if distance > LARGEST_SEPARATION:
        raise InputError(
            f"{uri} shows ra {shown[0]:.5f}, dec {shown[1]:.5f}, its row in {catalogue.path} has ra {wanted[0]:.5f}, "
            f"dec {wanted[1]:.5f}; expected a cutout of this galaxy, check which file belongs to it"
        )


def read_as(catalogue: Catalogue) -> Reading:
    """Return how the rows of a catalogue are read, whatever the cutouts are."""
    nothing = SourceArray((catalogue.rows, *IMAGE_SHAPE), np.dtype(np.float32), np.empty)
    source = catalogue.describe(Source({"image": nothing}))
    return decide(catalogue.path, source, IngestOptions(), lambda: nullcontext(source))


def _read_whole(chunk: Chunk) -> ChunkResult:
    """Read galaxies whose fields are in their own files."""
    parts: list[Galaxies] = []
    readings: list[tuple[str, Reading]] = []
    for number, cutout in enumerate(chunk.cutouts):
        reopen = partial(_open, chunk, number)
        with reopen() as opened:
            readings.append((cutout.uri, decide(cutout.uri, opened, chunk.options, reopen)))
        reading = readings[-1][1]
        with reopen() as opened:
            parts += read_batches(cutout.uri, opened, reading, 0, reading.objid or INT64, reading.columns)
    columns = join_specs([(uri, reading.columns) for uri, reading in readings])
    for part, (uri, reading) in zip(parts, readings, strict=True):
        _store_columns(part, reading.columns, columns, uri)
    dtypes = {uri: reading.objid for uri, reading in readings if reading.objid is not None}
    return ChunkResult(
        Galaxies.concatenate(parts), combine_sources(dtypes) if dtypes else None,
        any(reading.has_redshift for _, reading in readings), columns,
        [(uri, notice) for uri, reading in readings for notice in reading.notices],
    )  # fmt: skip


def _store_columns(
    part: Galaxies, stored: Mapping[str, ColumnSpec], columns: Mapping[str, ColumnSpec], source: str
) -> None:
    """Store the columns of galaxies of a source, which are stored in one way, in another way."""
    for name, spec in columns.items():
        own = stored.get(name)
        part.columns[name] = (
            spec.missing(len(part)) if own is None else spec.convert(part.columns[name], own, f"{source}: {name}")
        )


@contextmanager
def _open(chunk: Chunk, number: int) -> Iterator[Source]:
    """Open the files of one cutout. Raises InputError unless they hold one galaxy."""
    cutout = chunk.cutouts[number]
    with local_copies([file.uri for file in cutout.files]) as paths:
        opener = open_source(paths[0], chunk.options) if len(paths) == 1 else open_band_files(paths, chunk.options)
        with opener as opened:
            if (galaxies := opened.fields["image"].shape[0]) != 1:
                raise InputError(f"{cutout.uri} holds {galaxies} galaxies; expected one, ingest files of many apart")
            if chunk.ids is not None and "objid" not in opened.fields:
                opened.fields["objid"] = from_sliceable(chunk.ids[number : number + 1])
            yield opened


def _ids_by_name(cutouts: Sequence[Cutout]) -> NDArray[Any]:
    """Return the ids that the names of files state: numbers if all are, else text."""
    names = [cutout.id for cutout in cutouts]
    is_number = all(name.isdecimal() and str(int(name)) == name and int(name) < 2**63 for name in names)
    return np.array([int(name) for name in names], np.int64) if is_number else objids(np.array(names), "--per-band")


def _chunk(
    cutouts: Sequence[Cutout],
    ids: NDArray[Any] | None,
    rows: tuple[Catalogue, Reading] | None,
    options: IngestOptions,
    first: int,
    end: int,
) -> Chunk:
    own_ids = None if ids is None else ids[first:end]
    own_rows = None if rows is None else (rows[0].select(np.arange(first, end)), rows[1])
    return Chunk(tuple(cutouts[first:end]), options, own_ids, own_rows)


def _made_of(
    cutouts: Sequence[Cutout],
    ids: NDArray[Any] | None,
    rows: tuple[Catalogue, Reading] | None,
    options: IngestOptions,
    start: int,
    end: int,
) -> str:
    """Return the digest of everything that a shard depends on: its files, rows, the options and this program."""
    files = [
        [cutout.id, *((file.uri, file.bytes, file.version) for file in cutout.files)] for cutout in cutouts[start:end]
    ]
    reading = rows and replace(rows[1], galaxies=0)  # which other rows decide too, as other files the kind of the ids
    how = [None if ids is None else ids.dtype.kind, repr(reading)]
    digest = hashlib.sha256(json.dumps([VERSION, start, files, repr(options), how]).encode())
    if rows is not None:
        selected = rows[0].select(np.arange(start, end))
        kept = {name: (column,) for name, column in selected.kept.items()}
        for own, units in ((selected.fields, selected.field_units), (kept, selected.units)):
            for name, column in ((name, column) for name, columns in own.items() for column in columns):
                digest.update(f"{name} {column.dtype} {units.get(name)}".encode())
                digest.update(np.ascontiguousarray(np.ma.getdata(column)).tobytes())
                digest.update(np.ma.getmaskarray(column).tobytes() if isinstance(column, np.ma.MaskedArray) else b"")
    return digest.hexdigest()


def _write(folder: Path, number: int, made_of: str, first_row: int, parts: Mapping[str, ChunkResult]) -> Note:
    """Write a shard, and return the note on it; galaxies without any ids have their numbers from `first_row` on.

    `parts` are its chunks, by what messages call them.
    """
    dtypes = {name: part.objid for name, part in parts.items() if part.objid is not None}
    objid = combine_sources(dtypes) if dtypes else None
    columns = join_specs([(name, part.columns) for name, part in parts.items()])
    layout = Layout.of(objid, any(part.has_redshift for part in parts.values()), columns)
    tally = Tally([notice for part in parts.values() for notice in part.notices])
    batches = []
    row = first_row
    for name, part in parts.items():
        galaxies = part.galaxies
        if objid is None:
            galaxies = replace(galaxies, objid=np.arange(row, row + len(galaxies), dtype=np.int64))
        elif part.objid is None:
            galaxies = replace(galaxies, objid=no_objids(len(galaxies), objid))
        _store_columns(galaxies, part.columns, columns, name)
        row += len(galaxies)
        tally.add(galaxies)
        batches.append(galaxies)
    entry = write_batches(shard_path(folder, number), batches, layout)
    missing = [int(count) for count in tally.missing]
    return Note(
        made_of, entry, layout, missing, tally.unusable, tally.incomplete, tally.unknown, tally.unplaced, tally.notices
    )  # fmt: skip
