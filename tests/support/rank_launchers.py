"""Command lines that start ranks that communicate."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parents[1]
NO_MPI = "there is no mpirun here; install openmpi-bin"


def mpirun(*options: str) -> Callable[[int], list[str]]:
    return lambda size: ["mpirun", *options, "-n", str(size), "--oversubscribe", sys.executable]


LAUNCHERS: dict[str, Callable[[int], list[str]]] = {
    "alone": lambda size: [sys.executable],
    "torchrun": lambda size: [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size),
    ],
    "fmi": lambda size: ["env", f"PYTHONPATH={TESTS}", sys.executable, "-m", "support.fmi_launch", str(size)],
    "mpi": mpirun(),
    "mpi over TCP": mpirun("--mca", "osc", "ucx", "--mca", "btl", "tcp,self"),
}  # fmt: skip


def clean_environment() -> dict[str, str]:
    """The environment without variables of a launcher that runs these tests; root may run mpirun."""
    launchers = ("COSMICAI_", "SLURM_", "OMPI_", "PMI", "MPI_", "TORCHELASTIC_", "AWS_LAMBDA_", "MASTER_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    own = {name: value for name, value in os.environ.items() if not name.startswith(launchers) and name not in names}
    return own | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
