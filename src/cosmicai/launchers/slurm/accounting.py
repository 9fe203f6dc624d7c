"""SLURM's account of a run's jobs: additional information where `sacct` answers, which never decides anything."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import structs

from ... import storage
from ...errors import InputError, StorageError
from ...records import decode_json
from ...runs.store import RunFolder, ignore
from .sacct import KINDS, JobExecution, read_sacct, split_nodes

REQUEST_INTERVAL = 60.0  # seconds: sacct queries the cluster's one database, which it can overload
IN_RECORDS = ("elapsed_seconds", "max_rss_mb", "state", "exit_code", "signal", "energy_joules")


class JobAccount(msgspec.Struct, frozen=True):
    """How jobs went, in sum: numbers of executions, of all and of each kind, times in seconds, and what they used.

    `wall_seconds` is from the first start to the last end, with all waiting between; None while no execution has ended.
    `energy_joules` adds up what is known. `final` says that no execution is running or pending, or about to be.
    """

    tasks: int
    executions: int
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    out_of_memory: int = 0
    timed_out: int = 0
    node_failed: int = 0
    preempted: int = 0
    requeued: int = 0
    running: int = 0
    pending: int = 0
    wall_seconds: float | None = None
    core_seconds: int = 0
    gpu_seconds: int = 0
    max_rss_mb: float | None = None
    energy_joules: int | None = None
    nodes: tuple[str, ...] = ()
    final: bool = False

    def describe_kinds(self) -> str:
        """Return how many executions of each kind there are, such as "3 completed, 1 timed out"."""
        counts = {kind: getattr(self, kind) for kind in dict.fromkeys(KINDS.values())}
        return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items() if count)


class AccountingCache(msgspec.Struct, frozen=True):
    """What `accounting.json` holds: the newest answer of sacct, and when sacct was called last (ISO 8601)."""

    jobs: tuple[str, ...] = ()
    executions: tuple[JobExecution, ...] = ()
    account: JobAccount | None = None
    asked_at: str = ""


def sum_executions(executions: Sequence[JobExecution]) -> JobAccount:
    """Return the account of all executions of some jobs."""
    begun = [datetime.fromisoformat(one.started_at) for one in executions if one.started_at]
    # What was cancelled in the queue ended, perhaps days later, without a start.
    ended = [datetime.fromisoformat(one.ended_at) for one in executions if one.started_at and one.ended_at]
    kinds = Counter(one.kind for one in executions)
    resident = [one.max_rss_mb for one in executions if one.max_rss_mb is not None]
    energy = [one.energy_joules for one in executions if one.energy_joules is not None]
    # Some seconds pass between the end of an execution that SLURM requeues and the first report of the next.
    waiting = kinds["running"] or kinds["pending"] or "requeued" in _last_kinds(executions)
    return JobAccount(
        tasks=len({one.job for one in executions}),
        executions=len(executions),
        **kinds,
        wall_seconds=(max(ended) - min(begun)).total_seconds() if ended else None,
        core_seconds=sum(one.elapsed_seconds * one.cores for one in executions),
        gpu_seconds=sum(one.elapsed_seconds * one.gpus for one in executions),
        max_rss_mb=max(resident, default=None),
        energy_joules=sum(energy) if energy else None,
        nodes=tuple(sorted({node for one in executions for node in split_nodes(one.nodes)}, key=storage.natural_key)),
        final=bool(executions) and not waiting,
    )


def update_account(run: RunFolder, jobs: Sequence[str], now: Callable[[], float] = time.time) -> JobAccount | None:
    """Return the account of a run's jobs; None if it is unknown.

    sacct is called at most once a minute, and not again once the account is final. The answer is kept in
    accounting.json, and added to summary.json and to the records of executions that have ended. `now` returns seconds
    since 1970. Nothing that a disk or sacct can cause is raised: for a folder that cannot be written to, sacct is not
    called.
    """
    jobs = sorted(set(jobs))
    cache = _read_cache(run)
    with suppress(StorageError):
        if jobs and shutil.which("sacct") and _is_due(cache, jobs, now()):
            cache = _refresh(run, jobs, cache, now())
    account = cache.account
    if account is None:
        return None
    if jobs and cache.jobs != tuple(jobs):
        account = structs.replace(account, final=False)
    with suppress(InputError):  # a summary that is damaged, or a folder that cannot be written to
        summary, values = run.summary(), _plain(account)
        if summary is not None and summary.slurm != values:  # also one that was written since the last call
            run.write_json(run.summary_path, structs.replace(summary, slurm=values))
    return account


def final_executions(run: RunFolder, jobs: Sequence[str]) -> tuple[JobExecution, ...]:
    """Return all executions of a run's jobs as SLURM accounted for them, none while that may change or is unknown."""
    cache = _read_cache(run)
    is_final = cache.account is not None and cache.account.final and cache.jobs == tuple(sorted(set(jobs)))
    return cache.executions if is_final else ()


def _read_cache(run: RunFolder) -> AccountingCache:
    """Return what is known, nothing if its file is damaged: it is only a cache."""
    with suppress(InputError):
        if data := storage.read_if_exists(path := run.accounting_path):
            return decode_json(data, AccountingCache, where=path, remedy="remove it")
    return AccountingCache()


def _is_due(cache: AccountingCache, jobs: Sequence[str], now: float) -> bool:
    if cache.jobs == tuple(jobs) and cache.account and cache.account.final:
        return False
    try:
        age = now - datetime.fromisoformat(cache.asked_at).timestamp()
    except ValueError:  # sacct was never called
        return True
    return not 0 <= age < REQUEST_INTERVAL  # a clock that was ahead of this one must not stop all calls


def _refresh(run: RunFolder, jobs: Sequence[str], cache: AccountingCache, now: float) -> AccountingCache:
    """Call sacct and return what is known then. Raises StorageError if it cannot be written."""
    cache = structs.replace(cache, asked_at=datetime.fromtimestamp(now, UTC).isoformat())
    run.write_json(run.accounting_path, cache)  # before the call, which may take long or fail
    if not (executions := read_sacct(jobs)):
        return cache
    account = sum_executions(executions)
    # A new job comes late to the accounting, and one that lost its node may come back: a minute later it has.
    seen = {re.split(r"[_+]", one.job)[0] for one in executions} | {one.job for one in executions}
    lost = _last_kinds(executions) & {"preempted", "node_failed"}
    final = account.final and seen.issuperset(jobs) and not (lost and tuple(executions) != cache.executions)
    account = structs.replace(account, final=final)
    cache = structs.replace(cache, jobs=tuple(jobs), executions=tuple(executions), account=account)
    run.write_json(run.accounting_path, cache)
    with suppress(StorageError):
        _update_records(run, executions)
    return cache


def _update_records(run: RunFolder, executions: Sequence[JobExecution]) -> None:
    """Add to each record what SLURM reports of its execution, once that has ended and its rank no longer writes it."""
    ended = {(one.job, one.attempt): one for one in executions if one.ended_at}
    for record in run.records(ignore).values():
        if record.job is None or record.restarts is None:
            continue
        if one := ended.get((record.job, record.restarts + 1)):
            slurm = {name: getattr(one, name) for name in IN_RECORDS}
            if record.slurm != slurm:
                run.amend_record(record, slurm=slurm)


def _last_kinds(executions: Sequence[JobExecution]) -> set[str]:
    """Return the kinds of the last attempts of all jobs."""
    return set({one.job: one.kind for one in sorted(executions, key=lambda one: one.attempt)}.values())


def _plain(account: JobAccount) -> dict[str, Any]:
    """Return an account as JSON that is read has it."""
    values: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(account))
    return values
