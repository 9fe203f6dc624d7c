"""Test `python -m analysis ...` as a user runs it."""

import json

import pandas as pd
import pytest

from support.helpers import complete_demo, run

BITS = 164160


def analysis(*arguments, **more):
    return run(*map(str, arguments), module="analysis", **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a whole run of 600 synthetic galaxies."""
    parent = tmp_path_factory.mktemp("runs")
    complete_demo(parent / "demo", 600)
    return parent


def test_audit_finds_what_the_published_runs_lack(shared):
    done = analysis("audit", shared / "published/lambda")
    assert done.returncode == 0
    rows = {line.split("│")[1].strip(): line for line in done.stdout.splitlines() if line.startswith("│")}
    for name, verdict, text in (
        ("partition-100MB/total/1", "incomplete", "122 of 130 ranks are there"),
        ("partition-100MB/total/2", "incomplete", "8 of 130 ranks are there"),
        ("partition-100MB/total/3", "whole", "659,817 galaxies are there"),
    ):
        assert verdict in rows[name]
        assert text in rows[name]
    table = json.loads(analysis("audit", shared / "published/lambda", "--json").stdout)["runs"]
    found = {row["run"]: row for row in table}
    for size in (256, 512, 768, 1000):
        row = found[f"partition-100MB/total{size}GB/1"]
        assert (row["ranks"], row["verdict"]) == (1000, "incomplete")
        assert "S3" in row["findings"]
    totals = [row for name, row in found.items() if "/total/" in name and row["verdict"] == "whole"]
    assert len(totals) == 4
    assert {row["galaxies"] for row in totals} == {659_817}
    assert all("659,857" in row["findings"] for row in totals)


def test_a_strict_audit_fails_where_something_is_incomplete(shared, folder):
    assert analysis("audit", shared / "published/lambda", "--strict").returncode == 3
    assert analysis("audit", folder / "demo/run", "--strict").returncode == 0


@pytest.mark.parametrize("incomplete", [False, True])
def test_averages_agree_with_the_published_ones_if_the_runs_are_whole(shared, tmp_path, incomplete):
    published = shared / "published/lambda"
    options = ["--by", "partition,data_size", "--out", tmp_path / "averages.csv"] + ["--incomplete"] * incomplete
    assert analysis("compare", published, *options).returncode == 0
    ours = pd.read_csv(tmp_path / "averages.csv")
    ours = ours[ours["study"].eq("data size") & ours["mean_cpu_seconds"].notna() & (ours["runs"] == 3)]
    ours = ours.set_index(["partition_mb", "data_gb"])
    stats = pd.read_csv(published / "result_stats.csv")
    means = stats[stats["run"] == "mean"].set_index(["partition (MB)", "data (GB)"])
    compared = 0
    for place, row in means.iterrows():
        if place not in ours.index:
            continue
        mine = ours.loc[place]
        compared += 1
        # They agree exactly if the records are published; for 50 and 75 MB only rounded values are.
        assert mine["mean_cpu_seconds"] == pytest.approx(row["total_cpu_time (seconds)"], abs=0.0101)
        assert mine["allocated_mb"] == pytest.approx(row["total_cpu_memory (MB)"], abs=0.02)
        assert mine["summed_galaxies_per_second"] * BITS == pytest.approx(row["throughput_bps"], abs=0.02)
        assert mine["galaxies"] * BITS == pytest.approx(row["total_bits"], abs=1)
    assert compared >= 26


def test_runs_on_slurm_are_charged_by_a_site(shared, tmp_path):
    array = shared / "published/rivanna/slurm_array_total_execution_time.csv"
    options = ["--site", "rivanna", "--cores", 2, "--job-memory", 2048, "--out", tmp_path / "averages.csv"]
    assert analysis("compare", array, *options).returncode == 0
    table = pd.read_csv(tmp_path / "averages.csv").set_index("data_gb")
    hours = 256 * (8 * 60 + 49 + 8 * 60 + 4 + 7 * 60 + 37) / 3 / 3600
    assert table.loc[256.0, "service_units"] == pytest.approx(hours * (2 * 0.464 + 2 * 0.0284), rel=1e-9)


def test_collect_writes_both_tables(folder, tmp_path):
    done = analysis("collect", folder, "--out", tmp_path, "--json")
    assert done.returncode == 0
    printed = json.loads(done.stdout)
    assert [row["galaxies"] for row in printed["runs"]] == [600]
    assert printed["left_out"] == []
    assert list(pd.read_csv(tmp_path / "runs.csv")["galaxies"]) == [600]
    assert list(pd.read_csv(tmp_path / "ranks.csv")["galaxies"]) == [600]


def test_columns_explains_them():
    done = analysis("columns")
    assert done.returncode == 0
    assert "summed_galaxies_per_second" in done.stdout


def test_figures_are_drawn(folder, tmp_path):
    done = analysis("figures", folder, "--out", tmp_path / "figures")
    assert done.returncode == 0
    written = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {line.rsplit("/", 1)[-1] for line in done.stdout.splitlines()} == written
    assert {"density-1.svg", "density-1.png", "phases.svg", "platforms-time.svg"} <= written


def test_a_recommendation_has_command_lines_and_its_basis(tmp_path):
    done = analysis("advise", "659857", "--deadline", "10m", "--budget", "1.00", "--out", tmp_path)
    assert done.returncode == 0
    assert "python -m launch --cloud --partition-mb 50" in done.stdout
    assert "runs of the published code" in done.stdout
    assert "choices stay within 600 s and $1." in done.stdout
    assert {path.name for path in tmp_path.iterdir()} >= {"choices.csv", "advice.json", "pareto.svg"}


def test_a_recommendation_that_meets_no_limit_names_the_nearest_choice():
    done = analysis("advise", "659857", "--deadline", "1s")
    assert done.returncode == 3
    assert "the nearest is" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "nowhere"], "does not exist"),
        (["compare", "{folder}", "--by", "colour"], "colour"),
        (["advise", "100", "--deadline", "soon"], "'soon' is not a duration"),
        (["report", "{folder}", "--out", "s3://bucket/report"], "local folder"),
        (["figures", "{folder}", "--out", "s3://bucket/report"], "local folder"),
    ],
)
def test_a_users_mistake_is_one_sentence(folder, arguments, message):
    done = analysis(*(text.format(folder=folder) for text in arguments))
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
