"""Write a local folder whole or not at all, also where several processes write the same one at once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import InputError, describe_os_errors

_ATTEMPTS = 8  # to lock a new folder


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `target`; it becomes the target when the block succeeds, else it is removed.

    Every writer has a temporary folder of its own, locked while it is at work: the first to end wins, whole. Those of
    writers that were killed are removed. Raises InputError if the target is there and not empty when the block ends,
    StorageError if it cannot be written.
    """
    begin = f".{target.name}.partial-{_host()}-"
    with describe_os_errors(str(target), "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent, begin)
        temporary, lock = _create_locked(target.parent, begin)
    try:
        yield temporary
        _rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


@contextmanager
def resumable_folder(target: Path) -> Iterator[Path]:
    """Yield the folder, next to `target`, in which it is made, with what an earlier attempt left in it.

    It becomes the target when the block succeeds. Else it stays for the next attempt, unless it is empty. Raises
    InputError if another process is at work in it, or if the target is there and not empty when the block ends;
    StorageError if it cannot be written.
    """
    folder = target.parent / f".{target.name}.unfinished"
    with locked_folder(folder, str(target)):
        try:
            yield folder
            _rename(folder, target)
        finally:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def locked_folder(folder: Path, target: str) -> Iterator[None]:
    """Create a folder if need be, and keep other processes from it while the block runs, if all of them lock it.

    Raises InputError if another process has it, which writes `target`; StorageError if it cannot be written.
    """
    with describe_os_errors(target, "write"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    try:
        is_free = _acquire(lock) is not False
        if not (is_free and folder.exists() and os.path.samestat(os.fstat(lock), folder.stat())):  # renamed meanwhile
            raise InputError(f"{target} is being written by another process; wait for it, or choose another --out")
        yield
    finally:
        os.close(lock)


def _rename(folder: Path, target: Path) -> None:
    with describe_os_errors(str(target), "write"):
        try:
            folder.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise InputError(
                f"{target} was written by another process meanwhile, which was left as it is; choose another --out"
            ) from None


def _host() -> str:
    """Return a name of this machine: a lock may not be visible on others that share the file system."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _create_locked(parent: Path, begin: str) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds its lock, where the file system has locks."""
    for _ in range(_ATTEMPTS):
        path = _create_folder(parent, begin)
        with suppress(FileNotFoundError):  # another process may take it for an abandoned one until it is locked
            lock = os.open(path, os.O_RDONLY)
            if _acquire(lock) is not False and path.exists():
                return path, lock
            os.close(lock)
            shutil.rmtree(path, ignore_errors=True)
    # A file system that reports every new folder as locked by another process has no working locks.
    path = _create_folder(parent, begin)
    return path, os.open(path, os.O_RDONLY)


def _create_folder(parent: Path, begin: str) -> Path:
    path = parent / f"{begin}{secrets.token_hex(4)}"
    path.mkdir()
    return path


def _remove_abandoned(parent: Path, begin: str) -> None:
    """Remove the temporary folders that no process has locked, which were locked by processes that are gone."""
    with suppress(OSError):  # one that may be written to, but not listed
        for path in [path for path in parent.iterdir() if path.name.startswith(begin)]:
            with suppress(OSError):  # another process removes it, or it belongs to another user
                lock = os.open(path, os.O_RDONLY)
                try:
                    if _acquire(lock):
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(lock)


def _acquire(lock: int) -> bool | None:
    """Return whether this process could lock a folder; None where the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
