"""Test the readers on every published file: numbers of runs and ranks, what is left out and why, and some values."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.collect import collect
from analysis.tables import Collection

BITS = 164160  # of a galaxy, as the published throughputs count


@pytest.fixture(scope="module")
def published(shared: Path) -> Collection:
    """Return all published results."""
    return collect([str((shared / "published").resolve())])


@pytest.fixture(scope="module")
def runs(published: Collection) -> pd.DataFrame:
    """Return their runs by name."""
    return published.runs.set_index("run")


def by_file(collection: Collection, root: Path) -> Counter[str]:
    """Count the runs of each file or, for records of ranks on Lambda, of each tree of partitions."""
    names = (Path(source).relative_to(root).as_posix() for source in collection.runs["source"])
    return Counter("/".join(name.split("/")[:2]) if "partition-" in name else name for name in names)


def values_of(row: pd.Series, *names: str) -> dict[str, Any]:
    """Return values of a row; None where one is missing."""
    return {name: None if pd.isna(row[name]) else row[name] for name in names}


def left_out_of(collection: Collection, name: str) -> list[tuple[str, str]]:
    """Return what is left out of the files of this name, and why."""
    return [(one.what, one.reason) for one in collection.left_out if one.source.endswith(name)]


def write(path: Path, content: Any) -> str:
    """Write text, or any other value as JSON, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def record(**changes: Any) -> dict[str, Any]:
    """Return a published record of 1,000 galaxies in 5 s; a key of None is missing."""
    values = {
        "total_cpu_time (seconds)": 5.0, "total_cpu_memory (MB)": 700.0, "execution_time (seconds/batch)": 2.6,
        "num_batches": 2, "batch_size": 512, "device": "cpu", "throughput_bps": 200.0 * BITS, "sample_persec": 200.0,
        "result_path": "a/1", "data_path": "25MB/1.pt",
    } | changes  # fmt: skip
    return {key: value for key, value in values.items() if value is not None}


def test_runs_come_from_every_file_that_describes_some(published, shared):
    course = Counter({f"lambda/course_runs/{name}.json": 1 for name in (
        "10MB-1GB-256", "10MB-4GB-64", "10MB-4GB-256", "25MB-12GB-256", "100MB-1File-32", "100MB-1file-64",
        "100MB-1file-128", "100MB-1file-256", "100MB-1file-512",
    )})  # fmt: skip
    series = Counter({
        f"laptop/batch_series/results_series_2_batch_{size}_Results.json": 1 for size in (1, 2, 4, 8, 16, 32, 64, 128)
    })  # fmt: skip
    assert by_file(published, (shared / "published").resolve()) == course + series + Counter({
        "lambda/partition-25MB": 36, "lambda/partition-100MB": 71, "lambda/result_stats.csv": 52,
        "lambda/total_execution_time.csv": 4, "lambda/state_machine_logs.csv": 5,
        "lambda/cloudwatch_log_example.txt": 8,
        "lambda/course_runs/stepfunctions_world_batch_matrix.csv": 20, "laptop/Results_batch32.json": 1,
        "rivanna/cpu_infinite_1TB.json": 13, "rivanna/gpu_infinite_1TB.json": 13,
        "rivanna/course_25MB_8GB_batch256.json": 1, "rivanna/slurm_array_total_execution_time.csv": 24,
        "rivanna/slurm_mpi_style_result_stats.csv": 15,
    })  # fmt: skip
    assert published.runs["run"].is_unique
    assert set(published.runs["origin"]) == {"published"} == set(published.runs["engine"])


def test_there_are_as_many_ranks_as_records(published, shared):
    root = shared / "published"
    files = [*root.rglob("combined_data.json"), *(root / "lambda/course_runs").glob("*.json"), *root.glob("*/course*")]
    records = sum(len(json.loads(path.read_text())) for path in files if path.is_file())
    kinds = published.ranks.merge(published.runs[["run", "kind"]], on="run")["kind"]
    assert dict(Counter(kinds)) == {"combined": records, "endless": 26, "log": 9, "results": 9}
    assert records == 15495


def test_everything_else_is_left_out_with_a_reason(published, shared):
    found = Counter((Path(one.source).name, one.what) for one in published.left_out)
    assert found == Counter({
        ("batch_varying_adjusted.csv", ""): 1, ("batch_varying_results.csv", "5 rows `mean`"): 1,
        ("batch_varying_results.csv", "15 rows"): 1, ("demo_input.json", ""): 1,
        ("result_stats.csv", "33 rows `mean`"): 1, ("result_stats.csv", "47 rows"): 1,
        ("result_stats_adjusted.csv", ""): 1, ("state_machine_logs.csv", "row 4"): 1,
        ("series_2_performance_table.csv", ""): 1,
        ("cpu_infinite_1TB.json", "1011 records between"): 1, ("gpu_infinite_1TB.json", "1011 records between"): 1,
        ("slurm_mpi_style_result_stats.csv", "5 rows `mean`"): 1,
    })  # fmt: skip
    assert left_out_of(published, "batch_varying_adjusted.csv") == [("", "it is a table without rows")]
    assert left_out_of(published, "state_machine_logs.csv")[0][1] == (
        "its `data (GB)` is 'test'; expected a size such as 256GB, or one of timing, 983GB, 1TB"
    )
    rows = list(csv.reader((shared / "published/lambda/result_stats.csv").open()))
    assert len(rows) - 1 == 52 + 47 + 33


def test_the_published_averages_follow_from_the_records(shared, runs):
    root = shared / "published/lambda"
    for row in csv.DictReader((root / "result_stats.csv").open()):
        size = row["data (GB)"].removesuffix(".0")
        size = "total" if size == "12.6" else f"total{size}GB" if float(size) > 13 else f"{size}GB"
        name = f"lambda/partition-{row['partition (MB)']}MB/{size}/{row['run']}"
        if name not in runs.index:
            name = f"lambda/result_stats/{row['partition (MB)']}MB/{float(row['data (GB)']):g}GB/{row['run']}"
        if row["run"] != "mean":
            run = runs.loc[name]
            assert run["kind"] == ("combined" if "partition-" in name else "statistics")
            assert run["mean_cpu_seconds"] == pytest.approx(float(row["total_cpu_time (seconds)"]), abs=0.0051)
            assert run["allocated_mb"] == pytest.approx(float(row["total_cpu_memory (MB)"]), abs=0.0051)
            assert run["summed_galaxies_per_second"] * BITS == pytest.approx(float(row["throughput_bps"]), abs=0.0051)
            assert run["galaxies"] * BITS == float(row["total_bits"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("partition-25MB/1GB/1", (26.642, None, 41, 41)),
        ("partition-25MB/1GB/3", (20.424, None, 41, 40)),
        ("partition-25MB/2GB/1", (33.249, None, 82, 80)),
        ("partition-100MB/1GB/2", (28.85, None, 11, 11)),
        ("partition-100MB/6GB/3", (74.21, None, 62, 62)),
        ("partition-100MB/1GB/Batches/256/run 2", (None, None, None, 10)),
        ("partition-100MB/total/1", (77.4, 68.98, 130, 122)),
        ("partition-100MB/total/2", (63.12, 58.47, 130, 8)),
        ("partition-100MB/total/3", (74.76, 63.97, 130, 130)),
        ("partition-100MB/total100GB/1", (116.81, 65.13, None, 983)),
        ("partition-100MB/total256GB/1", (136.59, 81.69, None, 1000)),
        ("partition-100MB/total1000GB/1", (246.87, 193.24, None, 1000)),
        ("result_stats/50MB/1GB/1", (27.264, None, 21, None)),
        ("result_stats/50MB/2GB/1", (58.63, 50.8, 41, None)),
        ("result_stats/75MB/12.6GB/3", (44.953, None, 173, None)),
        ("result_stats/100MB/100GB/2", (109.2, 58.98, None, None)),
        ("result_stats/100MB/1000GB/3", (220.97, 163.89, None, None)),
        ("total_execution_time/50MB/2GB/1", (31.26, None, 41, None)),
        ("total_execution_time/100MB/12.6GB/2", (70.1, None, 130, None)),
        ("state_machine_logs/100MB/100GB/1", (59.69, 52.76, None, None)),
        ("state_machine_logs/100MB/768GB/5", (188.92, 133.39, None, None)),
    ],
)
def test_durations_and_numbers_of_files_are_added_to_their_run(runs, name, expected):
    found = values_of(runs.loc[f"lambda/{name}"], "wall_seconds", "working_seconds", "asked_ranks", "ranks")
    assert tuple(found.values()) == pytest.approx(expected, rel=1e-12)


def test_runs_of_other_names_are_identified_by_their_records(shared):
    paths = {"total/1": "timing/1", "total/3": "timing/3", "total100GB/1": "983GB/1", "total1000GB/1": "1TB/1"}
    for folder, end in paths.items():
        file = shared / f"published/lambda/partition-100MB/{folder}/combined_data.json"
        assert all(one["result_path"].endswith(f"/12GB/{end}") for one in json.loads(file.read_text()))


def test_a_second_run_of_a_size_belongs_to_no_study(runs):
    logs = runs[runs["source"].str.endswith("state_machine_logs.csv")]
    assert dict(zip(logs.index.str.removeprefix("lambda/state_machine_logs/"), logs["study"], strict=True)) == {
        "100MB/768GB/5": "data size", "100MB/768GB/4": "data size", "100MB/100GB/3": "single",
        "100MB/100GB/2": "single", "100MB/100GB/1": "single",
    }  # fmt: skip


def test_names_give_the_settings(runs):
    names = ("study", "partition_mb", "data_gb", "batch_size", "repeat", "platform")
    expected = {
        "lambda/partition-25MB/total/3": ("data size", 25.0, 12.6, 512, 3, "lambda"),
        "lambda/partition-100MB/total768GB/1": ("data size", 100.0, 768.0, 512, 1, "lambda"),
        "lambda/partition-25MB/1GB/Batches/64/2": ("batch size", 25.0, 1.0, 64, 2, "lambda"),
        "lambda/partition-100MB/8GB/Batches/32/run 1": ("batch size", 100.0, 8.0, 32, 1, "lambda"),
        "lambda/course_runs/10MB-4GB-64": ("data size", 10.0, 4.0, 64, None, "lambda"),
        "lambda/course_runs/100MB-1File-32": ("batch size", 100.0, None, 32, None, "lambda"),
        "rivanna/course_25MB_8GB_batch256": ("data size", 25.0, 8.0, None, None, "slurm"),
        "lambda/course_runs/stepfunctions_world_batch_matrix/world-4/batch-16": (
            "world size", None, None, 16, None, "lambda",
        ),
        "lambda/cloudwatch_log_example/result-partition-75MB/total/1": ("data size", 75.0, 12.6, 512, 1, "lambda"),
    }  # fmt: skip
    assert {name: tuple(values_of(runs.loc[name], *names).values()) for name in expected} == expected


def test_values_of_records(published):
    ranks = published.ranks.set_index(["run", "rank"])
    first = ranks.loc[("lambda/course_runs/10MB-1GB-256", 0)]
    assert values_of(first, "item", "batches", "batch_size", "galaxies", "peak_rss_mb", "s3_requests") == {
        "item": "10MB/1.pt", "batches": 2, "batch_size": 256, "galaxies": 511, "peak_rss_mb": 1182.38671875,
        "s3_requests": None,
    }  # fmt: skip
    assert pd.isna(first["seconds"])  # these seconds of the record are CPU time
    assert first["cpu_seconds"] == 3.102123849999996
    assert first["allocated_mb"] == 7146.579476
    assert ranks.loc["lambda/partition-100MB/total/2"]["s3_seconds"].sum() == pytest.approx(2.31, abs=0.005)


def test_an_endless_run_is_a_run_of_each_published_size(runs):
    cpu = runs[runs["source"].str.endswith("cpu_infinite_1TB.json")]
    sizes = (1, 2, 4, 6, 8, 10, 12, 100, 256, 512, 768, 1000, 1024)
    assert list(cpu.index) == [f"rivanna/cpu_infinite_1TB@{size}GB" for size in sizes]
    last = cpu.iloc[-1]
    names = ("data_gb", "galaxies", "ranks", "world_size", "batch_size", "wall_seconds", "peak_rss_mb", "machine")
    assert tuple(values_of(last, *names).values()) == (
        1024.0, 105472 * 512, 1, 1, 512, 196334.75521238905, 1674.328125,
        "Rivanna, one CPU node, node of 376.54 GB",
    )  # fmt: skip
    gpu = runs.loc["rivanna/gpu_infinite_1TB@1GB"]
    assert (gpu["device"], gpu["machine"], gpu["wall_seconds"]) == (
        "cuda",
        "Rivanna, one GPU, node of 2015.68 GB",
        5.205124714062549,
    )
    assert gpu["galaxies_per_second"] == pytest.approx(10131.55359323563, rel=1e-12)


def test_values_of_slurm_arrays_and_jobs(runs):
    names = ("kind", "world_size", "concurrency", "wall_seconds", "rank_seconds", "ranks")
    array = "rivanna/slurm_array_total_execution_time/100MB"
    for name, expected in (
        ("10GB/world-103/1", ("array", 103, None, 46.0, None, None)),
        ("100GB/world-1024/2", ("array", 1024, None, 478.0, None, None)),
        ("100GB/world-96/1", ("array", 96, 96, 386.0, None, None)),
        ("1024GB/world-256/3", ("array", 256, 256, 1502.0, None, None)),
    ):
        assert tuple(values_of(runs.loc[f"{array}/{name}"], *names).values()) == expected
    job = runs.loc["rivanna/slurm_mpi_style_result_stats/512GB/2"]
    assert tuple(values_of(job, *names).values()) == ("statistics", None, None, None, 27.42, None)
    assert job["summed_galaxies_per_second"] == 946271.22


def test_results_of_single_machines_have_metrics_and_their_machine(runs, published):
    names = ("machine", "galaxies", "wall_seconds", "working_seconds", "cpu_seconds", "r2", "nmad")
    assert tuple(values_of(runs.loc["laptop/Results_batch32"], *names).values()) == (
        "AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD, 8 cores, 15.34 GB, Windows 10", 781 * 32, None,
        131.83914375305176, None, 0.9684378430247307, 0.011839682161808014,
    )  # fmt: skip
    series = "laptop/batch_series/results_series_2_batch_{}_Results"
    for size, wall, cpu in ((1, 923.5385010242462, 112.79), (64, 21.476445198059082, 8.43)):
        assert tuple(values_of(runs.loc[series.format(size)], *names).values()) == (
            "Amazon SageMaker", 1253, wall, None, cpu, 0.9746744092553854, 0.011360399723052979,
        )  # fmt: skip
    # 8.43 s are rounded, so that the rank may have had 1,253 or 1,254 galaxies.
    ranks = published.ranks.set_index("run")
    assert pd.isna(ranks.loc[series.format(64), "galaxies"]) and ranks.loc[series.format(1), "galaxies"] == 1253


def test_a_cloudwatch_log_gives_the_billed_time(runs, published):
    name = "lambda/cloudwatch_log_example/result-partition-75MB/8GB/2"
    both = published.ranks[published.ranks["run"] == name]
    assert list(both["rank"]) == [18, 0]
    assert values_of(both.iloc[0], "item", "billed_seconds", "memory_mb", "peak_rss_mb", "start_seconds", "state") == {
        "item": "75MB/115.pt", "billed_seconds": 40.908, "memory_mb": 10240.0, "peak_rss_mb": 5948.0,
        "start_seconds": pytest.approx(0.66381), "state": "finished",
    }  # fmt: skip
    assert pd.isna(both.iloc[1]["start_seconds"])
    assert both.iloc[0]["started_at"] == pd.Timestamp("2024-11-17 02:40:44.168+00:00")
    assert both.iloc[0]["ended_at"] == pd.Timestamp("2024-11-17 02:41:24.412+00:00")
    run = runs.loc[name]
    assert values_of(run, "billed_seconds", "asked_ranks", "ranks") == {
        "billed_seconds": 40.908 + 33.81, "asked_ranks": 110, "ranks": 2,
    }  # fmt: skip


def test_the_matrix_gives_durations_and_costs(runs):
    run = runs.loc["lambda/course_runs/stepfunctions_world_batch_matrix/world-3/batch-8"]
    assert values_of(run, "world_size", "memory_mb", "wall_seconds", "dollars", "galaxies") == {
        "world_size": 3, "memory_mb": 128.0, "wall_seconds": 8.17, "dollars": 0.00039966, "galaxies": None,
    }  # fmt: skip


def test_records_are_read_without_the_tables_and_tables_without_the_records(shared):
    tree = collect([str(shared / "published/lambda/partition-100MB/total")])
    assert list(tree.runs["run"]) == ["1", "2", "3"]
    assert tree.runs["asked_ranks"].isna().all() and tree.runs["wall_seconds"].isna().all()
    assert list(tree.runs["partition_mb"]) == [100.0] * 3 and list(tree.runs["data_gb"]) == [12.6] * 3
    tables = collect(
        [str(shared / f"published/lambda/{name}") for name in ("batch_varying_results.csv", "result_stats.csv")]
    )
    assert dict(Counter(tables.runs["study"])) == {"batch size": 15, "data size": 99}
    assert tables.runs["wall_seconds"].isna().all()
    batch = tables.runs.set_index("run").loc["batch_varying_results/32/1"]
    assert values_of(batch, "batch_size", "galaxies", "mean_cpu_seconds", "partition_mb") == {
        "batch_size": 32, "galaxies": 52398, "mean_cpu_seconds": 8.38, "partition_mb": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sample_persec": None}, "it has no `sample_persec`"),
        ({"data_path": None}, "it has no `data_path`"),
        ({"num_batches": 2.5}, "its `num_batches` is 2.5; expected a whole number"),
        ({"batch_size": "many"}, "its `batch_size` is 'many'; expected a number that is not negative"),
        ({"total_cpu_time (seconds)": -5.0},
         "its `total_cpu_time (seconds)` is -5.0; expected a number that is not negative"),
        ({"total_cpu_memory (MB)": float("nan")},
         "its `total_cpu_memory (MB)` is nan; expected a number that is not negative"),
        ({"num_batches": True}, "its `num_batches` is True; expected a number that is not negative"),
        ({"throughput_bps": 200.0},
         "its units do not agree: `throughput_bps` is 200, which is 0.00121832 galaxies per second, and "
         "`sample_persec` is 200"),
        ({"execution_time (seconds/batch)": None, "execution_time (ms/batch)": 2600.0},
         "it has no `execution_time (seconds/batch)`"),
        ({"result_path": "b/1"}, "it is of another run: its `result_path` is 'b/1', that of most is 'a/1'"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_named_and_left_out(tmp_path, changes, reason):
    path = write(tmp_path / "partition-25MB/1GB/1/combined_data.json", [record(), record(**changes), record()])
    found = collect([path])
    assert [(one.source, one.what, one.reason) for one in found.left_out] == [(path, "record 1", reason)]
    assert list(found.ranks["rank"]) == [0, 2]
    assert values_of(found.runs.iloc[0], "run", "galaxies", "ranks", "world_size") == {
        "run": "1", "galaxies": 2000, "ranks": 2, "world_size": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[{}", "it is not JSON (Expecting ',' delimiter: line 1 column 4 (char 3)); get it again"),
        ("", "it is not JSON (Expecting value: line 1 column 1 (char 0)); get it again"),
        ([], "it is not a list of records; expected the records of a run's ranks"),
        ({}, "it is not a list of records; expected the records of a run's ranks"),
        (["x", 3], "none of its 2 records can be used; of the first, it is not a set of keys and values"),
        ([record(), record(result_path="b/1")],
         "it holds two runs, with 1 records each: 'a/1' and 'b/1'; keep them apart"),
    ],
)  # fmt: skip
def test_a_file_without_usable_contents_is_left_out(tmp_path, content, reason):
    path = write(tmp_path / "combined_data.json", content)
    found = collect([path])
    assert [(one.source, one.what, one.reason) for one in found.left_out] == [(path, "", reason)]
    assert (len(found.runs), len(found.ranks)) == (0, 0)


def test_ranks_with_batches_of_different_sizes_leave_the_batch_size_of_the_run_missing(tmp_path):
    found = collect([write(tmp_path / "25MB-8GB-256.json", [record(), record(batch_size=256)])])
    assert pd.isna(found.runs["batch_size"][0])
    assert list(found.ranks["batch_size"]) == [512, 256]


def endless(size: int, seconds: float, **changes: Any) -> dict[str, Any]:
    """Return a record of an endless loader at 100 galaxies per second."""
    return {
        "total_execution_time (seconds)": seconds, "total_process_memory (MB)": 900.0, "num_batches": size * 103,
        "batch_size": 512, "device": "cpu", "GB_processed": size, "execution_time_per_batch": 1.0,
        "throughput_bps": 100.0 * BITS, "sample_persec": [100.0],
    } | changes  # fmt: skip


def test_records_of_an_endless_run_that_are_out_of_order_or_missing_are_named(tmp_path):
    records = [
        endless(1, 10.0), endless(2, 9.0), endless(2, 20.0), endless(3, 30.0), endless(6, 60.0),
        endless(8, 80.0, sample_persec=[]), endless(8, 81.0), endless(10, 100.0, device=None),
    ]  # fmt: skip
    found = collect([write(tmp_path / "x.json", records)])
    assert list(found.runs["run"]) == ["x@1GB", "x@2GB", "x@6GB", "x@8GB"]
    assert list(found.runs["wall_seconds"]) == [10.0, 20.0, 60.0, 81.0]
    assert [(one.what, one.reason) for one in found.left_out] == [
        ("record 1", "it is out of order: 2 GB after 9 s follow 1 GB after 10 s"),
        ("records of 4 to 5 GB", "they are missing"),
        ("record 5", "its `sample_persec` is []; expected a number that is not negative"),
        ("records of 7 GB", "they are missing"),
        ("record 7", "it has no `device`"),
        ("1 records between", "no published figure shows their sizes"),
    ]


def test_rows_of_tables_that_cannot_be_used_are_named(tmp_path):
    write(
        tmp_path / "total_execution_time.csv",
        "partition(MB),data(GB),run,num_worlds,duration\n25,1.0,1,41.0,26.642\n25,1.0,2,41.0,00:28.890\n25,1.0\n",
    )
    write(
        tmp_path / "logs.csv",
        "data (GB),batch_size,run,partition (MB),total_duration (s),inference_duration (s),batch_varying\n"
        "2TB,512,1,100MB,74.8,62.45,False\n2GB,512,1,0.1GB,74.8,62.45,False\n2GB,512,1,100MB,74.8,62.45,True\n",
    )
    found = collect([str(tmp_path)])
    assert list(found.runs["run"]) == ["total_execution_time/25MB/1GB/2"]
    assert [(one.what, one.reason) for one in found.left_out] == [
        ("row 1", "its `data (GB)` is '2TB'; expected a size such as 256GB, or one of timing, 983GB, 1TB"),
        ("row 2", "its `partition (MB)` is '0.1GB'; expected a size such as 100MB"),
        ("row 3", "its `batch_varying` is True; expected False, since no batch size is known"),
        ("row 1", "its `duration` is '26.642'; expected MM:SS or H:MM:SS"),
        ("row 3", "it has no `run`"),
    ]


TABLE = "partition(MB),data(GB),run,num_worlds,duration\n25,1.0,1,2,00:20.5\n"


@pytest.mark.parametrize("folder", ["", "results/", "../elsewhere/"])
def test_a_table_describes_a_run_of_its_partition_and_data_size_wherever_it_lies(tmp_path, folder):
    write(tmp_path / "records/partition-25MB/1GB/1/combined_data.json", [record(), record()])
    write(tmp_path / "records" / folder / "total_execution_time.csv", TABLE)
    found = collect([str(tmp_path)]).runs
    assert len(found) == 1
    names = ("wall_seconds", "asked_ranks", "galaxies_per_second")
    assert values_of(found.iloc[0], *names) == dict(zip(names, (20.5, 2, 2000 / 20.5), strict=True))


def test_of_two_runs_of_the_same_settings_a_table_describes_the_nearest(tmp_path):
    for folder, batches in (("a", 2), ("b", 3)):
        write(tmp_path / folder / "partition-25MB/1GB/1/combined_data.json", [record(num_batches=batches)] * 2)
    write(tmp_path / "b/results/total_execution_time.csv", TABLE)
    runs = collect([str(tmp_path)]).runs.set_index("run")
    assert list(runs.index) == ["a/partition-25MB/1GB/1", "b/partition-25MB/1GB/1"]
    assert runs["wall_seconds"].fillna(-1).tolist() == [-1.0, 20.5]
    assert runs["asked_ranks"].tolist() == [2, 2]


LOG = """2024-11-17 02:40:44.1+00:00 - START RequestId: a Version: 1
2024-11-17 02:40:44.2+00:00 - received:  {payload}
2024-11-17 02:40:46.0+00:00 - REPORT RequestId: a Duration: 1.5 ms Billed Duration: 2 ms Memory Size: 128 MB Max \
Memory Used: 64 MB
"""
PAYLOAD = {"WORLD_SIZE": "2", "RANK": "1", "DATA_PATH": "x", "RESULT_PATH": "r", "BATCH_SIZE": 512}


def test_an_invocation_whose_run_is_not_clear_is_left_out(tmp_path):
    whole = LOG.replace("{payload}", str(PAYLOAD))
    start, received, report = whole.splitlines()
    mixed = [start, start.replace(": a ", ": b "), received, report, report.replace(": a ", ": b ")]
    unclear = "the log does not state clearly to which run it belongs"
    for content, reasons in (
        (whole, []),
        ("\n".join(mixed), [("invocation a", unclear), ("invocation b", unclear)]),
        (LOG.replace("{payload}", "{'WORLD_SIZE':"), [("invocation a", unclear)]),
        (LOG.replace("{payload}", str(PAYLOAD | {"RANK": "x"})),
         [("invocation a", "its `RANK` is 'x'; expected a number that is not negative")]),
    ):  # fmt: skip
        found = collect([write(tmp_path / "log.txt", content)])
        assert [(one.what, one.reason) for one in found.left_out] == reasons
        assert len(found.runs) == 1 - bool(reasons)
    assert collect([write(tmp_path / "log.txt", whole)]).ranks["billed_seconds"].tolist() == [0.002]


def test_a_result_without_a_series_has_no_wall_time_and_a_failed_entry_is_named(tmp_path):
    results = {
        "total cpu time (second)": 10.0, "cpu memory (MB)": 5.0, "throughput(bps)": 3 * BITS, "batch size": 8,
        "number of batches": 4, "device": "cpu", "MAE": 0.5, "R2": None,
    }  # fmt: skip
    write(tmp_path / "s_batch_8_Results.json", results)
    assert collect([str(tmp_path)]).runs["wall_seconds"].isna().all()
    entry = {"status": "success", "execution_time": 12.0, "results_file": "b/s_batch_8_Results.json"}
    write(tmp_path / "summary.json", {"8": entry, "16": entry | {"status": "failed"}, "32": {"results_file": 3}})
    found = collect([str(tmp_path)])
    assert values_of(found.runs.iloc[0], "run", "wall_seconds", "mae", "r2", "study", "galaxies") == {
        "run": "s_batch_8_Results", "wall_seconds": 12.0, "mae": 0.5, "r2": None, "study": "batch size", "galaxies": 30,
    }  # fmt: skip
    assert len(found.runs) == 1
    assert [(one.what, one.reason) for one in found.left_out] == [
        ("16", "its `status` is 'failed'; expected success"), ("32", "its `results_file` is 3; expected a text"),
    ]  # fmt: skip


def test_files_that_describe_no_runs_are_named_with_the_reason(tmp_path):
    write(tmp_path / "sweep.json", {"rows": []})
    write(tmp_path / "unknown.json", {"a": 1})
    write(tmp_path / "broken.json", "{")
    write(tmp_path / "notes.md", "text")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    found = collect([str(tmp_path)])
    assert {Path(one.source).name: one.reason for one in found.left_out} == {
        "sweep.json": "it is a table made from run folders, which are read themselves",
        "unknown.json": "it is not of a known kind",
        "broken.json": "it is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
        "get it again",
        "binary.txt": "it is not UTF-8 text",
    }
    assert found.runs.empty and found.ranks.empty


def test_a_jobs_log_describes_only_the_machine_of_records_in_its_folder(tmp_path):
    log = write(tmp_path / "gpu_1.out", "Total memory (GB): 2015.68\nProcessed 1 GB.\n")
    write(tmp_path / "combined_data.json", [record()])
    assert left_out_of(collect([str(tmp_path)]), "gpu_1.out") == [
        ("", "it is the log of a job, which states no times, and the job's records are not in its folder")
    ]
    rate = 52736 / 5.0
    write(tmp_path / "gpu_all.json", [{
        "GB_processed": 1, "device": "cuda", "total_execution_time (seconds)": 5.0, "num_batches": 103,
        "batch_size": 512, "sample_persec": [rate], "throughput_bps": rate * BITS, "total_process_memory (MB)": 900.0,
    }])  # fmt: skip
    found = collect([str(tmp_path)])
    assert left_out_of(found, log) == []
    assert found.runs.set_index("kind").loc["endless", "machine"] == "Rivanna, one GPU, node of 2015.68 GB"
