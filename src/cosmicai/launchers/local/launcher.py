"""Runs on this machine: ranks are processes that this one supervises."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory

from ... import storage
from ...console import notify
from ...errors import InputError
from ...ranks.cores import available_cores
from ...runs.create import create_run
from ...runs.demo import open_named_survey
from ...runs.plan import Plan
from ...runs.store import RunFolder
from ..base import LaunchRequest, RankRequest, RemoteStatus, ResumeRequest, Submission
from ..estimate import describe_idle_ranks, estimate_local_run
from ..lock import is_dead, read_lock
from ..submission import require_no_cloud_run
from .resources import require_memory, resolve_device
from .supervisor import supervise


class LocalLauncher:
    """Starts, supervises and restarts ranks on this machine until the run is done."""

    name = "local"

    def estimate(self, request: LaunchRequest) -> Iterator[str]:
        """Yield the plan, the ranks, and the time and memory that they would take. Raises InputError as `submit`."""
        require_no_cloud_run(request.run.out)
        with TemporaryDirectory(prefix="cosmicai-dry-run-") as folder:
            planned = replace(request.run, out=folder, resume=False)
            survey = open_named_survey(planned.survey, folder)
            approve = partial(self._approve, request.ranks)
            run = create_run(planned, survey, ranks=request.ranks.ranks, approve=approve, notify=notify)
            yield from estimate_local_run(run, resolve_device(request.ranks, run.plan()))

    def submit(self, request: LaunchRequest) -> Submission:
        """Start a run and wait until its ranks have ended.

        Raises InputError if it cannot be planned, if the ranks would not fit into this machine's memory, or if there is
        no such port for metrics.
        """
        require_no_cloud_run(request.run.out)
        with _metrics_served(RunFolder(storage.absolute(request.run.out)), request.metrics_port):
            survey = open_named_survey(request.run.survey, request.run.out)
            approve = partial(self._approve, request.ranks)
            run = create_run(request.run, survey, ranks=request.ranks.ranks, approve=approve, notify=notify)
            return self._finish(run, request.ranks)

    def resume(self, run: RunFolder, request: ResumeRequest) -> Submission:
        """Do what is missing of a run with ranks of this machine."""
        with _metrics_served(run, request.metrics_port):
            return self._finish(run, request.ranks or RankRequest())

    def status(self, run: RunFolder) -> RemoteStatus:
        """Return nothing: the run folder shows all that happens on this machine."""
        return RemoteStatus()

    def cancel(self, run: RunFolder) -> tuple[str, ...]:
        """Terminate the launcher that is at work on a run. Raises InputError if it runs on another machine."""
        lock = read_lock(run)
        if lock is None:
            return ()
        dead = is_dead(lock)
        if dead is None:
            raise InputError(f"process {lock.pid} on {lock.host} is at work on {run.uri}; stop it there")
        if dead:
            return ()
        os.kill(lock.pid, signal.SIGTERM)
        return (f"process {lock.pid}",)

    def _finish(self, run: RunFolder, ranks: RankRequest) -> Submission:
        plan = run.plan()
        self._require_resources(ranks, plan)
        self._run_ranks(run, resolve_device(ranks, plan))
        return Submission(run, has_ended=True)

    def _approve(self, ranks: RankRequest, plan: Plan) -> None:
        """Raise InputError if the ranks do not fit here; notify the user if they are too many for the galaxies."""
        self._require_resources(ranks, plan)
        cores = available_cores() * ranks.nodes if plan.device == "cpu" else None
        if warning := describe_idle_ranks(ranks.ranks, plan.galaxies, plan.batch_size, cores):
            notify(warning)

    def _require_resources(self, ranks: RankRequest, plan: Plan) -> None:
        require_memory(ranks, plan)

    def _run_ranks(self, run: RunFolder, ranks: RankRequest) -> None:
        supervise(run, ranks)


@contextmanager
def _metrics_served(run: RunFolder, address: str | None) -> Iterator[None]:
    """Serve the metrics of a run while the block runs, if there is an address; only then are they imported."""
    if address is None:
        yield
        return
    from ..metrics import serve_metrics  # which needs prometheus_client

    with serve_metrics(run, address):
        yield
