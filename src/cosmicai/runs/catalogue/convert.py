"""Write the catalogue of a run in another format, whole or not at all, a row group at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path

from ...errors import describe_os_errors
from ...storage import atomic_write
from ...storage.folder import atomic_folder
from ...storage.outputs import require_local, require_new_folder, require_replaceable
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
    "qp": "to_qp.write_qp",
    "hats": "to_hats.write_hats",
}
# Of files whose names do not end with the name of the format.
SUFFIXES = {"votable": "vot", "parquet": "copy.parquet", "qp": "qp.hdf5"}
FOLDERS = ("hats",)  # formats of several files
LEFT_OUT = {"qp": "a redshift or an uncertainty", "hats": "a position"}  # what galaxies must have to be in a format


def convert_catalogue(run: RunFolder, kind: str, out: str) -> int:
    """Write the catalogue in one of the formats of WRITERS, and return the number of rows that were written.

    These are all rows, or those that have what LEFT_OUT says. Raises InputError if the catalogue does not exist yet or
    does not have what the format needs, and if `out` is not a file that may be replaced, or, for one of FOLDERS, not a
    new or empty local folder.
    """
    if kind in FOLDERS:
        require_local(out, f"a catalogue in the format {kind} is")
        target: AbstractContextManager[Path] = atomic_folder(require_new_folder(out))
    else:
        require_replaceable(out)
        target = atomic_write(out)
    with open_catalogue(run) as file, target as temporary, describe_os_errors(out, "write"):
        return find_writer(kind)(CatalogueSource(file, run), temporary)


def default_name(kind: str) -> str:
    """Return the name of the file of a format in the run folder."""
    return f"catalogue.{SUFFIXES.get(kind, kind)}"


def find_writer(kind: str) -> Callable[[CatalogueSource, Path], int]:
    """Return the function that writes a format."""
    module, _, function = WRITERS[kind].partition(".")
    writer: Callable[[CatalogueSource, Path], int] = getattr(import_module(f".{module}", __package__), function)
    return writer
