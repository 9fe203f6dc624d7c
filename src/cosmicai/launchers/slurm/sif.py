"""What an image of Apptainer says of itself (containers/Containerfile, containers/sif.sh)."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError


@dataclass(frozen=True)
class Image:
    """A SIF or an unpacked one; what it was not told is None."""

    path: str
    variant: str | None
    commit: str | None

    def notices(self, commit: str | None) -> Iterator[str]:
        """What the user of code of this commit should know."""
        if commit and self.commit and commit != self.commit:
            yield (
                f"{self.path} was built from commit {self.commit} and the code outside is of {commit}; build the image "
                "anew, or check its commit out"
            )


def inspected(path: str) -> Image | None:
    """The image at a path; None where Apptainer is not at hand, as where jobs alone load its module.

    Raises InputError if it is no image.
    """
    if not shutil.which("apptainer"):
        return None
    asked = subprocess.run(["apptainer", "inspect", "--json", path], capture_output=True, text=True)
    try:
        labels = json.loads(asked.stdout)["data"]["attributes"]["labels"] or {}
    except (ValueError, KeyError):
        if Path(path).is_dir():  # some root file system that Apptainer has not made
            return Image(path, None, None)
        raise InputError(f"--image {path} is no image of Apptainer; make one with containers/sif.sh") from None
    return Image(path, labels.get("cosmicai.variant"), labels.get("org.opencontainers.image.revision"))
