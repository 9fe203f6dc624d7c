"""A folder for what is computed once per machine and network; several ranks may start and use it at the same time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ...errors import StorageError
from ...ranks.container_image import image_variant
from ...storage import write_bytes


@cache
def cache_folder() -> Path:
    """Return COSMICAI_CACHE, else `cosmicai` in the user's cache folder, else a folder in the temporary folder.

    The temporary folder is for read-only homes, and for containers, which write nothing to the home. Only this user may
    have permission to write to the folder, since its files are executed.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    own = None if image_variant() else Path(home, "cosmicai")
    temporary = Path(tempfile.gettempdir(), f"cosmicai-{os.getuid()}")
    for folder in (os.environ.get("COSMICAI_CACHE"), own, temporary):
        if folder and _is_private(Path(folder)):
            return Path(folder)
    return Path(tempfile.mkdtemp(prefix="cosmicai-"))


def _is_private(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    state = folder.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(folder, os.W_OK)


def get_or_create(name: str, make: Callable[[], bytes | memoryview]) -> Path:
    """Return the cached file of this name, created first with what `make` returns if it does not exist.

    At any time the file is complete or absent. If the cache folder cannot be written, as on a full disk, the file goes
    to a temporary folder.
    """
    path = cache_folder() / name
    if path.is_file():  # reading a pipe of this name would never end
        return path
    data = make()
    try:
        write_bytes(str(path), data)
    except StorageError:
        path = Path(tempfile.mkdtemp(prefix="cosmicai-"), name)
        write_bytes(str(path), data)
    return path
