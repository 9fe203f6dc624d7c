"""`cosmicai bench slurm`: the overhead of a SLURM array over its arithmetic, from sbatch to the catalogue."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError
from ..measurement.machine import describe_machine
from ..measurement.subprocesses import run_module
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.weights import DEMO, find_weights
from ..runs.demo import GALAXIES_PER_SHARD
from ..runs.store import RunFolder
from ..surveys.synthetic import write_synthetic_survey
from .galaxies import SEED
from .slurm_array import ROOT, SCRIPT, ArrayRun, TaskTiming, run_array

GOAL = 1.3  # allowed time of an array, without the start of its tasks, relative to its arithmetic
COLUMNS = (
    MeasurementColumn("repeat", "repeat"),
    MeasurementColumn("tasks_with_work", "tasks with work", ".0f"),
    MeasurementColumn("overhead_seconds", "overhead of a task s", ".2f"),
    MeasurementColumn("overhead_seconds_max", "max", ".2f"),
    MeasurementColumn("sbatch_seconds", "sbatch s", ".2f"),
    MeasurementColumn("queued_seconds", "to first start s", ".1f"),
    MeasurementColumn("work_seconds", "work of the array s", ".1f"),
    MeasurementColumn("compute_seconds", "one process, all cores s", ".1f"),
    MeasurementColumn("work_ratio", "ratio", ".2f"),
    MeasurementColumn("array_seconds", "all tasks s", ".1f"),
    MeasurementColumn("goal_seconds", "goal s", ".1f"),
    MeasurementColumn("within_goal", "within"),
    MeasurementColumn("chain_seconds", "sbatch to summary s", ".1f"),
    MeasurementColumn("one_task_overhead_seconds", "one task: overhead s", ".2f"),
    MeasurementColumn("one_task_chain_seconds", "to summary s", ".1f"),
)


def bench_slurm(
    weights: str,
    galaxies: int,
    tasks: int,
    cores: int,
    repeats: int,
    folder: str,
    notify: Callable[[str], None],
) -> MeasurementTable:
    """Run a synthetic survey with one process here, one SLURM task, and an array of `tasks` tasks, interleaved.

    Survey and runs are in a temporary folder in `folder`, which the nodes must share. Tasks have `cores` cores and run
    jobs/infer_array.sh, submitted by one sbatch. For each array:

    - `overhead_seconds`: of a task that had work, from the start of its process (forked by the batch script; the kernel
      reports hundredths) to its first galaxies, after imports, making or reading the plan and opening the engine;
      median of the tasks and `_max`.
    - `sbatch_seconds`, `queued_seconds`: of the command sbatch, and from its call to the first task's process.
    - `work_seconds`: from the first task's process to the end of the last task that had work, by its record;
      `work_ratio` is relative to `compute_seconds`, which one `cosmicai infer` with all cores of this machine takes
      from first read to last write (`working_seconds` of its summary). Neither includes the catalogue.
    - `array_seconds`: from the first task's process to the end of the last task, with or without work.
    - `goal_seconds`: GOAL times `compute_seconds`, plus `startup_seconds`, which is the median overhead times `waves`,
      the number of tasks over the largest number of concurrent ones (`at_once`). The goal is for `array_seconds`.
    - `chain_seconds`: from the call of sbatch until the complete summary.json exists, by the clock of the disk.
    - `one_task_...`: the same for one task that does the whole survey.

    A first pass over one shard is not measured: it fills the caches of compiled networks on all machines. The survey
    has just been written and may be in the file system's cache. Raises InputError if input or options are invalid, if
    there is no sbatch or no checkout, if a run is not completed or a task left no record, or if a catalogue differs
    from this machine's.
    """
    if not shutil.which("sbatch"):
        raise InputError(
            "there is no sbatch here; `bench slurm` is for a machine from which jobs are submitted, or for the test "
            "cluster of slurm/testcluster/up"
        )
    if not (ROOT / SCRIPT).exists():
        raise InputError(f"{ROOT / SCRIPT} is missing; install the project from its checkout (make install)")
    if not Path(folder).is_dir():
        raise InputError(f"--folder {folder} is not a folder; name one that the nodes share")
    file = find_weights(weights)
    weights = weights if weights == DEMO else file.uri
    here = describe_machine()
    rows: list[dict[str, Any]] = []
    machines: set[str] = set()
    with TemporaryDirectory(prefix="cosmicai-bench-", dir=Path(folder).absolute()) as own:
        survey = write_synthetic_survey(str(Path(own, "survey")), galaxies, SEED, GALAXIES_PER_SHARD).uri
        notify("warming up")
        run_locally(survey, weights, str(Path(own, "warm")), "--limit-files", "1")
        run_array(survey, weights, str(Path(own, "warm array")), 1, cores, "--limit-files", "1")
        for repeat in range(1, repeats + 1):
            notify(f"pass {repeat} of {repeats}")
            out = Path(own, str(repeat))
            compute, digest = run_locally(survey, weights, str(out / "here"))
            one = run_array(survey, weights, str(out / "one"), 1, cores)
            array = run_array(survey, weights, str(out / "array"), tasks, cores)
            for measured in (one, array):
                require_same_catalogue(digest, measured)
                machines.update(measured.machines)
            rows.append({"repeat": str(repeat), **compare_array(compute, one, array)})
    facts = {
        "weights": weights, "galaxies": galaxies, "tasks": tasks, "cores_per_task": cores, "repeats": repeats,
        "sbatch_calls": 1, "catalogue_sha256": digest, "nodes": sorted(machines),
    }  # fmt: skip
    rows.append({"repeat": "median", **compute_medians(rows)})
    notes = {
        "weights": weights,
        "galaxies": f"{galaxies:,} synthetic ones",
        "tasks": f"{tasks} of {cores} cores, by one sbatch, at most {rows[-1]['at_once']:.0f} at once",
        "nodes": "; ".join(sorted(machines)),
        "goal": f"all tasks within {GOAL:g} x one process and {rows[-1]['waves']:.0f} waves of a task's overhead",
    }
    return MeasurementTable("SLURM array", COLUMNS, rows, here, facts, notes)


def run_locally(survey: str, weights: str, out: str, *options: str) -> tuple[float, str]:
    """Return seconds from first read to last write of a run by one process with all cores, and its catalogue's digest.

    Raises InputError if it is not completed.
    """
    run_module("cosmicai", "infer", survey, "--weights", weights, "--out", out, *options)
    summary = RunFolder(out).complete_summary()
    if summary is None:
        raise InputError(f"the run {out} is not complete; see its messages above")
    return summary.totals.working_seconds, summary.catalogue_sha256


def count_most_concurrent(tasks: Iterable[TaskTiming]) -> int:
    """Return the largest number of tasks that existed at the same time."""
    changes = sorted(change for task in tasks for change in ((task.started_at, 1), (task.ended_at, -1)))
    now, most = 0, 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def compare_array(compute_seconds: float, one: ArrayRun, array: ArrayRun) -> dict[str, Any]:
    """Return the row of one repeat: an array and a single task, compared with one process on all cores."""
    first = min(task.started_at for task in array.tasks)
    overheads = [task.overhead_seconds for task in array.working_tasks]
    work = (max(task.ended_at for task in array.working_tasks) - first).total_seconds()
    whole = (max(task.ended_at for task in array.tasks) - first).total_seconds()
    at_once = count_most_concurrent(array.tasks)
    waves = math.ceil(len(array.tasks) / at_once)
    startup = waves * median(overheads)
    goal = GOAL * compute_seconds + startup
    return {
        "tasks_with_work": len(array.working_tasks),
        "overhead_seconds": median(overheads),
        "overhead_seconds_max": max(overheads),
        "sbatch_seconds": array.sbatch_seconds,
        "queued_seconds": (first - array.submitted_at).total_seconds(),
        "work_seconds": work,
        "compute_seconds": compute_seconds,
        "work_ratio": work / compute_seconds,
        "array_seconds": whole,
        "at_once": at_once,
        "waves": waves,
        "startup_seconds": startup,
        "goal_seconds": goal,
        "within_goal": whole <= goal,
        "chain_seconds": array.chain_seconds,
        "one_task_overhead_seconds": median(task.overhead_seconds for task in one.working_tasks),
        "one_task_chain_seconds": one.chain_seconds,
    }


def compute_medians(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure, and whether the medians are within the goal."""
    medians: dict[str, Any] = {name: median(row[name] for row in rows) for name in rows[0] if name != "repeat"}
    return medians | {"within_goal": medians["array_seconds"] <= medians["goal_seconds"]}


def require_same_catalogue(digest: str, array: ArrayRun) -> None:
    """Raise InputError if the catalogue of an array does not have this digest."""
    if array.catalogue_sha256 != digest:
        raise InputError(
            f"the catalogue of {len(array.tasks)} tasks has the SHA-256 {array.catalogue_sha256}, that of this machine "
            f"{digest}; expected the same, so run `bench slurm` on a machine with the processor of the nodes "
            f"({'; '.join(array.machines)})"
        )
