"""Let torchvision be imported where its compiled operators are missing, as beside a torch for CPUs of PyPI.

torchvision describes two operators of its library when it is imported, which fails where the library cannot be loaded.
The transforms need none of them. Tests, and they alone, define the two then, in this process by `prepare_torchvision`
and in those that it starts by the file sitecustomize.py, whose folder is on their PYTHONPATH (`environment`).
"""

from __future__ import annotations

import importlib.abc
import os
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

OPERATORS = ("nms", "qnms")
_libraries: list[Any] = []  # what they define is gone with them


class _Finder(importlib.abc.MetaPathFinder):
    """Finds no module, but sees that torchvision is about to be imported."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            _define_missing_operators()
        return None


def prepare_torchvision() -> None:
    """Let the next import of torchvision in this process succeed; torch is not imported before."""
    sys.meta_path.insert(0, _Finder())


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables for processes in which torchvision can be imported."""
    path = [str(Path(__file__).parent), *filter(None, [variables.get("PYTHONPATH")])]
    return {**variables, "PYTHONPATH": os.pathsep.join(path)}


def _define_missing_operators() -> None:
    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*")))
    except (OSError, StopIteration):
        _libraries.append(torch.library.Library("torchvision", "FRAGMENT"))
        for name in OPERATORS:
            if not hasattr(torch.ops.torchvision, name):
                _libraries[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
