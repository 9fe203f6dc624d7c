"""A private folder for what is computed once per machine and network; several ranks may start and use it at once.

The folder is opened once and used through its descriptor, so that no other folder can take its place. A file that
cannot be used is made again: what the cache holds is never a reason for a run to end.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from ...console import notify
from ...errors import StorageError, describe_os_errors
from ...ranks.container_image import image_variant

T = TypeVar("T")


class UnusableFile(Exception):
    """A file of the cache is not what was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class _Folder:
    path: Path
    descriptor: int


def cache_folder() -> Path:
    """Return COSMICAI_CACHE, else `cosmicai` in the user's cache folder, else a folder in the temporary folder.

    The temporary folder is for read-only homes, and for containers, which write nothing to the home. Only this user may
    have permission to write to the folder, since its files are executed; a link is no such folder.
    """
    return _folder().path


@cache
def _folder() -> _Folder:
    for path in _candidates():
        with suppress(OSError):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (descriptor := _open_private(path)) is not None:
                return _Folder(path, descriptor)
    path = Path(tempfile.mkdtemp(prefix="cosmicai-"))
    return _Folder(path, os.open(path, os.O_RDONLY | os.O_DIRECTORY))


def _candidates() -> Iterator[Path]:
    if own := os.environ.get("COSMICAI_CACHE"):
        yield Path(own)
    if not image_variant():
        with suppress(RuntimeError):  # a user without a home
            yield Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "cosmicai")
    yield Path(tempfile.gettempdir(), f"cosmicai-{os.getuid()}")


def _open_private(path: Path) -> int | None:
    """Return the descriptor of a folder that only this user can write to, else None; raises OSError as `os.open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    state = os.fstat(descriptor)
    if state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(".", os.W_OK, dir_fd=descriptor):
        return descriptor
    os.close(descriptor)
    return None


def get_or_create(name: str, make: Callable[[], bytes | memoryview], decode: Callable[[io.BufferedIOBase], T]) -> T:
    """Return what `decode` makes of the cached file of this name, or else of what `make` returns, which is then kept.

    `decode` raises UnusableFile if the file is not what was written; it is replaced with a notice, as is anything of
    this name that is not a regular file. Without space or permission the result is used and not kept, with a notice.
    At any time the file is complete or absent. Raises what `make` raises, and UnusableFile if
    even what it made cannot be used.
    """
    path = cache_folder() / name
    try:
        with _open(name) as file:
            return decode(file)
    except FileNotFoundError:
        pass
    except UnusableFile as error:
        notify(f"{path} is made again: {error}")
    except OSError as error:
        notify(
            f"{path} is made again: {'it is a link' if error.errno == errno.ELOOP else os.strerror(error.errno or 0)}"
        )
    data = make()
    try:
        with describe_os_errors(str(path), "write"):
            _replace(name, data)
    except StorageError as error:
        notify(f"the next start takes longer: {error}")
    return decode(io.BytesIO(data))


def _open(name: str) -> io.BufferedIOBase:
    """Open a regular file of the cache; a pipe is not waited for, and a link not followed."""
    file = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=_folder().descriptor)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UnusableFile("it is not a regular file")
    return os.fdopen(file, "rb")


def _replace(name: str, data: bytes | memoryview) -> None:
    """Write a file of the cache in the place of whatever has its name."""
    folder, temporary = _folder().descriptor, f".{name}.partial-{secrets.token_hex(4)}"
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
        with os.fdopen(file, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(file)
        with suppress(OSError):  # renaming replaces anything but a folder; one that is not empty is left as it is
            os.rmdir(name, dir_fd=folder)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
