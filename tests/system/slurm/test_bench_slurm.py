"""`cosmicai bench slurm`: figures from records, and the measurement of a real array, whose figures are not asserted."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cosmicai.bench import slurm as bench
from cosmicai.bench import slurm_array
from cosmicai.bench.slurm import (
    bench_slurm,
    compare_array,
    compute_medians,
    count_most_concurrent,
    require_same_catalogue,
)
from cosmicai.bench.slurm_array import ArrayRun, TaskTiming, read_tasks, run_array
from cosmicai.errors import InputError
from cosmicai.runs.record import PhaseSeconds, Record
from support.helpers import make_record, tiny_weights
from support.helpers import run as python_m
from support.slurm_cluster import Cluster
from support.slurm_cluster import cluster as cluster

pytestmark = pytest.mark.xdist_group("slurm")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
FIGURES = [
    "tasks_with_work", "overhead_seconds", "overhead_seconds_max", "sbatch_seconds", "queued_seconds", "work_seconds",
    "compute_seconds", "work_ratio", "array_seconds", "at_once", "waves", "startup_seconds", "goal_seconds",
    "within_goal", "chain_seconds", "one_task_overhead_seconds", "one_task_chain_seconds",
]  # fmt: skip


def record(task: int, begun: float, working: float, ended: float, items: int = 1, age: float = 0.25) -> Record:
    """A record that was begun, read its first galaxies, and was written at seconds after noon."""
    at = {"started_at": begun, "working_at": working, "updated_at": ended}
    times: dict[str, Any] = {name: (NOON + timedelta(seconds=seconds)).isoformat() for name, seconds in at.items()}
    return make_record(job=f"7_{task}", seconds=PhaseSeconds(age, 0.5, 0.0, 0.0, 0.0), items=items, **times)


def array(*records: Record) -> ArrayRun:
    return ArrayRun(0.1, 21.0, NOON, read_tasks(records), "ab", ("a processor",))


def never(notice: str) -> None:
    raise AssertionError(notice)


def test_a_task_begins_when_its_process_was_started():
    [task] = read_tasks([record(3, 1.25, 2.0, 9.0, items=4)])
    seconds = [(time - NOON).total_seconds() for time in (task.started_at, task.working_at, task.ended_at)]
    assert (task.job, seconds, task.items, task.overhead_seconds) == ("7_3", [1.0, 2.0, 9.0], 4, 1.0)


def test_tasks_that_follow_each_other_are_not_there_at_once():
    def task(begun: int, ended: int) -> TaskTiming:
        start, end = (NOON + timedelta(seconds=seconds) for seconds in (begun, ended))
        return TaskTiming("7_0", start, end, end, 0)

    assert count_most_concurrent([task(0, 4), task(1, 3), task(3, 5), task(4, 6)]) == 2
    assert count_most_concurrent([task(0, 4), task(1, 4), task(2, 4), task(5, 6)]) == 3
    assert count_most_concurrent([task(0, 1), task(1, 2)]) == 1


def test_an_array_is_measured_from_its_first_task_to_the_last_with_work_and_to_the_last():
    tasks = array(
        record(0, 2.25, 3.0, 16.0), record(1, 2.5, 4.25, 17.0), record(2, 16.25, 16.5, 18.0, items=0),
        record(3, 17.25, 19.0, 19.5, items=0),
    )  # fmt: skip
    row = compare_array(10.0, replace(array(record(0, 1.0, 1.5, 15.0)), chain_seconds=18.0), tasks)
    assert list(row) == FIGURES
    assert (row["tasks_with_work"], row["overhead_seconds"], row["overhead_seconds_max"]) == (2, 1.5, 2.0)
    assert (row["sbatch_seconds"], row["queued_seconds"], row["chain_seconds"]) == (0.1, 2.0, 21.0)
    assert (row["work_seconds"], row["work_ratio"], row["array_seconds"]) == (15.0, 1.5, 17.5)
    assert (row["at_once"], row["waves"], row["startup_seconds"], row["goal_seconds"]) == (2, 2, 3.0, 16.0)
    assert row["within_goal"] is False
    assert (row["one_task_overhead_seconds"], row["one_task_chain_seconds"]) == (0.75, 18.0)
    assert compare_array(12.0, tasks, tasks)["within_goal"] is True


def test_medians_are_of_each_figure_alone():
    rows = [
        {"repeat": str(number), "array_seconds": seconds, "goal_seconds": 5.0, "within_goal": seconds <= 5}
        for number, seconds in enumerate((4.0, 9.0, 6.0), 1)
    ]
    assert compute_medians(rows) == {"array_seconds": 6.0, "goal_seconds": 5.0, "within_goal": False}
    assert compute_medians(rows[:1])["within_goal"] is True


def test_another_catalogue_is_refused():
    require_same_catalogue("ab", array(record(0, 1, 2, 3)))
    sentence = r"of 1 tasks has the SHA-256 ab, that of this machine cd; expected the same, .*\(a processor\)$"
    with pytest.raises(InputError, match=sentence):
        require_same_catalogue("cd", array(record(0, 1, 2, 3)))


def test_what_is_missing_here_is_one_sentence(tmp_path, monkeypatch):
    sizes = ("demo", 10, 2, 1, 1)
    monkeypatch.setattr(bench.shutil, "which", lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="there is no sbatch here; `bench slurm` is for a machine from which jobs are"):
        bench_slurm(*sizes, str(tmp_path), never)
    monkeypatch.setattr(bench.shutil, "which", lambda name: name)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"--folder .*absent is not a folder; name one that the nodes share"):
        bench_slurm(*sizes, str(tmp_path / "absent"), never)
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    with pytest.raises(InputError, match=r"infer_array.sh is missing; install the project from its checkout"):
        bench_slurm(*sizes, str(tmp_path), never)


@pytest.fixture
def here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, to which this process submits."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    return cluster


def test_an_array_is_measured_beside_this_machine(tmp_path, here):
    weights, out = tiny_weights(tmp_path / "w.safetensors"), tmp_path / "s.json"
    (tmp_path / "folder").mkdir()
    done = python_m(
        "bench", "slurm", "--tasks", "2", "--galaxies", "512", "--repeats", "1", "--weights", weights, "--json",
        "--folder", str(tmp_path / "folder"), "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert json.loads(out.read_text()) == values and "sbatch to" in done.stderr
    asked = {name: values[name] for name in ("galaxies", "tasks", "cores_per_task", "repeats", "sbatch_calls")}
    assert asked == {"galaxies": 512, "tasks": 2, "cores_per_task": 1, "repeats": 1, "sbatch_calls": 1}
    assert values["weights"] == weights and len(values["catalogue_sha256"]) == 64 and values["machine"]["cpu_model"]
    assert all("1 thread per rank" in node for node in values["nodes"])
    first, middle = values["rows"]
    assert [list(row) for row in values["rows"]] == [["repeat", *FIGURES]] * 2
    assert (first["repeat"], middle["repeat"]) == ("1", "median") and first | {"repeat": "median"} == middle
    assert first["tasks_with_work"] in (1, 2) and 1 <= first["at_once"] <= 2
    assert 0 < first["overhead_seconds"] <= first["overhead_seconds_max"] < first["work_seconds"]
    assert first["work_seconds"] <= first["array_seconds"] and first["queued_seconds"] < first["chain_seconds"]
    assert not any((tmp_path / "folder").iterdir())


def test_what_a_task_said_last_is_told_when_it_leaves_no_record(tmp_path, here):
    with pytest.raises(
        InputError, match=r"^array \d+: 2 of 2 tasks left no record; slurm-\d+_0.out ends with: .* does not exist"
    ):
        run_array(str(tmp_path / "absent"), "demo", str(tmp_path / "run"), 2, 1)


def test_an_array_that_cannot_be_submitted_is_told_in_sbatchs_words(tmp_path, here, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "absent")
    with pytest.raises(InputError, match=r"^sbatch refused: .*[Ii]nvalid partition"):
        run_array(str(tmp_path / "absent"), "demo", str(tmp_path / "run"), 2, 1)


def test_an_array_that_nobody_waits_for_any_more_is_cancelled(tmp_path, here, monkeypatch):
    submitted: list[str] = []

    def interrupted(jobs: list[str]) -> None:
        submitted.extend(jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(slurm_array, "list_jobs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_array("demo", "demo", str(tmp_path / "run"), 40, 1)
    assert here.wait(submitted[0]) in ("CANCELLED", "CANCELLED,COMPLETED")
