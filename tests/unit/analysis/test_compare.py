"""Test averages over runs: exact, never over different settings, and equal to the published ones."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.collect import collect
from analysis.compare import COUNTS, KEYS, MEASURES, STATISTICS, average, format_averages
from analysis.tables import RUN_COLUMNS, make_table
from cosmicai.errors import InputError

RUN = {"origin": "ours", "study": "single", "platform": "slurm", "device": "cpu", "machine": "m", "threads": 1,
       "engine": "openvino", "precision": "float32", "weights": "v", "data_gb": 1.0, "partition_mb": 25.0,
       "batch_size": 512, "world_size": 4}  # fmt: skip
OTHER = {"origin": "published", "study": "data size", "platform": "lambda", "device": "cuda", "machine": "n",
         "threads": 2, "engine": "reference", "precision": "int8", "weights": "w", "data_gb": 2.0}  # fmt: skip
UNJUDGED = pd.Series(dtype="str")
BITS = 164160


def runs_of(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return runs that differ from RUN in these values, named r0, r1 and so on."""
    return make_table(({"run": f"r{place}"} | RUN | row for place, row in enumerate(rows)), RUN_COLUMNS)


def timed(*seconds: float | None, **settings: Any) -> pd.DataFrame:
    """Return runs of the same settings with these wall-clock times."""
    return runs_of(*({"wall_seconds": one} | settings for one in seconds))


def verdicts_of(*verdicts: str) -> pd.Series:
    """Return verdicts on r0, r1 and so on."""
    return pd.Series({f"r{place}": verdict for place, verdict in enumerate(verdicts)}, dtype="str")


def counts_of(row: pd.Series) -> dict[str, int]:
    """Return the counts of a row that are not 0."""
    return {name: int(row[name]) for name in COUNTS if row[name]}


def test_a_mean_and_its_spread_are_those_of_numpy():
    seconds = [3.5, 1.25, 2.0]
    (row,) = average(timed(*seconds), UNJUDGED, []).to_dict("records")
    found = [row["wall_seconds" + suffix] for suffix in STATISTICS]
    assert found == [np.mean(seconds), np.median(seconds), pytest.approx(np.std(seconds, ddof=1)), 1.25, 3.5]
    assert np.isnan(row["dollars"])
    assert {one.column for one in MEASURES} - set(row) == {"service_units"}  # which `add_costs` adds


def test_missing_values_are_not_averaged():
    (row,) = average(timed(3.0, None, 5.0), UNJUDGED, []).to_dict("records")
    assert (row["runs"], row["wall_seconds"], row["wall_seconds_min"]) == (3, 4.0, 3.0)
    (row,) = average(timed(3.0), UNJUDGED, []).to_dict("records")
    assert row["wall_seconds"] == 3.0
    assert np.isnan(row["wall_seconds_std"])


def test_incomplete_runs_are_left_out_unless_requested():
    runs, verdicts = timed(1.0, 2.0, 4.0, 100.0, 8.0), verdicts_of("whole", "doubtful", "whole", "incomplete")
    (row,) = average(runs, verdicts, []).to_dict("records")
    assert counts_of(row) == {"runs": 4, "whole": 2, "doubtful": 1, "unknown": 1, "left_out": 1}
    assert (row["wall_seconds"], row["wall_seconds_max"]) == (3.75, 8.0)
    (row,) = average(runs, verdicts, [], incomplete=True).to_dict("records")
    assert counts_of(row) == {"runs": 5, "whole": 2, "doubtful": 1, "incomplete": 1, "unknown": 1, "outliers": 1}
    assert (row["wall_seconds_median"], row["wall_seconds_max"]) == (4.0, 100.0)


def test_a_group_without_a_usable_run_has_a_row_without_averages():
    runs = runs_of({"wall_seconds": 1.0}, {"wall_seconds": 2.0, "partition_mb": 50.0})
    first, second = average(runs, verdicts_of("incomplete", "whole"), ["partition"]).to_dict("records")
    assert counts_of(first) == {"left_out": 1}
    assert all(np.isnan(first["wall_seconds" + suffix]) for suffix in STATISTICS)
    assert (second["partition_mb"], second["wall_seconds"]) == (50.0, 2.0)


def test_an_outlier_among_four_is_in_the_spread_and_not_in_the_mean():
    seconds = [10.0, 10.2, 10.4, 30.0]
    (row,) = average(timed(*seconds), UNJUDGED, []).to_dict("records")
    low, high = np.quantile(seconds, [0.25, 0.75])
    assert high + 1.5 * (high - low) < 30
    found = [row["wall_seconds" + suffix] for suffix in STATISTICS]
    assert found == pytest.approx([10.2, 10.3, 0.2, 10.0, 30.0])
    assert (row["runs"], row["outliers"]) == (4, 1)


def test_a_run_that_is_an_outlier_twice_counts_once():
    runs = runs_of(*({"wall_seconds": one, "rank_seconds": one} for one in (1.0, 1.0, 1.0, 9.0)))
    assert average(runs, UNJUDGED, [])["outliers"].tolist() == [1]


def test_of_three_repeats_none_is_an_outlier():
    draws = np.random.default_rng(0).choice([0.1, 0.3, 1.1, 7.7, 1e6], size=(300, 3))
    runs = runs_of(*(
        {"wall_seconds": seconds, "data_gb": float(group)} for group, row in enumerate(draws) for seconds in row
    ))  # fmt: skip
    table = average(runs, UNJUDGED, ["data_size"])
    assert len(table) == len(draws)
    assert table["outliers"].sum() == 0
    np.testing.assert_allclose(table["wall_seconds"], draws.mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("missing", [False, True])
def test_runs_that_differ_in_a_key_are_never_averaged_together(key, missing):
    runs = runs_of({"wall_seconds": 1.0}, {"wall_seconds": 3.0, key: None if missing else OTHER[key]})
    table = average(runs, UNJUDGED, ["partition"])
    assert sorted(table["wall_seconds"]) == [1.0, 3.0]
    assert table["runs"].tolist() == [1, 1]


VARIED = [("batch size", "batch_size"), ("world size", "world_size"), ("world size", "batch_size")]


@pytest.mark.parametrize(("study", "column"), VARIED)
def test_runs_of_a_study_that_differ_in_what_it_varied_are_not_averaged_together(study, column):
    one, two = ({"wall_seconds": 2.0 + value, "study": study, column: value} for value in (1, 2))
    runs = runs_of(one, two, {"wall_seconds": 1.0}, {"wall_seconds": 2.0, column: 7})
    table = average(runs, UNJUDGED, ["partition"])
    found = table[["study", column, "wall_seconds"]].astype(object).values.tolist()
    assert sorted(found, key=lambda row: row[2]) == [["single", pd.NA, 1.5], [study, 1, 3.0], [study, 2, 4.0]]
    assert sorted(average(runs, UNJUDGED, [column])[column]) == sorted([1, 2, RUN[column], 7])  # type: ignore[type-var]


def test_groups_are_by_columns_or_their_short_names():
    runs = runs_of(*({"wall_seconds": 1.0, "partition_mb": mb, "batch_size": size}
                     for mb, size in ((50, 8), (25, 8), (25, 8), (25, 16))))  # fmt: skip
    table = average(runs, UNJUDGED, ["partition", "batch", "partition_mb"])
    assert table[["partition_mb", "batch_size", "runs"]].values.tolist() == [[25, 8, 2], [25, 16, 1], [50, 8, 1]]
    pd.testing.assert_frame_equal(table, average(runs, UNJUDGED, ["partition_mb", "batch_size"]))
    assert average(runs, UNJUDGED, ["run"])["runs"].tolist() == [1, 1, 1, 1]


def test_a_setting_that_is_a_measure_too_may_group():
    runs = runs_of({"memory_mb": 1024, "wall_seconds": 1.0}, {"memory_mb": 2048, "wall_seconds": 2.0})
    table = average(runs, UNJUDGED, ["memory_mb"])
    assert table[["memory_mb", "wall_seconds"]].values.tolist() == [[1024, 1.0], [2048, 2.0]]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError) as refused:
        average(timed(1.0), UNJUDGED, ["partition", "colour"])
    said = "--by colour: runs cannot be grouped by this; use names from partition, data_size, batch, world, origin, "
    assert str(refused.value).startswith(said)
    with pytest.raises(InputError, match="--by wall_seconds: runs cannot be grouped by this"):
        average(timed(1.0), UNJUDGED, ["wall_seconds"])


def test_no_runs_give_a_table_without_rows():
    table = average(runs_of(), UNJUDGED, ["partition"])
    assert len(table) == 0
    assert {"partition_mb", "runs", "wall_seconds_median"} <= set(table)
    assert len(format_averages(table)) == 0


def test_a_formatted_table_has_headings_with_units_and_only_informative_columns():
    runs = runs_of(
        {"wall_seconds": 1234.5, "nmad": 0.0125, "mae": 0.01},
        {"wall_seconds": 1234.7},
        {"wall_seconds": 1235.6},
        {"wall_seconds": 2.0, "partition_mb": 50.0, "engine": "reference"},
        {"wall_seconds": 2.0, "partition_mb": 75.0, "engine": None},
    )
    table = format_averages(average(runs, verdicts_of("whole", "doubtful", "whole", "incomplete"), ["partition"]))
    assert table.to_dict("list") == {
        "engine": ["openvino", "reference", ""],
        "partition, MB": ["25", "50", "75"],
        "runs": ["2 whole, 1 doubtful", "1 left out", "1 unknown"],
        "time, s": ["1,234.93 (1,234.70)", "", "2.00"],
        "precision": ["0.012500", "", ""],
    }


def test_a_cost_is_shown_with_its_basis():
    rows = [{"dollars": float(place), "partition_mb": mb} for place, mb in enumerate((25, 25, 25, 50, 75), 1)]
    runs = runs_of(*rows).assign(dollars_source=pd.array(["b", "a", "b", "b", None], "str"))
    assert average(runs, UNJUDGED, ["partition"])["dollars_source"].tolist() == ["a; b", "b", ""]
    only = average(runs, verdicts_of("whole", "incomplete"), ["partition"])
    assert only["dollars_source"].tolist() == ["b", "b", ""]
    assert format_averages(only)["cost, US dollars (b)"].tolist() == ["2.0000", "4.0000", "5.0000"]
    several = format_averages(average(runs, UNJUDGED, ["partition"]))
    assert several[["cost, US dollars", "basis of the cost"]].values.tolist()[0] == ["2.0000", "a; b"]
    assert "dollars_source" not in average(runs_of(*rows), UNJUDGED, ["partition"])


# The published tables, read independently, are compared with averages of the published records.
COLUMNS = {
    "mean_cpu_seconds": ("total_cpu_time (seconds)", 1),
    "allocated_mb": ("total_cpu_memory (MB)", 1),
    "summed_galaxies_per_second": ("throughput_bps", BITS),
    "galaxies": ("total_bits", BITS),
}
INCOMPLETE = {f"partition-100MB/total/{repeat}": "incomplete" for repeat in (1, 2)}


@pytest.fixture(scope="module")
def records(shared: Path) -> pd.DataFrame:
    """Return the runs whose records of all ranks are published."""
    published = shared / "published" / "lambda"
    return collect([str(published / "partition-25MB"), str(published / "partition-100MB")]).runs


def means(path: Path, *settings: str) -> dict[tuple[float, ...], dict[str, str]]:
    """Return the rows `mean` of a published table by these settings."""
    with path.open() as file:
        return {
            tuple(float(row[name]) for name in settings): row for row in csv.DictReader(file) if row["run"] == "mean"
        }


def assert_agrees(row: dict[str, Any], mean: dict[str, str]) -> None:
    """Assert that a row of averages equals the published row, which is rounded to two digits."""
    for ours, (theirs, unit) in COLUMNS.items():
        assert row[ours] * unit == pytest.approx(float(mean[theirs]), rel=1e-12, abs=0.005 + 1e-9), ours


def test_averages_over_data_sizes_are_the_published_ones(shared, records):
    published = means(shared / "published/lambda/result_stats.csv", "partition (MB)", "data (GB)")
    table = average(records[records["study"].eq("data size")], pd.Series(INCOMPLETE), ["partition", "data_size"])
    compared = []
    for row in table.to_dict("records"):
        if row["runs"] == 3:
            assert_agrees(row, published[row["partition_mb"], row["data_gb"]])
            compared.append((row["partition_mb"], row["data_gb"]))
    sizes = (1, 2, 4, 6, 8, 10)
    assert compared == [*((25, size) for size in (*sizes, 12.6)), *((100, size) for size in sizes)]


def test_averages_over_batch_sizes_are_the_published_ones(shared, records):
    published = means(shared / "published/lambda/batch_varying_results.csv", "batch_size")
    runs = records[records["study"].eq("batch size") & records["partition_mb"].eq(25)]
    table = average(runs, UNJUDGED, ["batch"])
    assert [(size,) for size in table["batch_size"]] == list(published)
    assert len(table) == 5
    for row in table.to_dict("records"):
        assert row["runs"] == 3
        assert_agrees(row, published[row["batch_size"],])


def test_the_published_average_of_the_total_includes_incomplete_runs(shared, records):
    mean = means(shared / "published/lambda/result_stats.csv", "partition (MB)", "data (GB)")[100.0, 12.6]
    runs = records[records["partition_mb"].eq(100) & records["data_gb"].eq(12.6)]
    assert float(mean["total_cpu_time (seconds)"]) == 28.93
    (row,) = average(runs, pd.Series(INCOMPLETE), ["partition", "data_size"], incomplete=True).to_dict("records")
    assert counts_of(row) == {"runs": 3, "incomplete": 2, "unknown": 1}
    assert_agrees(row, mean)
    (row,) = average(runs, pd.Series(INCOMPLETE), ["partition", "data_size"]).to_dict("records")
    assert counts_of(row) == {"runs": 1, "unknown": 1, "left_out": 2}
    assert round(row["mean_cpu_seconds"], 2) == 27.48
