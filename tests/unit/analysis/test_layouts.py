"""Test that published results say the same in every layout, and that nothing in them is counted twice."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from analysis.audit import audit
from analysis.collect import collect
from analysis.compare import average
from analysis.tables import Collection
from support.published_layouts import flatten, lay_out_as_clone, make_published, make_record, split_into_ranks

VARYING = ["run", "source"]  # named after the files


def sort(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values([*table]).reset_index(drop=True)


def describe(*folders: Path) -> tuple[Collection, list[pd.DataFrame]]:
    """Return what is collected, and runs with their verdicts, ranks and averages without what names files."""
    found = collect(map(str, folders))
    verdicts = audit(found).verdicts
    runs = found.runs.assign(verdict=found.runs["run"].map(verdicts).astype("str"))
    averages = average(found.runs, verdicts, ["partition", "data_size"])
    return found, [sort(runs.drop(columns=VARYING)), sort(found.ranks.drop(columns="run")), sort(averages)]


def assert_same(*layouts: list[pd.DataFrame]) -> None:
    first, *others = layouts
    for other in others:
        for one, two in zip(first, other, strict=True):
            pd.testing.assert_frame_equal(one, two)


@pytest.fixture(scope="module", params=["small", "published"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with published results whose tables lie above the records."""
    if request.param == "small":
        return make_published(tmp_path_factory.mktemp("small"))
    return Path(request.getfixturevalue("shared")) / "published"


def test_a_clone_says_the_same_as_a_folder_with_the_tables_above_the_records(original, tmp_path):
    clone = lay_out_as_clone(original, tmp_path / "clone")
    assert (clone / "aws/results/result_stats.csv").exists() and not (clone / "lambda").exists()
    (first, expected), (second, found) = describe(original), describe(clone)
    assert_same(expected, found)
    assert Counter(one.reason for one in first.left_out) == Counter(one.reason for one in second.left_out)


def test_a_copy_of_everything_in_another_layout_counts_nothing_twice(original, tmp_path):
    clone = lay_out_as_clone(original, tmp_path / "clone")
    found, both = describe(original, clone)
    assert_same(describe(original)[1], both)
    assert found.contradictions == ()
    assert any(one.reason.startswith(f"they repeat {original}") for one in found.left_out)


def test_the_small_results_have_three_repeats_with_the_times_of_the_log(tmp_path):
    found, _ = describe(make_published(tmp_path))
    runs = found.runs.query("study == 'data size' and kind == 'combined'")
    assert runs["wall_seconds"].tolist() == [31.5, 32.5, 33.5]
    assert runs["ranks"].tolist() == [41, 41, 39] and runs["asked_ranks"].tolist() == [41] * 3
    # The other durations of these runs remain, as in the published tables.
    assert Counter(found.runs["kind"]) == {"combined": 6, "durations": 3}
    verdicts = audit(found).verdicts
    assert [verdicts[f"lambda/partition-25MB/1GB/{repeat}"] for repeat in (1, 2, 3)] == ["whole", "whole", "incomplete"]


def test_records_of_single_ranks_are_the_run_and_not_more_runs(tmp_path):
    expected = describe(make_published(tmp_path / "a"))[1]
    both = make_published(tmp_path / "b")
    split_into_ranks(both)
    found, beside = describe(both)
    assert_same(expected, beside)
    combined = both / "lambda/partition-25MB/1GB/1/combined_data.json"
    reason = f"it repeats {combined}, which is read"
    assert reason in {one.reason for one in found.left_out if one.source == str(combined.with_name("0.json"))}
    for file in both.rglob("combined_data.json"):
        file.unlink()
    ranks_alone = describe(both)[1]
    order = [name for name in expected[1] if name != "rank"]  # 0, 1, 10, ... as they are listed, or 0, 1, 2, ...
    assert_same([expected[0], sort(expected[1][order])], [ranks_alone[0], sort(ranks_alone[1][order])])


def test_more_records_of_single_ranks_than_in_the_combined_file_are_the_run(tmp_path):
    rows = [make_record(rank, "result-partition-25MB/1GB/1", f"25MB/{rank + 1}.pt") for rank in range(5)]
    folder = tmp_path / "result-partition-25MB/1GB/1"
    folder.mkdir(parents=True)
    (folder / "combined_data.json").write_text(json.dumps(rows[:3]))
    for rank, row in enumerate(rows):
        (folder / f"{rank}.json").write_text(json.dumps(row))
    found = collect([str(tmp_path)])
    assert found.runs["ranks"].tolist() == [5] and len(found.ranks) == 5
    assert [(one.source, one.reason) for one in found.left_out] == [
        (str(folder / "combined_data.json"), f"it repeats {folder}/0.json, which is read")
    ]


def test_records_in_one_folder_are_known_by_what_they_say_of_themselves(original, tmp_path):
    records = original / "lambda/partition-25MB"
    flat = flatten(records, tmp_path / "flat")
    runs, ranks, averages = describe(flat)[1]
    assert_same(describe(records)[1], [runs, ranks, averages])


@pytest.mark.parametrize(
    ("result_path", "item", "expected"),
    [
        ("result-partition-100MB/8GB/2", "100MB/1.pt", ("data size", 100.0, 8.0, 2)),
        ("100MB/8GB/2", "data/1.pt", ("data size", 100.0, 8.0, 2)),
        ("8GB/2", "100MB/1.pt", ("data size", 100.0, 8.0, 2)),
        ("scaling/result-partition-100MB/12GB/timing/1", "100MB/1.pt", ("data size", 100.0, 12.6, 1)),
        ("scaling/result-partition-100MB/12GB/983GB/1", "100MB/1.pt", ("data size", 100.0, 100.0, 1)),
        ("scaling/result-partition-100MB/12GB/1TB/1/", "100MB/1.pt", ("data size", 100.0, 1000.0, 1)),
        ("result-partition-25MB/1GB/Batches/64/3", "25MB/1.pt", ("batch size", 25.0, 1.0, 3)),
        ("result/1GB/Batches/128/run 3", "data/1.pt", ("batch size", None, 1.0, 3)),
        ("result/demo", "data/1.pt", ("single", None, None, None)),
        ("a/1", "25MB/1.pt", ("single", 25.0, None, None)),
    ],
)
def test_the_settings_of_a_file_without_a_name_are_those_of_its_records(tmp_path, result_path, item, expected):
    (tmp_path / "x.json").write_text(json.dumps([make_record(1, result_path, item)]))
    [run] = collect([str(tmp_path)]).runs[["study", "partition_mb", "data_gb", "repeat"]].itertuples(index=False)
    assert tuple(None if pd.isna(value) else value for value in run) == expected


def test_the_names_of_folders_come_before_the_paths_in_records(tmp_path):
    folder = tmp_path / "result-partition-50MB/total"
    folder.mkdir(parents=True)
    (folder / "x.json").write_text(json.dumps([make_record(1, "result-partition-25MB/1GB/3", "25MB/1.pt")]))
    run = collect([str(tmp_path)]).runs.iloc[0]
    assert (run["partition_mb"], run["data_gb"], run["repeat"]) == (50.0, 12.6, 3)


def test_equal_records_under_names_of_different_runs_are_a_doubt(tmp_path):
    made = make_published(tmp_path)
    runs = made / "lambda/partition-25MB/1GB"
    shutil.copytree(runs / "1", runs / "4")
    found = collect([str(made)])
    assert found.runs["run"].str.endswith("1GB/4").sum() == 1
    audited = audit(found)
    assert audited.verdicts["lambda/partition-25MB/1GB/4"] == "doubtful"
    text = "its records are also those of lambda/partition-25MB/1GB/1, by its name another run"
    assert [(one.check, one.text) for one in audited.findings if one.run == "lambda/partition-25MB/1GB/4"] == [
        ("contradiction", text)
    ]


def test_an_older_table_without_times_of_s3_repeats_the_newer_one(tmp_path):
    made = make_published(tmp_path / "made")
    table = pd.read_csv(made / "lambda/result_stats.csv", dtype="str", keep_default_na=False)
    (made / "older").mkdir()
    older = made / "older/result_stats.csv"
    table.drop(columns=[name for name in table if name.startswith("s3_")]).to_csv(older, index=False)
    expected, found = describe(make_published(tmp_path / "other"))[1], describe(made)
    assert_same(expected, found[1])
    newer = made / "lambda/result_stats.csv"
    shutil.rmtree(made / "lambda/partition-25MB")
    tables = collect([str(made)])
    averages = tables.runs.query("kind == 'statistics' and study == 'data size'")
    assert averages["repeat"].tolist() == [1, 2, 3]
    assert ("3 rows", f"they repeat {newer}, which is read") in [
        (one.what, one.reason) for one in tables.left_out if one.source == str(older)
    ]


def test_an_older_table_with_other_values_is_named_and_not_counted(tmp_path):
    made = make_published(tmp_path)
    newer = (made / "lambda/result_stats.csv").read_text()
    older = made / "older.csv"
    older.write_text(re.sub(r"(25,1.0,[123],)[0-9.]+,[0-9.]+", r"\g<1>9.25,1234.5", newer))
    found = collect([str(made)])
    assert found.runs.query("study == 'data size' and kind != 'durations'")["repeat"].tolist() == [1, 2, 3]
    assert ("3 rows", "the records of their runs were found and are read instead, though their values differ") in [
        (one.what, one.reason) for one in found.left_out if one.source == str(older)
    ]


def test_a_mean_that_is_not_that_of_its_rows_is_a_doubt_of_the_run_that_is_read(tmp_path):
    made = make_published(tmp_path)
    table = made / "lambda/result_stats.csv"
    lines = table.read_text().splitlines()
    values = lines[-1].split(",")
    table.write_text("\n".join([*lines[:-1], ",".join([*values[:3], "9.99", *values[4:]])]) + "\n")
    for folder, run in ((made, "lambda/partition-25MB/1GB/1"), (table, "result_stats/25MB/1GB/1")):
        audited = audit(collect([str(folder)]))
        [finding] = [one for one in audited.findings if one.check == "contradiction"]
        assert (finding.run, finding.severity, audited.verdicts[run]) == (run, "doubt", "doubtful")
        assert finding.text == (
            "in result_stats.csv, the stated `total_cpu_time (seconds)` of 9.99 is not that of its rows, which is "
            f"{sum(float(line.split(',')[3]) for line in lines[1:4]) / 3:,.9g}"
        )


def test_the_published_older_tables_add_no_runs(shared):
    published = shared / "published"
    expected = describe(published)[1]
    found, with_older = describe(published, shared / "published_more" / "older")
    assert_same(expected, with_older)
    older = [(one.what, one.reason.split(",")[0]) for one in found.left_out if "/older/" in one.source]
    assert older == [
        ("30 rows `mean`", "they are averages over runs"),
        ("87 rows", f"they repeat {published}/lambda/result_stats.csv"),
        ("10 rows", f"they repeat {published}/lambda/state_machine_logs.csv"),
        ("3 rows", "the records of their runs were found and are read instead"),
    ]


def test_the_older_tables_alone_are_read(shared):
    found = collect([str(shared / "published_more" / "older")])
    assert Counter(zip(found.runs["kind"], found.runs["study"], strict=True)) == {
        ("statistics", "data size"): 90, ("durations", "single"): 3,
    }  # fmt: skip
    timed = found.runs[found.runs["kind"].eq("statistics") & found.runs["wall_seconds"].notna()]
    settings = timed[["partition_mb", "data_gb", "repeat", "wall_seconds", "working_seconds"]]
    assert settings.to_numpy().tolist() == [
        [50, 2, 1, 58.63, 50.8], [100, 100, 1, 116.81, 65.13], [100, 100, 2, 109.2, 58.98], [100, 100, 3, 109.01, 59.0],
        [100, 1000, 1, 246.87, 193.24], [100, 1000, 2, 242.6, 184.57], [100, 1000, 3, 220.97, 163.89],
    ]  # fmt: skip


def test_tables_of_jobs_with_means_over_ranks_are_told_from_those_with_sums(tmp_path):
    head = "data (GB),run,total_execution_time (seconds),total_process_memory (MB),throughput_bps,sample_persec\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/result_stats.csv").write_text(head + "100,1,25.91,768.95,32250443.18,196.46\n")
    alone = collect([str(tmp_path)]).runs.iloc[0]
    assert alone["rank_seconds"] == 25.91 and pd.isna(alone["summed_galaxies_per_second"])
    (tmp_path / "b.csv").write_text(head + "100,1,26.05,787404.86,33024453820.36,201172.36\n")
    [both] = collect([str(tmp_path)]).runs[["rank_seconds", "summed_galaxies_per_second"]].itertuples(index=False)
    assert tuple(both) == (26.05, 201172.36)
