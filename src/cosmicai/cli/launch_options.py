"""Options of `python -m launch`, declared once, and what they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from ..errors import InputError
from ..launchers.request import CloudRequest
from .options import schedule_option

_RANK_OPTIONS = (
    click.option(
        "--procs", type=click.IntRange(1), help="Ranks on CPU cores, on all nodes together; default 1 a node."
    ),
    click.option("--gpus", type=click.IntRange(1), help="Ranks on GPUs, one for each, on all nodes together."),
    click.option(
        "--nodes", default=1, show_default=True, type=click.IntRange(1), help="Machines; needs --mpi or --slurm."
    ),
    click.option("--mpi", is_flag=True, help="Start the ranks with mpirun, on the nodes that it knows of."),
    schedule_option,
    click.option("--max-restarts", default=3, show_default=True, type=click.IntRange(0), help="Of ranks that died."),
    click.option(
        "--rank-timeout",
        default=300.0,
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
        help="Seconds of silence after which a rank is taken for dead.",
    ),
    click.option(
        "--slurm", is_flag=True, help="Submit the ranks to SLURM and return; what follows, up to --wait, is for it."
    ),
    click.option("--site", help="The cluster: a file slurm/SITE.toml or its path; default COSMICAI_SITE."),
    click.option("--account", help="Whom the cluster charges."),
    click.option("--partition", help="Default: the first that takes the job."),
    click.option("--time", default="1:00:00", show_default=True, help="Limit of a job; what is left then is requeued."),
    click.option("--gpu-kind", help="Such as a100; default the site's first."),
    click.option("--cores", type=click.IntRange(1), help="Of each rank; default up to 4."),
    click.option("--memory-mb", type=click.IntRange(1), help="Of each node; default by number of ranks."),
    click.option(
        "--array", "tasks", type=click.IntRange(1), help="So many independent tasks, each of the nodes and ranks asked."
    ),
    click.option("--image", envvar="COSMICAI_IMAGE", help="The worker's SIF; the launcher stays outside of it."),
    click.option(
        "--requeues", default=10, show_default=True, type=click.IntRange(0), help="Of a job whose time was over."
    ),
    click.option("--wait", is_flag=True, help="Stay until SLURM's jobs have ended, and tell the result."),
)

detach_option = click.option(
    "--detach", is_flag=True, help="Return once the run has begun in the cloud; its end is waited for otherwise."
)
ACCOUNT_OPTIONS = (
    click.option("--region", help="Default AWS_DEFAULT_REGION, or the profile's."),
    click.option("--profile", help="Default AWS_PROFILE."),
    click.option(
        "--endpoint-url",
        envvar="AWS_ENDPOINT_URL",
        help="Of something that stands in for AWS; default AWS_ENDPOINT_URL.",
    ),
)
_CLOUD_OPTIONS = (
    click.option(
        "--cloud",
        is_flag=True,
        help="Run on AWS, a rank for each partition, and fetch the results; what follows is for it.",
    ),
    click.option("--stack", default="cosmicai", show_default=True, help="What `python aws/deploy.py up` made."),
    click.option(
        "--partition-mb",
        type=click.FloatRange(min=0, min_open=True),
        help="Cut a local SURVEY anew into partitions of this size.",
    ),
    click.option(
        "--memory", type=click.IntRange(128, 10240), help="MB of each rank; if the stack has others, it is changed."
    ),
    click.option("--concurrency", type=click.IntRange(1), help="Ranks at work at a time; default the stack's."),
    click.option(
        "--tolerate",
        type=click.FloatRange(0, 100),
        help="Percentage of the galaxies that may be missing in the end; default 0.",
    ),
    click.option("--fmi", is_flag=True, help="Ranks share the work as they go, through the stack's rendezvous server."),
    *ACCOUNT_OPTIONS,
    detach_option,
)


def rank_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which ranks, how many, and where."""
    for option in reversed(_RANK_OPTIONS):
        command = option(command)
    return command


def cloud_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that send a run to the cloud."""
    for option in reversed(_CLOUD_OPTIONS):
        command = option(command)
    return command


def on_command_line(names: Iterable[str]) -> list[str]:
    """Which of the options with these names the user has given to the command at work, as they are written."""
    context = click.get_current_context()
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


def taken_request(options: dict[str, Any]) -> tuple[Any, bool, Any, bool]:
    """Takes what `rank_options` gave out of the options: the request, whether mpirun starts the ranks, what is asked of
    SLURM if that does, and whether to wait for it. Raises InputError if they contradict each other."""
    from ..launchers.request import Batch, Request, require_gpus

    if options["procs"] and options["gpus"]:
        raise InputError("--procs is for ranks on CPUs and --gpus for ranks on GPUs; use one of them")
    if options["mpi"] and options["slurm"]:
        raise InputError("--mpi and --slurm both start ranks; use one of them (jobs/infer_mpi.sh is MPI in SLURM)")
    if options["nodes"] > 1 and not options["mpi"] and not options["slurm"]:
        raise InputError(
            f"--nodes {options['nodes']} needs --mpi or --slurm; without them all ranks run on this machine"
        )
    of_slurm = on_command_line({"wait", *(field.name for field in fields(Batch))})
    if of_slurm and not options["slurm"]:
        raise InputError(f"{of_slurm[0]} is for jobs of --slurm")
    if options["slurm"] and options["schedule"] == "static":
        raise InputError("--schedule static is for ranks that are started here; SLURM's may come late or never")
    if options["gpus"] and options["nodes"] == 1 and not options["slurm"]:
        require_gpus(options["gpus"])
    request = Request(**{field.name: options.pop(field.name) for field in fields(Request)})
    batch = Batch(**{field.name: options.pop(field.name) for field in fields(Batch)})
    _ = request.per_node  # which says if nodes would differ
    return request, options.pop("mpi"), batch if options.pop("slurm") else None, options.pop("wait")


def taken_cloud(options: dict[str, Any]) -> CloudRequest | None:
    """Takes what `cloud_options` gave out of the options: what is asked of the cloud, None if nothing is.

    Raises InputError if options contradict each other.
    """
    from ..launchers.request import Batch, Request

    names = {field.name for field in fields(CloudRequest)}
    request = CloudRequest(**{name: options.pop(name) for name in names})
    if not options.pop("cloud"):
        if of_cloud := on_command_line(names):
            raise InputError(f"{of_cloud[0]} is for runs with --cloud")
        return None
    if request.partition_mb is not None and not math.isfinite(request.partition_mb):
        raise InputError(f"--partition-mb {request.partition_mb} is no size; expected MB, such as 25")
    elsewhere = {field.name for kind in (Request, Batch) for field in fields(kind)} | {"mpi", "slurm", "wait"}
    if others := on_command_line(elsewhere):
        raise InputError(
            f"--cloud and {others[0]} contradict each other; on AWS there is a rank for each partition (--partition-mb)"
        )
    for name, fitting in (("engine", ("auto", "openvino")), ("device", (None, "cpu"))):
        if options[name] not in fitting:
            raise InputError(
                f"--cloud and --{name} {options[name]} contradict each other; on AWS OpenVINO computes, on CPUs"
            )
    return request
