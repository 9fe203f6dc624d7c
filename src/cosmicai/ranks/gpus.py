"""One GPU for each rank of a machine."""

from __future__ import annotations

from pathlib import Path

from .environment import Environment

VISIBLE = "CUDA_VISIBLE_DEVICES"


def gpu_names(environment: Environment) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, which a scheduler or the user may have
    set; found without the driver, which would hold on to all of them."""
    listed = environment.get(VISIBLE)
    if listed is not None:
        return [name for name in listed.split(",") if name]
    return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def own_gpu(local_rank: int, environment: Environment) -> dict[str, str]:
    """The variable that shows a rank its own GPU alone; nothing where there is no choice."""
    names = gpu_names(environment)
    return {VISIBLE: names[local_rank % len(names)]} if len(names) > 1 else {}
