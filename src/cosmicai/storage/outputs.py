"""Refuse to write where a command would destroy something: what a run, a survey or the user has there.

Commands call these functions before any work, so that nothing is computed that cannot be written.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from ..errors import InputError, describe_os_errors
from . import RUN_SUBFOLDERS, basename, exists, join
from .ranges import open_ranges
from .s3 import is_s3

_DESCRIPTIONS = {"plan.json": "run", "survey.json": "survey"}  # the file by which a folder is known
_DEPTH = 4  # folders above a file that are looked at; those of a run are at most three deep
# Names that a run or survey uses directly in its folder, whether it has written them yet or not.
_OWN_NAMES = {
    "plan.json": re.compile(r".+\.json|catalogue\.parquet|(inference|intervals)\.(png|pdf)"),
    "survey.json": re.compile(r"\d{6}\.(h5|json)"),
}
# Written by `cosmicai catalogue`, as often as one likes.
_CONVERTED = re.compile(r"catalogue\.(csv|ecsv|fits|hdf5|vot|copy\.parquet|qp\.hdf5)")
_HEAD = 2**16  # bytes of a file that show what it holds
_WEIGHTS, _PICKLED, _SHARD = "weights", "a model or galaxies saved by PyTorch", "the galaxies of a survey"


def require_new(uri: str, *, overwrite: bool) -> None:
    """Raise InputError if a file that a command is to write exists, unless it is a regular one that may be replaced.

    Raises it also as `require_replaceable`, but that weights may be replaced.
    """
    _require_own_place(uri)
    if exists(uri):
        if not overwrite:
            raise InputError(f"{uri} exists; choose another name, or replace it with --overwrite")
        _require_no_content(uri, _PICKLED, _SHARD)


def require_replaceable(uri: str) -> None:
    """Raise InputError unless a file can be written at this address without destroying weights, a run or a survey.

    What is there must be a regular file, its folder one that can be written to, and its content no galaxies or weights.
    """
    _require_own_place(uri)
    if exists(uri):
        _require_no_content(uri, _WEIGHTS, _PICKLED, _SHARD)


def require_regular(uri: str) -> None:
    """Raise InputError unless a regular file is at this address, or one can be created there."""
    if is_s3(uri):
        return
    path = Path(uri)
    with describe_os_errors(uri, "inspect"):
        is_dangling = path.is_symlink() and not path.exists()
        is_regular = path.is_file() or not path.exists()
    if is_dangling:
        raise InputError(f"cannot write {uri}: it is a link to a file that does not exist; choose another name")
    if not is_regular:
        raise InputError(f"cannot write {uri}: it is {_kind(path)}; choose another name")
    _require_writable(uri, path.parent)


def require_folder(uri: str) -> None:
    """Raise InputError unless a folder of one's own can be at this address, whether it exists yet or not.

    It may not be a file, the folder of a survey, or one of those in which a run keeps its files.
    """
    if not is_s3(uri):
        path = Path(uri)
        with describe_os_errors(uri, "inspect"):
            is_taken = (path.exists() or path.is_symlink()) and not path.is_dir()
        if is_taken:
            raise InputError(
                f"cannot write {uri}: it is {_kind(path)} where a folder was expected; choose another name"
            )
        _require_writable(uri, path)
    for address in _addresses(uri):
        _require_outside_runs(uri, address)
    _require_other_folder(uri, "survey.json")


def require_local(uri: str, what: str) -> None:
    """Raise InputError if a folder that a command is to write is on S3; `what` says what it is, with its verb."""
    if is_s3(uri):
        raise InputError(f"{uri}: {what} written to a local folder; write one there and copy it to S3")


def require_new_folder(uri: str) -> Path:
    """Return the path of a local folder that a command is to write; that of its target, if it is a link.

    Raises InputError if it exists and is not empty, or as `require_output_folder`.
    """
    target = Path(uri).absolute()
    with describe_os_errors(str(target), "write"):
        target = target.resolve() if target.is_symlink() else target  # to a folder elsewhere, which is replaced
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken:
        raise InputError(f"{target} exists and is not empty; choose another --out or remove it")
    require_output_folder(uri)
    return target


def require_output_folder(uri: str) -> None:
    """Raise InputError as `require_folder`, and if the folder is that of a run."""
    require_folder(uri)
    _require_other_folder(uri, "plan.json")


def _require_other_folder(uri: str, name: str) -> None:
    if exists(join(uri, name)):
        raise InputError(f"{uri} is the folder of a {_DESCRIPTIONS[name]}; choose another folder")


def _require_own_place(uri: str) -> None:
    require_regular(uri)
    for address in _addresses(uri):
        if kind := _DESCRIPTIONS.get(basename(address)):
            if exists(address):
                raise InputError(f"{uri} belongs to the {kind} in {_folder(address)}; choose another name")
            raise InputError(f"{uri} would make its folder look like that of a {kind}; choose another name")
        for name, own_names in _OWN_NAMES.items():
            is_own = own_names.fullmatch(basename(address)) is not None
            replaced = exists(address) and not _CONVERTED.fullmatch(basename(address))
            if (is_own or replaced) and exists(join(_folder(address), name)):
                raise _belonging(uri, name, _folder(address))
        _require_outside_runs(uri, address)


def _addresses(uri: str) -> set[str]:
    """Return the address that is written, and that of the file to which it is a link."""
    if is_s3(uri):
        return {uri.rstrip("/")}
    path = Path(uri).absolute()
    return {str(Path(os.path.realpath(path.parent), path.name)), os.path.realpath(path)}


def _require_outside_runs(uri: str, address: str) -> None:
    """Raise InputError for what is below one of the folders in which a run keeps its files, at any depth."""
    for _ in range(_DEPTH):
        folder = _folder(address)
        if basename(address) in RUN_SUBFOLDERS and exists(join(folder, "plan.json")):
            raise _belonging(uri, "plan.json", folder)
        address = folder


def _folder(address: str) -> str:
    return address.rpartition("/")[0] if is_s3(address) else str(Path(address).parent)


def _belonging(uri: str, name: str, folder: str) -> InputError:
    return InputError(f"{uri} belongs to the {_DESCRIPTIONS[name]} in {folder}; choose another name")


def _require_no_content(uri: str, *refused: str) -> None:
    """Raise InputError if a file holds what a command may not replace, whatever its name."""
    if (found := _content(uri)) in refused:
        raise InputError(f"{uri} holds {found} and is not replaced; choose another name")


def _content(uri: str) -> str | None:
    with open_ranges(uri) as reader:
        size = reader.size
        head = bytearray(min(_HEAD, size))
        reader.read_into(0, memoryview(head))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return _WEIGHTS
    if head[:4] == b"PK\x03\x04" and b"/data.pkl" in head[:256]:
        return _PICKLED
    return _SHARD if head[:4] == b"\x89HDF" and b"cosmicai-shard/" in head else None


def _require_writable(uri: str, folder: Path) -> None:
    """Raise StorageError unless a folder, or the closest one above it that exists, can be written to."""
    with describe_os_errors(uri, "write"):
        while not (folder.exists() or folder.is_symlink()) and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "")


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "no regular file"
