"""Ranks that share a plan without communicating, as the tasks of a SLURM array do."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.runs import record
from cosmicai.runs.demo import make_demo_survey, open_named_survey
from cosmicai.runs.schedule import static_assignment
from cosmicai.runs.store import RunFolder
from cosmicai.surveys.survey import open_survey
from cosmicai.worker.rank_process import run_rank
from support.helpers import make_record, make_run, make_survey, random_galaxies, run_worker, tiny_weights
from support.processes import digest, run

GALAXIES, PER_SHARD, TASKS = 1200, 300, 4


def task(number: int, submission: str | None = "70", world_size: int = TASKS) -> Rank:
    return Rank(number, world_size, "slurm-array", 1, 0, 1, f"70_{number}", 0, submission)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    survey = make_survey(folder / "survey", random_galaxies(GALAXIES), PER_SHARD).uri
    return survey, tiny_weights(folder / "w.safetensors")


@pytest.fixture
def planned(tmp_path: Path, inputs: tuple[str, str]) -> RunFolder:
    survey, weights = inputs
    return make_run(open_survey(survey), weights, str(tmp_path / "run"), batch_size=8, device="cpu", ranks=TASKS)


def read_claims(run: RunFolder, submission: str = "70") -> dict[str, str]:
    return {path.name: path.read_text() for path in Path(run.path("claims", submission)).glob("*")}


def test_a_rank_claims_only_items_that_others_have_left(planned):
    own = static_assignment(planned.plan().items, 2, TASKS)
    done = run_worker(planned, task(2))
    assert (done.items, done.galaxies) == (len(planned.plan().items), GALAXIES)
    assert set(read_claims(planned)) == {item.name for item in planned.plan().items} - {item.name for item in own}
    assert set(read_claims(planned).values()) == {"2"}


def test_a_rank_without_submission_or_with_a_static_schedule_claims_nothing(planned):
    own = static_assignment(planned.plan().items, 1, TASKS)
    assert run_worker(planned, task(1), schedule="static").items == len(own)
    assert run_worker(planned, task(1, None)).items == 0
    assert planned.parts() == set(own)


def long_ago(seconds: float) -> str:
    """Return the time so many seconds ago as records have it."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def add_record(run: RunFolder, rank: int, **changes: Any) -> None:
    """Write the record of a rank whose process is this one and is at work, with these fields changed."""
    run.write_json(run.record_path(rank, 1), make_record(rank, TASKS, **changes))


def test_an_item_claimed_by_another_rank_that_is_at_work_is_left_to_it(planned):
    [other, *_] = static_assignment(planned.plan().items, 0, TASKS)
    add_record(planned, 3)
    assert planned.claim(other, task(3))
    assert not planned.take_over(other, task(2)) and planned.take_over(other, task(3))
    assert not planned.claim(other, task(2)) and planned.claim(other, task(3))
    run_worker(planned, task(2))
    assert planned.parts() == set(planned.plan().items) - {other}
    assert run_worker(planned, task(3)).items == 1, "a requeued rank continues with its own claims"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(None, id="it never wrote a record"),
        pytest.param({"pid": 4194305}, id="its process was killed"),  # a number that no process can have
        pytest.param({"state": "finished"}, id="it has ended"),
        pytest.param(
            {"host": "elsewhere", "updated_at": long_ago(90)}, id="it did not write since this process started"
        ),
        pytest.param({"host": "elsewhere", "updated_at": "2026-01-01T00:00:00+00:00"}, id="it is silent"),
        pytest.param({"host": "elsewhere", "updated_at": "2999-01-01T00:00:00+00:00"}, id="its clock is of no use"),
    ],
)
def test_items_claimed_by_a_rank_that_is_not_known_to_be_at_work_are_done_by_another(planned, changes, monkeypatch):
    items = [item for item in planned.plan().items if item not in static_assignment(planned.plan().items, 2, TASKS)]
    for item in items:
        assert planned.claim(item, task(3))
    monkeypatch.setattr(record, "process_age", lambda: 60.0)
    if changes is not None:
        add_record(planned, 3, **changes)
    assert run_rank(planned, task(2), "dynamic") == 0
    assert planned.parts() == set(planned.plan().items) and planned.complete_summary() is not None
    assert {name for name in read_claims(planned) if name.endswith(".2")} == {f"{item.name}.2" for item in items}


def test_an_item_is_taken_over_again_from_a_rank_that_has_died_as_well(planned):
    [item, *_] = planned.plan().items
    assert planned.claim(item, task(3)) and planned.take_over(item, task(1)) and planned.take_over(item, task(1))
    add_record(planned, 1)
    assert planned.is_held(item, task(2)) and not planned.is_held(item, task(1))
    assert not planned.take_over(item, task(2))
    add_record(planned, 1, pid=4194305)
    assert not planned.is_held(item, task(2)) and planned.take_over(item, task(2))
    assert read_claims(planned) == {item.name: "3", f"{item.name}.2": "1", f"{item.name}.3": "2"}


def test_a_rank_on_another_machine_that_writes_its_record_keeps_its_items(planned, monkeypatch):
    monkeypatch.setattr(record, "process_age", lambda: 60.0)
    [item, *_] = planned.plan().items
    add_record(planned, 3, host="elsewhere", updated_at=long_ago(30))
    assert planned.claim(item, task(3)) and planned.is_held(item, task(2)) and not planned.take_over(item, task(2))


def test_only_one_of_several_ranks_takes_an_item_over(planned):
    [item, *_] = planned.plan().items
    assert planned.claim(item, task(3))
    for rank in range(3):
        add_record(planned, rank)
    with ThreadPoolExecutor(3) as threads:
        taken = list(threads.map(lambda rank: planned.take_over(item, task(rank)), range(3)))
    assert sorted(taken) == [False, False, True]


def test_claims_of_another_submission_are_ignored(planned):
    for item in planned.plan().items:
        assert planned.claim(item, task(9))
    run_worker(planned, task(0, "71"))
    assert planned.parts() == set(planned.plan().items)


def test_a_failed_item_is_not_tried_again_by_other_ranks(planned, inputs):
    [other, *_] = static_assignment(planned.plan().items, 0, TASKS)
    planned.write_failure(other, 0, "its disk is gone", "70")
    assert run_worker(planned, task(2)).items == len(planned.plan().items) - 1
    assert [failure.count for failure in planned.failures()] == [1]


@pytest.mark.parametrize("earlier", ["69", None])
def test_what_an_earlier_submission_could_not_do_is_tried_again_by_a_part_of_an_array(planned, inputs, capsys, earlier):
    for item in planned.plan().items:
        planned.write_failure(item, 1, "the token has expired", earlier)
    assert run_rank(planned, task(0), "dynamic") == 0
    assert planned.parts() == set(planned.plan().items) and planned.failures() == []
    assert planned.complete_summary() is not None


def test_concurrent_ranks_count_every_galaxy_once(planned):
    with ThreadPoolExecutor(TASKS) as threads:
        records = list(threads.map(lambda number: run_worker(planned, task(number)), range(TASKS)))
    assert sum(one.galaxies for one in records) == GALAXIES
    assert sum(one.items for one in records) == len(planned.plan().items)


def test_the_last_rank_summarizes_and_the_others_report_what_is_left(planned, capsys, monkeypatch):
    monkeypatch.delenv("COSMICAI_LOGS", raising=False)
    [held, *_] = static_assignment(planned.plan().items, 0, TASKS)
    assert planned.claim(held, task(0))
    add_record(planned, 0)
    assert run_rank(planned, task(1), "dynamic") == 0
    assert f"{held.galaxies} galaxies are left to other ranks, which are at work" in capsys.readouterr().out
    assert not Path(planned.summary_path).exists()
    assert run_rank(planned, task(0), "dynamic") == 0
    assert json.loads(Path(planned.summary_path).read_text())["complete"]
    before = Path(planned.summary_path).stat().st_mtime_ns
    assert run_rank(planned, task(3), "dynamic") == 0
    assert Path(planned.summary_path).stat().st_mtime_ns == before, "a rank without items does not summarize again"


@pytest.mark.parametrize("submission", ["70", None])
def test_a_rank_that_leaves_items_which_no_rank_is_at_work_on_says_that_the_run_is_not_complete(
    planned, capsys, submission
):
    own = static_assignment(planned.plan().items, 1, TASKS)
    left = GALAXIES - sum(item.galaxies for item in own)
    assert run_rank(planned, task(1, submission), "static") == 3
    printed = capsys.readouterr()
    assert f"incomplete: {left} galaxies are left to other ranks, which may not have started" in printed.err
    for rank in (0, 2):
        assert run_rank(planned, task(rank, submission), "static") == 3
    assert run_rank(planned, task(3, submission), "static") == 0
    assert planned.complete_summary() is not None


def test_a_run_with_failed_items_is_summarized_as_incomplete(planned, capsys):
    [other, *_] = static_assignment(planned.plan().items, 0, TASKS)
    planned.write_failure(other, 0, "its disk is gone", "70")
    assert run_rank(planned, task(1), "dynamic") == 3
    assert f"incomplete: {other.galaxies} galaxies missing in the items {other.name}" in capsys.readouterr().err


def test_array_tasks_that_run_infer_give_the_catalogue_of_a_single_process(tmp_path, inputs):
    survey, weights = inputs
    for number, place in enumerate((3, 0)):
        variables = {
            "JOB_ID": str(70 + number), "NTASKS": "1", "CPUS_ON_NODE": "1", "ARRAY_JOB_ID": "70",
            "ARRAY_TASK_ID": str(place), "ARRAY_TASK_MIN": "0", "ARRAY_TASK_MAX": "3", "ARRAY_TASK_COUNT": "2",
        }  # fmt: skip
        more = {f"SLURM_{name}": value for name, value in variables.items()}
        done = run("infer", survey, "--weights", weights, "--out", str(tmp_path / "run"), "--resume", **more)
        assert done.returncode == 0, done.stderr
    assert run("infer", survey, "--weights", weights, "--out", str(tmp_path / "single")).returncode == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "single")
    assert RunFolder(str(tmp_path / "run")).plan().digest != RunFolder(str(tmp_path / "single")).plan().digest


def test_the_demo_survey_is_made_once_by_the_first_rank(tmp_path):
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: open_named_survey("demo", str(tmp_path / "run")), range(3)))
    assert {survey.uri for survey in found} == {str(tmp_path / "run" / "survey")}
    assert len({survey.shards for survey in found}) == 1 and found[0].galaxies == 4096
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["survey"]


def test_the_demo_survey_is_not_written_over_something_else(tmp_path):
    (tmp_path / "survey").mkdir()
    (tmp_path / "survey" / "notes.txt").write_text("a note")
    with pytest.raises(InputError, match="holds no galaxies"):
        make_demo_survey(str(tmp_path / "survey"))
    with pytest.raises(InputError, match="choose a local --out"):
        open_named_survey("demo", "s3://bucket/run")
    assert [path.name for path in tmp_path.iterdir()] == ["survey"]
