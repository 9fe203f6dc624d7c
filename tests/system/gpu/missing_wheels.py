"""Print those wheels of a folder whose package this Python does not have: `python missing_wheels.py FOLDER`."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def is_installed(wheel: Path) -> bool:
    """Return whether this Python has the package of a wheel, in whatever version."""
    try:
        version(wheel.name.split("-")[0].replace("_", "-"))
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
        if not is_installed(wheel):
            print(wheel)
