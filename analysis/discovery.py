"""Find the files at addresses that may describe runs, locally or on S3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from cosmicai import storage
from cosmicai.errors import InputError

from .readers.source import Source

SUFFIXES = (".json", ".csv", ".txt", ".log", ".out")  # of files that may describe runs


def find_sources(addresses: Iterable[str]) -> Iterator[tuple[str, list[Source]]]:
    """Yield each address with its files, named by their paths relative to the folder that all addresses share.

    A run folder of this project is represented by its plan alone, and a survey has no such files. Hidden files and
    folders and links to folders are skipped. Raises InputError if an address does not exist, or is a file inside a run
    folder.
    """
    everything = list(dict.fromkeys(storage.absolute(address) for address in addresses))
    below = {address: _list_address(address) for address in everything}
    root = find_common_folder(
        [address.rpartition("/")[0] if files == [address] else address for address, files in below.items()]
    )
    for address, files in below.items():
        yield address, [Source(uri, make_relative(root, uri)) for uri in files]


def _list_address(address: str) -> list[str]:
    """Return the files of an address: itself if it is one, else those below it."""
    if storage.is_folder(address):
        return list(list_run_files(address))
    if not storage.exists(address):
        raise InputError(f"{address} does not exist; expected a run folder, or a folder with published results")
    folder, _, name = address.rpartition("/")
    if name != "plan.json" and storage.exists(storage.join(folder, "plan.json")):
        raise InputError(f"{address} is a file of a run folder, which is read as a whole; give {folder}")
    return [address]


def list_run_files(folder: str) -> Iterator[str]:
    """Yield the addresses of files at and below a folder that may describe runs, in natural order."""
    entries, folders = storage.list_folder(folder)
    names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.name.endswith(SUFFIXES)]
    if "plan.json" in names:
        yield storage.join(folder, "plan.json")
    elif "survey.json" not in names:
        yield from (storage.join(folder, name) for name in names)
        for name in folders:
            if not name.startswith("."):
                yield from list_run_files(storage.join(folder, name))


def find_common_folder(folders: Sequence[str]) -> str:
    """Return the folder that contains all of these; empty if there is none."""
    levels = zip(*(folder.split("/") for folder in folders), strict=False)
    return "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


def make_relative(root: str, uri: str) -> str:
    """Return an address relative to a folder, or the whole address without `s3://` if the folder is empty."""
    return uri.removeprefix(root).removeprefix("s3:").lstrip("/")
