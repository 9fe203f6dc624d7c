"""Explain an installation that is hidden behind another one, which a variable of the environment names.

A site's module for Python often sets PYTHONPATH or PYTHONHOME; its libraries then precede those that were installed
with this program. This module needs nothing but Python itself, since any library may be the wrong one.
"""

# pathlib imports modules of Python that a wrong PYTHONHOME does not have.
# ruff: noqa: PTH100, PTH118, PTH120

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BAD_INSTALLATION = 2
REMEDIES = {"PYTHONPATH": "`env -u PYTHONPATH`", "the user's own site-packages": "`env PYTHONNOUSERSITE=1`"}


@contextmanager
def explain_foreign_modules(name: str) -> Iterator[None]:
    """End the program `name` with one sentence and code 2 if it fails because of libraries that a variable names."""
    try:
        yield
    except Exception as error:
        if not (sentence := describe_foreign_modules(error)):
            raise
        print(f"{name}: {sentence}", file=sys.stderr)
        sys.exit(BAD_INSTALLATION)


def describe_foreign_modules(error: Exception) -> str:
    """Return which variable made Python use the libraries in which this error arose; empty if none did."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    home = os.environ.get("PYTHONHOME")
    if home and isinstance(error, ImportError):
        return (
            f"PYTHONHOME={home} lets Python look for its libraries there and not in this installation ({reason}); "
            "start the program with `env -u PYTHONHOME` in front of the command"
        )
    files = _files_of(error.__traceback__)
    if isinstance(error, (ImportError, AttributeError)):
        files += [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    for variable, folders in _foreign_folders().items():
        for folder in folders:
            if file := next((file for file in files if file.startswith(os.path.join(folder, ""))), None):
                return (
                    f"{file} comes from {variable} and not from this installation ({reason}); start the program with "
                    f"{REMEDIES[variable]} in front of the command"
                )
    return ""


def _files_of(traceback: TracebackType | None) -> list[str]:
    files = []
    while traceback is not None:
        files.append(traceback.tb_frame.f_code.co_filename)
        traceback = traceback.tb_next
    return files[::-1]


def _foreign_folders() -> dict[str, list[str]]:
    """Return the folders that precede this installation, by what names them, without those that hold this program."""
    path = [os.path.abspath(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    site = sys.modules.get("site")
    user = getattr(site, "USER_SITE", None) if getattr(site, "ENABLE_USER_SITE", False) else None
    found = {"PYTHONPATH": path, "the user's own site-packages": [user] if user else []}
    return {name: [folder for folder in folders if not OWN.startswith(folder)] for name, folders in found.items()}
