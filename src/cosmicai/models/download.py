"""Download the two published files of the AstroMAE project, and accept nothing but their exact content.

Checkpoint and galaxies are in the repository UVA-MLSys/AI-for-Astronomy. Each is identified by its git blob id, the
SHA-1 of `blob <size>\\0` followed by the content.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from ..console.progress import show_progress
from ..errors import InputError, describe_os_errors
from ..storage.local import open_regular

PUBLISHED_URL = "https://raw.githubusercontent.com/UVA-MLSys/AI-for-Astronomy/main"
TIMEOUT = 60.0  # seconds without a byte
CHUNK = 2**18
_BUSY = (408, 429)  # statuses below 500 for which a retry may succeed


@dataclass(frozen=True)
class PublishedFile:
    """A file of the repository: its path in it and its git blob id."""

    path: str
    blob_id: str

    @property
    def name(self) -> str:
        """The file name without folders."""
        return self.path.rsplit("/", 1)[-1]


PUBLISHED_FILES = (
    PublishedFile(
        "code/Anomaly Detection/Fine_Tune_Model/Mixed_Inception_z_VITAE_Base_Img_Full_New_Full.pt",
        "ade698bffe6138695661d14701cb3dd07d483e92",
    ),
    PublishedFile("code/Anomaly Detection/Inference/resized_inference.pt", "ab2034b73a935c4a6f403ee968b00749a9ea2385"),
)


class _BrokenConnectionError(Exception):
    """The connection failed in a way for which a retry may succeed."""


def git_blob_id(path: Path) -> str:
    """Return the git blob id of a file."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with os.fdopen(open_regular(path), "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def fetch_published(out: str, base_url: str, files: tuple[PublishedFile, ...] = PUBLISHED_FILES) -> list[str]:
    """Download the files that are not in folder `out` yet, and return the paths of all of them.

    An interrupted download is continued. Raises InputError if the server cannot be reached or sends anything but the
    published file, which is then removed and never kept under its name.
    """
    folder = Path(out)
    with describe_os_errors(out, "write"):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file in files:
        target = folder / file.name
        with describe_os_errors(str(target), "read"):
            is_complete = target.exists() and git_blob_id(target) == file.blob_id
        if not is_complete:
            _fetch(f"{base_url.rstrip('/')}/{quote(file.path)}", target, file.blob_id)
        paths.append(str(target))
    return paths


def _fetch(url: str, target: Path, expected: str) -> None:
    partial = target.with_name(f"{target.name}.partial")
    try:
        _download(url, partial)
    except _BrokenConnectionError as error:
        raise InputError(f"{url} cannot be fetched: {error}; run again to continue, or download it by hand") from None
    with describe_os_errors(str(partial), "read"):
        found = git_blob_id(partial)
        if found != expected:
            partial.unlink()
    if found != expected:
        raise InputError(f"{url} sent a file with the git blob id {found}, expected {expected}; it was not kept")
    with describe_os_errors(str(target), "write"):
        partial.replace(target)


@retry(
    retry=retry_if_exception_type(_BrokenConnectionError), stop=stop_after_attempt(5),
    wait=wait_random_exponential(0.5, 10), reraise=True,
)  # fmt: skip
def _download(url: str, partial: Path) -> None:
    """Append the missing part of a file; the server's status says whether it continues or starts from the beginning."""
    with describe_os_errors(str(partial), "read"):
        have = partial.stat().st_size if partial.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    except ValueError as error:
        raise InputError(f"{url} cannot be fetched: {error}; expected https://...") from None
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            resumed = response.status == 206
            have = have if resumed else 0
            length = int(response.headers.get("Content-Length") or 0)
            total = have + length if length else 0  # 0: the server does not state it
            with describe_os_errors(str(partial), "write"):
                flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if resumed else os.O_TRUNC)
                file = os.fdopen(os.open(partial, flags | os.O_NONBLOCK, 0o666), "wb")  # waits for no reader of a pipe
            with file, show_progress(total, have, "bytes") as advance:
                _copy(response, file, advance)
            if total and (got := partial.stat().st_size) != total:
                raise _BrokenConnectionError(f"the connection ended after {got} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file was complete already
            return
        if error.code < 500 and error.code not in _BUSY:
            raise InputError(f"{url} returned {error.code} {error.reason}; check the address") from None
        raise _BrokenConnectionError(f"it returned {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:  # errors of the network: those of the disk are InputErrors
        raise _BrokenConnectionError(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _copy(response: Any, file: Any, advance: Callable[[int], None]) -> None:
    while chunk := response.read(CHUNK):
        with describe_os_errors(file.name, "write"):
            file.write(chunk)
        advance(len(chunk))
