"""A folder for what is made once per machine and network: safe when several ranks start at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ...errors import StorageError
from ...ranks.image_identity import image_variant
from ...storage import write_bytes


@cache
def cache_folder() -> Path:
    """COSMICAI_CACHE, else `cosmicai` in the user's cache folder, else in the temporary folder.

    The latter where the home is read-only, and in a container, whose image is to leave no home a trace. Only this user
    may write there, since what lies in it is run.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    own = None if image_variant() else Path(home, "cosmicai")
    temporary = Path(tempfile.gettempdir(), f"cosmicai-{os.getuid()}")
    for folder in (os.environ.get("COSMICAI_CACHE"), own, temporary):
        if folder and _is_ours(Path(folder)):
            return Path(folder)
    return Path(tempfile.mkdtemp(prefix="cosmicai-"))


def _is_ours(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    state = folder.stat()
    return state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(folder, os.W_OK)


def cached(name: str, make: Callable[[], bytes | memoryview]) -> Path:
    """The file of this name in the cache, made first if it is not there; complete or absent at any moment.

    A full disk under the cache folder is no reason to fail: the file then goes to a temporary folder.
    """
    path = cache_folder() / name
    if path.exists():
        return path
    data = make()
    try:
        write_bytes(str(path), data)
    except StorageError:
        path = Path(tempfile.mkdtemp(prefix="cosmicai-"), name)
        write_bytes(str(path), data)
    return path
