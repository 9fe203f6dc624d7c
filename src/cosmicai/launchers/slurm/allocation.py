"""Fits a request into what a SLURM site offers."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...ranks.environment import SITE_NAME
from ...runs.provenance import git_commit
from ..base import RankRequest, SlurmRequest
from ..image_commit import commit_notices
from .job_options import collect_options, join_constraints
from .sif import ApptainerImage, inspect_image
from .site import Gpu, Site, parse_time_limit
from .site_profile import load_site

CHEAPEST = "cheapest"  # the kind of GPU that is charged least for the job, free ones first
WARNING_SECONDS = 60  # before the end of a job's time, at which SLURM signals it
MEMORY_MB = {"cpu": 1000, "cuda": 6000}  # of a rank: measured were 200 to 600 MB on CPUs
FIRST_MEMORY_MB = 500  # of a node's first rank in addition: it may be the one that makes the catalogue
# Within an allocation sbatch passes on the limits of that allocation, which contradict those of the job in srun; and
# tasks get the environment of the job's script even if the user's own was not to be passed on to the job.
OWN_LIMITS = ("unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE SLURM_MEM_PER_GPU", "export SLURM_EXPORT_ENV=ALL")
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
class JobArray:
    """An array of jobs that are alike, with the parameters of one; an array of one task is a single job."""

    parameters: SbatchParameters
    tasks: int


@dataclass(frozen=True)
class SlurmAllocation:
    """What a site grants for a request: the arrays of jobs to submit, and the setup in their scripts.

    `ranks`, `cores` and `gpus` are those of all jobs together, which may run for `seconds` and are charged
    `service_units_per_hour` if that is known. With several `kinds` of GPUs there are jobs for each of them, and those
    that start late find nothing to do. `scratch` is a folder that all nodes see, `notices` is what the user should
    know.
    """

    arrays: tuple[JobArray, ...]
    setup: tuple[str, ...]
    ranks: int
    cores: int
    gpus: int
    seconds: int
    service_units_per_hour: float | None
    computes_on_gpus: bool
    scratch: str
    kinds: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Offer:
    """What a site grants for all tasks of a request on one kind of GPU, or without GPUs."""

    gpu: Gpu | None
    parameters: SbatchParameters
    cores: int
    service_units_per_hour: float | None


def resolve_resources(request: RankRequest, slurm: SlurmRequest, environment: Mapping[str, str]) -> SlurmAllocation:
    """Return what the site grants for a request.

    Raises InputError with the limit that the request breaks, or if the site or the image cannot be used.
    """
    site = load_site(slurm.site, environment)
    site.require_account(slurm.account)
    image, seconds, tasks = _inspect(slurm.image), parse_time_limit(slurm.time), slurm.tasks or 1
    offers = _choose_offers(site, request, slurm, image)
    units = [offer.service_units_per_hour for offer in offers]
    on_gpus = any(offer.gpu is not None and offer.gpu.computes for offer in offers)
    notices = commit_notices(image.path, image.commit, git_commit()) if image else ()
    return SlurmAllocation(
        arrays=tuple(JobArray(offer.parameters, size) for offer in offers for size in site.split_array(tasks)),
        setup=_setup(site, slurm.image, environment),
        ranks=request.ranks * tasks * len(offers),
        cores=sum(offer.cores for offer in offers),
        gpus=(request.gpus or 0) * tasks * len(offers),
        seconds=seconds,
        service_units_per_hour=None if None in units else math.fsum(unit or 0.0 for unit in units),
        computes_on_gpus=on_gpus,
        scratch=site.scratch,
        kinds=tuple(offer.gpu.kind for offer in offers if offer.gpu),
        notices=(*notices, *_gpu_notices(site, slurm, offers, seconds)),
    )


def _choose_offers(site: Site, request: RankRequest, slurm: SlurmRequest, image: ApptainerImage | None) -> list[_Offer]:
    """Return what the site grants on each requested kind of GPU. Raises InputError if it refuses one of them."""
    make = partial(_make_offer, site, request, slurm, image)
    if not request.gpus:
        return [make(None)]
    site.require_gpus()
    names = (slurm.gpu_kind or CHEAPEST).split(",")
    if names == [CHEAPEST]:
        return [_cheapest_offer(site, make)]
    if len(set(names)) < len(names) or not {"", CHEAPEST}.isdisjoint(names):
        raise InputError(f"--gpu-kind {slurm.gpu_kind}: expected different kinds, such as v100,a6000, or {CHEAPEST}")
    return [make(site.find_gpu(name)) for name in names]


def _cheapest_offer(site: Site, make: partial[_Offer]) -> _Offer:
    """Return what is granted on the kind of GPU that is charged least, the site's first among equals."""
    offers, refusals = [], {}
    for gpu in site.gpus:
        try:
            offers.append(make(gpu))
        except InputError as refusal:
            refusals[gpu.kind] = str(refusal)
    if not offers and len(set(refusals.values())) == 1:
        raise InputError(next(iter(refusals.values())))
    if not offers:
        reasons = "; ".join(f"{kind}: {refusal}" for kind, refusal in refusals.items())
        raise InputError(f"no kind of GPU of {site.name} takes this job ({reasons})")
    units = [offer.service_units_per_hour for offer in offers]
    return offers[min(range(len(offers)), key=lambda number: math.inf if (unit := units[number]) is None else unit)]


def _make_offer(
    site: Site, request: RankRequest, slurm: SlurmRequest, image: ApptainerImage | None, gpu: Gpu | None
) -> _Offer:
    """Return what the site grants on one kind of GPU, or without GPUs. Raises InputError if it refuses."""
    per_node, tasks, computes = request.per_node, slurm.tasks or 1, gpu is not None and gpu.computes
    if computes and image and image.variant == "cpu":
        raise InputError(
            f"--image {slurm.image} was built without CUDA and --gpus {request.gpus} asks for GPUs; build another with "
            "containers/build.sh --variant cuda, or use --procs"
        )
    cores = slurm.cores or _default_cores(site, gpu, per_node)
    memory_mb, by_core = _memory(site, slurm, cores * per_node, MEMORY_MB["cuda" if computes else "cpu"] * per_node)
    share = {"cores_per_node": cores * per_node, "memory_mb_per_node": memory_mb}
    gres = site.require_share(gpu, per_node, **share, time=slurm.time) if gpu else None
    seconds = parse_time_limit(slurm.time)
    partition = site.choose_partition(
        slurm.partition, nodes=request.nodes, **share, hours=seconds / 3600, gpus=request.gpus or 0, gpu=gpu
    )
    parameters = SbatchParameters(
        partition=partition.name, account=slurm.account, nodes=request.nodes,
        ntasks_per_node=per_node, cpus_per_task=cores, mem=None if by_core else f"{memory_mb}M",
        mem_per_cpu=f"{memory_mb // (cores * per_node)}M" if by_core else None, qos=slurm.qos or site.qos,
        constraint=join_constraints(slurm, site, gpu), gres=gres, time=-(-seconds // 60),
        signal_delay_s=WARNING_SECONDS,
        array_parallelism=min(tasks, (gpu.max_running_per_user if gpu else None) or tasks), stderr_to_stdout=True,
        # Since 22.05 srun does not take the cores of a task from sbatch; a worker that finds PMIx's variables would
        # take itself for one of MPI.
        srun_args=("--mpi=none", f"--cpus-per-task={cores}"),
        additional_parameters={"requeue": True} | collect_options(site, slurm),
    )  # fmt: skip
    all_cores, all_memory_mb = cores * request.ranks * tasks, memory_mb * request.nodes * tasks
    units = site.compute_service_units(all_cores, (request.gpus or 0) * tasks, gpu, 1.0, memory_mb=all_memory_mb)
    return _Offer(gpu, parameters, all_cores, units)


def _memory(site: Site, slurm: SlurmRequest, cores_per_node: int, for_ranks_mb: int) -> tuple[int, bool]:
    """Return the memory of a node in MB, and whether it is requested per core. Raises InputError for both at once."""
    if slurm.mem_per_cpu is not None:
        if slurm.memory_mb is not None:
            raise InputError("--memory-mb is memory per node and --mem-per-cpu memory per core; use one of them")
        return slurm.mem_per_cpu * cores_per_node, True
    memory_mb = slurm.memory_mb or FIRST_MEMORY_MB + for_ranks_mb
    if site.memory_per_core and slurm.memory_mb is None:
        return -(-memory_mb // cores_per_node) * cores_per_node, True
    return memory_mb, False


def _gpu_notices(site: Site, slurm: SlurmRequest, offers: list[_Offer], seconds: int) -> list[str]:
    """Return what the user should know of the jobs' GPUs: which were chosen, and the site's rule for idle ones."""
    gpus, notices = [offer.gpu for offer in offers if offer.gpu], []
    if gpus and slurm.gpu_kind in (None, CHEAPEST) and len(site.gpus) > 1:
        units = offers[0].service_units_per_hour
        charge = "its charge is not known" if units is None else f"{units:,.2f} service units an hour for all jobs"
        notices.append(f"GPUs of kind {gpus[0].kind} are the cheapest of {site.name} that take the job: {charge}")
    if gpus and site.idle_gpu_hours and seconds > 3600 * site.idle_gpu_hours - 60:
        notices.append(
            f"{site.name} ends jobs that leave a GPU idle for {site.idle_gpu_hours:g} hours; a shorter --time is safe, "
            "since work that is left is requeued"
        )
    return notices


def _inspect(image: str | None) -> ApptainerImage | None:
    if image is not None and not Path(image).exists():
        raise InputError(f"--image {image} does not exist; build it with containers/sif.sh or leave --image out")
    return inspect_image(image) if image else None


def _default_cores(site: Site, gpu: Gpu | None, ranks_per_node: int) -> int:
    """Return the cores of a rank such that all ranks of a node fit into the smallest one that the job may get."""
    stated = [partition.cores_per_node for partition in site.partitions if partition.cores_per_node]
    of_gpu = (gpu.cores if gpu else None) or MAX_CORES
    return max(1, min(MAX_CORES, of_gpu, min(stated, default=MAX_CORES) // ranks_per_node))


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
