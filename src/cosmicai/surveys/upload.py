"""A survey that is to be on S3: written to a local folder, then copied, with a mark on what is not yet whole."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from .. import storage
from ..errors import InputError
from ..storage.folder import locked_folder
from ..storage.outputs import require_output_folder
from ..storage.parallel import map_in_order
from ..storage.s3 import is_s3, reader_threads
from .survey import UNFINISHED

_SHARD = re.compile(r"\d{6}\.h5")


@contextmanager
def output_folder(out: str) -> Iterator[str]:
    """Yield the local folder in which to write a survey: `out`, or one that is copied to S3 when the block succeeds.

    The latter lies in the folder for temporary files (TMPDIR), under a name that the same `out` gives again, so that an
    interrupted ingest goes on, and replaces what it had copied. Raises InputError if there is anything else at `out` on
    S3 already, or if another process is at work there.
    """
    if not is_s3(out):
        yield out
        return
    parent = Path(tempfile.gettempdir()) / f"cosmicai-survey-{hashlib.sha256(out.encode()).hexdigest()[:16]}"
    mark, address = f"{platform.node()} {parent}".encode(), storage.join(out, UNFINISHED)
    with locked_folder(parent, out):
        try:
            if not storage.is_folder(out):
                require_output_folder(out)
            elif storage.read_if_exists(address) != mark:
                raise InputError(f"{out} is not empty; choose another --out or remove it")
            folder = parent / "survey"
            if folder.exists():  # complete, but not copied
                shutil.rmtree(folder)
            yield str(folder)
            storage.write_bytes(address, mark)
            names = sorted(path.name for path in folder.iterdir())
            for _ in map_in_order(partial(_copy, folder, out), names, reader_threads(out)):
                pass
            for entry in storage.list_files(out):
                if _SHARD.fullmatch(entry.name) and entry.name not in names:  # of an earlier attempt, with more shards
                    storage.remove(storage.join(out, entry.name))
            storage.remove(address)
            shutil.rmtree(folder)
        finally:
            with suppress(OSError):
                parent.rmdir()


def _copy(folder: Path, out: str, name: str) -> None:
    storage.write_bytes(storage.join(out, name), (folder / name).read_bytes())
