"""The lock files of the project's requirements."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement


def read_lock(path: Path, *, everywhere: bool = False) -> dict[str, str]:
    """Return the locked versions by normalized name: those for this system, or those for all systems."""
    lines = re.findall(r"^[^ #\n][^\\\n]*", path.read_text(), re.MULTILINE)
    locked = [Requirement(line) for line in lines]
    return {
        package.name: str(package.specifier).removeprefix("==") for package in locked
        if everywhere or not package.marker or package.marker.evaluate()
    }  # fmt: skip
