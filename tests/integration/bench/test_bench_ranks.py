"""`cosmicai bench ranks`: what it counts and simulates. No test depends on the size of a measured figure."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from cosmicai.bench import ranks as bench
from cosmicai.bench import simulation
from cosmicai.bench.ranks import bench_ranks, read_pss_mb
from cosmicai.bench.simulation import (
    FITTED_TO,
    compute_lower_bound,
    read_rates,
    simulate,
    simulate_dynamic,
    time_planning,
    time_summarizing,
)  # fmt: skip
from cosmicai.cli.bench import bench as command
from cosmicai.errors import InputError
from cosmicai.measurement.subprocesses import run_module_json
from cosmicai.runs.schedule import assign_ranks, largest_first, split_work, static_assignment
from cosmicai.runs.store import RunFolder
from cosmicai.surveys.survey import ShardEntry
from support.helpers import run as python_m
from support.helpers import tiny_weights

SIMULATED = {
    "ranks", "planned_for", "items", "items_per_rank", "largest_item", "smallest_item", "dynamic_ratio",
    "dynamic_ratio_min", "dynamic_ratio_max", "static_ratio", "static_ratio_min", "static_ratio_max", "dynamic_to_mean",
}  # fmt: skip
RECORD = {"total_cpu_time (seconds)": 375.0, "num_batches": 3, "batch_size": 500}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WORLD_SIZES", (2, 4))
    monkeypatch.setattr(bench, "SHARDS", 30)
    monkeypatch.setattr(bench, "RECORDS", 3)


def fail_on_notice(notice: str) -> None:
    raise AssertionError(notice)


def test_the_rank_that_is_free_first_gets_the_next_item():
    # 5 and 4 start first. The second rank is free at 4 and does 3 until 7; the first one is free at 5, does 3 until 8.
    assert simulate_dynamic([5.0, 4.0, 3.0, 3.0], 2) == 8.0
    assert simulate_dynamic([3.0, 3.0, 4.0, 5.0], 2) == 8.0
    assert simulate_dynamic([2.0, 2.0, 2.0, 9.0], 2) == 11.0
    assert simulate_dynamic([7.0], 3) == 7.0


def test_the_lower_bound_is_an_even_share_or_the_longest_item():
    assert compute_lower_bound(np.array([5.0, 4.0, 3.0, 3.0]), 2) == 7.5
    assert compute_lower_bound(np.array([1.0, 1.0, 9.0]), 2) == 9.0


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
def test_items_are_assigned_as_by_the_plan(ranks):
    sizes = np.random.default_rng(1).integers(0, 2000, 12)
    shards = [ShardEntry(f"{number}.h5", int(size), 0) for number, size in enumerate(sizes)]
    items = largest_first(split_work(shards, 128, 32, 2))
    assigned = list(assign_ranks([item.galaxies for item in items], ranks))
    for rank in range(ranks):
        mine = [item for item, owner in zip(items, assigned, strict=True) if owner == rank]
        assert sorted(mine) == static_assignment(items, rank, ranks)


def test_equal_items_of_equal_time_are_scheduled_without_loss():
    row = simulate(4, 1, np.array([0.25]))
    assert row.keys() == SIMULATED
    assert (row["ranks"], row["planned_for"], row["items"], row["items_per_rank"]) == (4, 1, 40, 10)
    assert row["largest_item"] == row["smallest_item"] == 1278
    ratios = {name: row[name] for name in SIMULATED if "ratio" in name} | {"to_mean": row["dynamic_to_mean"]}
    assert ratios == dict.fromkeys(ratios, 1.0)


def test_a_survey_that_is_split_for_its_ranks_has_smaller_items():
    row = simulate(4, 4, None)  # a twentieth of 12,780 galaxies is 639: one batch of 512; at last an inner batch
    assert (row["largest_item"], row["smallest_item"]) == (512, 62) and row["items"] > 40 * 3  # batches
    assert 1 <= row["dynamic_ratio_min"] <= row["dynamic_ratio"] <= row["dynamic_ratio_max"]
    assert row["dynamic_to_mean"] >= row["dynamic_ratio"] and row["static_ratio_min"] >= 1
    assert simulate(4, 4, None) == row


def test_rates_are_read_from_every_valid_record(tmp_path):
    (tmp_path / "1GB/1").mkdir(parents=True)
    wrong: list[Any] = [
        None, "text", {}, RECORD | {"num_batches": 0}, RECORD | {"batch_size": "512"}, RECORD | {"batch_size": None},
        RECORD | {"total_cpu_time (seconds)": float("nan")}, RECORD | {"total_cpu_time (seconds)": -1.0},
    ]  # fmt: skip
    slow = RECORD | {"total_cpu_time (seconds)": 750.0}
    (tmp_path / "1GB/1/combined_data.json").write_text(json.dumps([RECORD, *wrong, slow]))
    (tmp_path / "combined_data.json").write_text("[{")
    (tmp_path / "1GB/combined_data.json").write_text('{"no": "list"}')
    assert read_rates(str(tmp_path)).tolist() == [0.25, 0.5]


@pytest.mark.parametrize("content", [None, "[]", '[{"num_batches": 1}]'])
def test_a_folder_without_records_is_refused(tmp_path, content):
    if content:
        (tmp_path / "combined_data.json").write_text(content)
    with pytest.raises(InputError, match=r"holds no combined_data.json with records of ranks; name a folder of"):
        bench_ranks("demo", 10, (1,), 1, "openvino:float32", str(tmp_path), fail_on_notice)


def test_the_fit_is_that_of_the_published_records(shared):
    logarithms = np.log(read_rates(str(shared / "published/lambda")))
    assert f"{len(logarithms):,} records" in FITTED_TO
    assert (round(logarithms.mean(), 3), round(logarithms.std(), 3)) == simulation.FITTED


def test_planning_and_summarizing_return_seconds_by_step():
    planned, summarized = time_planning(30), time_summarizing(3)
    assert (planned["shards"], planned["items"]) == (30, 600)
    assert list(planned["steps"]) == ["cut", "to_json", "digest", "from_json", "share"]
    assert planned["seconds"] == sum(planned["steps"].values())
    assert summarized["records"] == 3 and list(summarized["steps"]) == ["read", "summarize"]
    assert summarized["seconds"] == summarized["steps"]["summarize"]
    assert run_module_json("cosmicai.bench.simulation", "planning", "30")["items"] == 600


def test_the_memory_of_processes_is_their_sum_and_none_if_one_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        both, own = read_pss_mb([os.getpid(), other.pid]), read_pss_mb([os.getpid()])
        assert both is not None and own is not None and both > 0 and own > 0
        other.communicate(b"\n")
    assert read_pss_mb([os.getpid(), other.pid]) is None and read_pss_mb([]) == 0


def test_ranks_gives_a_row_for_each_number_of_ranks(tmp_path, small):
    weights = tiny_weights(tmp_path / "w.safetensors")
    (tmp_path / "combined_data.json").write_text(json.dumps([RECORD] * 2))
    done = CliRunner().invoke(
        command,
        [
            "ranks", "--weights", weights, "--galaxies", "300", "--ranks", "2", "--repeats", "1", "--json",
            "--engines", "openvino:float32", "--simulate", str(tmp_path), "--out", str(tmp_path / "r.json"),
        ],
        standalone_mode=False,
    )  # fmt: skip
    assert done.exception is None, done.stderr
    values = json.loads(done.stdout)
    assert json.loads((tmp_path / "r.json").read_text()) == values
    assert [(row["name"], row["ranks"]) for row in values["rows"]] == [("openvino float32", 1), ("openvino float32", 2)]
    one, two = values["rows"]
    for row in values["rows"]:
        assert list(row) == [
            "name", "ranks", "galaxies_per_second", "galaxies_per_second_min", "galaxies_per_second_max", "speedup",
            "pss_mb", "added_mb",
        ]  # fmt: skip
        assert row["speedup"] == row["galaxies_per_second"] / one["galaxies_per_second"] > 0
        assert row["pss_mb"] is None or row["pss_mb"] > 0  # so few galaxies may be done between two samples
    assert one["added_mb"] is None
    if one["pss_mb"] and two["pss_mb"]:
        assert two["added_mb"] == two["pss_mb"] - one["pss_mb"]

    assert values["simulation"]["service_times"] == f"2 records in {tmp_path}"
    rows = values["simulation"]["rows"]
    assert [(row["ranks"], row["planned_for"]) for row in rows] == [(2, 1), (2, 2), (4, 1), (4, 4)]
    assert rows[0]["dynamic_ratio"] == rows[0]["static_ratio"] == 1
    assert values["planning"]["shards"] == 30 and values["planning"]["peak_rss_mb"] > 0
    assert values["summarizing"]["records"] == 3 and values["summarizing"]["peak_rss_mb"] > 0
    for line in ("2 ranks, 10 items each", "planning      30 shards in", "summarizing   3 records in"):
        assert line in done.stderr


def test_each_rank_has_one_thread_and_a_run_that_fails_is_one_sentence(tmp_path):
    weights = tiny_weights(tmp_path / "w.safetensors")
    assert python_m("synthetic", "--galaxies", "200", "--out", str(tmp_path / "survey")).returncode == 0
    planned = python_m(
        "plan",
        str(tmp_path / "survey"),
        "--weights",
        weights,
        "--out",
        str(tmp_path / "planned"),
        "--engine",
        "openvino",
    )
    assert planned.returncode == 0, planned.stderr
    run = RunFolder(str(tmp_path / "planned"))
    for ranks in (1, 2, 3):
        out = str(tmp_path / str(ranks))
        bench._run_plan(run, ranks, out, False)
        records = RunFolder(out).records()
        assert [record.threads for record in records.values()] == [1] * ranks
        assert sum(record.galaxies for record in records.values()) == 200
    for shard in (tmp_path / "survey").glob("*.h5"):
        shard.unlink()
    with pytest.raises(
        InputError, match=r"^`python -m launch resume .* --procs 1` failed: .*000001.h5.*does not exist"
    ):
        bench._run_plan(run, 1, str(tmp_path / "fails"), False)


def test_engines_for_gpus_are_refused():
    with pytest.raises(InputError, match="--engines cuda: ranks of one thread run on CPUs; use openvino or reference"):
        bench_ranks("demo", 10, (1,), 1, "cuda", None, fail_on_notice)
