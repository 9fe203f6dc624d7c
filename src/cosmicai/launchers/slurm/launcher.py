"""Runs on a SLURM cluster: fit the request into the site, submit, and report what became of it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from datetime import timedelta
from tempfile import TemporaryDirectory

from ... import storage
from ...console import echo, notify
from ...console.progress import poll_progress
from ...engines.registry import BATCH_SIZE
from ...errors import InputError
from ...ranks.cores import available_cores
from ...runs.create import create_run, validate_request
from ...runs.demo import open_named_survey
from ...runs.provenance import cpu_model
from ...runs.record import RECENT
from ...runs.request import RunRequest
from ...runs.store import RunFolder, ignore
from ...surveys.survey import Survey
from ..base import LaunchRequest, RankRequest, RemoteStatus, ResumeRequest, SlurmRequest, Submission
from ..estimate import describe_idle_ranks, estimate_run
from ..submission import SlurmSubmission, read_submissions, require_no_cloud_run
from .accounting import final_executions, update_account
from .allocation import SlurmAllocation, resolve_resources
from .queue import cancel_jobs, job_numbers, list_jobs, list_run_jobs
from .usage import JobUsage, sum_usage, use_of_executions, use_of_records

POLL_INTERVAL = 5.0  # seconds between requests to SLURM's controller


class SlurmLauncher:
    """Submits ranks as the tasks of jobs, which then need no launcher any more.

    The first rank that starts writes the plan, since only where ranks run it is known what can compute there.
    """

    name = "slurm"

    def estimate(self, request: LaunchRequest) -> Iterator[str]:
        """Yield the lines that sbatch would get, and about how long the jobs would take and what they would charge."""
        from .submit import environment_notices, sbatch_texts  # imports submitit, which takes long

        slurm, allocation = _slurm_request(request), self._allocate(request.ranks, request.slurm)
        planned = _with_device(request, allocation)
        with TemporaryDirectory(prefix="cosmicai-dry-run-") as folder:
            survey = open_named_survey(planned.survey, folder)
            validate_request(planned, survey, notify)
            _warn_of_idle_ranks(planned, survey, allocation)
            for text in sbatch_texts(RunFolder(storage.absolute(planned.out)), slurm, allocation):
                yield from text.splitlines()
            yield from environment_notices(os.environ, text)
            yield from _estimate(planned, survey, folder, allocation)

    def submit(self, request: LaunchRequest) -> Submission:
        """Submit a run and, if that is requested, wait until its jobs have ended.

        Raises InputError if the site does not grant the request, if SLURM refuses, or if jobs are at work on the run.
        """
        slurm, allocation = _slurm_request(request), self._allocate(request.ranks, request.slurm)
        planned = _with_device(request, allocation)
        survey = open_named_survey(planned.survey, planned.out)
        validate_request(planned, survey, notify)
        _warn_of_idle_ranks(planned, survey, allocation)
        run = RunFolder(storage.absolute(planned.out))
        _require_idle(run)
        return self._submit(
            run, request.ranks, slurm, allocation, _worker_arguments(planned, survey, run), request.wait
        )

    def resume(self, run: RunFolder, request: ResumeRequest) -> Submission:
        """Submit what is missing of a run, with the ranks of its newest submission unless others are requested."""
        if run.has_plan() and run.parts().issuperset(run.plan().items):
            return Submission(run, has_ended=True)
        before = read_submissions(run)
        ranks, slurm = request.ranks, request.slurm
        if ranks is None or slurm is None:
            ranks, slurm = before[-1].options.ranks, replace(before[-1].options.slurm, dependency=None)
        _require_idle(run)
        allocation = self._allocate(ranks, slurm)
        if not before and not run.has_plan():
            run.plan()  # raises InputError, which says what is wrong
        worker = ("work", run.uri) if run.has_plan() else before[-1].worker
        return self._submit(run, ranks, slurm, allocation, worker, request.wait)

    def status(self, run: RunFolder) -> RemoteStatus:
        """Return the jobs in the queue, and what SLURM's accounting knows of those that have worked on the run.

        Once all of them have ended, that includes how much they used of what was requested.
        """
        jobs, queued = job_numbers(run), list_run_jobs(run)
        queue = tuple(
            f"job {job.number}: {job.state}" + f" ({job.reason})" * (job.state == "PENDING") for job in queued or []
        )
        if queued is None and shutil.which("squeue"):  # else there is no SLURM here, and the folder is a copy
            queue = ("squeue does not answer; jobs may wait for the run or work on it",)
        writer = "the first of its ranks" if read_submissions(run) else None
        account_lines = _account_lines(run, jobs)
        has_ended = not queue and (queued is not None or not _writes_records(run))
        return RemoteStatus(queue, account_lines, writer, usage=read_usage(run, jobs) if has_ended else None)

    def cancel(self, run: RunFolder) -> tuple[str, ...]:
        """Cancel all jobs that wait for or work on a run. Raises InputError if SLURM does not answer here."""
        jobs = list_run_jobs(run)
        if jobs is None:
            numbers = ", ".join(job_numbers(run))
            raise InputError(f"squeue does not answer here; stop the jobs {numbers} where it does")
        queued = sorted({job.job for job in jobs}, key=int)
        if queued:
            cancel_jobs(queued)
        return tuple(f"job {job}" for job in queued)

    def _allocate(self, ranks: RankRequest, slurm: SlurmRequest | None) -> SlurmAllocation:
        allocation = resolve_resources(ranks, slurm or SlurmRequest(), os.environ)
        for notice in allocation.notices:
            notify(notice)
        return allocation

    def _submit(
        self, run: RunFolder, ranks: RankRequest, slurm: SlurmRequest, allocation: SlurmAllocation,
        worker: tuple[str, ...], wait: bool,
    ) -> Submission:  # fmt: skip
        from .submit import submit_jobs  # imports submitit, which takes long

        submission = submit_jobs(run, ranks, slurm, allocation, worker)
        submitted = f"submitted job {', '.join(submission.jobs)}; its output is in {submission.folder}"
        if not wait:
            watch = f"watch it with `python -m launch status --watch {run.uri}`"
            return Submission(run, (submitted, watch, f"stop it with `python -m launch cancel {run.uri}`"))
        echo(submitted)
        try:
            _wait_for_jobs(run, submission)
        except KeyboardInterrupt:
            raise InputError(
                f"no longer waiting; the jobs go on, stop them with `python -m launch cancel {run.uri}`"
            ) from None
        if not run.has_plan():
            raise InputError(f"the jobs ended before there was a plan; {submission.folder} holds what they printed")
        summary = run.complete_summary()
        if summary is None:
            from ...runs.summarize import summarize  # which imports the libraries of tables and figures

            summary = summarize(run)
        jobs = job_numbers(run)
        update_account(run, jobs)
        usage = read_usage(run, jobs)
        return Submission(run, has_ended=True, summary=summary, closing=usage.lines() if usage else ())


def read_usage(run: RunFolder, jobs: list[str]) -> JobUsage | None:
    """Return how much the ended jobs of a run used of what was requested; None if no job has worked on it.

    The accounting says so where it is final, else the records of the ranks.
    """
    records, submissions = list(run.records(ignore).values()), read_submissions(run)
    request = submissions[-1].options.slurm if submissions else None
    by_core = request is not None and request.mem_per_cpu is not None
    if uses := use_of_executions(final_executions(run, jobs)):
        return sum_usage("sacct", uses, records, by_core)
    return sum_usage("records", use_of_records(records, request), records, by_core)


def _slurm_request(request: LaunchRequest) -> SlurmRequest:
    require_no_cloud_run(request.run.out)
    return request.slurm or SlurmRequest()


def _with_device(request: LaunchRequest, allocation: SlurmAllocation) -> RunRequest:
    """Return the run with the device on which its ranks will compute.

    Raises InputError if it is a GPU and no GPUs are requested.
    """
    if request.run.device is None:
        if request.ranks.gpus and not allocation.computes_on_gpus:
            notify("this site's GPUs are only stand-ins: ranks compute on the CPU")
        return replace(request.run, device="cuda" if allocation.computes_on_gpus else "cpu")
    if request.run.device == "cuda" and not request.ranks.gpus:
        raise InputError("--device cuda needs --gpus, else SLURM gives the job no GPU")
    return request.run


def _warn_of_idle_ranks(request: RunRequest, survey: Survey, allocation: SlurmAllocation) -> None:
    """Notify the user if there are too many ranks for the galaxies of a survey."""
    galaxies = sum(shard.galaxies for shard in survey.shards[: request.limit_files])
    batch_size = request.batch_size or BATCH_SIZE["cuda" if allocation.computes_on_gpus else "cpu"]
    if warning := describe_idle_ranks(allocation.ranks, galaxies, batch_size):
        notify(warning)


def _worker_arguments(request: RunRequest, survey: Survey, run: RunFolder) -> tuple[str, ...]:
    """Return the command line of `cosmicai` that plans a run or joins it, for nodes that see the same files."""
    arguments = ["infer", survey.uri, "--out", run.uri, "--resume"]
    for option in fields(RunRequest):
        name, value = f"--{option.name.replace('_', '-')}", getattr(request, option.name)
        if option.name in ("survey", "out", "resume") or value in (None, False):
            continue
        if option.name == "weights" and value != "demo":
            value = storage.absolute(value)
        arguments += [name] if value is True else [name, str(value)]
    return tuple(arguments)


def _require_idle(run: RunFolder) -> None:
    if jobs := list_run_jobs(run):
        raise InputError(
            f"job {jobs[0].number} ({jobs[0].state}) is at work on {run.uri}; stop it with "
            f"`python -m launch cancel {run.uri}` or watch it with `python -m launch status --watch {run.uri}`"
        )


def _wait_for_jobs(run: RunFolder, submission: SlurmSubmission) -> None:
    """Show the progress of the jobs until they have left the queue."""
    while in_queue := list_jobs(submission.jobs) != []:
        if run.has_plan():
            break
        time.sleep(POLL_INTERVAL)
    if not in_queue:
        return
    plan = run.plan()
    with poll_progress(plan.galaxies, lambda: plan.galaxies_of(run.parts())):
        while list_jobs(submission.jobs) != []:
            time.sleep(POLL_INTERVAL)


def _writes_records(run: RunFolder) -> bool:
    """Return whether a rank that has not finished wrote its record a moment ago."""
    records = run.records(ignore).values()
    return any(record.state == "running" and record.silent_seconds() < RECENT for record in records)


def _account_lines(run: RunFolder, jobs: list[str]) -> tuple[str, ...]:
    account = update_account(run, jobs)
    if account is None:
        return ()
    wall = "" if account.wall_seconds is None else f", {timedelta(seconds=account.wall_seconds)} from start to end"
    memory = "" if account.max_rss_mb is None else f", up to {account.max_rss_mb:,.0f} MB"
    return (
        f"SLURM's account of {account.tasks} tasks: {account.describe_kinds()}{wall}, "
        f"{account.core_seconds / 3600:,.2f} core-hours{memory}",
    )


def _estimate(request: RunRequest, survey: Survey, folder: str, allocation: SlurmAllocation) -> Iterator[str]:
    """Yield lines on size, time and charge; the time from a short measurement of one rank's engine, on CPUs."""
    galaxies = sum(shard.galaxies for shard in survey.shards[: request.limit_files])
    cores = allocation.cores // allocation.ranks
    yield f"{galaxies:,} galaxies of {survey.uri} for {allocation.ranks:,} ranks of {cores} cores"
    if allocation.computes_on_gpus:
        yield "no estimate of the time: ranks compute on GPUs, which cannot be measured here"
    else:
        run = create_run(
            replace(request, out=storage.join(folder, "run"), resume=False), survey, ranks=allocation.ranks,
            notify=notify, inspect=False,
        )  # fmt: skip
        threads = min(cores, available_cores())
        found = estimate_run(run, allocation.ranks, threads)
        yield (
            f"about {timedelta(seconds=round(found.seconds))} of work once all ranks run, at "
            f"{found.galaxies_per_second:,.0f} galaxies/s, {found.speed_up:g} times what one rank of {threads} threads "
            f"was measured on this machine ({cpu_model()})"
        )
        yield f"about {_describe_charge(allocation, found.seconds / 3600)}"
    yield f"at most {_describe_charge(allocation, allocation.seconds / 3600)}, if all of the time limit is used"


def _describe_charge(allocation: SlurmAllocation, hours: float) -> str:
    parts = [f"{allocation.cores * hours:,.2f} core-hours"]
    if allocation.gpus:
        parts.append(f"{allocation.gpus * hours:,.2f} GPU-hours")
    if allocation.service_units_per_hour is not None:
        parts.append(f"{allocation.service_units_per_hour * hours:,.2f} service units")
    return ", ".join(parts)
