"""Where a figure was measured."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..ranks.cores import available_cores
from ..ranks.image_identity import image_digest
from ..runs.record import cpu_model, git_commit, gpu_model


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory in GB (2^30 bytes), processes that wanted to run in the last minute
    (call it before measuring: few, or the figures are no good), GPU, system, versions, commit, image and UTC date."""
    import torch

    return {
        "cpu_model": cpu_model(),
        "cores": available_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "gpu_model": gpu_model("cuda" if torch.cuda.is_available() else "cpu"),
        "os": _system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "openvino": _version("openvino"),
        "git_commit": git_commit(),
        "image_digest": image_digest(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["cosmicai", *sys.argv[1:]])


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
