"""Test the published values of this package."""

import csv
import json

import pandas as pd
import pytest

from analysis.published_values import build_published_runs, read_published_values
from analysis.tables import RUN_COLUMNS
from cosmicai.runs.cost import published_table

REPOSITORIES = ("UVA-MLSys/AI-for-Astronomy", "UVA-MLSys/DS5110_Summer_2025")


def value(**settings: object) -> float:
    """Return the only value with these settings."""
    table = read_published_values()
    for name, text in settings.items():
        table = table[table[name] == text]
    assert len(table) == 1
    return float(table["value"].iloc[0])


def test_every_value_is_unique_and_has_a_source():
    table = read_published_values()
    assert len(table) == 50
    assert table["value"].notna().all()
    assert table["source"].str.split(": ").str[0].isin(REPOSITORIES).all()
    assert table["source"].str.split(": ").str[1].str.len().gt(5).all()
    assert not table.drop(columns=["value", "unit", "source", "remark"]).duplicated().any()
    known = {column.name for column in RUN_COLUMNS} | {"memory"}
    assert set(table["figure"]) <= known


def test_the_values_that_reports_quote():
    assert value(figure="r2") == 0.974674
    assert value(figure="mae") == 0.01252
    assert value(figure="mse") == 0.000297
    assert value(figure="bias") == 0.002024
    assert value(figure="nmad") == 0.01136
    assert value(figure="galaxies", data_gb=12.6) == 659857
    for row in published_table():
        of = {"platform": "lambda", "partition_mb": row["partition_mb"], "world_size": row["requests"]}
        assert value(figure="dollars", **of) == row["published_dollars"]
        assert value(figure="rank_seconds", **of) == row["seconds"]
        assert value(figure="memory", **of) == row["memory_gb"]


def test_values_equal_those_of_the_published_files(shared):
    folder = shared / "published"
    with (folder / "lambda" / "total_execution_time.csv").open() as file:
        times = pd.DataFrame(csv.DictReader(file)).astype({"partition(MB)": float, "data(GB)": float})
    minutes = times["duration"].str.split(":").str[0].astype(float)
    times["seconds"] = 60 * minutes + times["duration"].str.split(":").str[1].astype(float)
    means = times.groupby(["partition(MB)", "data(GB)"])["seconds"].mean()
    on_lambda = read_published_values().query("figure == 'wall_seconds' and platform == 'lambda' and data_gb < 100")
    assert len(on_lambda) == 12
    for row in on_lambda.itertuples():
        assert row.value == pytest.approx(means[row.partition_mb, row.data_gb], abs=0.005)
    for device, name in (("cpu", "cpu"), ("cuda", "gpu")):
        records = json.loads((folder / "rivanna" / f"{name}_infinite_1TB.json").read_text())
        for gb in (10, 100, 1024):
            measured = records[gb - 1]["total_execution_time (seconds)"]
            of = {"figure": "wall_seconds", "platform": "slurm", "device": device, "data_gb": gb, "world_size": 1}
            assert value(**of) == pytest.approx(measured, abs=0.005)
    sizes = pd.read_csv(shared / "published_more" / "platforms" / "vary_data_size.csv").query(
        "Processor == 'Personal Laptop'"
    )
    for gb in (1, 4, 8):
        mean = sizes.loc[sizes["Dataset Size (GB)"].eq(gb), "CPU Time (s)"].mean()
        assert value(figure="working_seconds", machine="Personal Laptop", data_gb=gb) == pytest.approx(mean, abs=0.005)
    results = json.loads((folder / "laptop" / "batch_series" / "results_series_2_batch_128_Results.json").read_text())
    assert value(figure="r2") == pytest.approx(results["R2"], abs=5e-7)
    assert value(figure="nmad") == pytest.approx(results["Precision"], abs=5e-6)


def test_the_values_as_runs():
    found = build_published_runs()
    assert list(found.runs) == [column.name for column in RUN_COLUMNS]
    assert (len(found.ranks), len(found.left_out)) == (0, 0)
    assert found.runs["run"].is_unique
    assert set(found.runs["origin"]) == {"published"}
    runs = found.runs.set_index("run")
    total = runs.loc["published.csv/lambda/cpu/25MB/12.6GB/batches of 512/517 ranks"]
    assert (total["wall_seconds"], total["dollars"], total["rank_seconds"]) == (56.82, 0.16, 6.55)
    assert total["peak_rss_mb"] == pytest.approx(2.8 * 1024)
    assert (total["machine"], total["study"]) == ("AWS Lambda", "data size")
    array = runs.loc["published.csv/slurm/cpu/100MB/100GB/batches of 512/256 ranks"]
    assert (array["wall_seconds"], array["world_size"], array["concurrency"]) == (272.0, 256, 256)
    assert pd.isna(runs.loc["published.csv/slurm/cpu/100MB/100GB/batches of 512/1024 ranks", "concurrency"])
    laptop = runs.loc["published.csv/laptop/cpu/8GB/batches of 512/1 ranks"]
    assert (laptop["machine"], laptop["working_seconds"], laptop["study"]) == ("Personal Laptop", 6283.32, "data size")
    accurate = runs[runs["r2"].notna()].iloc[0]
    assert (accurate["galaxies"], accurate["mae"], pd.isna(accurate["wall_seconds"])) == (1253, 0.01252, True)
    assert not runs["platform"].isna().any()
