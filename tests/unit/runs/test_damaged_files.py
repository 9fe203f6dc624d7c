"""Damaged files of a run folder: each is named in one sentence, and of many files only the damaged one is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.runs.record import Failure
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from support.helpers import (
    make_invocation,
    make_record,
    make_run,
    make_summary,
    make_survey,
    random_galaxies,
    run,
    run_worker,
    tiny_weights,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return a run of 3 items by 3 ranks, done and not summarized yet."""
    survey, weights = make_survey(tmp_path / "s", random_galaxies(30), 10), tiny_weights(tmp_path / "w.safetensors")
    run_folder = make_run(survey, weights, str(tmp_path / "run"), engine="reference")
    for rank in range(3):
        run_worker(run_folder, Rank(rank, 3, "local"))
    return run_folder


def change(path: str, **values: Any) -> None:
    """Replace JSON values of a file; None of Ellipsis removes one."""
    found = json.loads(Path(path).read_text()) | values
    Path(path).write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


BROKEN: list[tuple[bytes, str]] = [
    (b"", "input data was truncated"),
    (b"{", "input data was truncated"),
    (b"[]", "expected `object`, got `array`"),
    (b"null", "expected `object`, got `null`"),
    (b"\xff\xfe{}", "JSON is malformed"),
    (b'{"state": "\xff"}', "UTF-8"),
    (b'{"a":' * 200_000, "it is nested too deeply"),
    (b"{}", "missing required field `total_cpu_time (seconds)`"),
]


@pytest.mark.parametrize(("content", "problem"), BROKEN)
def test_a_record_that_is_not_one_is_named_and_left_out(folder, content, problem):
    path = folder.record_path(1, 1)
    Path(path).write_bytes(content)
    with pytest.raises(InputError) as refused:
        folder.records()
    problems: list[str] = []
    assert list(folder.records(problems.append)) == ["0", "2"] and problems == [str(refused.value)]
    assert problems[0].startswith(f"{path} cannot be used: ") and problem in problems[0] and "\n" not in problems[0]
    assert problems[0].endswith("; remove it or put back what the run wrote")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rank": "../ESCAPED"}, "field rank: expected `int`, got `str`"),
        ({"rank": -1}, "field rank: expected `int` >= 0"),
        ({"rank": 10**400}, "field rank: expected `int` <= 9223372036854775807"),
        ({"rank": 7}, "it is the record of rank 7, attempt 1"),
        ({"attempt": 2}, "it is the record of rank 1, attempt 2"),
        ({"attempt": "../x"}, "field attempt: expected `int`, got `str`"),
        ({"galaxies": 3.5}, "field galaxies: expected `int`, got `float`"),
        ({"seconds": {"start": 1.0}}, "field seconds: object missing required field `load`"),
        ({"working_at": "yesterday"}, "field working_at: expected an ISO 8601 time with an offset, got 'yesterday'"),
        ({"updated_at": "2026-01-01T00:00:00"}, "field updated_at: expected an ISO 8601 time with an offset"),
        ({"engine": ...}, "object missing required field `engine`"),
    ],
)
def test_a_record_with_a_wrong_field_is_named_by_it_and_names_no_file(folder, tmp_path, values, problem):
    change(folder.record_path(1, 1), **values)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    summary = summarize(folder)
    assert summary.complete and summary.totals.galaxies == 20
    [left_out] = summary.left_out  # type: ignore[misc]
    assert left_out.startswith(f"{folder.record_path(1, 1)} cannot be used: ") and problem in left_out
    names = {
        "0.json",
        "2.json",
        "catalogue.parquet",
        "combined_data.json",
        "inference.png",
        "inference.pdf",
        "Results.json",
    }
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written == {tmp_path / "run" / name for name in (*names, "summary.json")}


def test_a_record_of_an_earlier_version_is_read_and_what_is_unknown_in_it_is_ignored(folder):
    change(folder.record_path(1, 1), git_commit=..., job=..., restarts=..., fmi=..., of_the_future=3)
    record = folder.records()["1"]
    assert (record.git_commit, record.job, record.restarts, record.galaxies) == (None, None, None, 10)


def test_summarize_names_one_broken_record_and_goes_on(folder):
    Path(folder.record_path(1, 1)).write_text("{")
    done = run("summarize", folder.uri)
    assert done.returncode == 0 and "coverage     30/30" in done.stdout
    assert done.stderr == (
        f"left out: {folder.record_path(1, 1)} cannot be used: input data was truncated; "
        "remove it or put back what the run wrote\n"
    )
    summary = json.loads(Path(folder.summary_path).read_text())
    assert summary["left_out"] == [done.stderr.removeprefix("left out: ").rstrip()]
    assert len(json.loads(Path(folder.combined_path).read_text())) == 2


def test_a_summary_of_sound_files_has_no_such_key(folder):
    summarize(folder)
    assert list(json.loads(Path(folder.summary_path).read_text())) == [
        "complete", "coverage", "metrics", "totals", "cost", "machines", "failures", "plan_sha256", "catalogue_sha256",
        "catalogue", "plot", "weights", "weights_sha256", "survey_check",
    ]  # fmt: skip


def test_the_status_names_a_broken_record_and_shows_the_others(folder):
    Path(folder.record_path(1, 1)).write_text("{")
    done = run("status", folder.uri, module="launch")
    assert done.returncode == 0 and done.stdout.count("finished") == 2
    assert f"left out: {folder.record_path(1, 1)} cannot be used" in done.stdout.replace("\n", " ")


def test_failures_and_notes_that_are_broken_are_named_and_left_out(folder):
    first, second, third = folder.plan().items
    for item in (first, second):
        folder.write_failure(item, 0, "the disk is broken")
        Path(folder.part_path(item)).unlink()
    Path(folder.failure_path(first)).write_text('{"item": 3}')
    folder.write_json(folder.function_path("summarize", "b"), {"function": "summarize"})
    summary = summarize(folder)
    assert summary.failures == (Failure(second.name, "the disk is broken", 0, 1),)
    assert summary.left_out is not msgspec.UNSET
    assert sorted(path.partition(" cannot")[0] for path in summary.left_out) == [
        folder.failure_path(first), folder.function_path("summarize", "b"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"failures/.*\.json cannot be used: field item: expected `str`, got `int`"):
        folder.failure(first)
    assert folder.failure(third) is None


def test_a_function_note_of_an_unknown_function_is_left_out(folder):
    note = {"function": "../x", "started_at": "2026-01-01T00:00:00+00:00", "s3_requests": {}}
    note["lambda"] = msgspec.to_builtins(make_invocation("a", 1.0))
    folder.write_json(folder.function_path("summarize", "a"), note)
    problems: list[str] = []
    assert folder.functions(problems.append) == []
    assert "field function: invalid enum value '../x'" in problems[0]


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("summary.json", '{"complete": true}', "write it again with `cosmicai summarize "),
        ("summary.json", "[", "write it again with `cosmicai summarize "),
        ("invocations.json", '[{"request_id": "a"}]', "remove it and collect it again"),
    ],
)
def test_a_single_file_that_is_damaged_is_one_sentence_with_a_remedy(folder, name, content, remedy):
    Path(folder.path(name)).write_text(content)
    with pytest.raises(InputError) as refused:
        folder.summary() if name == "summary.json" else folder.invocations()
    assert str(refused.value).startswith(f"{folder.path(name)} cannot be used: ") and remedy in str(refused.value)


def test_what_is_written_is_read_again_to_the_same_bytes(folder):
    summary = summarize(folder)
    for path, value in ((folder.summary_path, folder.summary()), (folder.record_path(2, 1), folder.records()["2"])):
        before = Path(path).read_bytes()
        folder.write_json(path, value)
        assert Path(path).read_bytes() == before
    assert folder.summary() == summary
    full = make_record(
        fmi={"ended": "x"}, slurm={"state": "COMPLETED"}, s3_num_requests=3, s3_total_time=1.5,
        invocation=make_invocation("a", 2.0),
    )  # fmt: skip
    keys = list(msgspec.to_builtins(full))
    assert keys[-5:] == ["lambda", "s3_num_requests", "s3_total_time", "fmi", "slurm"]
    assert list(msgspec.to_builtins(make_summary(slurm={"jobs": 1})))[-1] == "slurm"
