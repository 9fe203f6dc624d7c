"""Write the catalogue of a run in another format, whole or not at all, a row group at a time."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ...errors import describe_os_errors
from ...storage import atomic_write
from ...storage.outputs import require_replaceable
from ..store import RunFolder
from .reading import open_catalogue
from .source import CatalogueSource

# Format: module and function that write it to a local file and return the number of rows. They are imported when they
# are needed, since each needs a library of its own.
WRITERS = {
    "parquet": "to_parquet.write_parquet",
    "fits": "to_fits.write_fits",
    "hdf5": "to_hdf5.write_hdf5",
    "votable": "to_votable.write_votable",
    "ecsv": "to_text.write_ecsv",
    "csv": "to_text.write_csv",
}
SUFFIXES = {"votable": "vot", "parquet": "copy.parquet"}  # of files whose names do not end with the name of the format


def convert_catalogue(run: RunFolder, kind: str, out: str) -> int:
    """Write the catalogue in one of the formats of WRITERS, and return its number of rows.

    Raises InputError if it does not exist yet, if it has text that the format does not hold, or if `out` is not a file
    that may be replaced.
    """
    require_replaceable(out)
    with open_catalogue(run) as file, atomic_write(out) as temporary, describe_os_errors(out, "write"):
        return find_writer(kind)(CatalogueSource(file), temporary)


def default_name(kind: str) -> str:
    """Return the name of the file of a format in the run folder."""
    return f"catalogue.{SUFFIXES.get(kind, kind)}"


def find_writer(kind: str) -> Callable[[CatalogueSource, Path], int]:
    """Return the function that writes a format."""
    module, _, function = WRITERS[kind].partition(".")
    writer: Callable[[CatalogueSource, Path], int] = getattr(import_module(f".{module}", __package__), function)
    return writer
