"""The gate between files of other formats and a survey, where every batch of galaxies is checked and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError, describe_os_errors
from ...storage.local import open_regular
from ..columns import join_specs
from ..identity import INT64, combine_sources
from ..shard import Galaxies
from ..survey import write_survey
from .reading import decide, read_batches
from .report import IngestReport, Tally
from .source import IngestOptions, Source

if TYPE_CHECKING:
    from .catalogue import Catalogue

Opener = Callable[[str, IngestOptions], AbstractContextManager[Source]]
# The function of this package that opens a file with this ending: imported when it is needed, since some are slow.
OPENERS = {
    ".npz": "numpy_files.open_npz", ".npy": "numpy_files.open_npy", ".h5": "hdf5_files.open_hdf5",
    ".hdf5": "hdf5_files.open_hdf5", ".pt": "pt_files.open_partition", ".fits": "fits_files.open_fits",
    ".fit": "fits_files.open_fits", ".fz": "fits_files.open_fits", ".parquet": "parquet_files.open_parquet",
    ".pq": "parquet_files.open_parquet",
}  # fmt: skip


def ingest_files(
    sources: Sequence[str],
    out: str,
    galaxies_per_shard: int,
    options: IngestOptions | None = None,
    catalogue: Catalogue | None = None,
) -> IngestReport:
    """Write the galaxies of all sources, in order, as a survey; whole or not at all.

    The survey has redshifts if any source has. An objid is the source's own; where some sources have none their
    galaxies have none, and where no source has, it is the galaxy's number in the survey. With a `catalogue` everything
    but the images is its own, whose rows are the galaxies of all sources in their order.
    Raises InputError naming the file and the field if a source cannot be used.
    """
    options = options or IngestOptions()
    readings, row = [], 0
    for source in sources:  # everything is checked before anything is written
        reopen = partial(open_rows, source, options, catalogue, row)
        with reopen() as opened:
            readings.append(decide(source, opened, options, reopen))
            row += readings[-1].galaxies
    if catalogue is not None and row != catalogue.rows:
        raise InputError(
            f"{catalogue.path} has {catalogue.rows:,} rows, there are {row:,} galaxies; expected one row for each "
            "galaxy, in their order"
        )
    pairs = list(zip(sources, readings, strict=True))
    dtypes = {source: reading.objid for source, reading in pairs if reading.objid is not None}
    objid_dtype = combine_sources(dtypes) if dtypes else None
    columns = join_specs([(source, reading.columns) for source, reading in pairs])
    tally = Tally(notices=[(source, notice) for source, reading in pairs for notice in reading.notices])

    def batches() -> Iterator[Galaxies]:
        row = 0
        for source, reading in pairs:
            with open_rows(source, options, catalogue, row) as opened:
                for batch in read_batches(source, opened, reading, row, objid_dtype, columns):
                    row += len(batch)
                    tally.add(batch)
                    yield batch

    has_redshift = any(reading.has_redshift for reading in readings)
    fields = ("image", "magnitude", *["redshift"] * has_redshift, "objid")
    survey = write_survey(out, batches(), row, galaxies_per_shard, fields, objid_dtype or INT64, columns)
    return tally.report(survey, has_redshift)


@contextmanager
def open_rows(source: str, options: IngestOptions, catalogue: Catalogue | None, row: int) -> Iterator[Source]:
    """Open a source, with the rows of a catalogue from `row` on in place of its own fields."""
    with open_source(source, options) as opened:
        yield opened if catalogue is None else catalogue.describe(opened, row)


@contextmanager
def open_source(source: str, options: IngestOptions) -> Iterator[Source]:
    """Open a source of any format and check its fields. Raises InputError if it cannot be used."""
    kind = ending(source)
    if kind not in OPENERS:
        raise InputError(f"{source} is of an unknown kind; expected a file ending in {', '.join(OPENERS)}, .fits.gz")
    path = Path(source)
    with describe_os_errors(source, "read"):  # here, since every library says in another way that it may not read
        if not path.is_file():
            problem = "is not a regular file" if path.exists() else "does not exist"
            raise InputError(f"{source} {problem}; check the path")
        if path.stat().st_size == 0:
            raise InputError(f"{source} is empty; expected galaxies, copy it again")
        os.close(open_regular(path))
    with find_opener(kind)(source, options) as opened:
        yield opened


def find_opener(kind: str) -> Opener:
    """Return the function that opens files with this ending."""
    module, _, function = OPENERS[kind].partition(".")
    opener: Opener = getattr(import_module(f".{module}", __package__), function)
    return opener


def ending(source: str) -> str:
    """Return the ending of a name that tells its format, in lower case and without that of gzip in FITS."""
    suffixes = [suffix.lower() for suffix in Path(source).suffixes[-2:]]
    if len(suffixes) > 1 and suffixes[-1] == ".gz" and OPENERS.get(suffixes[-2]) == OPENERS[".fits"]:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""
