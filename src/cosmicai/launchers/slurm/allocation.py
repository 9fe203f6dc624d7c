"""Fits a request into what a SLURM site offers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...ranks.environment import SITE_NAME
from ...runs.provenance import git_commit
from ..base import RankRequest, SlurmRequest
from ..image_commit import commit_notices
from .sif import ApptainerImage, inspect_image
from .site import SBATCH_OPTION, Site, parse_time_limit
from .site_profile import load_site

WARNING_SECONDS = 60  # before the end of a job's time, at which SLURM signals it
MEMORY_MB = {"cpu": 1000, "cuda": 6000}  # of a rank: measured were 200 to 600 MB on CPUs
FIRST_MEMORY_MB = 500  # of a node's first rank in addition: it may be the one that makes the catalogue
# Within an allocation sbatch passes on the limits of that allocation, which contradict those of the job in srun; and
# tasks get the environment of the job's script even if the user's own was not to be passed on to the job.
OWN_LIMITS = ("unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE SLURM_MEM_PER_GPU", "export SLURM_EXPORT_ENV=ALL")
# Options of sbatch that are requested by options of the launcher or follow from them.
DECIDED = {
    "account": "--account", "array": "--array", "constraint": "--constraint", "cpus-per-task": "--cores",
    "error": "the launcher", "gpus": "--gpus", "gpus-per-node": "--gpus", "gpus-per-task": "--gpus",
    "gres": "--gpu-kind", "job-name": "the launcher", "mem": "--memory-mb", "mem-per-cpu": "--mem-per-cpu",
    "mem-per-gpu": "--memory-mb", "nodes": "--nodes", "ntasks": "--procs", "ntasks-per-node": "--procs",
    "no-requeue": "--requeues", "open-mode": "the launcher", "output": "the launcher", "parsable": "the launcher",
    "partition": "--partition", "qos": "--qos", "requeue": "--requeues", "reservation": "--reservation",
    "signal": "the launcher", "time": "--time", "wait": "--wait", "wrap": "the launcher",
}  # fmt: skip
MAX_CORES = 4  # of a rank, where a node has that many for each


@dataclass(frozen=True)
class SbatchParameters:
    """Parameters of sbatch and srun, under the names that submitit has for them; None is left to SLURM."""

    partition: str
    account: str | None
    nodes: int
    ntasks_per_node: int
    cpus_per_task: int
    mem: str | None
    mem_per_cpu: str | None
    qos: str | None
    constraint: str | None
    gres: str | None
    time: int  # minutes
    signal_delay_s: int
    array_parallelism: int
    stderr_to_stdout: bool
    srun_args: tuple[str, ...]
    additional_parameters: Mapping[str, bool | str]

    def given(self) -> dict[str, Any]:
        """Return the parameters that are not None, as submitit takes them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None} | {
            "srun_args": list(self.srun_args)
        }


@dataclass(frozen=True)
class SlurmAllocation:
    """What a site grants for a request: the parameters and setup of the jobs' script, and the tasks of each array.

    `ranks`, `cores` and `gpus` are those of all jobs together, which may run for `seconds` and are charged
    `service_units_per_hour` if that is known. `scratch` is a folder that all nodes see, `notices` is what the user
    should know.
    """

    parameters: SbatchParameters
    setup: tuple[str, ...]
    arrays: tuple[int, ...]
    ranks: int
    cores: int
    gpus: int
    seconds: int
    service_units_per_hour: float | None
    computes_on_gpus: bool
    scratch: str
    notices: tuple[str, ...] = ()


def resolve_resources(request: RankRequest, slurm: SlurmRequest, environment: Mapping[str, str]) -> SlurmAllocation:
    """Return what the site grants for a request.

    Raises InputError with the limit that the request breaks, or if the site or the image cannot be used.
    """
    site = load_site(slurm.site, environment)
    site.require_account(slurm.account)
    image = _inspect(slurm.image)
    seconds = parse_time_limit(slurm.time)
    per_node, on_gpus, tasks = request.per_node, bool(request.gpus), slurm.tasks or 1
    gres = site.gres_option(slurm.gpu_kind, per_node) if on_gpus else None
    computes_on_gpus = on_gpus and site.find_gpu(slurm.gpu_kind).computes
    if computes_on_gpus and image and image.variant == "cpu":
        raise InputError(
            f"--image {slurm.image} was built without CUDA and --gpus {request.gpus} asks for GPUs; build another with "
            "containers/build.sh --variant cuda, or use --procs"
        )
    cores = slurm.cores or _default_cores(site, per_node)
    memory_mb = slurm.memory_mb or FIRST_MEMORY_MB + MEMORY_MB["cuda" if computes_on_gpus else "cpu"] * per_node
    by_core = slurm.mem_per_cpu is not None or (site.memory_per_core and slurm.memory_mb is None)
    if slurm.mem_per_cpu is not None:
        if slurm.memory_mb is not None:
            raise InputError("--memory-mb is memory per node and --mem-per-cpu memory per core; use one of them")
        memory_mb = slurm.mem_per_cpu * cores * per_node
    elif by_core:
        memory_mb = -(-memory_mb // (cores * per_node)) * cores * per_node
    partition = site.choose_partition(
        slurm.partition, nodes=request.nodes, cores_per_node=cores * per_node, memory_mb_per_node=memory_mb,
        gpus=request.gpus or 0, hours=seconds / 3600, kind=slurm.gpu_kind,
    )  # fmt: skip
    all_cores, all_gpus = cores * request.ranks * tasks, (request.gpus or 0) * tasks
    all_memory_mb = memory_mb * request.nodes * tasks
    parameters = SbatchParameters(
        partition=partition.name, account=slurm.account, nodes=request.nodes,
        ntasks_per_node=per_node, cpus_per_task=cores, mem=None if by_core else f"{memory_mb}M",
        mem_per_cpu=f"{memory_mb // (cores * per_node)}M" if by_core else None, qos=slurm.qos or site.qos,
        constraint=slurm.constraint or site.constraint, gres=gres, time=-(-seconds // 60),
        signal_delay_s=WARNING_SECONDS, array_parallelism=tasks, stderr_to_stdout=True,
        # Since 22.05 srun does not take the cores of a task from sbatch; a worker that finds PMIx's variables would
        # take itself for one of MPI.
        srun_args=("--mpi=none", f"--cpus-per-task={cores}"),
        additional_parameters={"requeue": True} | _further_options(site, slurm),
    )  # fmt: skip
    return SlurmAllocation(
        parameters=parameters,
        setup=_setup(site, slurm.image, environment),
        arrays=tuple(site.split_array(tasks)),
        ranks=request.ranks * tasks,
        cores=all_cores,
        gpus=all_gpus,
        seconds=seconds,
        service_units_per_hour=site.compute_service_units(
            all_cores, all_gpus, slurm.gpu_kind, 1.0, memory_mb=all_memory_mb
        ),
        computes_on_gpus=computes_on_gpus,
        scratch=site.scratch,
        notices=tuple(commit_notices(image.path, image.commit, git_commit())) if image else (),
    )


def _inspect(image: str | None) -> ApptainerImage | None:
    if image is not None and not Path(image).exists():
        raise InputError(f"--image {image} does not exist; build it with containers/sif.sh or leave --image out")
    return inspect_image(image) if image else None


def _default_cores(site: Site, ranks_per_node: int) -> int:
    """Return the cores of a rank such that all ranks of a node fit into the site's smallest one."""
    stated = [partition.cores_per_node for partition in site.partitions if partition.cores_per_node]
    return max(1, min(MAX_CORES, min(stated, default=MAX_CORES) // ranks_per_node))


def _setup(site: Site, image: str | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the lines of the jobs' script that load the site's modules, and name the image and the site."""
    modules = [f"module load {shlex.quote(module)}" for module in site.modules] if image else []
    path = str(Path(image).absolute()) if image else ""
    variables = {"COSMICAI_IMAGE": path, SITE_NAME: site.name}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return (*OWN_LIMITS, *modules, _own_python(environment), *exports)


def _own_python(environment: Mapping[str, str]) -> str:
    """Return a line of a job's script by which its Python finds the launcher's libraries, not those of a module."""
    path = environment.get("PYTHONPATH")
    return f"unset PYTHONHOME; export PYTHONPATH={shlex.quote(path)}" if path else "unset PYTHONHOME PYTHONPATH"


def _further_options(site: Site, slurm: SlurmRequest) -> dict[str, bool | str]:
    """Return options of sbatch that submitit has no parameter for; those of the request precede those of the site.

    Raises InputError for one that is no option, or that is decided here by other means.
    """
    reservation = slurm.reservation or site.reservation
    options: dict[str, bool | str] = {"reservation": reservation} if reservation else {}
    for text in (*site.sbatch, *slurm.sbatch):
        if not re.fullmatch(SBATCH_OPTION, text, re.ASCII):
            raise InputError(f"--sbatch {text!r} is not an option of sbatch; write KEY=VALUE, such as exclude=n7")
        key, equals, value = text.removeprefix("--").partition("=")
        if key in DECIDED:
            raise InputError(f"--sbatch {text} sets what {DECIDED[key]} decides; use that")
        options[key] = value if equals else True
    return options
