"""Test the published studies: points, names of lines, costs of runs, and the published figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec import structs

from analysis.collect import collect
from analysis.costs import JobResources, add_costs
from analysis.studies import STUDIES, STUDY_COLUMNS, Study, add_study_columns, build_study_table
from analysis.tables import GALAXY_BYTES, GB, RUN_COLUMNS, make_table
from cosmicai.errors import InputError
from cosmicai.launchers.slurm.site import Gpu, Site, SlurmPartition
from cosmicai.runs.cost import published_table
from cosmicai.runs.prices import load_prices

RUN = {"origin": "published", "study": "data size", "platform": "lambda", "device": "cpu", "machine": "AWS Lambda",
       "engine": "published", "precision": "float32", "data_gb": 1.0, "partition_mb": 25.0,
       "batch_size": 512}  # fmt: skip
OURS = {"origin": "ours", "study": "single", "engine": "openvino"}
UNJUDGED = pd.Series(dtype="str")
BY_NAME = {study.name: study for study in STUDIES}


def runs_of(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return runs that differ from RUN in these values, named r0, r1 and so on."""
    return make_table(({"run": f"r{place}"} | RUN | row for place, row in enumerate(rows)), RUN_COLUMNS)


def points(study: str | Study, runs: pd.DataFrame, verdicts: pd.Series = UNJUDGED) -> dict[str, dict[float, float]]:
    """Return the values of a study by line and x."""
    table = build_study_table(BY_NAME[study] if isinstance(study, str) else study, runs, verdicts)
    assert not table.duplicated(["series", "x"]).any()
    return {str(name): dict(zip(line["x"], line["value"], strict=True)) for name, line in table.groupby("series")}


def test_names_are_unique_and_columns_exist():
    assert len(BY_NAME) == len(STUDIES)
    known = set(add_study_columns(add_costs(runs_of())))
    for study in STUDIES:
        assert set(study.name) <= set("abcdefghijklmnopqrstuvwxyz-")
        assert {study.x, study.measure, *study.filters, *study.split_by, study.series or study.x} <= known
        assert study.title and study.x_label and study.y_label


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_a_study_of_no_runs_is_an_empty_table(study):
    table = build_study_table(study, runs_of(), UNJUDGED)
    assert (len(table), tuple(table)) == (0, STUDY_COLUMNS)


def test_a_point_is_the_mean_of_its_repeats_with_minimum_and_maximum():
    runs = runs_of(*({"wall_seconds": one} for one in (30.0, 20.0, 70.0)), {"wall_seconds": 500.0})
    verdicts = pd.Series({"r0": "whole", "r1": "doubtful", "r2": "whole", "r3": "incomplete"})
    table = build_study_table(BY_NAME["data-size-time"], runs, verdicts)
    expected = {"x": 1.0, "series": "25 MB partitions", "value": 40.0, "low": 20.0, "high": 70.0, "median": 30.0}
    expected |= {"runs": 3, "whole": 2, "doubtful": 1, "incomplete": 0, "unknown": 0, "left_out": 1}
    assert table.drop(columns="threads").to_dict("records") == [
        expected | {"origin": "published", "machine": "AWS Lambda"}
    ]
    assert table["threads"].isna().all()
    everything = build_study_table(BY_NAME["data-size-time"], runs, verdicts, incomplete=True)
    assert everything.loc[0, ["high", "runs", "incomplete", "left_out"]].tolist() == [500.0, 4, 1, 0]


def test_a_point_without_usable_runs_has_no_value():
    table = build_study_table(
        BY_NAME["data-size-time"], runs_of({"wall_seconds": 1.0}), pd.Series({"r0": "incomplete"})
    )
    assert table[["runs", "left_out"]].values.tolist() == [[0, 1]]
    assert table[["value", "low", "high", "median"]].isna().all(axis=None)


def test_lines_and_points_are_in_order_of_their_numbers():
    runs = runs_of(
        *({"wall_seconds": mb + gb, "partition_mb": mb, "data_gb": gb} for mb in (100, 25) for gb in (10, 2))
    )
    table = build_study_table(BY_NAME["data-size-time"], runs, UNJUDGED)
    assert table[["series", "x", "value"]].values.tolist() == [
        ["25 MB partitions", 2, 27], ["25 MB partitions", 10, 35],
        ["100 MB partitions", 2, 102], ["100 MB partitions", 10, 110],
    ]  # fmt: skip


def test_runs_of_other_settings_are_not_points():
    runs = runs_of(
        {"wall_seconds": 1.0},
        {"wall_seconds": 2.0, "platform": "slurm"},
        {"wall_seconds": 3.0, "study": "batch size"},
        {"wall_seconds": 4.0, "data_gb": None},
        {"wall_seconds": 5.0, "data_gb": 100.0},
        {"mean_cpu_seconds": 6.0},
    )
    assert points("data-size-time", runs) == {"25 MB partitions": {1: 1}}


def test_lines_have_names_that_distinguish_them():
    runs = runs_of(
        {"wall_seconds": 1.0},
        {"wall_seconds": 2.0, "memory_mb": 4096.0},
        {"wall_seconds": 3.0, "batch_size": 64},
        {"wall_seconds": 4.0, "partition_mb": 50.0},
        {"wall_seconds": 5.0, "partition_mb": 75.0, "machine": "a"},
        {"wall_seconds": 6.0, "partition_mb": 75.0, "machine": "b"},
    )
    assert points("data-size-time", runs) == {
        "25 MB partitions, batches of 512": {1: 1},
        "25 MB partitions, batches of 512, 4,096 MB of memory": {1: 2},
        "25 MB partitions, batches of 64": {1: 3},
        "50 MB partitions": {1: 4},
        "75 MB partitions, a": {1: 5},
        "75 MB partitions, b": {1: 6},
    }


def test_own_and_published_runs_are_separate_lines_with_their_origin():
    runs = runs_of({"wall_seconds": 1.0}, {"wall_seconds": 2.0} | OURS, {"wall_seconds": 4.0, "partition_mb": 50.0})
    assert points("data-size-time", runs) == {
        "25 MB partitions, published": {1: 1}, "25 MB partitions, ours": {1: 2}, "50 MB partitions, published": {1: 4},
    }  # fmt: skip


def test_published_tables_without_batch_size_have_that_of_the_published_records():
    runs = runs_of(
        {"wall_seconds": 1.0, "ranks": 41},
        {"wall_seconds": 3.0, "batch_size": None},
        {"wall_seconds": 9.0, "batch_size": None, "ranks": 41},
    )
    assert points("data-size-time", runs) == {
        "25 MB partitions, batches of 512": {1: 2}, "25 MB partitions": {1: 9},
    }  # fmt: skip


def test_the_number_of_ranks_on_lambda_matters_only_in_studies_of_it():
    slurm = {"platform": "slurm", "machine": "Rivanna", "data_gb": 100.0}
    runs = runs_of(
        *(slurm | {"world_size": ranks, "wall_seconds": 1000 / ranks} for ranks in (10, 100)),
        slurm | {"data_gb": 10.0, "world_size": 10, "wall_seconds": 7.0},  # a line of one number of ranks
        {"world_size": 41, "wall_seconds": 5.0},
        {"study": "world size", "world_size": 2, "wall_seconds": 6.0, "data_gb": None},
        {"study": "world size", "world_size": 4, "wall_seconds": 8.0, "data_gb": None},
    )
    assert points("world-size-time", runs) == {"SLURM CPU, 100 GB": {10: 100, 100: 10}, "Lambda": {2: 6, 4: 8}}
    assert points("terabyte-time", runs) == {
        "SLURM CPU, world size 10": {10: 7, 100: 100}, "SLURM CPU, world size 100": {100: 10}, "Lambda": {1: 5},
    }  # fmt: skip


def test_platforms_are_compared_by_the_known_time_and_the_line_states_working_time():
    alone = {"platform": "laptop", "study": "single", "working_seconds": 50.0, "galaxies": 1000, "partition_mb": None}
    runs = runs_of({"wall_seconds": 20.0, "working_seconds": 9.0, "galaxies": 800}, alone | {"data_gb": None})
    size = 1000 * GALAXY_BYTES / GB
    assert points("platforms-time", runs) == {
        "Lambda, from start to end": {1: 20},
        "laptop CPU, working time only": {size: 50},
    }
    assert points("platforms-throughput", runs) == {
        "Lambda, from start to end": {1: 40},
        "laptop CPU, working time only": {size: 20},
    }


def test_memory_of_a_rank_is_pooled_over_data_sizes():
    runs = runs_of(*({"peak_rss_mb": 100.0 * gb, "data_gb": gb} for gb in (1, 2)))
    assert points("memory", runs) == {"Lambda": {25: 150}}


def test_lines_of_too_few_points_are_left_out():
    runs = runs_of(
        {"wall_seconds": 1.0}, {"wall_seconds": 2.0, "partition_mb": 50.0}, {"wall_seconds": 3.0, "data_gb": 9}
    )
    assert points("partition-size-time", runs) == {"1 GB": {25: 1, 50: 2}}
    every = replace(BY_NAME["partition-size-time"], min_points=1)
    assert points(every, runs) == {"1 GB": {25: 1, 50: 2}, "9 GB": {25: 3}}


def costs_of(run: dict[str, Any], job: JobResources | None = None) -> list[Any]:
    """Return dollars, service units and their sources of a run; None where they are missing."""
    (row,) = add_costs(runs_of(run), job).to_dict("records")
    names = ("dollars", "dollars_source", "service_units", "service_units_source")
    return [None if pd.isna(row[name]) else row[name] for name in names]


def test_a_stated_cost_is_kept_with_its_source():
    assert costs_of({"dollars": 0.5, "billed_seconds": 9.0})[:2] == [0.5, "as published"]
    assert costs_of(OURS | {"dollars": 0.5})[:2] == [0.5, "as computed by the run itself at list prices"]


@pytest.mark.parametrize("row", published_table(), ids=lambda row: f"{row['partition_mb']} MB")
def test_the_published_cost_table_follows_from_its_own_seconds(row):
    run = {"partition_mb": row["partition_mb"], "ranks": row["requests"], "mean_cpu_seconds": row["seconds"]}
    dollars, source = costs_of(run)[:2]
    assert dollars == pytest.approx(row["dollars"], rel=1e-12)
    assert source == "CPU seconds at list prices, memory as published"


def test_billed_seconds_and_the_functions_own_memory_come_first():
    price = load_prices().each
    run = {"ranks": 10, "billed_seconds": 75.0, "mean_cpu_seconds": 5.0, "memory_mb": 2048.0}
    expected = 75 * 2 * price["gb_seconds"] + 10 * price["invocations"]
    assert costs_of(run)[:2] == [pytest.approx(expected), "billed seconds at list prices, memory of the function"]
    expected = 7 * 5 * 2.8 * price["gb_seconds"] + 7 * price["invocations"]
    for name in ("world_size", "asked_ranks"):
        assert costs_of({name: 7, "mean_cpu_seconds": 5.0})[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    "lacking",
    [{"ranks": None}, {"mean_cpu_seconds": None}, {"partition_mb": 10.0}, {"platform": "slurm"}, {"origin": "ours"}],
)
def test_costs_are_not_guessed(lacking):
    run = {"ranks": 10, "mean_cpu_seconds": 5.0}
    assert costs_of(run)[0] is not None
    assert costs_of(run | lacking) == [None] * 4


SITE = Site(
    "here", False, "/scratch", (SlurmPartition("standard"),), (
        Gpu("a100", "gpu:a100", 8, service_units_per_hour=50.0, service_units_per_core_hour=0.4,
            service_units_per_gb_hour=0.04),
    ),
    service_units_per_core_hour=0.5, service_units_per_gb_hour=0.03,
)  # fmt: skip
SLURM = {"origin": "ours", "platform": "slurm", "site": "here", "wall_seconds": 1800.0, "world_size": 100}


def test_service_units_are_for_all_ranks_at_once_for_the_whole_time():
    job = JobResources(SITE, cores=4, memory_mb=8192)
    basis = "at most, by the rates of here: 4 cores and 8192 MB per rank"
    assert costs_of(SLURM, job)[2:] == [pytest.approx(0.5 * 100 * (4 * 0.5 + 8 * 0.03)), basis]
    assert costs_of(SLURM | {"concurrency": 10}, job)[2] == pytest.approx(0.5 * 10 * (4 * 0.5 + 8 * 0.03))
    on_gpu = SLURM | {"device": "cuda", "world_size": 2}
    units = 0.5 * 2 * (50 + 4 * 0.4 + 8 * 0.04)
    assert costs_of(on_gpu, replace(job, gpu="a100"))[2:] == [pytest.approx(units), f"{basis}, a100"]
    runs = add_costs(runs_of(SLURM), job)
    assert points("service-units", runs) == {"SLURM CPU": {1: pytest.approx(112)}}


def test_service_units_need_a_site_with_rates_and_a_run_on_slurm_with_a_clock():
    job = JobResources(SITE, cores=4, memory_mb=8192)
    unknown = [None] * 4
    assert costs_of(SLURM) == unknown
    assert costs_of(SLURM | {"wall_seconds": None}, job) == unknown
    assert costs_of(SLURM | {"world_size": None}, job) == unknown
    assert costs_of(SLURM | {"platform": "one machine"}, job) == unknown
    assert costs_of(SLURM | {"device": "cuda"}, job) == unknown
    assert costs_of(SLURM, replace(job, site=structs.replace(SITE, service_units_per_core_hour=None))) == unknown
    with pytest.raises(InputError, match="here has no GPUs of kind v100; use a100"):
        costs_of(SLURM | {"device": "cuda"}, replace(job, gpu="v100"))


def test_service_units_are_those_of_the_site_of_the_run_and_of_no_other():
    job = JobResources(structs.replace(SITE, name="rivanna"), cores=1, memory_mb=1024)
    at_rivanna = costs_of(SLURM | {"site": "rivanna"}, job)
    assert at_rivanna[2] is not None
    for site in (None, "here", "local", "Rivanna"):
        assert costs_of(SLURM | {"site": site, "cluster": "rivanna", "machine": "Rivanna"}, job) == [None] * 4
    published = SLURM | {"origin": "published", "site": None}
    for machine in ("Rivanna", "Rivanna, one CPU node, node of 1007 GB"):
        assert costs_of(published | {"machine": machine}, job) == at_rivanna
    assert costs_of(published | {"machine": None}, job) == costs_of(published | {"machine": "Delta"}, job) == [None] * 4


# The published figures, computed independently from the published files.


@pytest.fixture(scope="module")
def published(shared: Path) -> pd.DataFrame:
    """Return all published runs with their costs."""
    return add_costs(collect([str(shared / "published")]).runs)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def seconds_of(clock: str) -> float:
    """Return the seconds of H:MM:SS or MM:SS."""
    parts = [float(part) for part in clock.split(":")]
    return timedelta(**dict(zip(("hours", "minutes", "seconds")[-len(parts) :], parts, strict=True))).total_seconds()


def spread(values: Iterable[float]) -> list[Any]:
    """Return mean, minimum, maximum and median."""
    known = [*values]
    return [pytest.approx(value) for value in (np.mean(known), min(known), max(known), np.median(known))]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_point_of_the_published_runs_has_a_line_of_its_own(published, study):
    table = build_study_table(study, published, UNJUDGED)
    assert not table.duplicated(["series", "x"]).any()
    assert len(table) > 0 or study.name == "service-units"
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()


def test_times_by_data_size_are_those_of_the_state_machines(published, shared):
    times: dict[tuple[str, float], list[float]] = {}
    for row in rows_of(shared / "published/lambda/total_execution_time.csv"):
        key = f"{row['partition(MB)'].removesuffix('.0')} MB partitions", float(row["data(GB)"])
        times.setdefault(key, []).append(seconds_of(row["duration"]))
    table = build_study_table(BY_NAME["data-size-time"], published, UNJUDGED)
    assert len(table) == len(times) == 28
    compared = 0
    for row in table.to_dict("records"):
        if row["runs"] == 3:  # other points include runs of another table
            assert [row[name] for name in ("value", "low", "high", "median")] == spread(times[row["series"], row["x"]])
            compared += 1
    assert compared == 26


def test_times_by_ranks_are_those_of_the_arrays(published, shared):
    times: dict[int, list[float]] = {}
    for row in rows_of(shared / "published/rivanna/slurm_array_total_execution_time.csv"):
        if row["data (GB)"] == "100":
            times.setdefault(int(row["num_worlds"]), []).append(seconds_of(row["duration"]))
    table = build_study_table(BY_NAME["world-size-time"], published, UNJUDGED)
    line = table[table["series"].str.startswith("SLURM")]
    found = {row["x"]: [row[name] for name in ("value", "low", "high", "median")] for row in line.to_dict("records")}
    assert found == {ranks: spread(each) for ranks, each in times.items()}
    assert sorted(found) == [96, 256, 512, 1024]


def test_times_up_to_a_terabyte_on_one_gpu_are_those_of_its_records(published, shared):
    records = json.loads((shared / "published/rivanna/gpu_infinite_1TB.json").read_text())
    seconds = {record["GB_processed"]: record["total_execution_time (seconds)"] for record in records}
    line = points("terabyte-time", published)["SLURM GPU, from start to end"]
    assert {1, 10, 100, 1024} <= set(line)
    assert line == {size: seconds[size] for size in line}
