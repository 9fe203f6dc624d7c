"""run, resume, status, cancel."""

from __future__ import annotations

from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import click

from cosmicai.commands.options import run_options, tell
from cosmicai.errors import InputError

from .options import on_command_line, rank_options, taken_request


@click.command()
@run_options
@rank_options
@click.option("--dry-run", is_flag=True, help="Print plan, ranks, and estimates of time and memory; run nothing.")
def run(survey: str, out: str, dry_run: bool, resume: bool, **options: Any) -> int:
    """Predict the redshift of every galaxy in SURVEY with several ranks."""
    from cosmicai.demo import named_survey
    from cosmicai.run.begin import begin

    from .estimate import estimate
    from .request import require_room, settled

    request, mpi, batch, wait = taken_request(options)
    if batch:
        from .submitting import submit_run

        return submit_run(survey, out, request, batch, options | {"resume": resume}, dry_run=dry_run, wait=wait)
    if request.gpus:
        options["device"] = _only(options["device"], "cuda")
    elif request.procs:
        options["device"] = _only(options["device"], "cpu")
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as folder:
        opened = named_survey(survey, folder if dry_run else out)
        if not dry_run:
            approve = partial(require_room, request, mpi=mpi)
            begun = begin(opened, out=out, resume=resume, ranks=request.ranks, approve=approve, **options, tell=tell)
            return _go_on(begun, request, mpi)
        begun = begin(opened, out=folder, ranks=request.ranks, **options, tell=tell)
        for line in estimate(begun, settled(request, begun.plan())):
            click.echo(line)
    return 0


@click.command()
@click.argument("run")
@rank_options
def resume(run: str, **options: Any) -> int:
    """Finish the run in the folder RUN: do what is missing, nothing else.

    A run that was submitted to SLURM is submitted again as it was, unless other ranks are asked for.
    """
    from .submission import submissions
    from .submitting import submit_again

    before = submissions(folder := _folder(run))
    if before and not on_command_line(set(options) - {"wait"}):
        return submit_again(folder, *before[-1].asked(), options["wait"])
    request, mpi, batch, wait = taken_request(options)
    return submit_again(folder, request, batch, wait) if batch else _go_on(folder, request, mpi)


@click.command()
@click.argument("run")
@click.option("--watch", is_flag=True, help="Go on until the run is complete.")
def status(run: str, watch: bool) -> int:
    """How the run in the folder RUN stands."""
    from .status import show_status

    return show_status(_folder(run), watch)


@click.command()
@click.argument("run")
def cancel(run: str) -> int:
    """Stop all that is at work on the run in the folder RUN; what is done remains."""
    from .submission import cancel as stop

    stopped = stop(folder := _folder(run))
    told = [f"job {job}" for job in stopped.jobs] + ([f"process {stopped.process}"] if stopped.process else [])
    click.echo(f"stopped {', '.join(told)}" if told else f"nothing is at work on {folder.uri}")
    return 0


def _folder(run: str) -> Any:
    from cosmicai import storage
    from cosmicai.run.folder import RunFolder

    return RunFolder(storage.absolute(run))


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
