"""Test the published comparison of processors: its readings, its averages, and what in it is contradictory."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.audit import audit
from analysis.collect import collect
from analysis.compare import average
from analysis.tables import Collection

BITS = 164160  # of a galaxy
SIZES = (
    "Processor,Batch Size,Dataset Size (GB),CPU Time (s),GPU time (s),Average CPU time (s),Average GPU Time (s),"
    "Inference Time,CPU memory usage,Average of CPU memory usage (Mb),GPU memory usage (MB),"
    "Average GPU memory Usage (Mb),Throughput (bitpers),Average throughput(bitpers),,"
)
BATCHES = "Processor,Dataset size ,batch size,throughput,average throughput,,"


def read(folder: Path, *rows: str, heading: str = SIZES) -> Collection:
    """Return what is collected from a spreadsheet with these rows."""
    (folder / "sheet.csv").write_text("\n".join([heading, *rows, ",,,,", ""]))
    return collect([str(folder)])


def contradictions(found: Collection) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for one in found.contradictions:
        texts.setdefault(one.run, []).append(one.text)
    return texts


def values_of(row: Any, *names: str) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row[name]) else row[name] for name in names)


def test_a_row_is_a_run_and_averages_are_none(tmp_path):
    # 50,000 galaxies in 100 s and in 125 s, and 51,000 galaxies in 102 s.
    found = read(
        tmp_path,
        'Desk Top,512,1,100.000000,,109.000000,0,109.000000,1000.5,1001.0,,#DIV/0!," 82,080,000.00 ",76608000,,x',
        "Desk Top,512,1,125.000000,,,,0,1001.5,,,,65664000.00,,,",
        "Desk Top,512,1,102.000000,0,,,,,,0,,82080000.00,,,",
    )
    assert found.contradictions == ()
    assert [(one.what, one.reason) for one in found.left_out] == [
        ("columns without a heading", "what they measure is not stated")
    ]
    assert found.runs["run"].tolist() == [f"sheet/Desk Top/1GB/batch-512/{repeat}" for repeat in (1, 2, 3)]
    names = ("origin", "kind", "study", "platform", "device", "machine", "engine", "data_gb", "batch_size",
             "world_size", "repeat", "galaxies", "working_seconds", "wall_seconds", "cpu_seconds",
             "galaxies_per_second", "allocated_mb")  # fmt: skip
    assert [values_of(row, *names) for _, row in found.runs.iterrows()] == [
        ("published", "platforms", "data size", "one machine", "cpu", "Desk Top", "published", 1.0, 512, 1, repeat,
         galaxies, seconds, None, seconds, rate, memory)
        for repeat, galaxies, seconds, rate, memory in (
            (1, 50_000, 100.0, 500.0, 1000.5), (2, 50_000, 125.0, 400.0, 1001.5), (3, 51_000, 102.0, 500.0, None),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("processor", "platform", "device", "world_size"),
    [
        ("Personal Laptop", "laptop", "cpu", 1), ("Dell XPS Server", "one machine", "cpu", 1),
        ("Rivanna HPC CPU", "slurm", "cpu", 1), ("Rivanna HPC GPU", "slurm", "cuda", 1), ("CAI", "lambda", "cpu", None),
    ],
)  # fmt: skip
def test_the_platform_of_a_processor(tmp_path, processor, platform, device, world_size):
    found = read(tmp_path, f"{processor},1GB,64,82080000,", heading=BATCHES)
    [run] = [row for _, row in found.runs.iterrows()]
    names = ("platform", "device", "machine", "world_size", "galaxies_per_second", "working_seconds", "galaxies")
    assert values_of(run, *names) == (platform, device, processor, world_size, 500.0, None, None)


def test_the_time_on_a_gpu_is_the_larger_mean_of_its_group_and_its_memory_that_of_the_gpu(tmp_path):
    found = read(
        tmp_path,
        "HPC GPU,512,4,42.0,44.5,45.0,44.5,45.0,0,0,4070000,4070000,8.20E+08,,,",
        "HPC GPU,512,4,51.0,44.5,,,,0,,4070000,,,,,",
        "HPC GPU,512,4,42.0,44.5,,,,0,,4070000,,,,,",
        "HPC GPU,512,8,84.0,89.0,84.0,89.0,89.0,0,0,8070000,8070000,,,,",
    )
    assert found.contradictions == ()
    assert found.runs["working_seconds"].tolist() == [42.0, 51.0, 42.0, 89.0]
    assert found.runs["cpu_seconds"].tolist() == [42.0, 51.0, 42.0, 84.0]
    assert found.runs["allocated_mb"].tolist() == [4070000.0] * 3 + [8070000.0]
    # Three digits of the throughput leave the number of galaxies open.
    assert found.runs["galaxies"].isna().all()
    assert found.runs["galaxies_per_second"][0] == 8.2e8 / BITS


def test_a_rate_that_the_data_size_and_time_contradict_is_not_used(tmp_path):
    found = read(
        tmp_path,
        "Laptop,512,1,700.0,,,,,,,,,8122.163014,,,",
        "Laptop,512,2,1400.0,,,,,,,,,12271335.13,,,",
        "Laptop,512,4,,,,,,,,,,8122.163014,,,",
    )
    assert contradictions(found) == {
        "sheet/Laptop/1GB/batch-512/1": [
            "its throughput of 8,122.16 bit/s is not used, since 1 GB in 700 s are 1.22713e+07 bit/s"
        ]
    }
    assert found.runs["galaxies_per_second"].isna().tolist() == [True, False, False]
    verdicts = audit(found).verdicts
    assert verdicts["sheet/Laptop/1GB/batch-512/1"] == "doubtful"
    assert verdicts["sheet/Laptop/2GB/batch-512/1"] != "doubtful"


def test_an_average_that_is_not_that_of_its_rows_is_a_finding(tmp_path):
    found = read(
        tmp_path,
        "Laptop,64,1,10.00,,12.00,,12.00,100,100,,,,,,",
        "Laptop,64,1,14.00,,,,,100,,,,,,,",
        "Laptop,64,2,20.00,,21.00,,23.00,200,250,,,,,,",
        "Laptop,64,2,24.00,,,,,200,,,,,,,",
    )
    run = "sheet/Laptop/2GB/batch-64/1"
    assert contradictions(found) == {
        run: [
            "the stated `average cpu time` of 21 is not that of its rows, which is 22",
            "the stated `inference time` of 23 is not that of its rows, which is 22",
            "the stated `average cpu memory usage` of 250 is not that of its rows, which is 200",
        ]
    }
    assert {one.text for one in audit(found).findings if one.check == "contradiction"} == {*contradictions(found)[run]}


@pytest.mark.parametrize(("stated", "agrees"), [("9.34E+06", True), ("9344455.9", True), ("9.35E+06", False)])
def test_averages_agree_within_their_digits(tmp_path, stated, agrees):
    rows = (f"A,1GB,32,10441812.84,{stated},,", "A,1GB,32,7050117.785,,,", "A,1GB,32,10541437.13,,,")
    assert bool(read(tmp_path, *rows, heading=BATCHES).contradictions) is not agrees


def test_a_memory_that_is_another_quantity_is_not_used(tmp_path):
    rows = [f"Dell,512,8,1661.0,,,,,{memory},5641556.689,,,,,," for memory in ("8457165.594", "8457165.64", "10338.8")]
    found = read(tmp_path, *rows)
    assert found.runs["allocated_mb"].fillna(0).tolist() == [8457165.594, 8457165.64, 0.0]
    texts = contradictions(found)
    assert texts["sheet/Dell/8GB/batch-512/3"][0] == (
        "its `cpu memory usage` of 10,338.8 is not used, since its repeats have 8.45717e+06"
    )
    assert texts["sheet/Dell/8GB/batch-512/1"] == [
        "the stated `average cpu memory usage` of 5,641,556.69 is not that of its rows, which is 8,457,165.62"
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Laptop,32,x,1.0,,", "its `dataset size` is 'x'; expected a number that is not negative"),
        ("Laptop,32,1,-5.0,,", "its `cpu time` is '-5.0'; expected a number that is not negative"),
        ("Laptop,32,1,1e999,,", "its `cpu time` is '1e999'; expected a number that is not negative"),
        ("Laptop,2.5,1,1.0,,", "it needs a dataset size in GB and a batch size, which is a whole number"),
        ("Laptop,1e20,1,1.0,,", "it needs a dataset size in GB and a batch size, which is a whole number"),
        ("Laptop,32,1e20,1.0,,", "it needs a dataset size in GB and a batch size, which is a whole number"),
        ("Laptop,,1,1.0,,", "it needs a dataset size in GB and a batch size, which is a whole number"),
        ("Laptop,32,1,,,", "it states neither a time nor a throughput"),
        (",32,1,1.0,,", "it names no `Processor`"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, reason):
    found = read(tmp_path, "Laptop,32,1,1.0,,", row)
    assert len(found.runs) == 1
    assert [(one.what, one.reason) for one in found.left_out] == [("row 2", reason)]


@pytest.fixture(scope="module")
def platforms(shared: Path) -> Collection:
    return collect([str(shared / "published_more" / "platforms")])


def test_every_published_row_is_a_run(platforms):
    counts = Counter(zip(platforms.runs["study"], platforms.runs["machine"].fillna("-"), strict=True))
    assert counts == {
        ("batch size", "Personal Laptop"): 15, ("batch size", "Dell XPS Server"): 21,
        ("batch size", "Rivanna HPC GPU"): 15, ("batch size", "Rivanna HPC CPU"): 15, ("batch size", "CAI"): 15,
        ("data size", "Personal Laptop"): 15, ("data size", "Dell XPS Server"): 18,
        ("data size", "Rivanna HPC GPU"): 21, ("data size", "Rivanna HPC CPU"): 21, ("data size", "CAI"): 21,
        ("single", "-"): 1,
    }  # fmt: skip
    assert {(Path(one.source).name, one.what) for one in platforms.left_out} == {
        ("vary_batch_size.csv", "columns without a heading"), ("vary_data_size.csv", "columns without a heading"),
    }  # fmt: skip


def test_the_averages_of_runs_are_the_published_averages(platforms, shared):
    table = pd.read_csv(shared / "published_more" / "platforms" / "vary_data_size.csv").dropna(subset="Processor")
    averages = average(platforms.runs, audit(platforms).verdicts, ["data_size"]).query("study == 'data size'")
    found = averages.set_index(["machine", "data_gb"])
    stated = table.dropna(subset="Inference Time").query("`Inference Time` > 0")
    assert len(stated) == len(found) == 32
    for _, row in stated.iterrows():
        mean = found.loc[(row["Processor"], row["Dataset Size (GB)"])]
        assert mean["working_seconds"] == pytest.approx(row["Inference Time"], rel=1e-3)  # some rows have three digits
        assert mean["runs"] == 3


def test_what_is_contradictory_in_the_published_comparison(platforms):
    kinds = Counter(
        (one.run.split("/")[1], "average" if "average" in one.text else one.text.split(" of ")[0])
        for one in platforms.contradictions
    )
    assert kinds == {
        ("Personal Laptop", "its throughput"): 10, ("Dell XPS Server", "its throughput"): 14,
        ("Dell XPS Server", "its `cpu memory usage`"): 1, ("Dell XPS Server", "average"): 1,
    }  # fmt: skip
    verdicts = audit(platforms).verdicts.value_counts().to_dict()
    assert verdicts == {"unknown": 126, "whole": 27, "doubtful": 25}


def test_runs_of_lambda_in_the_comparison_are_not_counted_beside_their_records(shared):
    folders = [shared / "published" / "lambda", shared / "published_more" / "platforms"]
    found = collect(map(str, folders))
    assert found.runs.query("machine == 'CAI'")["study"].unique().tolist() == ["batch size"]
    assert [(one.what, one.reason) for one in found.left_out if one.source.endswith("vary_data_size.csv")] == [
        ("columns without a heading", "what they measure is not stated"),
        ("21 rows", "their runs are in other published files, which are read instead"),
    ]


def test_accuracy_alone_is_a_run_of_unknown_galaxies(platforms, tmp_path):
    [run] = [row for _, row in platforms.runs[platforms.runs["study"].eq("single")].iterrows()]
    assert values_of(run, "kind", "platform", "machine", "galaxies", "r2", "mae", "nmad") == (
        "results", None, None, None, 0.9746744122000114, 0.012519702469931539, 0.011360233630985022,
    )  # fmt: skip
    metrics = {"MAE": 0.5, "MSE": 0.25, "Bias": 0.0, "Precision": 0.5, "R2": 0.75}
    for name, changes in (("a", {}), ("b", {"title": "x"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(metrics | changes))
    found = collect([str(tmp_path)])
    assert found.runs["run"].tolist() == ["a"] and found.runs["r2"].tolist() == [0.75]
    assert [one.reason for one in found.left_out] == ["it is not of a known kind"]
