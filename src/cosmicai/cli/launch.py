"""run, resume, status, cancel."""

from __future__ import annotations

from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import click

from ..console import notify
from ..errors import InputError
from .launch_options import cloud_options, detach_option, on_command_line, rank_options, taken_cloud, taken_request
from .options import run_options


@click.command()
@run_options
@rank_options
@cloud_options
@click.option("--dry-run", is_flag=True, help="Print plan, ranks, and estimates of time and memory; run nothing.")
def run(survey: str, out: str, dry_run: bool, resume: bool, **options: Any) -> int:
    """Predict the redshift of every galaxy in SURVEY with several ranks."""
    from ..launchers.estimate import estimate
    from ..launchers.request import require_room, settled
    from ..runs.create import begin
    from ..runs.demo import named_survey

    if cloud := taken_cloud(options):
        from ..launchers.aws.launcher import launch

        return launch(survey, out, cloud, options, dry_run=dry_run, resume=resume)
    request, mpi, batch, wait = taken_request(options)
    _require_no_copy(out)
    if batch:
        from ..launchers.slurm.launcher import submit_run

        return submit_run(survey, out, request, batch, options | {"resume": resume}, dry_run=dry_run, wait=wait)
    if request.gpus:
        options["device"] = _only(options["device"], "cuda")
    elif request.procs:
        options["device"] = _only(options["device"], "cpu")
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as folder:
        opened = named_survey(survey, folder if dry_run else out)
        if not dry_run:
            approve = partial(require_room, request, mpi=mpi)
            begun = begin(opened, out=out, resume=resume, ranks=request.ranks, approve=approve, **options, tell=notify)
            return _go_on(begun, request, mpi)
        begun = begin(opened, out=folder, ranks=request.ranks, **options, tell=notify)
        for line in estimate(begun, settled(request, begun.plan())):
            click.echo(line)
    return 0


@click.command()
@click.argument("run")
@rank_options
@detach_option
def resume(run: str, detach: bool, **options: Any) -> int:
    """Finish the run in the folder RUN: do what is missing, nothing else.

    A run that was submitted to SLURM is submitted again as it was, unless other ranks are asked for. A run in the cloud
    goes on there, and its results are fetched.
    """
    from ..launchers.submission import cloud_run, submissions

    submitted, others = cloud_run(folder := _folder(run)), on_command_line(options)
    if submitted and not (others and folder.uri == submitted.run):
        return _go_on_in_cloud(folder, submitted, others, detach)
    if detach:
        raise InputError(f"--detach is for runs in the cloud, and {folder.uri} is none")
    from ..launchers.slurm.launcher import submit_again

    before = submissions(folder)
    if before and not on_command_line(set(options) - {"wait"}):
        return submit_again(folder, *before[-1].asked(), options["wait"])
    request, mpi, batch, wait = taken_request(options)
    return submit_again(folder, request, batch, wait) if batch else _go_on(folder, request, mpi)


@click.command()
@click.argument("run")
@click.option("--watch", is_flag=True, help="Go on until the run is complete.")
def status(run: str, watch: bool) -> int:
    """How the run in the folder RUN stands."""
    from ..launchers.status import show_status

    return show_status(_folder(run), watch)


@click.command()
@click.argument("run")
def cancel(run: str) -> int:
    """Stop all that is at work on the run in the folder RUN; what is done remains."""
    from ..launchers.submission import cancel as stop

    stopped = stop(folder := _folder(run))
    told = [f"job {job}" for job in stopped.jobs] + ([f"process {stopped.process}"] if stopped.process else [])
    told += [f"execution {stopped.execution}"] if stopped.execution else []
    click.echo(f"stopped {', '.join(told)}" if told else f"nothing is at work on {folder.uri}")
    return 0


def _folder(run: str) -> Any:
    from .. import storage
    from ..runs.store import RunFolder

    return RunFolder(storage.absolute(run))


def _only(asked: str | None, device: str) -> str:
    if asked not in (None, device):
        raise InputError(f"--{'gpus' if device == 'cuda' else 'procs'} and --device {asked} contradict each other")
    return device


def _require_no_copy(out: str) -> None:
    """Raises InputError if the folder is for the results of a run in the cloud."""
    from ..launchers.submission import cloud_run
    from ..storage.s3 import is_s3

    if not is_s3(out) and (submitted := cloud_run(folder := _folder(out))):
        raise InputError(
            f"{folder.uri} is for the results of {submitted.run}, a run in the cloud; choose another --out, or go on "
            f"with it by `python -m launch resume {folder.uri}`"
        )


def _go_on_in_cloud(folder: Any, submitted: Any, others: list[str], detach: bool) -> int:
    """Finishes a run in the cloud and returns the exit code. Raises InputError if ranks elsewhere are asked for."""
    if others:
        raise InputError(
            f"{others[0]} means nothing to a run in the cloud; leave it out, or finish the run from elsewhere with "
            f"`python -m launch resume {submitted.run} {others[0]} ...`"
        )
    from ..launchers.aws.launcher import resume

    return resume(folder, submitted, detach)


def _go_on(run: Any, request: Any, mpi: bool) -> int:
    """Launches the ranks for what is missing of a run, summarizes it, and returns the exit code."""
    from ..launchers import mpi as by_mpi
    from ..launchers.local import supervisor
    from ..launchers.request import require_room, settled
    from ..runs.summary import summarize
    from ..runs.summary_text import conclude

    plan = run.plan()
    require_room(request, plan, mpi)
    (by_mpi if mpi else supervisor).launch(run, settled(request, plan))
    return conclude(summarize(run))
