"""The files below addresses that may tell of runs, local or on S3."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from cosmicai import storage
from cosmicai.errors import InputError

from .readers.source import Source

SUFFIXES = (".json", ".csv", ".txt", ".log", ".out")  # of files that may tell of runs


def sources(addresses: Iterable[str]) -> Iterator[tuple[str, list[Source]]]:
    """Each address with the files below it, called by their paths below the folder that all addresses share.

    Of a run folder of ours there is the plan alone, of a survey nothing; hidden files and folders and links to folders
    are passed by. Raises InputError if an address does not exist, or is a file inside a run folder.
    """
    everything = list(dict.fromkeys(storage.absolute(address) for address in addresses))
    below = {address: _found(address) for address in everything}
    root = common([address.rpartition("/")[0] if files == [address] else address for address, files in below.items()])
    for address, files in below.items():
        yield address, [Source(uri, name_below(root, uri)) for uri in files]


def _found(address: str) -> list[str]:
    """The files of an address, itself if it is one."""
    if storage.is_folder(address):
        return list(files_below(address))
    if not storage.exists(address):
        raise InputError(f"{address} does not exist; expected a run folder, or a folder with published results")
    folder, _, name = address.rpartition("/")
    if name != "plan.json" and storage.exists(storage.join(folder, "plan.json")):
        raise InputError(f"{address} is a file of a run folder, which is read as a whole; give {folder}")
    return [address]


def files_below(folder: str) -> Iterator[str]:
    """The addresses of the files of a folder and those below it that may tell of runs, in natural order."""
    entries, folders = storage.list_folder(folder)
    names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.name.endswith(SUFFIXES)]
    if "plan.json" in names:
        yield storage.join(folder, "plan.json")
    elif "survey.json" not in names:
        yield from (storage.join(folder, name) for name in names)
        for name in folders:
            if not name.startswith("."):
                yield from files_below(storage.join(folder, name))


def common(folders: Sequence[str]) -> str:
    """The folder that all these share; `` if there is none."""
    levels = zip(*(folder.split("/") for folder in folders), strict=False)
    return "/".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, levels))


def name_below(root: str, uri: str) -> str:
    """A path below a folder; without a folder that all share, the whole address without `s3://`."""
    return uri.removeprefix(root).removeprefix("s3:").lstrip("/")
