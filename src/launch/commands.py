"""run, status, resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import click

from cosmicai.commands.options import run_options, schedule_option, tell
from cosmicai.errors import InputError

_RANK_OPTIONS = (
    click.option("--procs", type=click.IntRange(1), help="Ranks on CPU cores, one process each; default 1."),
    click.option("--gpus", type=click.IntRange(1), help="Ranks on GPUs, one process each."),
    click.option("--nodes", default=1, show_default=True, type=click.IntRange(1), help="Machines; needs --mpi."),
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
)


def _rank_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_RANK_OPTIONS):
        command = option(command)
    return command


@click.command()
@run_options
@_rank_options
@click.option("--dry-run", is_flag=True, help="Print plan, ranks, and estimates of time and memory; run nothing.")
def run(survey: str, out: str, dry_run: bool, resume: bool, **options: Any) -> int:
    """Predict the redshift of every galaxy in SURVEY with several ranks."""
    from cosmicai.galaxies.survey import open_survey
    from cosmicai.run.begin import begin

    from .estimate import estimate
    from .request import require_room, settled

    request, mpi = _request(options)
    if request.gpus:
        options["device"] = _only(options["device"], "cuda")
    elif options["procs"]:
        options["device"] = _only(options["device"], "cpu")
    for name in ("mpi", *(field.name for field in fields(request))):
        del options[name]
    opened = open_survey(survey)
    if not dry_run:
        approve = partial(require_room, request, mpi=mpi)
        begun = begin(opened, out=out, resume=resume, ranks=request.ranks, approve=approve, **options, tell=tell)
        return _go_on(begun, request, mpi)
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as folder:
        begun = begin(opened, out=folder, ranks=request.ranks, **options, tell=tell)
        for line in estimate(begun, settled(request, begun.plan())):
            click.echo(line)
    return 0


@click.command()
@click.argument("run")
@_rank_options
def resume(run: str, **options: Any) -> int:
    """Finish the run in the folder RUN: do what is missing, nothing else."""
    from cosmicai import storage
    from cosmicai.run.folder import RunFolder

    return _go_on(RunFolder(storage.absolute(run)), *_request(options))


@click.command()
@click.argument("run")
@click.option("--watch", is_flag=True, help="Go on until the run is complete.")
def status(run: str, watch: bool) -> int:
    """How the run in the folder RUN stands."""
    from cosmicai import storage
    from cosmicai.run.folder import RunFolder

    from .status import show_status

    return show_status(RunFolder(storage.absolute(run)), watch)


def _request(options: dict[str, Any]) -> tuple[Any, bool]:
    """The ranks that were asked for, and whether mpirun starts them."""
    from .request import Request, require_gpus

    if options["procs"] and options["gpus"]:
        raise InputError("--procs is for ranks on CPUs and --gpus for ranks on GPUs; use one of them")
    if options["nodes"] > 1 and not options["mpi"]:
        raise InputError(f"--nodes {options['nodes']} needs --mpi; without it all ranks run on this machine")
    if options["gpus"] and options["nodes"] == 1:
        require_gpus(options["gpus"])
    return Request(**{field.name: options[field.name] for field in fields(Request)}), options["mpi"]


def _only(asked: str | None, device: str) -> str:
    if asked not in (None, device):
        raise InputError(f"--{'gpus' if device == 'cuda' else 'procs'} and --device {asked} contradict each other")
    return device


def _go_on(run: Any, request: Any, mpi: bool) -> int:
    """Launches the ranks for what is missing of a run, summarizes it, and returns the exit code."""
    from cosmicai.report import conclude
    from cosmicai.run.summary import summarize

    from . import local
    from . import mpi as by_mpi
    from .request import require_room, settled

    plan = run.plan()
    require_room(request, plan, mpi)
    (by_mpi if mpi else local).launch(run, settled(request, plan))
    return conclude(summarize(run))
