"""A library that makes chosen calls of the C library fail, as those of file systems of clusters do."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faults.c")


def build_library(folder: Path) -> Path:
    """Compile the library and return its path; skip the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make calls fail with")
    library = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def faults(library: Path, call: str, error: str, path: str, times: int = 10**6) -> dict[str, str]:
    """Return variables with which the first `times` calls on a path fail with this error.

    They fail on paths that hold `path` or, if it is absolute, are it. `call` is "open" (of a file that is there),
    "create", "link", "fsync", "flock", "opendir", "preadv" or "read", and `error` a name such as "ESTALE".
    """
    return {
        "LD_PRELOAD": " ".join([str(library), *os.environ.get("LD_PRELOAD", "").split()]),
        "FAULT_CALL": call, "FAULT_ERRNO": str(getattr(errno, error)), "FAULT_PATH": path, "FAULT_TIMES": str(times),
    }  # fmt: skip
