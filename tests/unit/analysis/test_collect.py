"""Test the collection of own runs in any state, names, addresses, S3, duplicates and damaged files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

from analysis.collect import collect
from cosmicai import storage
from cosmicai.engines.base import EngineChoice
from cosmicai.errors import InputError, StorageError
from cosmicai.ranks.environment import Rank
from cosmicai.ranks.invocation import InvocationRecord
from cosmicai.runs.lambda_report import InvocationReport
from cosmicai.runs.plan import Plan, WorkItem
from cosmicai.runs.record import FunctionNote
from cosmicai.runs.recorder import Recorder
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summary import add_up, count_coverage
from cosmicai.storage.s3 import RequestStatistics
from cosmicai.surveys.survey import ShardEntry
from support.s3 import bucket_fixture  # noqa: F401

GALAXIES = 1000  # of a shard, which is one item
START, END = "2026-01-02T03:04:05+00:00", "2026-01-02T03:05:05+00:00"
COST = {
    "region": "us-east-1", "architecture": "x86_64", "prices_as_of": "2026-10-04", "dollars": {"total": 1.5},
    "unpriced": None, "usage": {}, "billed_from_reports": 0, "billed_from_records": 0,
}  # fmt: skip
MACHINE = "Abacus 1"


def rank_record(rank: int, world_size: int, **changes: Any) -> dict[str, Any]:
    """Return the record of a rank that did one item in 10 s."""
    choice = EngineChoice("openvino", "float32", "cpu", 64)
    recorder = Recorder(Rank(rank, world_size), 512, choice, None, "out", "survey")
    seconds = {"start": 0.5, "load": 0.25, "read": 1.0, "predict": 8.0, "write": 1.0}
    return msgspec.to_builtins(recorder.record()) | {
        "rank": rank, "galaxies": GALAXIES, "num_batches": 2, "seconds": seconds, "state": "finished",
        "total_cpu_time (seconds)": 9.0 + rank, "sample_persec": 100.0, "cpu_model": "Abacus 1", "threads": 2,
        "started_at": START, "updated_at": END, "git_commit": "abc", "peak_rss_mb": 300.0 + rank,
    } | changes  # fmt: skip


def make_run(
    uri: str, ranks: int = 2, done: int | None = None, summary: Mapping[str, Any] | None = None, **changes: Any
) -> RunFolder:
    """Return a run folder of `ranks` ranks and items with `done` parts.

    `summary` replaces values of a complete summary; without values there is no summary.
    """
    run = RunFolder(uri)
    shards = tuple(ShardEntry(f"{number}.h5", GALAXIES, 1, "0" * 64) for number in range(ranks))
    items = tuple(WorkItem(number, 0, GALAXIES) for number in range(ranks))
    plan = Plan("survey", shards, "weights", "0" * 64, "openvino", "float32", "cpu", 512, 64, None, None, items)
    assert run.write_plan(plan)
    for item in items[:done]:
        storage.write_bytes(run.part_path(item), b"")
    for rank in range(ranks):
        run.write_json(run.record_path(rank, 1), rank_record(rank, ranks, **changes))
    if summary is None or summary:
        run.write_json(run.summary_path, complete_summary(run) | dict(summary or {}))
    return run


def complete_summary(run: RunFolder) -> dict[str, Any]:
    """Return the summary of a complete run."""
    plan = run.plan()
    totals = msgspec.to_builtins(add_up([])) | {"wall_seconds": 60.0, "working_seconds": 50.0}
    return {
        "complete": True, "coverage": msgspec.to_builtins(count_coverage(plan, set(plan.items))), "metrics": None,
        "totals": totals, "cost": None, "machines": [], "failures": [], "plan_sha256": plan.digest,
        "catalogue_sha256": "0" * 64, "catalogue": run.catalogue_path, "plot": run.plot_path("png"),
    }  # fmt: skip


def first(*addresses: str | Path) -> dict[str, Any]:
    """Return the only run of these addresses, without missing values."""
    runs = collect(map(str, addresses)).runs
    assert len(runs) == 1
    return dict(runs.iloc[0].dropna())


def reasons(*addresses: str | Path) -> list[tuple[str, str]]:
    return [(one.what, one.reason) for one in collect(map(str, addresses)).left_out]


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty folder on either backend."""
    return str(tmp_path / "all") if request.param == "local" else f"{request.getfixturevalue('bucket')}/all"


def test_a_run_with_several_views_is_a_study_of_its_own(tmp_path):
    run = make_run(str(tmp_path / "run"))
    assert first(run.uri)["study"] == "single"
    text = json.dumps(json.loads(Path(run.plan_path).read_text()) | {"views": 8})
    Path(run.plan_path).write_text(text)
    assert first(run.uri)["study"] == "views"


CELL = {"galaxies": 900, "fractions": [0.69, 0.96], "errors": [0.0155, 0.0073], "widths": [0.03, 0.07]}
REPORT = {"all": CELL, "by_redshift": [CELL | {"low": 0.1, "high": 0.15}], "by_magnitude": [], "outside_domain": None,
          "levels": [0.5], "pit": [450, 450]}  # fmt: skip
INTERVALS = {"calibrated_on": "950 galaxies of sky", "survey": "sky", "survey_digest": "0" * 64, "galaxies": 950}
INSIDE = {"interval_galaxies": 900, "coverage_68": 0.69, "coverage_68_error": 0.0155, "width_68": 0.03,
          "coverage_95": 0.96, "coverage_95_error": 0.0073, "width_95": 0.07}  # fmt: skip


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (None, {}),
        (REPORT, INSIDE),
        (
            REPORT | {"outside_domain": CELL | {"galaxies": 20, "fractions": [0.5, 0.75]}},
            INSIDE | {"outside_galaxies": 20, "outside_coverage_68": 0.5, "outside_coverage_95": 0.75},
        ),
    ],
)
def test_the_coverage_of_intervals_is_read(tmp_path, report, expected):
    make_run(str(tmp_path / "mine"), 1, summary={"intervals": INTERVALS | {"coverage": report}})
    row = first(tmp_path)
    names = ("calibrated_on", "interval", "coverage", "width", "outside")
    found = {name: value for name, value in row.items() if name.startswith(names)}
    assert found == {"calibrated_on": "950 galaxies of sky"} | expected


def test_an_own_run_is_read_completely(folder):
    metrics = {
        "galaxies": 3000,
        "mae": 0.01,
        "mse": 0.001,
        "bias": -0.002,
        "precision": 0.009,
        "r2": 0.97,
        "outliers": 0.25,
    }
    run = make_run(f"{folder}/mine", 3, summary={"metrics": metrics, "cost": COST})
    found = collect([folder])
    assert found.left_out == ()
    assert dict(found.runs.iloc[0].dropna()) == {
        "run": "mine", "source": run.uri, "origin": "ours", "kind": "run", "study": "single", "platform": "one machine",
        "device": "cpu", "machine": MACHINE, "threads": 2, "engine": "openvino", "precision": "float32",
            "weights": "0000000000000000", "weights_name": "weights, SHA-256 0000000000000000",
        "partition_mb": 19.6, "data_gb": 3000 * 20520 / 2**30, "batch_size": 512, "world_size": 3,
        "asked_galaxies": 3000, "ranks": 3, "galaxies": 3000, "duplicate": 0, "complete": True, "wall_seconds": 60.0,
        "working_seconds": 50.0, "rank_seconds": 10.0, "median_rank_seconds": 10.0, "slowest_seconds": 10.0,
        "cpu_seconds": 30.0, "mean_cpu_seconds": 10.0, "median_cpu_seconds": 10.0, "galaxies_per_second": 60.0,
        "summed_galaxies_per_second": 300.0, "peak_rss_mb": 302.0, "dollars": 1.5, "mae": 0.01, "mse": 0.001,
        "bias": -0.002, "nmad": 0.009, "r2": 0.97, "outliers": 0.25, "started_at": pd.Timestamp(START),
        "catalogue": run.catalogue_path, "git_commit": "abc",
    }  # fmt: skip
    assert dict(found.ranks.iloc[1].dropna()) == {
        "run": "mine", "rank": 1, "attempt": 1, "item": "survey", "host": found.ranks["host"][1], "state": "finished",
        "started_at": pd.Timestamp(START), "ended_at": pd.Timestamp(END), "galaxies": 1000, "batches": 2,
        "batch_size": 512, "seconds": 10.0, "cpu_seconds": 10.0, "start_seconds": 0.5, "load_seconds": 0.25,
        "read_seconds": 1.0, "predict_seconds": 8.0, "write_seconds": 1.0, "galaxies_per_second": 100.0,
        "peak_rss_mb": 301.0, "s3_requests": found.ranks["s3_requests"][1],
    }  # fmt: skip


def test_on_s3_every_folder_is_listed_once(bucket):
    make_run(f"{bucket}/all/run")
    storage.write_bytes(f"{bucket}/all/deep/er/combined_data.json", b"[]")
    account = RequestStatistics()
    found = collect([f"{bucket}/all/"])
    assert list(found.runs["run"]) == ["run"]
    # Is it a folder; all, deep, er and run; parts and records; and, after it was not found, invocations.json.
    assert account.counts == {"ListObjectsV2": 1 + 4 + 2 + 1, "GetObject": 6}


def test_a_running_run_is_named_and_has_no_times(tmp_path):
    make_run(f"{tmp_path}/run", 3, done=2, summary={}, state="running")
    assert reasons(tmp_path) == [
        ("its times", "the run has no summary yet: 2,000 of 3,000 galaxies are completed, it may still be running")
    ]
    found = first(tmp_path)
    assert not {"wall_seconds", "working_seconds", "galaxies_per_second", "catalogue", "mae"} & found.keys()
    assert (found["complete"], found["galaxies"], found["asked_galaxies"], found["ranks"]) == (False, 2000, 3000, 3)
    assert found["machine"] == MACHINE


def test_a_run_that_has_just_started_has_no_ranks(tmp_path):
    make_run(f"{tmp_path}/run", 1, done=0, summary={})
    storage.remove(f"{tmp_path}/run/records/0.json")
    found = first(tmp_path)
    assert not {"platform", "machine", "world_size", "ranks"} & found.keys()
    assert found["galaxies"] == 0


def test_a_summary_does_not_replace_missing_parts(tmp_path):
    make_run(f"{tmp_path}/run", 2, done=1)
    found = first(tmp_path)
    assert (found["complete"], found["galaxies"]) == (False, 1000)
    storage.write_bytes(f"{tmp_path}/run/parts/{WorkItem(1, 0, 999).name}.h5", b"")
    assert reasons(tmp_path) == [("1 parts", "they are not in the plan")]
    assert first(tmp_path)["galaxies"] == 1000


REMOVE = "; remove it or put back what the run wrote"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"galaxies": None}, "field galaxies: expected `int`, got `null`" + REMOVE),
        ({"galaxies": "1000"}, "field galaxies: expected `int`, got `str`" + REMOVE),
        ({"galaxies": 10**18},
         "its galaxies is a number of more than 15 digits; expected a whole number from 0 to 10^15"),
        ({"rank": "../ESCAPED"}, "field rank: expected `int`, got `str`" + REMOVE),
        ({"rank": 7}, "it is the record of rank 7, attempt 1" + REMOVE),
        ({"batch_size": 0}, "its batch_size is 0; expected 1 or more"),
        ({"started_at": "yesterday"},
         "field started_at: expected an ISO 8601 time with an offset, got 'yesterday'" + REMOVE),
        ({"seconds": {}}, "field seconds: object missing required field `start`" + REMOVE),
        ({"lambda": {"memory_mb": 128}}, "field lambda: object missing required field `request_id`" + REMOVE),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_named_and_left_out(tmp_path, record, reason):
    run = make_run(f"{tmp_path}/run")
    run.write_json(run.record_path(1, 1), rank_record(1, 2) | record)
    assert reasons(tmp_path) == [("record 1", reason)]
    found = first(tmp_path)
    assert (found["ranks"], found["world_size"], found["galaxies"]) == (1, 2, 2000)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "input data was truncated"),
        (b'{"fmi": {"a": ' + b"[" * 100_000, "it is nested too deeply"),
        (b"[]", "expected `object`, got `array`"),
        (b"\xff{}", "JSON is malformed: invalid character (byte 0)"),
    ],
    ids=("broken", "deep", "list", "not UTF-8"),
)
def test_a_record_that_is_not_json_is_named_and_left_out(tmp_path, content, reason):
    run = make_run(f"{tmp_path}/run")
    Path(run.record_path(1, 1)).write_bytes(content)
    [(what, why)] = reasons(tmp_path)
    assert (what, why.removesuffix(REMOVE).removeprefix("field at the top: ").lower()) == ("record 1", reason.lower())
    assert first(tmp_path)["ranks"] == 1


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("plan.json", b"{", "plan.json cannot be used"),
        ("plan.json", b"[" * 100_000, "plan.json cannot be used"),
        ("plan.json", b"\xff", "plan.json cannot be used"),
        ("summary.json", b"[1", "summary.json cannot be used"),
        ("summary.json", b'{"cost": {"a": ' + b"[" * 100_000, "it is nested too deeply"),
        ("summary.json", b'{"complete": true}', "object missing required field `coverage`"),
        ("summary.json", b'{"complete": true, "totals": {"wall_seconds": "1 h"}}', "summary.json cannot be used"),
        ("invocations.json", b'[{"billed_ms": 3}]', "object missing required field `request_id`"),
    ],
    ids=range(8),
)
def test_a_damaged_run_is_named_and_the_others_are_read(tmp_path, name, content, reason):
    make_run(f"{tmp_path}/a")
    make_run(f"{tmp_path}/b")
    (tmp_path / "a" / name).write_bytes(content)
    found = collect([str(tmp_path)])
    assert list(found.runs["run"]) == ["b"]
    assert [one.source for one in found.left_out] == [f"{tmp_path}/a/plan.json"]
    assert reason in found.left_out[0].reason


# One file of each kind that a reader recognizes, as far as its damage allows, by its name or its contents.
DAMAGED = {
    "broken.json": b'[{"execution_time (seconds/batch)": ',
    "deep.json": b"[" * 100_000,
    "bytes.json": b'\xff\xfe{"a": 1}',
    "digits.json": b"1" * 5000,
    "combined_data.json": b'[{"result_path": {"a": [1]}, "data_path": 7}]',
    "huge/combined_data.json": json.dumps([{
        "total_cpu_time (seconds)": 1e300, "total_cpu_memory (MB)": 10**400, "execution_time (seconds/batch)": 1,
        "num_batches": 1, "batch_size": 0, "throughput_bps": 1e305, "sample_persec": 1e300, "result_path": "a",
        "data_path": "\ud800",
    }]).encode(),
    "endless.json": b'[{"GB_processed": [], "device": {}, "sample_persec": {}}, 7, null]',
    "results.json": b'{"batch size": 1e400, "number of batches": {}, "device": []}',
    "series.json": b'{"\\ud800": {"results_file": {}, "status": 3}}',
    "total_execution_time.csv": b"partition(MB),data(GB),run,num_worlds,duration\n0,1e999,1,2,1:2:3:4\n25\n",
    "array.csv": b"partition(MB),data (GB),run,num_worlds,duration,job_id\n0,1,1,1,0:01:00,5\n",
    "field.csv": b"data (GB),run," + b"x" * 200_000 + b"\n1,2,3\n",
    "bytes.csv": b"\xff\xff,run\n",
    "aws.log": b"START RequestId: a\nreceived: {" + b"[" * 5000 + b"}\nREPORT RequestId: a Duration: x ms\n",
    "times.txt": b"2024-13-99T99 START RequestId: a\nreceived:  {'WORLD_SIZE': '1', 'RANK': '../x', 'RESULT_PATH': 7}\n"
                 b"REPORT RequestId: a Duration: 1.5 ms Billed Duration: 2 ms Memory Size: 128 MB "
                 b"Max Memory Used: 64 MB\n",
    "gpu.out": b"\xff\xff",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path, name):
    make_run(f"{tmp_path}/run")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(DAMAGED[name])
    found = collect([str(tmp_path)])
    assert list(found.runs["run"]) == ["run"]
    assert found.left_out
    assert {one.source for one in found.left_out} == {str(path)}
    assert all(one.reason and (one.reason + one.what).isprintable() for one in found.left_out)


def test_all_damaged_files_together_cost_no_run(tmp_path):
    make_run(f"{tmp_path}/run")
    for name, content in DAMAGED.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = collect([str(tmp_path)])
    assert list(found.runs["run"]) == ["run"]
    assert {one.source for one in found.left_out} == {str(tmp_path / name) for name in DAMAGED}


def test_a_file_whose_name_is_not_utf_8_is_named_and_left_out(tmp_path):
    make_run(f"{tmp_path}/run")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.json")).write_text("[]")
    found = collect([str(tmp_path)])
    assert list(found.runs["run"]) == ["run"]
    assert [(one.source, one.reason) for one in found.left_out] == [
        (f"{tmp_path}/\\udcff.json", "its name is not UTF-8 text; rename it")
    ]


def test_a_file_that_cannot_be_read_is_named_and_left_out(tmp_path, monkeypatch):
    make_run(f"{tmp_path}/run")
    (tmp_path / "locked.json").write_text("[]")
    read_bytes = storage.read_bytes

    def refuse(uri: str) -> bytes:
        if uri.endswith("locked.json"):
            raise StorageError(f"cannot read {uri}: permission denied")
        return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", refuse)
    found = collect([str(tmp_path)])
    assert list(found.runs["run"]) == ["run"]
    assert [one.reason for one in found.left_out] == [f"cannot read {tmp_path}/locked.json: permission denied"]


def test_the_billed_time_on_lambda_is_that_of_cloudwatch(tmp_path):
    call: dict[str, Any] = {
        "memory_mb": 2048, "function": "f-infer", "ephemeral_mb": 512, "region": "us-east-1", "architecture": "arm64",
        "cold_start": True,
    }  # fmt: skip
    run = make_run(f"{tmp_path}/run", 2, platform="lambda")
    for rank, seconds in enumerate((10.0001, 4.0)):
        changes = {"lambda": call | {"request_id": f"r{rank}", "seconds": seconds}, "platform": "lambda"}
        run.write_json(run.record_path(rank, 1), rank_record(rank, 2, **changes))
    planner = InvocationRecord(**call, request_id="i", seconds=0.5)
    run.write_function(FunctionNote(function="initialize", started_at=START, invocation=planner, s3_requests={}))
    found = first(tmp_path)
    assert (found["platform"], found["memory_mb"], found["billed_seconds"]) == ("lambda", 2048, 10.001 + 4.0 + 0.5)
    reports = [InvocationReport(name, 1.0, billed, 2048, 100, None, "", None, None)
               for name, billed in (("r0", 11000.0), ("dead", 900000.0))]  # fmt: skip
    run.write_json(run.invocations_path, reports)
    assert list(collect([str(tmp_path)]).ranks["billed_seconds"]) == [11.0, 4.0]
    assert first(tmp_path)["billed_seconds"] == 11.0 + 4.0 + 0.5 + 900.0


@pytest.mark.parametrize(
    ("changes", "platform"),
    [
        ({"platform": "slurm-array", "job": "17_3"}, "slurm"), ({"platform": "mpi", "job": "17"}, "slurm"),
        ({"platform": "local", "job": "17_3"}, "slurm"), ({"platform": "mpi", "job": "prterun-7@1"}, "one machine"),
        ({"platform": "torchrun", "job": "17"}, "one machine"), ({"platform": "alone", "job": None}, "one machine"),
        ({"platform": "torchrun", "cluster": "test"}, "slurm"), ({"platform": "alone", "cluster": "test"}, "slurm"),
        ({"platform": "lambda"}, "lambda"),
    ],
)  # fmt: skip
def test_the_platform_is_that_of_the_ranks(tmp_path, changes, platform):
    make_run(f"{tmp_path}/run", **changes)
    assert first(tmp_path)["platform"] == platform


@pytest.mark.parametrize(
    "changes", [{"platform": "of the future"}, {"platform": "local", "cluster": "Kubernetes"},
                {"platform": "alone", "cluster": "Amazon ECS"}],
)  # fmt: skip
def test_a_rank_of_unknown_kind_is_on_no_known_platform(tmp_path, changes):
    make_run(f"{tmp_path}/run", **changes)
    assert "platform" not in first(tmp_path)


def test_ranks_on_several_hosts_are_not_on_one_machine(tmp_path):
    run = make_run(f"{tmp_path}/run", platform="mpi")
    run.write_json(run.record_path(1, 1), rank_record(1, 2, platform="mpi", host="another"))
    assert first(tmp_path)["platform"] == "several machines"


def test_site_and_cluster_are_those_of_the_records(tmp_path):
    make_run(f"{tmp_path}/run", platform="slurm", site="local", cluster="test")
    assert (first(tmp_path)["site"], first(tmp_path)["cluster"]) == ("local", "test")


def test_values_in_which_ranks_differ_are_missing(tmp_path):
    run = make_run(f"{tmp_path}/run")
    other = {"platform": "slurm", "cpu_model": "Abacus 2", "gpu_model": "G", "git_commit": "def", "threads": 3}
    run.write_json(run.record_path(1, 1), rank_record(1, 2, **other))
    found = first(tmp_path)
    assert found["machine"] == "Abacus 1; Abacus 2, G"
    assert not {"platform", "git_commit", "threads"} & found.keys()


@pytest.mark.parametrize(
    ("folders", "study"),
    [
        (("partition-25MB/batch-512/world-1", "partition-25MB/batch-256/world-2"), "world size"),
        (("partition-25MB/batch-512/world-2", "partition-50MB/batch-256/world-2"), "batch size"),
        (("partition-25MB/batch-512/world-2", "partition-50MB/batch-512/world-2"), "data size"),
    ],
)
def test_runs_of_a_sweep_belong_to_one_study(tmp_path, folders, study):
    for name in folders:
        for repeat in "12":
            make_run(f"{tmp_path}/sweep/{name}/{repeat}")
    make_run(f"{tmp_path}/other/partition-10MB/batch-8/world-9/1")
    storage.write_bytes(f"{tmp_path}/sweep/surveys/partition-25MB/survey.json", b"{}")
    storage.write_bytes(f"{tmp_path}/sweep/sweep.json", b"{}")
    found = collect([str(tmp_path)])
    runs = found.runs.set_index("run")
    sweep = runs[runs.index.str.startswith("sweep")]
    assert set(sweep["study"]) == {study} and runs.loc["other/partition-10MB/batch-8/world-9/1", "study"] == "data size"
    assert list(sweep["repeat"]) == [1, 2, 1, 2]
    assert set(sweep["partition_mb"]) == {float(name[10:12]) for name in folders}
    assert [Path(one.source).name for one in found.left_out] == ["sweep.json"]


def test_runs_are_named_by_their_path_relative_to_the_common_folder(tmp_path):
    for name in ("a/x/1", "a/y/1", "b/1"):
        make_run(f"{tmp_path}/{name}")
    expected = {
        ("a",): ["x/1", "y/1"], ("a/x", "a/y/1"): ["x/1", "y/1"], ("b/1",): ["1"], ("b/1/plan.json",): ["1"],
        ("a/x/1", "b"): ["a/x/1", "b/1"], ("b", "b/", "b/1"): ["1"], ("a/x", "a", "b"): ["a/x/1", "a/y/1", "b/1"],
    }  # fmt: skip
    for addresses, names in expected.items():
        found = collect(f"{tmp_path}/{name}" for name in addresses)
        assert list(found.runs["run"]) == names
        assert list(found.ranks["run"]) == [name for name in names for _ in range(2)]


def test_local_and_s3_addresses_are_collected_together(tmp_path, bucket):
    make_run(f"{tmp_path}/run")
    make_run(f"{bucket}/run")
    names = [f"{tmp_path}/run".lstrip("/"), f"{bucket}/run".removeprefix("s3://")]
    assert list(collect([f"{tmp_path}/run", f"{bucket}/run"]).runs["run"]) == names


def test_no_two_runs_have_the_same_name(tmp_path):
    make_run(f"{tmp_path}/a")
    results = {"batch size": 8, "number of batches": 4, "device": "cpu", "total execution time": 2.5, "throughput": 1e6}
    for name in ("a.json", "a #2.json"):
        (tmp_path / name).write_text(json.dumps(results))
    found = collect([str(tmp_path)])
    assert list(found.runs["run"]) == ["a #2", "a", "a #3"]
    assert list(found.ranks["run"]) == ["a #2", "a", "a #3", "a #3"]
    assert list(found.runs["kind"]) == ["results", "results", "run"]


def test_the_contents_of_a_run_folder_are_not_read_twice(tmp_path):
    run = make_run(f"{tmp_path}/run")
    storage.write_bytes(run.combined_path, b"[{}]")
    assert reasons(tmp_path) == []
    with pytest.raises(InputError) as refused:
        collect([run.combined_path])
    message = f"{run.combined_path} is a file of a run folder, which is read as a whole; give {run.uri}"
    assert str(refused.value) == message


@pytest.mark.parametrize("content", [{}, {"README.md": "x"}, {"x.json": "{}"}, {".hidden/combined_data.json": "[]"}])
def test_an_address_without_files_that_describe_runs_is_refused(tmp_path, content):
    make_run(f"{tmp_path}/run")
    (tmp_path / "nothing").mkdir()
    for name, text in content.items():
        (tmp_path / "nothing" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "nothing" / name).write_text(text)
    with pytest.raises(InputError) as refused:
        collect([f"{tmp_path}/run", f"{tmp_path}/nothing"])
    assert str(refused.value) == (
        f"{tmp_path}/nothing holds no files that describe runs; expected a run folder, which has a plan.json, or "
        "published results such as combined_data.json"
    )
    assert len(collect([str(tmp_path)]).runs) == 1


def test_an_address_that_does_not_exist_is_refused(folder):
    with pytest.raises(InputError) as refused:
        collect([f"{folder}/none"])
    expected = "expected a run folder, or a folder with published results"
    assert str(refused.value) == f"{folder}/none does not exist; {expected}"


def test_no_addresses_give_no_runs():
    found = collect([])
    assert (len(found.runs), len(found.ranks), found.left_out) == (0, 0, ())
