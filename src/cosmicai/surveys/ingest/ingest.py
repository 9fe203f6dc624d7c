"""Ingest whatever the user has: arrays of many galaxies, or files of one galaxy each, with or without a catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from .cutouts import SourceFile, list_sources, local_copies
from .gate import OPENERS, ending, ingest_files, open_source
from .report import IngestReport
from .source import IngestOptions

if TYPE_CHECKING:
    from .catalogue import Catalogue
    from .matching import Matches

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class IngestRequest:
    """What to ingest: sources, how they are read, and where the fields are that do not lie in them.

    `catalogue` is a file with a row per galaxy, in its only table or in `table`, of which the column `file` names the
    cutouts if their ids do not.
    `per_band` is the pattern of the names of files that hold one band each.
    """

    sources: Sequence[str]
    options: IngestOptions
    catalogue: str | None = None
    file: str | None = None
    table: str | None = None
    per_band: str | None = None


def ingest(
    request: IngestRequest, out: str, galaxies_per_shard: int, processes: int, show_progress: Progress
) -> IngestReport:
    """Write a survey of all galaxies that the request names, files of one galaxy with this many processes.

    `show_progress` is given the number of galaxies, and yields a function to tell how many are done. Raises InputError
    naming file and field if something cannot be used, or if it is not clear what belongs together.
    """
    if request.file and not request.catalogue:
        raise InputError("--file names a column of a catalogue; give the table with --catalogue")
    if request.table and not request.catalogue:
        raise InputError("--table chooses one in the file of a catalogue; give the file with --catalogue")
    if request.file and request.per_band:
        raise InputError("--file and --per-band both say which files are a galaxy's; give one of them")
    files, options, catalogue = list_sources(request.sources), request.options, None
    if request.catalogue:
        from .catalogue import read_catalogue

        catalogue = read_catalogue(request.catalogue, options, request.file, request.table)
        options = replace(options, image_only=True, keep=(), magnitude_bands=None)
        files = [file for file in files if not _is_found(file.uri, request)] or files
    if request.per_band is None and not _hold_one_galaxy(files, options):
        with local_copies([file.uri for file in files]) as paths:
            return ingest_files(paths, out, galaxies_per_shard, options, catalogue)
    from .matching import group_cutouts, match_cutouts  # here, since an ingest of arrays would only start later
    from .processes import reading_processes
    from .single_files import ingest_single_files

    cutouts, notices = group_cutouts(files, request.per_band)
    if catalogue is not None:
        matches = match_cutouts(cutouts, catalogue)
        cutouts, catalogue = list(matches.cutouts), _select(catalogue, matches)
    with show_progress(len(cutouts)) as advance, reading_processes(processes, len(cutouts)) as run:
        report = ingest_single_files(cutouts, out, galaxies_per_shard, options, catalogue, run, advance)
    return replace(report, notices=(*notices, *report.notices))


def _is_found(uri: str, request: IngestRequest) -> bool:
    """Return whether a file is the catalogue, found in a folder of cutouts."""
    path = Path(request.catalogue or "")
    return uri not in request.sources and Path(uri).name == path.name and Path(uri).resolve() == path.resolve()


def _select(catalogue: Catalogue, matches: Matches) -> Catalogue:
    selected = catalogue.select(matches.rows)
    return replace(selected, notices=(*catalogue.notices, *matches.notices))


def _hold_one_galaxy(files: Sequence[SourceFile], options: IngestOptions) -> bool:
    """Return whether these are files of one galaxy each, by the first of several FITS files, or of arrays."""
    kinds = (".fits", ".npy") if options.image_only else (".fits",)
    if len(files) == 1 or OPENERS.get(ending(files[0].uri)) not in [OPENERS[kind] for kind in kinds]:
        return False
    with local_copies([files[0].uri]) as [path], open_source(path, options) as opened:
        return opened.fields["image"].shape[0] == 1
