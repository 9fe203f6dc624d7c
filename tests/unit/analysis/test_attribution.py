"""Test that every figure names the machines of exactly the rows that it draws, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis import figures, scaling
from analysis.accuracy import Accuracy
from analysis.audit import Audit
from analysis.evidence import Evidence
from analysis.figures.attribution import MAX_MACHINES, describe_machines
from analysis.figures.labels import split_shared
from analysis.figures.style import MAX_ROWS
from analysis.formatting import format_statistic
from analysis.sections import build_sections
from analysis.studies import STUDIES, Study, add_study_columns, build_study_table
from analysis.tables import RANK_COLUMNS, RUN_COLUMNS, Collection, make_table

XEON, EPYC, ABSENT, RIVANNA, LAMBDA = "Intel Xeon", "AMD EPYC", "a machine of runs not drawn", "Rivanna", "AWS Lambda"
STUDY = Study("time", "Time by data size", "data_gb", "data, GB", "wall_seconds", "time of the whole run, s")
PHASES = [f"{name}_seconds" for name in scaling.PHASES]
RUNS = pd.DataFrame(
    [("x", "ours", XEON), ("e", "ours", EPYC), ("p", "published", RIVANNA), ("absent", "ours", ABSENT)],
    columns=["run", "origin", "machine"],
).assign(weights_name="w, SHA-256 12")  # fmt: skip
MIXED = f"Measured on: {XEON}; {EPYC}. Published, measured on: {RIVANNA}."


def make_points(seconds: Callable[[int], float]) -> pd.DataFrame:
    """Return a study's table with a line of each run of RUNS; that of `absent` has no values."""
    rows = [
        {"x": x, "series": run, "value": value, "low": value, "high": value, "median": value, "runs": 1, "whole": 1,
         "doubtful": 0, "incomplete": 0, "left_out": 0, "origin": origin, "machine": machine, "threads": 2 // x}
        for run, origin, machine in RUNS[["run", "origin", "machine"]].itertuples(index=False)
        for x in (1, 2)
        for value in [np.nan if run == "absent" else seconds(x)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def make_ranks() -> pd.DataFrame:
    """Return two ranks of each run; those of `absent` do not state their times."""
    ranks = pd.DataFrame({"run": np.repeat(RUNS["run"].to_numpy(), 2), "rank": [0, 1] * len(RUNS)})
    known = ranks["run"].ne("absent")
    return ranks.assign(**dict.fromkeys(["seconds", "cpu_seconds", *PHASES], known.map({True: 1.0, False: np.nan})))


def make_accuracy() -> Accuracy:
    """Return the redshifts of the run `e`."""
    rng = np.random.default_rng(0)
    spec = rng.uniform(0.1, 0.5, 400)
    phot = (spec + rng.normal(0, 0.01, 400)).astype(np.float32)
    return Accuracy("e", 400, phot, spec, rng.uniform(17, 19, 400))


def draw_choices() -> figures.Drawing:
    choices = RUNS.rename(columns={"run": "label"}).assign(seconds=[1.0, 2.0, 3.0, np.nan], dollars=1.0, on_front=True)
    return figures.draw_pareto_front(choices)


def draw_storage_times() -> figures.Drawing:
    known = RUNS["run"].ne("absent").map({True: 1.0, False: np.nan})
    times = dict.fromkeys(("s3_seconds", "s3_max_seconds", "s3_mean_seconds", "s3_min_seconds"), known)
    return figures.draw_storage_times(RUNS.assign(**times, ranks=2, verdict="whole"))


OF_ONE = f"Measured on: {EPYC}."
CASES: dict[str, tuple[Callable[[], figures.Drawing], str]] = {
    "draw_study": (lambda: figures.draw_study(STUDY, make_points(float)), MIXED),
    "draw_speed_up": (lambda: figures.draw_speed_up(make_points(lambda x: 1 / x)), MIXED),
    "draw_phases": (lambda: figures.draw_phases(make_ranks(), RUNS), MIXED),
    "draw_stragglers": (lambda: figures.draw_stragglers(make_ranks(), RUNS), MIXED),
    "draw_pareto_front": (draw_choices, MIXED),
    "draw_storage_times": (draw_storage_times, MIXED),
    "draw_density": (lambda: figures.draw_density(make_accuracy(), RUNS), OF_ONE),
    "draw_dz_by_redshift": (lambda: figures.draw_dz_by_redshift(make_accuracy(), RUNS), OF_ONE),
    "draw_dz_histogram": (lambda: figures.draw_dz_histogram(make_accuracy(), RUNS), OF_ONE),
    "draw_by_magnitude": (lambda: figures.draw_by_magnitude(make_accuracy(), RUNS), OF_ONE),
}


def test_every_registered_figure_has_a_case():
    assert set(CASES) == {name for name in figures.__all__ if name.startswith("draw_")}


@pytest.mark.parametrize("name", CASES)
def test_a_figure_names_the_machines_of_its_rows_and_no_others(name):
    draw, expected = CASES[name]
    drawing = draw()
    assert drawing.caption.endswith(f" {expected}") and drawing.caption.count("easured on") == expected.count("easured")
    assert drawing.figure.get_supxlabel().replace("\n", " ").endswith(expected)
    assert set(drawing.rows["machine"]) == {name for name in (XEON, EPYC, RIVANNA) if name in expected}


def test_published_values_are_never_measured_on_ours():
    published = pd.DataFrame({"origin": ["published"] * 2, "machine": [LAMBDA, None]})
    assert describe_machines(published) == (
        f"Published, measured on: {LAMBDA}; machines that their sources do not name."
    )
    ours = pd.DataFrame({"origin": ["ours"] * 3, "machine": [f"{EPYC}; {XEON}", XEON, None]})
    assert describe_machines(ours) == f"Measured on: {EPYC}; {XEON}; a machine that its records do not name."
    assert describe_machines(ours[:0]) == ""
    many = pd.DataFrame({"origin": "ours", "machine": [f"m{number}" for number in range(MAX_MACHINES + 2)]})
    assert describe_machines(many).endswith(f"; m{MAX_MACHINES - 1}; and 2 more.")


def make_evidence() -> Evidence:
    """Return runs on two machines of ours and published ones, each with times of its own."""
    rows, ranks = [], []
    for place, (origin, machine, platform) in enumerate(
        [("ours", XEON, "one machine"), ("ours", EPYC, "slurm"), ("published", LAMBDA, "lambda")]
    ):
        for world in (1, 2, 4):
            seconds = 100 * (place + 1) / world
            run = {
                "run": f"r{place}-{world}", "source": "s", "origin": origin, "kind": "run", "study": "single",
                "platform": platform, "device": "cpu", "machine": machine, "engine": "e", "precision": "float32",
                "world_size": world, "threads": 4 // world if origin == "ours" else None, "batch_size": 512,
                "partition_mb": 25.0 * (world if platform == "lambda" else 1),
                "data_gb": 1.0, "galaxies": 1000, "wall_seconds": seconds, "peak_rss_mb": 300.0 + seconds,
                "memory_mb": 2048.0 if platform == "lambda" else None, "billed_seconds": seconds,
            }  # fmt: skip
            rows.append(run)
            ranks += [
                {"run": run["run"], "rank": rank, "seconds": seconds + rank, **dict.fromkeys(PHASES, seconds / 5)}
                for rank in range(world)
            ]
    runs = make_table(rows, RUN_COLUMNS).assign(
        dollars=0.5, dollars_source="as published", service_units=np.nan, service_units_source=pd.NA
    )
    verdicts = pd.Series("whole", index=runs["run"])
    return Evidence(Collection(runs, make_table(ranks, RANK_COLUMNS)), Audit((), verdicts))


def test_the_points_of_every_study_belong_to_the_machines_under_it():
    evidence = make_evidence()
    known = add_study_columns(evidence.collection.runs)
    of_study = {study.name: study for study in STUDIES}
    drawings = [drawing for section in build_sections(evidence, {}) for drawing in section.drawings]
    assert {"world-size-time", "speed-up", "phases", "stragglers", "memory", "partition-size-time"} <= {
        drawing.name for drawing in drawings
    }
    for drawing in drawings:
        assert drawing.caption.endswith(describe_machines(drawing.rows))
        if study := of_study.get(drawing.name):
            axes = drawing.figure.axes[0]
            drawn = {
                (float(x), float(y)) for bars in axes.containers for x, y in bars.lines[0].get_xydata()  # type: ignore[attr-defined]
            }  # fmt: skip
            of_point = {
                (float(x), float(y)): machine
                for x, y, machine in known[[study.x, study.measure, "machine"]].dropna().itertuples(index=False)
            }
            named = {machine for machine in (XEON, EPYC, LAMBDA) if machine in drawing.caption}
            assert named == {of_point[point] for point in drawn}, drawing.name
    for drawing in drawings:
        if drawing.name in ("phases", "stragglers"):  # of our ranks alone
            assert LAMBDA not in drawing.caption and XEON in drawing.caption


def test_a_sweep_over_world_sizes_with_the_cores_divided_is_one_line_of_speed_up():
    study = next(one for one in STUDIES if one.name == "world-size-time")
    table = build_study_table(study, make_evidence().collection.runs, pd.Series(dtype="str"))
    line = table[table["machine"] == XEON]
    assert line["series"].nunique() == 1
    assert line[["x", "value", "threads"]].to_numpy().tolist() == [[1, 100, 4], [2, 50, 2], [4, 25, 1]]
    note = figures.draw_speed_up(line).figure.get_supxlabel().replace("\n", " ")
    assert "Threads per rank: 4 with 1 rank, 2 with 2 ranks, 1 with 4 ranks." in note
    # Several numbers of threads at the same number of ranks are lines of their own.
    runs = make_evidence().collection.runs
    more = pd.concat([runs, runs[runs["world_size"].eq(2)].assign(threads=1, run="again")], ignore_index=True)
    apart = build_study_table(study, more, pd.Series(dtype="str"))
    of_xeon = apart[apart["machine"] == XEON]
    assert of_xeon[["x", "threads"]].to_numpy().tolist() == [[2, 1], [4, 1]]
    assert of_xeon["series"].str.endswith(", threads per rank: 1").all()


def test_a_legend_says_once_what_all_share():
    assert split_shared(["Lambda, 25 MB partitions", "Lambda, 100 MB partitions"]) == (
        ["25", "100"], "Lambda, … MB partitions",
    )  # fmt: skip
    assert split_shared(["a/b/run-1 (4 ranks)", "a/b/run-2 (4 ranks)"]) == (["run-1", "run-2"], "a/b/… (4 ranks)")
    assert split_shared(["SLURM CPU", "SLURM CPU, published"]) == (["not stated", "published"], "SLURM CPU, …")
    assert split_shared(["SLURM CPU, ours, 1", "SLURM GPU, ours, 2"]) == (["SLURM CPU, 1", "SLURM GPU, 2"], "ours, …")
    assert split_shared(["ours", "published"]) == (["ours", "published"], "")
    assert split_shared(["alone"]) == (["alone"], "")
    assert split_shared([]) == ([], "")


def test_a_legend_repeats_nothing_and_has_few_rows():
    several = pd.concat([make_points(float).assign(series=f"Lambda, {size} MB partitions") for size in range(20)])
    legend = figures.draw_study(STUDY, several.drop_duplicates(["series", "x"])).figure.axes[0].get_legend()
    assert legend is not None
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [*map(str, range(MAX_ROWS - 1)), f"and {20 - MAX_ROWS + 1} more"]
    assert legend.get_title().get_text() == "Lambda, … MB partitions"


@pytest.mark.parametrize(
    ("value", "sample", "text"),
    [(3.008e-05, 13, "3.0e-05"), (3.008e-05, 300, "3.01e-05"), (0.012345, 30, "0.0123"), (0.012345, 29, "0.012"),
     (1234.5, 100, "1,230"), (1234.5, 1, "1,200"), (0.0, 5, "0"), (20.0, 5, "20"), (999.9, 50, "1,000"),
     (float("nan"), 5, "nan"), (99.96, 5, "100")],
)  # fmt: skip
def test_digits_follow_the_sample(value, sample, text):
    assert format_statistic(value, sample) == text
    assert format_statistic(-value, sample).removeprefix("-") == text
