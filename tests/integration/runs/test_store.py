"""What a run folder reads again, local or on S3: parts of a shard, records of a rank, notes of functions."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.runs.lambda_report import InvocationReport
from cosmicai.runs.plan import WorkItem
from cosmicai.runs.published import OWN_KEY, merge_attempts
from cosmicai.runs.record import PUBLISHED_KEYS, Failure, FunctionNote, record_name
from cosmicai.runs.store import RunFolder
from support.helpers import make_invocation, make_record
from support.s3 import bucket_fixture  # noqa: F401


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    """Return an empty run folder, local or on S3."""
    return RunFolder(str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/run")


def write(run: RunFolder, path: str, content: Any) -> None:
    storage.write_bytes(run.path(*path.split("/")), json.dumps(content).encode())


def test_parts_are_listed_for_all_shards_or_for_one(run):
    items = [WorkItem(1, 0, 10), WorkItem(1, 10, 20), WorkItem(10, 0, 10), WorkItem(11, 0, 5)]
    assert run.parts() == run.parts(1) == set()
    for item in items:
        write(run, f"parts/{item.name}.h5", None)
    write(run, "parts/000001-notes.h5", None)
    write(run, "parts/000001-00000020-00000030.h5.partial", None)
    assert run.parts() == set(items)
    assert [run.parts(shard) for shard in (0, 1, 10, 11)] == [set(), set(items[:2]), {items[2]}, {items[3]}]
    assert run.parts_of([]) == run.parts_of([WorkItem(0, 0, 5)]) == set()
    assert run.parts_of([WorkItem(1, 20, 30), WorkItem(1, 0, 10), WorkItem(11, 0, 5)]) == {*items[:2], items[3]}
    assert run.parts_of(WorkItem(shard, 0, 5) for shard in range(100)) >= set(items)


def test_the_records_of_a_rank_are_ordered_by_attempt(run):
    assert run.records_of(1) == []
    for name in ("1", "1-2", "1-10", "1-9", "10", "10-3", "11-20", "0"):
        rank, _, attempt = name.partition("-")
        write(run, f"records/{name}.json", msgspec.to_builtins(make_record(int(rank), attempt=int(attempt or 1))))
    found = [[record.name for record in run.records_of(rank)] for rank in (0, 1, 10, 11, 2)]
    assert found == [["0"], ["1", "1-2", "1-9", "1-10"], ["10", "10-3"], ["11-20"], []]
    assert list(run.records()) == ["0", "1-2", "1-9", "1-10", "1", "10-3", "10", "11-20"]
    assert (run.records()["1-9"].rank, run.records()["1-9"].attempt) == (1, 9)


@pytest.mark.parametrize(("attempt", "name"), [(1, "7"), (2, "7-2"), (10, "7-10")])
def test_a_record_is_named_by_rank_and_attempt(run, attempt, name):
    assert record_name(7, attempt) == name
    assert run.record_path(7, attempt) == run.path("records", f"{name}.json")


def test_the_published_file_of_a_rank_replaces_those_of_its_attempts(run):
    for name in ("7-2.json", "7-10.json", "70-2.json", "7-notes.json"):
        write(run, name, {})
    [result] = merge_attempts(make_record(7, attempt=attempt) for attempt in (2, 1))
    keys = run.write_published(result)
    assert tuple(keys) == (*PUBLISHED_KEYS, OWN_KEY)
    assert keys["result_path"] == ("run" if run.uri.startswith("s3://") else run.uri)
    assert json.loads(storage.read_bytes(run.path("7.json"))) == keys
    assert [entry.name for entry in storage.list_files(run.uri)] == ["7-notes.json", "7.json", "70-2.json"]


def test_a_failure_counts_the_attempts(run):
    item = WorkItem(3, 0, 10)
    assert run.failure(item) is None
    for count in (1, 2):
        run.write_failure(item, 5, "broken")
        assert run.failure(item) == Failure(item.name, "broken", rank=5, count=count)
    assert run.failures() == [run.failure(item)]


def test_notes_of_functions_and_reports_of_invocations_are_read(run):
    assert (run.functions(), run.invocations()) == ([], [])
    notes = [
        FunctionNote(
            function=name, started_at="2026-01-01T00:00:00+00:00", invocation=make_invocation(name[0], 1.0),
            s3_requests={},
        )
        for name in ("summarize", "initialize")
    ]  # fmt: skip
    for note in notes:
        run.write_function(note)
    assert run.functions() == notes[::-1]
    names = [entry.name for entry in storage.list_files(run.path("functions"))]
    assert names == ["initialize-i.json", "summarize-s.json"]
    report = InvocationReport("a", 1.5, 2.0, 128, 47, None, "", None, "infer")
    run.write_json(run.invocations_path, [report])
    assert run.invocations() == [report]


def test_a_redrive_is_claimed_once(run):
    claims = [("e", 1), ("e", 1), ("e", 2), ("f", 1), ("e", 2)]
    assert [run.claim_redrive(*one) for one in claims] == [True, False, True, True, False]


def test_a_folder_without_a_plan_is_not_a_run(run):
    with pytest.raises(InputError) as caught:
        run.plan()
    assert str(caught.value) == (
        f"{run.uri} is not a run folder (it has no plan.json); start one with `cosmicai infer`"
    )
