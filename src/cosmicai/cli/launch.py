"""run, resume, status, cancel: the commands of `python -m launch`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ..console import echo
from ..console.command_line import COMPLETE, INCOMPLETE
from ..errors import InputError
from .launch_options import (
    cloud_options,
    detach_option,
    explicit_options,
    parse_launch_options,
    parse_rank_options,
    rank_options,
)
from .options import run_options

# Commands import what they need when they run, which keeps `--help` and mistakes in options fast.
if TYPE_CHECKING:
    from ..launchers.base import Submission
    from ..runs.store import RunFolder


@click.command()
@partial(run_options, survey_required=False)
@rank_options
@cloud_options
@click.option("--dry-run", is_flag=True, help="Print the plan, the ranks and estimates; start nothing.")
def run(dry_run: bool, **options: Any) -> int:
    """Predict the redshift of every galaxy in SURVEY with several ranks.

    SURVEY is a folder, an s3:// prefix, a .h5 or .pt file, or `demo`. Without SURVEY, synthetic galaxies are predicted
    with the demo weights in a new folder below runs/.
    """
    from ..launchers.registry import launcher_by_name

    name, request = parse_launch_options(options)
    launcher = launcher_by_name(name)
    if dry_run:
        for line in launcher.estimate(request):
            echo(line)
        return COMPLETE
    return _report(launcher.submit(request))


@click.command()
@click.argument("run")
@rank_options
@detach_option
def resume(run: str, detach: bool, **options: Any) -> int:
    """Finish the run in the folder RUN: do what is missing, nothing else.

    A run that was submitted to SLURM is submitted again as it was, unless other ranks are requested. A run in the cloud
    continues there, and its results are fetched.
    """
    from ..launchers.base import ResumeRequest
    from ..launchers.registry import launcher_by_name, submitter_of

    folder, explicit = _run_folder(run), explicit_options(options)
    launcher = submitter_of(folder, explicit)
    if detach and (launcher is None or launcher.name != "aws"):
        raise InputError(f"--detach is for runs in the cloud, and {folder.uri} is not one")
    if launcher is not None:
        request = ResumeRequest(wait=options["wait"], detach=detach, options=explicit)
        return _report(launcher.resume(folder, request))
    name, ranks, slurm = parse_rank_options(options)
    request = ResumeRequest(ranks, slurm, options["wait"], metrics_port=options["metrics_port"])
    return _report(launcher_by_name(name).resume(folder, request))


@click.command()
@click.argument("run")
@click.option("--watch", is_flag=True, help="Update until the run has ended.")
@click.option("--ranks", "every_rank", is_flag=True, help="Show every rank, also if there are many.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document.")
@click.option("--metrics", metavar="FILE.prom", help="Write Prometheus metrics for node_exporter's textfile collector.")
def status(run: str, watch: bool, every_rank: bool, as_json: bool, metrics: str | None) -> int:
    """Show how the run in the folder RUN stands; exit code 0 if it is complete, else 3.

    More than 32 ranks are shown by node. Once SLURM jobs have ended, it also says how much they used of what was
    requested, and what to request next time.
    """
    from ..launchers.status import print_status_document, show_status

    if as_json and (watch or every_rank):
        raise InputError("--json is for programs and prints all ranks once; leave out --watch and --ranks")
    if metrics is not None and not metrics.endswith(".prom"):
        raise InputError(f"--metrics {metrics}: node_exporter reads files that end in .prom; choose such a name")
    if as_json:
        return print_status_document(_run_folder(run), metrics)
    return show_status(_run_folder(run), watch, every_rank, metrics)


@click.command()
@click.argument("run")
def cancel(run: str) -> None:
    """Stop everything that is at work on the run in the folder RUN, and keep what is done."""
    from ..launchers.registry import launchers_of

    folder = _run_folder(run)
    stopped = [what for launcher in launchers_of(folder) for what in launcher.cancel(folder)]
    echo(f"stopped {', '.join(stopped)}" if stopped else f"nothing is at work on {folder.uri}")


def _run_folder(run: str) -> RunFolder:
    from .. import storage
    from ..runs.store import RunFolder

    return RunFolder(storage.absolute(run))


def _report(submission: Submission) -> int:
    """Print what became of a run and return the exit code."""
    for line in submission.lines:
        echo(line)
    if not submission.has_ended:
        return COMPLETE
    if submission.incomplete:
        echo(submission.incomplete, err=True)
        return INCOMPLETE
    from ..runs.summarize import summarize
    from ..runs.summary_text import print_summary

    submission.run.remove_leftovers()
    code = print_summary(submission.summary or summarize(submission.run))
    for line in submission.closing:
        echo(line)
    return code
