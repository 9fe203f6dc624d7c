"""What an Apptainer image states about itself (containers/Containerfile, containers/sif.sh)."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...errors import InputError
from ...records import decode_json


@dataclass(frozen=True)
class ApptainerImage:
    """A SIF file, or a folder with an unpacked one; labels that it does not have are None."""

    path: str
    variant: str | None
    commit: str | None


class _Attributes(msgspec.Struct, frozen=True):
    labels: dict[str, str] | None


class _Data(msgspec.Struct, frozen=True):
    attributes: _Attributes


class _Inspection(msgspec.Struct, frozen=True):
    """The part of the output of `apptainer inspect --json` that is used here."""

    data: _Data


def inspect_image(path: str) -> ApptainerImage | None:
    """Return the image at a path; None where Apptainer is not installed, as where only jobs load its module.

    Raises InputError if it is not an image.
    """
    if not shutil.which("apptainer"):
        return None
    printed = subprocess.run(["apptainer", "inspect", "--json", path], capture_output=True, text=True).stdout
    remedy = "make an image of Apptainer with containers/sif.sh"
    try:
        labels = decode_json(printed, _Inspection, where=f"--image {path}", remedy=remedy).data.attributes.labels or {}
    except InputError:
        if Path(path).is_dir():  # some root file system that Apptainer has not made
            return ApptainerImage(path, None, None)
        raise InputError(f"--image {path} is not an image of Apptainer; make one with containers/sif.sh") from None
    return ApptainerImage(path, labels.get("cosmicai.variant"), labels.get("org.opencontainers.image.revision"))
