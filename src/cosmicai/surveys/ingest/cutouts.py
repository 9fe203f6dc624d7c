"""The files that an ingest reads: those of folders, of quoted patterns, of prefixes on S3, in natural order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from ... import storage
from ...errors import InputError
from ...storage.s3 import is_s3
from ..copies import find_copies
from .gate import OPENERS, ending


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of galaxies: its address, its path below the folder that the user named, and what tells its version."""

    uri: str
    name: str
    bytes: int
    version: str


def list_sources(sources: Sequence[str]) -> list[SourceFile]:
    """Return all files of galaxies that the sources name, in their order and within a folder in natural order.

    Folders are searched with all below them; hidden files, and those of other kinds, are left out. Raises InputError if
    a source does not exist or holds no galaxies, if a folder is a survey already or cannot be read, or if a name says
    that a file is a copy of another.
    """
    found: list[SourceFile] = []
    for source in sources:
        if is_s3(source):
            found += _list_s3(source)
        elif Path(source).is_dir():
            found += _list_folder(source)
        elif not os.path.lexists(source) and glob.has_magic(source):
            names = sorted(glob.glob(source, recursive=True), key=storage.natural_key)  # noqa: PTH207 - as the shell does
            if not names:
                raise InputError(f"no file has a name like {source}; check the pattern")
            found += [_describe(name, storage.basename(name)) for name in names if Path(name).is_file()]
        elif not os.path.lexists(source):
            raise InputError(f"{source} does not exist; check the path")
        else:
            found.append(_describe(source, storage.basename(source)))
    ordered = sorted(file.uri for file in found)
    twice = next((uri for uri, other in pairwise(ordered) if uri == other), None)
    if twice:
        raise InputError(f"{twice} is named twice; its galaxies would count twice, name it once")
    return found


def _describe(path: str, name: str) -> SourceFile:
    try:
        status = Path(path).stat()
    except OSError:  # said when it is opened
        return SourceFile(path, name, 0, "")
    return SourceFile(path, name, status.st_size, str(status.st_mtime_ns))


def _list_folder(folder: str) -> list[SourceFile]:
    found = []
    for path, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=storage.natural_key)
        own = sorted((name for name in names if _is_galaxies(name)), key=storage.natural_key)
        _refuse_copies(path, own, names)
        below = Path(path)
        found += [_describe(str(below / name), str((below / name).relative_to(folder))) for name in own]
    return _require_some(folder, found)


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(
        f"{error.filename} cannot be read: {error.strerror}; its galaxies would be missing, change its permissions or "
        "name the folders to ingest"
    )


def _list_s3(uri: str) -> list[SourceFile]:
    if _is_galaxies(storage.basename(uri)) and storage.exists(uri):
        folder, name = uri.rsplit("/", 1)
        return [
            SourceFile(uri, entry.name, entry.bytes, entry.etag or "")
            for entry in storage.list_files(folder, name)
            if entry.name == name
        ]
    found, pending = [], [""]
    while pending:
        below = pending.pop(0)
        entries, folders = storage.list_folder(storage.join(uri, below) if below else uri)
        pending += [f"{below}/{name}".lstrip("/") for name in folders if not name.startswith(".")]
        names = [entry.name for entry in entries]
        own = [entry for entry in entries if _is_galaxies(entry.name)]
        _refuse_copies(storage.join(uri, below) if below else uri, [entry.name for entry in own], names)
        for entry in own:
            name = f"{below}/{entry.name}".lstrip("/")
            found.append(SourceFile(storage.join(uri, name), name, entry.bytes, entry.etag or ""))
    return _require_some(uri, found)


def _is_galaxies(name: str) -> bool:
    return not name.startswith(".") and ending(name) in OPENERS


def _refuse_copies(folder: str, own: Sequence[str], names: Sequence[str]) -> None:
    if "survey.json" in names:
        raise InputError(
            f"{folder} is a survey already; use it as it is, or `cosmicai split` for shards of another size"
        )
    if copies := find_copies(own):
        raise InputError(
            f"{folder} holds {' and '.join(copies)}, by their names the same galaxies more than once; remove all but "
            "one, or rename them if they hold different galaxies"
        )


def _require_some(folder: str, found: list[SourceFile]) -> list[SourceFile]:
    if not found:
        raise InputError(f"{folder} holds no galaxies; expected files ending in {', '.join(OPENERS)}, .fits.gz")
    return found


@contextmanager
def local_copies(uris: Sequence[str]) -> Iterator[list[str]]:
    """Yield paths of files, of objects on S3 those of temporary copies; errors in the block name the objects."""
    if not any(is_s3(uri) for uri in uris):
        yield list(uris)
        return
    with TemporaryDirectory(prefix="cosmicai-ingest-") as folder:
        paths = {}
        for number, uri in enumerate(uris):
            place = Path(folder) / str(number)
            place.mkdir()
            paths[uri] = str(place / storage.basename(uri))
            Path(paths[uri]).write_bytes(storage.read_bytes(uri))
        try:
            yield [paths[uri] for uri in uris]
        except InputError as error:
            text = str(error)
            for uri, path in paths.items():
                text = text.replace(path, uri)
            raise type(error)(text) from None
