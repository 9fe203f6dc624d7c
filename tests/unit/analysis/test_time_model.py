"""Test the time model: fits to artificial runs, and to the published ones."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.audit import Audit, audit
from analysis.collect import collect
from analysis.published_values import build_published_runs
from analysis.tables import RANK_COLUMNS, RUN_COLUMNS, Collection, make_table
from analysis.time_model import RankWork, TimeModel, fit_models

GALAXIES_PER_GB = 2**30 / 20520
OF_PARTITION = {25: 1278, 50: 2556, 75: 3834, 100: 5113}  # galaxies of the published files


def collection(rows: list[dict[str, Any]], ranks: list[dict[str, Any]] | None = None) -> Collection:
    """Return artificial runs, named r0, r1 and so on."""
    named = [{"run": f"r{number}", "origin": "published", "device": "cpu"} | row for number, row in enumerate(rows)]
    return Collection(make_table(named, RUN_COLUMNS), make_table(ranks or [], RANK_COLUMNS))


def models(found: Collection, **verdicts: str) -> list[TimeModel]:
    """Return the models of these runs, with these verdicts on some of them."""
    names = list(found.runs["run"])
    return fit_models(
        found, Audit((), pd.Series([verdicts.get(name, "unknown") for name in names], names, dtype="str"))
    )


def on_lambda(partition: int, gb: float, terms: tuple[float, float, float], **more: Any) -> dict[str, Any]:
    """Return a run on Lambda whose time follows from the form with these terms."""
    ranks = math.ceil(gb * GALAXIES_PER_GB / OF_PARTITION[partition])
    start, dispatch, work = terms
    seconds = start + dispatch * math.sqrt(ranks) + work * OF_PARTITION[partition]
    return {"platform": "lambda", "partition_mb": partition, "data_gb": gb, "wall_seconds": seconds} | more


def test_the_terms_of_lambda_are_recovered():
    terms = (7.0, 1.5, 0.004)
    rows = [on_lambda(partition, gb, terms) for partition in OF_PARTITION for gb in (1, 5, 12.6, 100)]
    [model] = models(collection(rows))
    assert dict(model.terms) == pytest.approx({"start": 7.0, "dispatch": 1.5, "work": 0.004}, rel=1e-9)
    assert (model.place, model.origin, len(model.runs), len(model.withheld)) == ("Lambda", "published", 16, 16)
    assert model.largest_error is not None and model.largest_error < 1e-9
    assert model.memory_mb == 10240  # of the published functions
    assert model.predict(RankWork(2556, 100)) == pytest.approx(7 + 15 + 10.224, rel=1e-9)


def test_functions_of_other_memory_have_a_separate_model():
    terms = (7.0, 1.5, 0.004)
    rows = [on_lambda(50, gb, terms, memory_mb=memory) for memory in (1024.0, 2048.0) for gb in (1, 5)]
    assert [(model.memory_mb, len(model.runs)) for model in models(collection(rows))] == [(1024.0, 2), (2048.0, 2)]


def test_runs_with_several_views_have_no_part_in_a_model():
    rows = [on_lambda(50, gb, (7.0, 1.5, 0.004), study=study) for study in ("single", "views") for gb in (1, 5)]
    [model] = models(collection(rows))
    assert model.runs == ("r0", "r1")


def test_the_terms_of_arrays_are_recovered():
    def array(gb: float, tasks: int) -> dict[str, Any]:
        files = math.ceil(gb * GALAXIES_PER_GB / 5113)
        seconds = 0.3 * min(tasks, files) + 0.006 * 5113 * math.ceil(files / tasks)
        limit = {"concurrency": tasks} if tasks < files else {}
        return {
            "platform": "slurm",
            "partition_mb": 100,
            "data_gb": gb,
            "wall_seconds": seconds,
            "world_size": tasks,
        } | limit

    [model] = models(collection([array(*one) for one in ((10, 103), (100, 96), (100, 256), (500, 256))]))
    assert model.place == "SLURM array"
    assert dict(model.terms) == pytest.approx({"tasks": 0.3, "work": 0.006}, rel=1e-9)
    assert model.slots == (96, 103, 256)


@pytest.mark.parametrize(
    ("platform", "device", "place"),
    [
        ("slurm", "cpu", "SLURM node"),
        ("slurm", "cuda", "SLURM GPU"),
        ("laptop", "cpu", "one machine"),
        ("one machine", "cpu", "one machine"),
    ],
)
def test_the_terms_of_a_single_machine_are_recovered(platform, device, place):
    rows = [
        {
            "platform": platform, "device": device, "world_size": 1, "galaxies": galaxies, "batch_size": size,
            "wall_seconds": 5 + 0.02 * galaxies / size,
        }
        for galaxies, size in ((1000, 10), (1000, 20), (50_000, 100))
    ]  # fmt: skip
    [model] = models(collection(rows))
    assert (model.place, model.device, model.batch_size) == (place, device, 100)
    assert dict(model.terms) == pytest.approx({"start": 5, "batches": 0.02}, rel=1e-9)
    assert model.predict(RankWork(4000, 1, 40.0)) == pytest.approx(5.8, rel=1e-9)


def test_a_term_below_zero_is_dropped_and_the_others_fitted_again():
    rows = [on_lambda(partition, gb, (-3.0, 1.5, 0.004)) for partition in OF_PARTITION for gb in (1, 5, 100)]
    [model] = models(collection(rows))
    factors = [
        [math.sqrt(math.ceil(gb * GALAXIES_PER_GB / size)), size]
        for size in OF_PARTITION.values()
        for gb in (1, 5, 100)
    ]
    seconds = np.array([row["wall_seconds"] for row in rows])
    scaled = np.array(factors) / seconds[:, None]
    dispatch, work = np.linalg.solve(scaled.T @ scaled, scaled.T @ np.ones(len(rows)))
    assert dict(model.terms) == pytest.approx({"dispatch": dispatch, "work": work}, rel=1e-9)


def test_the_error_of_too_few_configurations_is_unknown():
    rows = [on_lambda(50, gb, (7.0, 1.5, 0.0), repeat=repeat) for gb in (1, 5) for repeat in (1, 2, 3)]
    [model] = models(collection(rows))
    assert (len(model.runs), model.withheld, model.error, model.largest_error) == (6, (), None, None)
    assert len(model.terms) == 2


def test_repeats_are_withheld_together_and_compared_by_their_medians():
    terms = (7.0, 1.5, 0.004)
    rows = [on_lambda(partition, gb, terms) for partition in (25, 100) for gb in (1, 5, 20)]
    odd = [on_lambda(50, 3, terms) for _ in range(3)]
    for row, factor in zip(odd, (1.0, 2.0, 10.0), strict=True):
        row["wall_seconds"] *= factor
    [model] = models(collection([*rows, *odd]))
    [one] = [one for one in model.withheld if one.configuration == "3 GB, partitions of 50 MB"]
    expected = on_lambda(50, 3, terms)["wall_seconds"]
    assert (one.measured, one.predicted) == pytest.approx((2 * expected, expected), rel=1e-9)
    assert one.error == pytest.approx(0.5, rel=1e-9)


def test_incomplete_runs_and_runs_without_time_or_partition_are_not_fitted_to():
    terms = (7.0, 1.5, 0.004)
    good = [on_lambda(partition, gb, terms) for partition in OF_PARTITION for gb in (1, 5, 20)]
    wrong = [on_lambda(50, 5, terms, wall_seconds=1e6), on_lambda(50, 5, terms, wall_seconds=None)]
    wrong += [on_lambda(50, 5, terms, partition_mb=None, wall_seconds=3e6)]
    [model] = models(collection([*good, *wrong]), r12="incomplete")
    assert model.runs == tuple(f"r{number}" for number in range(12))
    assert model.terms["dispatch"] == pytest.approx(1.5, rel=1e-9)
    assert models(collection(wrong[1:])) == []


def ours(run: str, galaxies: int, world: int, wall: float, **more: Any) -> dict[str, Any]:
    return {
        "run": run, "origin": "ours", "platform": "one machine", "world_size": world, "galaxies": galaxies,
        "asked_galaxies": galaxies, "wall_seconds": wall, "machine": "EPYC", "batch_size": 512,
        "data_gb": galaxies / GALAXIES_PER_GB,
    } | more  # fmt: skip


def rank(run: str, galaxies: int, read: float, predict: float, start: float = 1.0) -> dict[str, Any]:
    return {
        "run": run, "galaxies": galaxies, "start_seconds": start, "load_seconds": 0.5, "read_seconds": read,
        "predict_seconds": predict, "write_seconds": 0.1 * predict,
    }  # fmt: skip


def test_models_of_own_runs_use_the_phases_of_ranks():
    rows = [ours("a", 3000, 3, 12.0), ours("b", 6000, 3, 21.0), ours("one", 500, 1, 9.0)]
    ranks = [
        *(rank("a", 1000, read, 10.0, start) for read, start in ((0.5, 1.0), (1.0, 3.0), (9.0, 2.0))),
        *(rank("b", 2000, 2.0, predict) for predict in (30.0, 20.0, 10.0)),
        rank("b", 0, 0.0, 0.0, start=99.0),
        rank("one", 500, 1.0, 4.0),
    ]
    three, one = models(collection(rows, ranks))
    # Medians over ranks: a has 2.5 s to start, 1 ms to read, 11 ms to compute; b has 1.5 s, 1 ms and 11 ms.
    assert dict(three.terms) == pytest.approx({"start": 2.0, "read": 0.001, "compute": 0.011})
    assert dict(one.terms) == pytest.approx({"start": 1.5, "read": 0.002, "compute": 0.0088})
    assert (three.slots, one.slots, three.runs) == ((3,), (1,), ("a", "b"))
    assert three.predict(RankWork(1000)) == pytest.approx(14.0)
    assert three.withheld == ()  # two configurations for three terms


def test_own_runs_are_left_out_one_by_one_too():
    rows = [ours(f"r{size}", size, 1, 0.5 + 0.012 * size) for size in (500, 1000, 2000, 4000)]
    ranks = [rank(f"r{size}", size, 0.001 * size, 0.01 * size) for size in (500, 1000, 2000, 4000)]
    [model] = models(collection(rows, ranks))
    assert len(model.withheld) == 4
    # Their time begins with the process, a second before the wall-clock time of a run.
    assert [one.measured for one in model.withheld] == pytest.approx([7.5, 13.5, 25.5, 49.5])
    assert model.largest_error is not None and model.largest_error < 1e-9


def test_memory_is_that_of_the_next_larger_partition():
    rows = [on_lambda(25, 5, (1.0, 1.0, 0.01), peak_rss_mb=peak) for peak in (900.0, 1000.0, 950.0)]
    rows += [on_lambda(100, 5, (1.0, 1.0, 0.01), peak_rss_mb=7000.0)]
    [model] = models(collection(rows))
    assert model.peaks == ((25.0, 1000.0), (100.0, 7000.0))
    assert [model.peak_mb(size) for size in (10.0, 25.0, 50.0, 100.0, 101.0, None)] == [
        1000,
        1000,
        7000,
        7000,
        None,
        7000,
    ]


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, list[TimeModel]]:
    found = collect([str(shared / "published")])
    by_place: dict[str, list[TimeModel]] = {}
    for model in fit_models(found, audit(found)):
        by_place.setdefault(model.place, []).append(model)
    return by_place


def test_published_runs_are_predicted_within_15_percent(published):
    assert sorted(published) == ["Lambda", "SLURM GPU", "SLURM array", "SLURM node", "one machine"]
    known = [model for fitted in published.values() for model in fitted if model.error is not None]
    assert {model.place for model in known} == set(published)
    assert max(model.error for model in known) < 0.15
    assert np.median([one.error for model in known for one in model.withheld]) < 0.15
    assert max(model.largest_error for model in known) < 0.6


def test_the_errors_of_published_arrays_computed_independently(shared, published):
    with (shared / "published" / "rivanna" / "slurm_array_total_execution_time.csv").open() as file:
        rows = [
            (float(row["data (GB)"]), int(row["num_worlds"]), _seconds(row["duration"])) for row in csv.DictReader(file)
        ]
    [model] = published["SLURM array"]
    errors = []
    for left in sorted({(gb, tasks) for gb, tasks, _ in rows}):
        others = [row for row in rows if row[:2] != left]
        scaled = np.array([[factor / row[2] for factor in _array_factors(*row[:2])] for row in others])
        terms = np.linalg.solve(scaled.T @ scaled, scaled.T @ np.ones(len(others)))
        assert (terms > 0).all()
        measured = np.median([seconds for gb, tasks, seconds in rows if (gb, tasks) == left])
        errors.append(abs(float(terms @ _array_factors(*left)) / measured - 1))
    assert sorted(one.error for one in model.withheld) == pytest.approx(sorted(errors), rel=1e-9)
    assert (len(errors), round(model.error, 3), round(model.largest_error, 2)) == (9, 0.041, 0.55)


def _array_factors(gb: float, tasks: int) -> tuple[float, float]:
    files = math.ceil(gb * GALAXIES_PER_GB / 5113)
    slots = min(tasks, files)
    return slots, math.ceil(files / slots) * 5113


def _seconds(clock: str) -> float:
    hours, minutes, seconds = map(int, clock.split(":"))
    return hours * 3600 + minutes * 60 + seconds


def test_the_errors_of_the_published_values_alone():
    found = build_published_runs()
    errors = {(model.place, model.machine): model.error for model in fit_models(found, audit(found))}
    assert errors.pop(("one machine", "AMD Ryzen laptop with 8 cores")) is None  # with a single value
    assert sorted(errors) == [
        ("Lambda", "AWS Lambda"), ("SLURM GPU", "Rivanna"), ("SLURM array", "Rivanna"), ("SLURM node", "Rivanna"),
        ("one machine", "Personal Laptop"),
    ]  # fmt: skip
    assert max(error for error in errors.values() if error is not None) < 0.15


def test_the_published_comparison_gives_a_model_for_each_single_machine(shared):
    found = collect([str(shared / "published_more" / "platforms")])
    fitted = {model.machine: model for model in fit_models(found, audit(found))}
    assert {machine: (model.place, model.batch_size, len(model.runs)) for machine, model in fitted.items()} == {
        "Personal Laptop": ("one machine", 512, 15),
        "Dell XPS Server": ("one machine", 512, 18),
        "Rivanna HPC GPU": ("SLURM GPU", 512, 21),
        "Rivanna HPC CPU": ("SLURM node", 512, 21),
    }
    assert {model.origin for model in fitted.values()} == {"published"}
    of_4_gb = RankWork(4 * GALAXIES_PER_GB, 1, 4 * GALAXIES_PER_GB / 512)
    assert fitted["Personal Laptop"].predict(of_4_gb) == pytest.approx(2997.6, rel=0.05)
    assert fitted["Dell XPS Server"].predict(of_4_gb) == pytest.approx(839.62, rel=0.05)
