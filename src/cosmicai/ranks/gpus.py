"""The GPUs of a machine, divided among its ranks."""

from __future__ import annotations

from pathlib import Path

from .environment import Environment

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpu_names(environment: Environment) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    A scheduler or the user may have set that variable. Without it, device files are counted: the driver would open all
    GPUs.
    """
    listed = environment.get(VISIBLE)
    if listed is not None:
        return [name for name in listed.split(",") if name]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def own_gpu(local_rank: int, environment: Environment) -> dict[str, str]:
    """Return the variable that restricts a rank to its own GPU; empty if there is at most one."""
    names = gpu_names(environment)
    return {VISIBLE: names[local_rank % len(names)]} if len(names) > 1 else {}
