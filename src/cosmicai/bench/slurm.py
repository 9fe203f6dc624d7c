"""`cosmicai bench slurm`: what an array of SLURM costs beside its arithmetic, from sbatch to the catalogue."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError
from ..launchers.slurm.queue import queued
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..measurement.subprocesses import child
from ..models.weights import DEMO, find_weights
from ..runs.demo import GALAXIES_PER_SHARD, write_synthetic_survey
from ..runs.store import RunFolder
from .galaxies import SEED

ROOT = Path(__file__).parents[3]
SCRIPT = "jobs/infer_array.sh"
MEMORY_MB = 1000  # for each core of a task, as the script has it
GOAL = 1.3  # times the arithmetic that an array may take, beside starting its tasks
LOOK_EVERY, ASK_EVERY = 0.2, 2.0  # seconds between looks at the run folder, and questions to SLURM's controller
COLUMNS = (
    Column("repeat", "repeat"),
    Column("tasks_with_work", "tasks with work", ".0f"),
    Column("overhead_seconds", "overhead of a task s", ".2f"),
    Column("overhead_seconds_max", "max", ".2f"),
    Column("sbatch_seconds", "sbatch s", ".2f"),
    Column("queued_seconds", "to first start s", ".1f"),
    Column("work_seconds", "work of the array s", ".1f"),
    Column("compute_seconds", "one process, all cores s", ".1f"),
    Column("work_ratio", "ratio", ".2f"),
    Column("array_seconds", "all tasks s", ".1f"),
    Column("goal_seconds", "goal s", ".1f"),
    Column("within_goal", "within"),
    Column("chain_seconds", "sbatch to summary s", ".1f"),
    Column("one_task_overhead_seconds", "one task: overhead s", ".2f"),
    Column("one_task_chain_seconds", "to summary s", ".1f"),
)


@dataclass(frozen=True)
class Task:
    """One execution of a task as its record tells it. Its process was started by the batch script at `started_at`, read
    its first galaxies at `working_at` and wrote its record the last time at `ended_at`."""

    job: str
    started_at: datetime
    working_at: datetime
    ended_at: datetime
    items: int

    @property
    def overhead_seconds(self) -> float:
        """From the start of the process to the first galaxies: imports, the plan, the engine."""
        return (self.working_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class Array:
    """A run by one array: how long sbatch took, seconds from its call to the complete summary, when it was called,
    and how the tasks went."""

    sbatch_seconds: float
    chain_seconds: float
    submitted_at: datetime
    tasks: tuple[Task, ...]
    catalogue_sha256: str
    machines: tuple[str, ...]

    @property
    def at_work(self) -> list[Task]:
        """The tasks that found work."""
        return [task for task in self.tasks if task.items]


def bench_slurm(
    weights: str,
    galaxies: int,
    tasks: int,
    cores: int,
    repeats: int,
    folder: str,
    tell: Callable[[str], None],
) -> Report:
    """Runs a synthetic survey with one process here, one SLURM task, and an array of `tasks`, in turn.

    The survey and the runs lie in a temporary folder in `folder`, which the nodes must see. Tasks have `cores` cores
    and are those of jobs/infer_array.sh, submitted by one sbatch. Of each array:

    - `overhead_seconds`: of a task that found work, from the start of its process (forked by the batch script; the
      kernel tells hundredths) to its first galaxies, which it waits for when everything is imported, the plan is made
      or read and the engine is open; median of the tasks and `_max`.
    - `sbatch_seconds`, `queued_seconds`: of the command sbatch, and from its call to the first task's process.
    - `work_seconds`: from the first task's process to the last of a task that found work, by its record; `work_ratio`
      is that over `compute_seconds`, which one `cosmicai infer` with all cores of this machine takes from its first
      read to its last write (`working_seconds` of its summary). Neither contains the catalogue.
    - `array_seconds`: from the first task's process to the end of the last task, with or without work.
    - `goal_seconds`: GOAL times `compute_seconds`, and `startup_seconds`, which is the median overhead times `waves`:
      all tasks over the largest number of them that were there at once (`at_once`). The goal is for `array_seconds`.
    - `chain_seconds`: from the call of sbatch to the existence of the complete summary.json, by the clock of the disk.
    - `one_task_...`: the same of a task that does all the survey alone.

    A first pass, over one shard, is left out: it fills the caches of compiled networks, here and there. The survey has
    just been written and may be in the cache of files. Raises InputError for bad input, where there is no sbatch or
    this is no checkout, if a run is not completed or a task left no record, and if a catalogue is not this machine's.
    """
    if not shutil.which("sbatch"):
        raise InputError(
            "there is no sbatch here; `bench slurm` is for a machine from which jobs are submitted, or for the test "
            "cluster of slurm/testcluster/up"
        )
    if not (ROOT / SCRIPT).exists():
        raise InputError(f"{ROOT / SCRIPT} is missing; install the project from its checkout (make install)")
    if not Path(folder).is_dir():
        raise InputError(f"--folder {folder} is no folder; name one that the nodes see")
    file = find_weights(weights)
    weights = weights if weights == DEMO else file.uri
    here = machine()
    rows: list[dict[str, Any]] = []
    machines: set[str] = set()
    with TemporaryDirectory(prefix="cosmicai-bench-", dir=Path(folder).absolute()) as own:
        survey = write_synthetic_survey(str(Path(own, "survey")), galaxies, SEED, GALAXIES_PER_SHARD).uri
        tell("warming up")
        infer_here(survey, weights, str(Path(own, "warm")), "--limit-files", "1")
        submit(survey, weights, str(Path(own, "warm array")), 1, cores, "--limit-files", "1")
        for repeat in range(1, repeats + 1):
            tell(f"pass {repeat} of {repeats}")
            out = Path(own, str(repeat))
            compute, digest = infer_here(survey, weights, str(out / "here"))
            one = submit(survey, weights, str(out / "one"), 1, cores)
            array = submit(survey, weights, str(out / "array"), tasks, cores)
            for done in (one, array):
                require_same(digest, done)
                machines.update(done.machines)
            rows.append({"repeat": str(repeat), **array_row(compute, one, array)})
    facts = {
        "weights": weights, "galaxies": galaxies, "tasks": tasks, "cores_per_task": cores, "repeats": repeats,
        "sbatch_calls": 1, "catalogue_sha256": digest, "nodes": sorted(machines),
    }  # fmt: skip
    rows.append({"repeat": "median", **medians(rows)})
    notes = {
        "weights": weights,
        "galaxies": f"{galaxies:,} synthetic ones",
        "tasks": f"{tasks} of {cores} cores, by one sbatch, at most {rows[-1]['at_once']:.0f} at once",
        "nodes": "; ".join(sorted(machines)),
        "goal": f"all tasks within {GOAL:g} x one process and {rows[-1]['waves']:.0f} waves of a task's overhead",
    }
    return Report("SLURM array", COLUMNS, rows, here, facts, notes)


def infer_here(survey: str, weights: str, out: str, *options: str) -> tuple[float, str]:
    """Seconds from the first read to the last write of a run by one process with all cores, and its catalogue's digest.

    Raises InputError if it is not completed.
    """
    child("cosmicai", "infer", survey, "--weights", weights, "--out", out, *options)
    summary = RunFolder(out).complete_summary() or {}
    return summary["totals"]["working_seconds"], summary["catalogue_sha256"]


def submit(survey: str, weights: str, out: str, tasks: int, cores: int, *options: str) -> Array:
    """A run by an array, begun, waited for and measured; options are those of `cosmicai infer`.

    Raises InputError if sbatch refuses, the run is not completed, or a task left no record. If it is interrupted it
    cancels the array.
    """
    run = RunFolder(out)
    logs = Path(f"{out}.logs")
    logs.mkdir(parents=True)
    command = [
        "sbatch", "--parsable", f"--array=0-{tasks - 1}", f"--cpus-per-task={cores}", f"--mem={MEMORY_MB * cores}M",
        str(ROOT / SCRIPT), survey, run.uri, weights,
    ]  # fmt: skip
    environment = os.environ | {
        "COSMICAI_ROOT": str(ROOT),
        "COSMICAI_INFER_OPTIONS": " ".join(options),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    begin = time.time()
    done = subprocess.run(command, cwd=logs, env=environment, capture_output=True, text=True)
    sbatch_seconds = time.time() - begin
    if done.returncode:
        raise InputError(f"sbatch refused: {_last_words(done.stderr)}")
    job = done.stdout.strip().partition(";")[0]
    completed_at = _wait(job, run)
    records = list(run.records().values())
    missing = tasks - len({record["job"] for record in records})
    if completed_at is None or missing:
        what = f"{missing} of {tasks} tasks left no record" if missing else "the run is not complete"
        raise InputError(f"array {job}: {what}; {_printed(logs, {record['job'] for record in records})}")
    summary = run.summary() or {}
    return Array(
        sbatch_seconds, completed_at - begin, datetime.fromtimestamp(begin).astimezone(), read_tasks(records),
        summary["catalogue_sha256"], tuple(summary["machines"]),
    )  # fmt: skip


def read_tasks(records: Iterable[dict[str, Any]]) -> tuple[Task, ...]:
    """The executions of which these are the records."""
    found = []
    for record in records:
        started, working, ended = (
            datetime.fromisoformat(record[name]) for name in ("started_at", "working_at", "updated_at")
        )
        # The record was begun when the process was that old.
        started -= timedelta(seconds=record["seconds"]["start"])
        found.append(Task(record["job"], started, working, ended, record["items"]))
    return tuple(found)


def most_at_once(tasks: Iterable[Task]) -> int:
    """The largest number of tasks that were there at the same moment."""
    changes = sorted(change for task in tasks for change in ((task.started_at, 1), (task.ended_at, -1)))
    now, most = 0, 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def array_row(compute_seconds: float, one: Array, array: Array) -> dict[str, Any]:
    """What `bench_slurm` says of one repeat: an array and a single task beside one process with all cores."""
    first = min(task.started_at for task in array.tasks)
    overheads = [task.overhead_seconds for task in array.at_work]
    work = (max(task.ended_at for task in array.at_work) - first).total_seconds()
    everyone = (max(task.ended_at for task in array.tasks) - first).total_seconds()
    at_once = most_at_once(array.tasks)
    waves = math.ceil(len(array.tasks) / at_once)
    startup = waves * median(overheads)
    goal = GOAL * compute_seconds + startup
    return {
        "tasks_with_work": len(array.at_work),
        "overhead_seconds": median(overheads),
        "overhead_seconds_max": max(overheads),
        "sbatch_seconds": array.sbatch_seconds,
        "queued_seconds": (first - array.submitted_at).total_seconds(),
        "work_seconds": work,
        "compute_seconds": compute_seconds,
        "work_ratio": work / compute_seconds,
        "array_seconds": everyone,
        "at_once": at_once,
        "waves": waves,
        "startup_seconds": startup,
        "goal_seconds": goal,
        "within_goal": everyone <= goal,
        "chain_seconds": array.chain_seconds,
        "one_task_overhead_seconds": median(task.overhead_seconds for task in one.at_work),
        "one_task_chain_seconds": one.chain_seconds,
    }


def medians(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure of some rows; whether the goal was reached is said of the medians, too."""
    found: dict[str, Any] = {name: median(row[name] for row in rows) for name in rows[0] if name != "repeat"}
    return found | {"within_goal": found["array_seconds"] <= found["goal_seconds"]}


def require_same(digest: str, array: Array) -> None:
    """Raises InputError if an array's catalogue is not the one with this digest."""
    if array.catalogue_sha256 != digest:
        raise InputError(
            f"the catalogue of {len(array.tasks)} tasks has the SHA-256 {array.catalogue_sha256}, that of this machine "
            f"{digest}; expected the same, so run `bench slurm` on a machine with the processor of the nodes "
            f"({'; '.join(array.machines)})"
        )


def _wait(job: str, run: RunFolder) -> float | None:
    """Waits until an array has left the queue; when its run was complete, in seconds since 1970, None if it is not.

    If anything is raised meanwhile the array is cancelled.
    """
    completed_at, asked = None, time.monotonic()
    try:
        while True:
            time.sleep(LOOK_EVERY)
            completed_at = completed_at or _completed_at(run)  # the first, since a later task may write it again
            if time.monotonic() - asked >= ASK_EVERY:
                if queued([job]) == []:
                    return completed_at or _completed_at(run)
                asked = time.monotonic()
    except BaseException:
        subprocess.run(["scancel", job], capture_output=True)
        raise


def _completed_at(run: RunFolder) -> float | None:
    """When the summary took its place, in seconds since 1970; None unless it is there and complete."""
    return Path(run.summary_path).stat().st_ctime if run.complete_summary() else None


def _printed(logs: Path, recorded: set[str]) -> str:
    """The last words of a task, of one that left no record if there is one."""
    files = sorted(logs.glob("slurm-*.out"), key=lambda file: (file.stem.removeprefix("slurm-") in recorded, file.name))
    return f"{files[0].name} ends with: {_last_words(files[0].read_text(errors='replace'))}" if files else "none began"


def _last_words(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]
