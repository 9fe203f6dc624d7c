"""A survey that is to be on S3: written to a local folder, then copied, with a mark on what is not yet whole."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .. import storage
from ..errors import InputError
from ..storage.parallel import map_in_order
from ..storage.s3 import is_s3, reader_threads
from .survey import UNFINISHED


@contextmanager
def output_folder(out: str) -> Iterator[str]:
    """Yield the local folder in which to write a survey: `out`, or one that is copied to S3 when the block succeeds.

    The latter lies in the folder for temporary files (TMPDIR), under a name that the same `out` gives again, so that an
    interrupted ingest goes on. Raises InputError if there is anything at `out` on S3 already.
    """
    if not is_s3(out):
        yield out
        return
    if storage.is_folder(out):
        raise InputError(f"{out} is not empty; choose another --out or remove it")
    name = hashlib.sha256(out.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cosmicai-survey-{name}" / "survey"
    if folder.exists():  # complete, but not copied
        shutil.rmtree(folder)
    yield str(folder)
    storage.write_bytes(storage.join(out, UNFINISHED), b"")
    names = sorted(path.name for path in folder.iterdir())
    for _ in map_in_order(partial(_copy, folder, out), names, reader_threads(out)):
        pass
    storage.remove(storage.join(out, UNFINISHED))
    shutil.rmtree(folder.parent)


def _copy(folder: Path, out: str, name: str) -> None:
    storage.write_bytes(storage.join(out, name), (folder / name).read_bytes())
