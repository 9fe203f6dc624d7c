"""From the command line to SLURM and back: check here, submit, and tell what came of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any

import click

from ... import storage
from ...console import notify
from ...console.progress import polled
from ...errors import InputError
from ...ranks.cores import available_cores
from ...runs.create import begin
from ...runs.demo import named_survey
from ...runs.record import cpu_model
from ...runs.store import RunFolder
from ...runs.summary import summarize
from ...runs.summary_text import conclude
from ..estimate import engine_rate
from ..request import Batch, Request
from ..submission import Submission, jobs_of, submissions
from . import submit
from .accounting import account
from .queue import queued
from .submit import Granted

ASK_EVERY = 5.0  # seconds between questions to SLURM


def submit_run(
    survey: str, out: str, request: Request, batch: Batch, options: dict[str, Any], *, dry_run: bool, wait: bool
) -> int:
    """Submits a run, or prints what that would be; returns the exit code.

    The plan is written by the first rank that comes, since only where ranks run it is known what can compute there;
    what can be told here is told here. Raises InputError as `begin` and `slurm.granted` do.
    """
    granted = _granted(request, batch)
    if options["device"] is None:
        options["device"] = "cuda" if granted.computes_on_gpus else "cpu"
        if request.gpus and not granted.computes_on_gpus:
            notify("this site's GPUs only stand in for some: ranks compute on the CPU")
    elif options["device"] == "cuda" and not request.gpus:
        raise InputError("--device cuda needs --gpus, else SLURM gives the job no GPU")
    with TemporaryDirectory(prefix="cosmicai-dry-run-") as folder:
        opened = named_survey(survey, folder if dry_run else out)
        run = begin(opened, out=out, elsewhere=True, **options)
        if dry_run:
            for text in submit.sbatch_texts(run, batch, granted):
                click.echo(text)
            for line in _estimate(opened, folder, granted, options):
                click.echo(line)
            return 0
    _require_idle(run)
    arguments = ["infer", opened.uri, "--out", run.uri, "--resume"]
    for name, value in options.items():
        if value is True:
            arguments.append(f"--{name.replace('_', '-')}")
        elif value not in (None, False) and name != "resume":
            local = name == "weights" and value != "demo"
            arguments += [f"--{name.replace('_', '-')}", storage.absolute(value) if local else str(value)]
    return _follow(run, submit.launch(run, request, batch, granted, tuple(arguments)), wait)


def submit_again(run: RunFolder, request: Request, batch: Batch, wait: bool) -> int:
    """Submits what is missing of a run; returns the exit code. Raises InputError if its jobs are still at work."""
    if run.has_plan() and run.parts().issuperset(run.plan().items):
        return conclude(summarize(run))
    _require_idle(run)
    granted = _granted(request, batch)
    before = submissions(run)
    if not before and not run.has_plan():
        run.plan()  # which says what is wrong
    worker = ("work", run.uri) if run.has_plan() else before[-1].worker
    return _follow(run, submit.launch(run, request, batch, granted, worker), wait)


def _granted(request: Request, batch: Batch) -> Granted:
    granted = submit.granted(request, batch, os.environ)
    for notice in granted.notices:
        notify(notice)
    return granted


def _require_idle(run: RunFolder) -> None:
    if jobs := queued(jobs_of(run)):
        raise InputError(
            f"job {jobs[0].number} ({jobs[0].state}) is at work on {run.uri}; stop it with "
            f"`python -m launch cancel {run.uri}` or watch it with `python -m launch status --watch {run.uri}`"
        )


def _follow(run: RunFolder, submission: Submission, wait: bool) -> int:
    click.echo(f"submitted job {', '.join(submission.jobs)}; its output is in {submission.folder}")
    if not wait:
        click.echo(f"watch it with `python -m launch status --watch {run.uri}`")
        click.echo(f"stop it with `python -m launch cancel {run.uri}`")
        return 0
    try:
        _wait(run, submission)
    except KeyboardInterrupt:
        raise InputError(
            f"no longer waiting; the jobs go on, stop them with `python -m launch cancel {run.uri}`"
        ) from None
    if not run.has_plan():
        raise InputError(f"the jobs ended before there was a plan; {submission.folder} holds what they printed")
    code = conclude(run.complete_summary() or summarize(run))
    account(run, jobs_of(run))
    return code


def _wait(run: RunFolder, submission: Submission) -> None:
    """Shows the progress of the jobs until they have ended."""
    while working := queued(submission.jobs) != []:
        if run.has_plan():
            break
        time.sleep(ASK_EVERY)
    if not working:
        return
    plan = run.plan()
    with polled(plan.galaxies, lambda: plan.galaxies_of(run.parts())):
        while queued(submission.jobs) != []:
            time.sleep(ASK_EVERY)


def _estimate(survey: Any, folder: str, granted: Granted, options: dict[str, Any]) -> Iterator[str]:
    """Lines about size, time and price; the time from a short measurement of one rank's engine here, if it can be."""
    galaxies = sum(shard.galaxies for shard in survey.shards[: options["limit_files"]])
    yield f"{galaxies:,} galaxies of {survey.uri} for {granted.ranks:,} ranks of {granted.cores // granted.ranks} cores"
    if granted.computes_on_gpus:
        yield "no estimate of the time: ranks compute on GPUs, which cannot be measured here"
    else:
        begun = begin(survey, out=storage.join(folder, "run"), ranks=granted.ranks, **options, tell=notify)
        threads = min(granted.cores // granted.ranks, available_cores())
        rate = engine_rate(begun, threads) * granted.ranks
        seconds = galaxies / rate
        yield (
            f"about {timedelta(seconds=round(seconds))} of work once all ranks run, at {rate:,.0f} galaxies/s, "
            f"{granted.ranks} times what one rank of {threads} threads was measured on this machine ({cpu_model()})"
        )
        yield f"about {_price(granted, seconds / 3600)}"
    yield f"at most {_price(granted, granted.seconds / 3600)}, if all of the time limit is used"


def _price(granted: Granted, hours: float) -> str:
    parts = [f"{granted.cores * hours:,.2f} core-hours"]
    if granted.gpus:
        parts.append(f"{granted.gpus * hours:,.2f} GPU-hours")
    if granted.service_units_per_hour is not None:
        parts.append(f"{granted.service_units_per_hour * hours:,.2f} service units")
    return ", ".join(parts)
