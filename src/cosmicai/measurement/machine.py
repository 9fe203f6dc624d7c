"""The machine and the command that measured a figure."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..ranks.container_image import image_digest
from ..ranks.cores import available_cores
from ..runs.provenance import cpu_model, git_commit, gpu_model


def describe_machine() -> dict[str, Any]:
    """Return processor, available cores, memory in GB (2^30 bytes), load average, GPU, system, versions and UTC date.

    Call it before measuring: the load average of the last minute shows whether other processes disturb the figures.
    """
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


def format_command() -> str:
    """Return the command line of this process as typed."""
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
