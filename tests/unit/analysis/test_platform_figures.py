"""Test the figures that compare processors, ranks of Lambda and SLURM, and times of S3, on the exact plotted data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import figures
from analysis.audit import audit
from analysis.collect import collect
from analysis.evidence import Evidence
from analysis.figures.storage_times import MEASURES
from analysis.report import gather_evidence
from analysis.studies import STUDIES, build_study_table
from analysis.tables import RUN_COLUMNS, make_table

BY_NAME = {study.name: study for study in STUDIES}
ROW = {
    "origin": "published", "kind": "platforms", "study": "data size", "platform": "one machine", "device": "cpu",
    "machine": "Desk Top", "engine": "published", "precision": "float32", "batch_size": 512, "data_gb": 1.0,
}  # fmt: skip
ON_LAMBDA = ROW | {"kind": "combined", "platform": "lambda", "machine": "AWS Lambda", "partition_mb": 25.0}


def runs_of(*rows: dict[str, Any]) -> pd.DataFrame:
    return make_table(({"run": f"r{number}"} | row for number, row in enumerate(rows)), RUN_COLUMNS)


def points(name: str, runs: pd.DataFrame, **verdicts: str) -> dict[str, dict[float, float]]:
    """Return the values of a study by line and x."""
    judged = pd.Series([verdicts.get(run, "whole") for run in runs["run"]], runs["run"], dtype="str")
    table = build_study_table(BY_NAME[name], runs, judged)
    return {str(line): dict(zip(of["x"], of["value"], strict=True)) for line, of in table.groupby("series")}


def test_time_by_data_size_has_a_line_per_processor_and_the_compared_partitions_on_lambda():
    laptop = ROW | {"platform": "laptop", "machine": "Personal Laptop"}
    rows = [one | {"data_gb": gb, "working_seconds": seconds * gb} for gb in (1.0, 4.0)
            for one, seconds in ((ROW, 200.0), (laptop, 700.0))]  # fmt: skip
    for partition_mb, seconds in ((25.0, 30.0), (100.0, 60.0)):
        rows += [
            ON_LAMBDA | {"data_gb": gb, "partition_mb": partition_mb, "wall_seconds": seconds} for gb in (1.0, 4.0)
        ]
    assert points("processors-data-size", runs_of(*rows)) == {
        "Desk Top, working time only": {1.0: 200.0, 4.0: 800.0},
        "Personal Laptop, working time only": {1.0: 700.0, 4.0: 2800.0},
        "AWS Lambda, from start to end": {1.0: 30.0, 4.0: 30.0},
    }


def test_throughput_by_batch_size_is_the_stated_rate():
    rows = [
        ROW | {"study": "batch size", "batch_size": size, "galaxies_per_second": rate, "machine": machine}
        for machine, rates in (("Desk Top", (100.0, 200.0)), ("CAI", (1000.0, 3000.0)))
        for size, rate in zip((32, 64), rates, strict=True)
    ]
    expected = {"Desk Top": {32.0: 100.0, 64.0: 200.0}, "CAI": {32.0: 1000.0, 64.0: 3000.0}}
    assert points("processors-batch-size", runs_of(*rows)) == expected


def test_memory_by_data_size_is_the_sum_of_allocations():
    rows = [
        one | {"data_gb": gb, "allocated_mb": 1e6 * gb * factor}
        for gb in (1.0, 2.0)
        for one, factor in ((ROW, 1.0), (ON_LAMBDA, 0.7))
    ]
    expected = {"Desk Top": {1.0: 1e6, 2.0: 2e6}, "AWS Lambda": {1.0: 0.7e6, 2.0: 1.4e6}}
    assert points("processors-memory", runs_of(*rows)) == expected


def test_the_time_of_a_rank_from_100_gb_on_is_that_of_incomplete_runs_too():
    job = ROW | {"kind": "statistics", "platform": "slurm", "machine": "Rivanna"}
    rows = [
        ON_LAMBDA | {"data_gb": 10.0, "mean_cpu_seconds": 5.0},
        ON_LAMBDA | {"data_gb": 100.0, "mean_cpu_seconds": 20.0},
        ON_LAMBDA | {"data_gb": 1000.0, "mean_cpu_seconds": 22.0}, job | {"data_gb": 100.0, "rank_seconds": 26.0},
        job | {"data_gb": 1024.0, "rank_seconds": 27.0, "mean_cpu_seconds": 3.0},
    ]  # fmt: skip
    found = points("lambda-slurm-rank-time", runs_of(*rows), r2="incomplete")
    assert found == {"Lambda": {100.0: 20.0, 1000.0: 22.0}, "SLURM CPU": {100.0: 26.0, 1024.0: 27.0}}


SECONDS = {"s3_seconds": 20.0, "s3_max_seconds": 0.5, "s3_mean_seconds": 0.25, "s3_min_seconds": 0.125}
STORAGE = ON_LAMBDA | SECONDS


def test_times_of_s3_are_a_point_per_measure_of_each_run_that_is_not_incomplete():
    other = {name: value * 2 for name, value in SECONDS.items()}
    runs = runs_of(STORAGE | {"ranks": 130}, STORAGE, STORAGE | other, ON_LAMBDA)
    runs = runs.assign(verdict=["whole", "incomplete", "doubtful", "whole"])
    drawing = figures.draw_storage_times(runs)
    [axes] = drawing.figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
        [20.0, 0.5, 0.25, 0.125],
        [40.0, 1.0, 0.5, 0.25],
    ]
    assert [line.get_label() for line in axes.lines] == ["r0 (130 ranks)", "r2"]
    assert drawing.rows["run"].tolist() == ["r0", "r2"]
    assert drawing.caption == (
        "Seconds of requests to S3. r0 (130 ranks): total 20 s, largest 0.5 s, mean 0.25 s, least 0.12 s; r2: total "
        "40 s, largest 1 s, mean 0.5 s, least 0.25 s. Published, measured on: AWS Lambda."
    )
    assert "1 incomplete run left out." in drawing.figure.get_supxlabel()


def test_without_usable_times_of_s3_the_figure_says_so():
    drawing = figures.draw_storage_times(runs_of(STORAGE).assign(verdict="incomplete"))
    assert drawing.caption == (
        "Nothing is drawn: no run that is not incomplete states the times of its requests to S3."
    )
    assert len(drawing.rows) == 0


@pytest.fixture(scope="module")
def evidence(shared) -> Evidence:
    folders = [str(shared / name) for name in ("published", "published_more")]
    return gather_evidence(collect(folders))


@pytest.mark.parametrize(
    ("name", "machines"),
    [
        ("processors-batch-size",
         "Amazon SageMaker; CAI; Dell XPS Server; Personal Laptop; Rivanna HPC CPU; Rivanna HPC GPU"),
        ("processors-data-size", "AWS Lambda; Dell XPS Server; Personal Laptop; Rivanna HPC CPU; Rivanna HPC GPU"),
        ("processors-memory", "AWS Lambda; Dell XPS Server; Personal Laptop; Rivanna HPC CPU; Rivanna HPC GPU"),
        ("lambda-slurm-rank-time", "AWS Lambda; Rivanna"),
    ],
)  # fmt: skip
def test_the_captions_of_published_figures_name_the_machines_that_they_draw(evidence, name, machines):
    [(study, table)] = [(study, table) for study, table in evidence.studies if study.name == name]
    drawing = figures.draw_study(study, table)
    assert drawing.caption.endswith(f" Published, measured on: {machines}.")


def test_the_published_times_of_the_laptop_and_of_s3(evidence):
    runs, verdicts = evidence.collection.runs, evidence.audit.verdicts
    table = build_study_table(BY_NAME["processors-data-size"], runs, verdicts)
    laptop = table[table["series"].str.startswith("Personal Laptop")]
    expected = {1.0: 701.0808177, 2.0: 1496.330675, 4.0: 2997.602505, 6.0: 4489.028164, 8.0: 6283.323444}
    assert dict(zip(laptop["x"], laptop["value"], strict=True)) == pytest.approx(expected, rel=1e-9)
    [axes] = figures.draw_storage_times(evidence.runs).figure.axes
    [line] = axes.lines
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([19.85, 0.06, 0.03, 0.01], abs=0.005)
    rank_times = build_study_table(BY_NAME["lambda-slurm-rank-time"], runs, verdicts)
    assert rank_times.groupby("series")["x"].agg(list).to_dict() == {
        "Lambda": [100, 256, 512, 768, 1000], "SLURM CPU": [100, 256, 512, 768, 1024],
    }  # fmt: skip


def test_the_times_of_s3_of_records_are_the_published_averages(shared):
    found = collect([str(shared / "published" / "lambda" / "partition-100MB" / "total")])
    table = pd.read_csv(shared / "published" / "lambda" / "result_stats.csv").query("s3_avg_time > 0 and run != 'mean'")
    published = table[["s3_total_time", "s3_max_time", "s3_avg_time", "s3_min_time"]].to_numpy()
    assert found.runs[[*MEASURES]].to_numpy() == pytest.approx(published, abs=0.0051)
    assert audit(found).verdicts.tolist() == ["incomplete", "incomplete", "whole"]
