"""Temporary files beside those that they become: their names, their end, and what killed processes left of them.

The name of a temporary file, `.NAME.partial-SYSTEM-PID-START-XXXXXXXX`, has that of its writer (see `processes`), so
that any process can tell whether the writer is still at work.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from ..processes import has_ended, process_name
from .local import retry_stale

LEFT_AFTER = 7 * 24 * 3600.0  # seconds without a write after which a writer on another machine is considered dead
_NAME_LENGTH = 48  # characters of the name of the file; more could make the temporary name too long
# Before the writer was named there were eight digits alone.
_TEMPORARY = re.compile(r"\..+\.partial-(?:(\w+-\d+-\d+)-)?[0-9a-f]{8}", re.DOTALL)
# What file systems without hard links answer: SMB, exFAT, some of FUSE and BeeGFS.
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# What file systems answer whose folders cannot be flushed, and folders that may be written to, but not read.
_NO_FOLDER_SYNC = (
    errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR,
)  # fmt: skip
_cleared: set[Path] = set()  # folders in which this process has removed what was left


def temporary_path(target: Path) -> Path:
    """Return a new name beside `target` for what will become it.

    At the first call for a folder, what processes that have ended left there is removed.
    """
    if target.parent not in _cleared:
        _cleared.add(target.parent)
        remove_leftovers(target.parent)
    return target.with_name(f".{target.name[:_NAME_LENGTH]}.partial-{process_name()}-{secrets.token_hex(4)}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a folder whose writers have ended.

    Where that cannot be seen, as of writers on other machines, files that were not written to for LEFT_AFTER are
    removed, by the clock of the file system. Files that cannot be removed are left.
    """
    with suppress(OSError):
        with os.scandir(folder) as entries:
            found = [
                (Path(entry.path), has_ended(match[1] or ""))
                for entry in entries
                if (match := _TEMPORARY.fullmatch(entry.name)) and entry.is_file(follow_symlinks=False)
            ]
        unknown = [path for path, ended in found if ended is None]
        removable = [path for path, ended in found if ended]
        if unknown:
            now = _file_system_time(folder)
            removable += [path for path in unknown if now - path.lstat().st_mtime > LEFT_AFTER]
        for path in removable:
            with suppress(OSError):  # another process removes it, or it belongs to another user
                path.unlink()


def _file_system_time(folder: Path) -> float:
    """Return the time by which the file system, which may be another machine's, dates its files."""
    probe = folder / f".time.partial-{process_name()}-{secrets.token_hex(4)}"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        discard(probe)


def rename_over(temporary: Path, target: Path) -> None:
    """Give a temporary file its final name, flushed to disk, in place of an earlier file."""
    retry_stale(_sync, temporary)
    retry_stale(temporary.replace, target)
    _sync_folder(target.parent)


def create_from(temporary: Path, target: Path) -> bool:
    """Give a temporary file its final name, flushed to disk, and return True; return False if there is such a file."""
    retry_stale(_sync, temporary)
    try:
        retry_stale(os.link, temporary, target)
    except FileExistsError:
        if not _is_same(temporary, target):
            return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if not _copy_to_new(temporary, target):
            return False
    _sync_folder(target.parent)
    return True


def _is_same(temporary: Path, target: Path) -> bool:
    """Return whether a refused link is there nevertheless: NFS may repeat a request, which then finds its own link."""
    try:
        return os.path.samestat(temporary.stat(), target.stat())
    except FileNotFoundError:
        return False


def _copy_to_new(temporary: Path, target: Path) -> bool:
    """Copy a file without a hard link. A reader may see the copy before it is whole, and a kill may leave it so."""
    try:
        file = target.open("xb")
    except FileExistsError:
        return False
    with file:
        try:
            file.write(temporary.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return True


def discard(temporary: Path) -> None:
    """Remove a temporary file if it is still there; the error to report is the one that made the write fail."""
    with suppress(OSError):
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    try:
        retry_stale(_sync, folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
