"""Options of `python -m launch`, declared once, and the requests that they make."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ..console import notify
from ..errors import InputError
from ..launchers.base import CloudRequest, LaunchRequest, RankRequest, SlurmRequest
from ..ranks.environment import MAX_RANKS
from ..runs.request import RunRequest
from .options import Amount, require_weights, schedule_option

RUNS = "runs"  # folder for runs whose folder is not named

_RANKS = click.IntRange(1, MAX_RANKS)
_RANK_OPTIONS = (
    click.option(
        "--procs",
        type=_RANKS,
        help="Ranks on CPU cores, on all nodes together; default 1 per node.",
    ),
    click.option("--gpus", type=_RANKS, help="Ranks with one GPU each, on all nodes together."),
    click.option(
        "--nodes",
        default=1,
        show_default=True,
        type=_RANKS,
        help="Machines; needs --mpi or --slurm.",
    ),
    click.option("--mpi", is_flag=True, help="Start the ranks with mpirun, on the nodes that it knows of."),
    schedule_option,
    click.option(
        "--max-restarts",
        default=3,
        show_default=True,
        type=click.IntRange(0),
        help="Restarts of ranks that died, in all.",
    ),
    click.option(
        "--rank-timeout",
        default=300.0,
        show_default=True,
        type=Amount(),
        help="Seconds without a message after which a rank is considered dead.",
    ),
    click.option(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="Serve Prometheus metrics at /metrics while the ranks run; without HOST to this machine alone.",
    ),
    click.option(
        "--slurm", is_flag=True, help="Submit the ranks to SLURM and return; the options up to --wait are for it."
    ),
    click.option("--site", help="SLURM cluster: a file slurm/SITE.toml or its path; default COSMICAI_SITE."),
    click.option("--account", help="SLURM account to charge."),
    click.option("--partition", help="SLURM partition; default: the first that takes the job."),
    click.option(
        "--time", default="1:00:00", show_default=True, help="Time limit of a job; work left after it is requeued."
    ),
    click.option(
        "--gpu-kind",
        help="Kind of GPU, such as a100, or `cheapest`, which is the default; several, such as v100,a6000, submit jobs "
        "for each, and those that start first do the work.",
    ),
    click.option("--cores", type=click.IntRange(1), help="CPU cores per rank; default: up to 4."),
    click.option("--memory-mb", type=click.IntRange(1), help="Memory per node in MB; default: by the number of ranks."),
    click.option(
        "--mem-per-cpu", type=click.IntRange(1), help="Memory per core in MB, for sites that refuse memory per node."
    ),
    click.option("--qos", help="SLURM quality of service; default: the site's, if it names one."),
    click.option("--constraint", help="Features that the nodes must have; default: the site's, if it names one."),
    click.option("--reservation", help="Reservation in which the jobs run."),
    click.option("--mail-user", help="Address to which SLURM sends mail about the jobs."),
    click.option("--mail-type", help="Events that it sends mail about; default END,FAIL if there is an address."),
    click.option("--dependency", help="What the jobs wait for, such as afterok:1234; not repeated by `resume`."),
    click.option("--exclude", help="Nodes on which the jobs must not run, such as n7 or n[7-9]."),
    click.option("--nice", type=click.IntRange(0, 2**31 - 3), help="By how much the priority of the jobs is lowered."),
    click.option(
        "--sbatch",
        multiple=True,
        metavar="KEY=VALUE",
        help="Further option of sbatch, such as comment=mine; can be given several times.",
    ),
    click.option(
        "--array",
        "tasks",
        type=click.IntRange(1),
        help="Independent array tasks, each of the requested nodes and ranks.",
    ),
    click.option(
        "--image", envvar="COSMICAI_IMAGE", help="SIF image in which the ranks run; the launcher stays outside."
    ),
    click.option(
        "--requeues",
        default=10,
        show_default=True,
        type=click.IntRange(0),
        help="How often a job that ran out of time is requeued.",
    ),
    click.option("--wait", is_flag=True, help="Wait until the SLURM jobs have ended, and print the result."),
)

detach_option = click.option(
    "--detach", is_flag=True, help="Return once the run has started in the cloud, without waiting for its end."
)
ACCOUNT_OPTIONS = (
    click.option("--region", help="AWS region; default AWS_DEFAULT_REGION, or that of the profile."),
    click.option("--profile", help="AWS profile; default AWS_PROFILE."),
    click.option(
        "--endpoint-url",
        envvar="AWS_ENDPOINT_URL",
        help="Address of a service that stands in for AWS; default AWS_ENDPOINT_URL.",
    ),
)
_CLOUD_OPTIONS = (
    click.option(
        "--cloud",
        is_flag=True,
        help="Run on AWS, one rank per partition, and fetch the results; the options after this one are for it.",
    ),
    click.option(
        "--stack", default="cosmicai", show_default=True, help="Stack that was created by `python aws/deploy.py up`."
    ),
    click.option(
        "--partition-mb",
        type=Amount(),
        help="Cut a local SURVEY into partitions of this size.",
    ),
    click.option(
        "--memory", type=click.IntRange(128, 10240), help="Memory per rank in MB; changes the stack if it differs."
    ),
    click.option("--concurrency", type=click.IntRange(1), help="Ranks that run at a time; default: the stack's."),
    click.option(
        "--tolerate",
        type=click.FloatRange(0, 100),
        help="Percentage of the galaxies that may be missing in the end; default 0.",
    ),
    click.option(
        "--fmi", is_flag=True, help="Ranks share the work dynamically, through the stack's rendezvous server."
    ),
    *ACCOUNT_OPTIONS,
    detach_option,
)
T = TypeVar("T")


def rank_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which ranks run, how many, and where."""
    for option in reversed(_RANK_OPTIONS):
        command = option(command)
    return command


def cloud_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that send a run to the cloud."""
    for option in reversed(_CLOUD_OPTIONS):
        command = option(command)
    return command


def explicit_options(names: Iterable[str]) -> tuple[str, ...]:
    """Return those options with these names that are on the command line, as they are written there."""
    context, wanted = click.get_current_context(), set(names)
    return tuple(
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in wanted and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    )


def parse_launch_options(options: Mapping[str, Any]) -> tuple[str, LaunchRequest]:
    """Return the name of the launcher that the options of `launch run` request, and the request itself.

    Raises InputError if options contradict each other.
    """
    if cloud := parse_cloud_options(options):
        run = _parse_run_options(options)
        return "aws", LaunchRequest(run, cloud=cloud, detach=options["detach"])
    name, ranks, slurm = parse_rank_options(options)
    run = _parse_run_options(options)
    if name != "slurm":  # which has stand-ins for GPUs, where ranks compute on the CPU
        run = _with_device(run, ranks)
    return name, LaunchRequest(run, ranks, slurm, wait=options["wait"], metrics_port=options["metrics_port"])


def parse_rank_options(options: Mapping[str, Any]) -> tuple[str, RankRequest, SlurmRequest | None]:
    """Return the name of the launcher that the rank options request, the ranks, and what is requested of SLURM.

    Raises InputError if they contradict each other, or if this machine does not have the GPUs.
    """
    if options["procs"] and options["gpus"]:
        raise InputError("--procs is for ranks on CPUs and --gpus for ranks on GPUs; use one of them")
    if options["mpi"] and options["slurm"]:
        raise InputError("--mpi and --slurm both start ranks; use one of them (jobs/infer_mpi.sh is MPI in SLURM)")
    if options["nodes"] > 1 and not options["mpi"] and not options["slurm"]:
        raise InputError(
            f"--nodes {options['nodes']} needs --mpi or --slurm; without them all ranks run on this machine"
        )
    for_slurm = explicit_options({"wait", *_names(SlurmRequest)})
    if for_slurm and not options["slurm"]:
        raise InputError(f"{for_slurm[0]} is for jobs of --slurm")
    if options["slurm"] and options["schedule"] == "static":
        raise InputError("--schedule static is for ranks that are started here; SLURM's may come late or never")
    if options["slurm"] and options["metrics_port"]:
        raise InputError(
            "--metrics-port is for ranks that are started here; where SLURM starts them use "
            "`python -m launch status RUN --watch --metrics FILE.prom`"
        )
    if options["gpus"] and options["nodes"] == 1 and not options["slurm"]:
        from ..launchers.local.resources import require_gpus  # which imports the engines

        require_gpus(options["gpus"])
    ranks = _record(RankRequest, options)
    _ = ranks.per_node  # raises InputError if nodes would differ
    if options["slurm"]:
        return "slurm", ranks, _record(SlurmRequest, options)
    return "mpi" if options["mpi"] else "local", ranks, None


def parse_cloud_options(options: Mapping[str, Any]) -> CloudRequest | None:
    """Return what the options request of the cloud, None without --cloud.

    Raises InputError if options contradict each other.
    """
    if not options["cloud"]:
        if for_cloud := explicit_options({"detach", *_names(CloudRequest)}):
            raise InputError(f"{for_cloud[0]} is for runs with --cloud")
        return None
    request = _record(CloudRequest, options)
    elsewhere = {"mpi", "slurm", "wait", "metrics_port", *_names(RankRequest), *_names(SlurmRequest)}
    if others := explicit_options(elsewhere):
        raise InputError(
            f"--cloud and {others[0]} contradict each other; on AWS there is one rank per partition (--partition-mb)"
        )
    for name, supported in (("engine", ("auto", "openvino")), ("device", (None, "cpu"))):
        if options[name] not in supported:
            raise InputError(
                f"--cloud and --{name} {options[name]} contradict each other; on AWS ranks use OpenVINO, on CPUs"
            )
    return request


def _parse_run_options(options: Mapping[str, Any]) -> RunRequest:
    """Return the requested run, or one of the demo in a new folder below `runs` if there is no survey.

    Raises InputError if an option needs a survey, or if a survey has no folder for its results, and click.UsageError
    if weights are missing.
    """
    if options["survey"] is not None and options["out"] is None:
        raise InputError("--out is missing; name the run folder: a new local folder or s3:// prefix")
    if options["survey"] is not None:
        weights = require_weights(options["survey"], options["weights"])
        return _record(RunRequest, {**options, "weights": weights})
    if needing := explicit_options(("out", "weights", "limit_files", "resume", "cloud")):
        raise InputError(
            f"{needing[0]} needs a SURVEY: a folder, an s3:// prefix, a .h5 or .pt file, or `demo` (synthetic galaxies)"
        )
    out = f"{RUNS}/launch-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    notify(f"no SURVEY is given: predicting synthetic galaxies with the demo weights, into {out}")
    return _record(RunRequest, {**options, "survey": "demo", "weights": "demo", "out": out})


def _with_device(run: RunRequest, ranks: RankRequest) -> RunRequest:
    """Return the run on the device of its ranks. Raises InputError if the run is requested on another one."""
    option, device = ("gpus", "cuda") if ranks.gpus else ("procs", "cpu") if ranks.procs else ("", run.device)
    if run.device not in (None, device):
        raise InputError(f"--{option} and --device {run.device} contradict each other")
    return replace(run, device=device)


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _record(kind: type[T], options: Mapping[str, Any]) -> T:
    return kind(**{name: options[name] for name in _names(kind)})
