"""Test that figures show their tables, are readable without colour, and are written reproducibly."""

import io
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from analysis import figures, scaling
from analysis.accuracy import Accuracy, bin_by_magnitude, bin_by_redshift
from analysis.figures import rank_times as ranks_figures
from analysis.figures import style
from analysis.formatting import format_statistic
from analysis.studies import Study
from cosmicai.runs.metrics import compute_metrics

STUDY = Study("time", "Time by data size", "data_gb", "data, GB", "wall_seconds", "time of the whole run, s")
SECONDS = [f"{name}_seconds" for name in scaling.PHASES]
LONG = "a/rather/long/name/of-a-run/" * 5 + "end"


XEON, EPYC = "Intel Xeon", "AMD EPYC"
RUNS = pd.DataFrame(
    [(f"sweep/run-{number}", "ours", XEON, "demo, SHA-256 12") for number in range(20)]
    + [("demo/run", "ours", EPYC, "demo, SHA-256 12"), ("large-0", "published", "Rivanna", None)],
    columns=["run", "origin", "machine", "weights_name"],
).astype("str")


def point(
    x, value, series="", runs=3, doubtful=0, left_out=0, low=0.9, high=1.2, median=0.98, origin="ours", machine=XEON,
    threads=1,
):  # fmt: skip
    """Return a row of a study's table; the spread is relative to the value."""
    return {
        "x": x, "series": series, "value": value, "low": low * value, "high": high * value, "median": median * value,
        "runs": runs, "whole": runs - doubtful, "doubtful": doubtful, "incomplete": 0, "left_out": left_out,
        "origin": origin, "machine": machine, "threads": threads,
    }  # fmt: skip


def table(*points):
    return pd.DataFrame(points)


def make_accuracy(count=3000, seed=0, run="demo/run"):
    """Return redshifts like those of the demonstration; 5 galaxies of the catalogue have only one."""
    rng = np.random.default_rng(seed)
    spec = rng.gamma(2.6, 0.06, count).clip(0.01, 0.6)
    phot = spec + (1 + spec) * np.where(rng.random(count) < 0.02, rng.normal(0, 0.1, count), rng.normal(0, 0.01, count))
    return Accuracy(run, count + 5, phot.astype(np.float32), spec, rng.normal(18, 1, count))


def many_ranks(runs=2, count=50, prefix="sweep/run"):
    """Return ranks of some runs with their seconds by phase."""
    rng = np.random.default_rng(3)
    phases = {f"{name}_seconds": rng.gamma(5, 0.1 + 0.2 * k, runs * count) for k, name in enumerate(scaling.PHASES)}
    return pd.DataFrame(
        {"run": np.repeat([f"{prefix}-{k}" for k in range(runs)], count), "rank": np.tile(np.arange(count), runs)}
        | {"seconds": rng.gamma(20, 0.2, runs * count)}
        | phases
    )


CHOICES = pd.DataFrame(
    [
        ("laptop", 900.0, 0.0, True), ("Lambda, 25 MB", 7.5, 0.16, True), ("Lambda, 100 MB", 25.0, 0.38, False),
        ("Lambda, 10 MB", 5.1, 0.22, True), ("Rivanna", 30.0, None, False), ("Lambda, 26 MB", 7.51, 0.161, False),
    ],
    columns=["label", "seconds", "dollars", "on_front"],
).assign(origin="ours", machine=EPYC)  # fmt: skip
SEVERAL = table(*(point(x, 10 * (k + 1) + x, f"series {k}", doubtful=k == 1) for k in range(9) for x in (1, 2, 4, 8)))
RANKS = table(*(point(n, 100 * (f + (1 - f) / n), f"{f:.0%}") for f in (0.05, 0.3) for n in (1, 2, 4, 16)))
EVERYTHING = {
    "draw": partial(figures.draw_study, STUDY, SEVERAL),
    "density": partial(figures.draw_density, make_accuracy(), RUNS),
    "dz_against_z": partial(figures.draw_dz_by_redshift, make_accuracy(), RUNS),
    "dz_histogram": partial(figures.draw_dz_histogram, make_accuracy(), RUNS),
    "by_magnitude": partial(figures.draw_by_magnitude, make_accuracy(), RUNS),
    "phases": partial(figures.draw_phases, many_ranks(), RUNS),
    "stragglers": partial(figures.draw_stragglers, many_ranks(), RUNS),
    "speed_up": partial(figures.draw_speed_up, RANKS),
    "pareto": partial(figures.draw_pareto_front, CHOICES),
}


def axes_of(drawing):
    return drawing.figure.axes[0]


def lines(drawing, axes=0):
    """Return the lines of axes by their labels."""
    return {line.get_label(): line for line in drawing.figure.axes[axes].lines}


def bars(axes):
    """Return the name, the points and the ends of the error bars of each series, vertical or horizontal."""
    return {
        bar.get_label(): (bar.lines[0].get_xydata(), [path.vertices for path in bar.lines[2][0].get_paths()])
        for bar in axes.containers
        if hasattr(bar, "has_yerr")
    }


def small_print(drawing):
    return drawing.figure.get_supxlabel().replace("\n", " ")


def legend_of(drawing):
    return [text.get_text() for text in axes_of(drawing).get_legend().get_texts()]


def test_a_study_shows_means_bars_medians_and_doubt():
    shown = table(
        point(2, 30.0, "a"), point(1, 20.0, "a", doubtful=2), point(4, 50.0, "b", runs=1, low=1, high=1, median=1),
        point(8, np.nan, "b", runs=0, left_out=2),
    )  # fmt: skip
    drawing = figures.draw_study(STUDY, shown)
    found = bars(axes_of(drawing))
    assert found["a"][0].tolist() == [[1, 20], [2, 30]]
    assert [ends.tolist() for ends in found["a"][1]] == [
        [[1, pytest.approx(18)], [1, pytest.approx(24)]], [[2, pytest.approx(27)], [2, pytest.approx(36)]],
    ]  # fmt: skip
    assert found["b"][0].tolist() == [[4, 50]]
    others = lines(drawing)
    assert others["_median a"].get_xydata().tolist() == [[1, pytest.approx(19.6)], [2, pytest.approx(29.4)]]
    assert others["_median a"].get_markerfacecolor() == "white"
    assert others["_doubtful a"].get_xydata().tolist() == [[1, pytest.approx(24)]]
    assert len(others["_median b"].get_xydata()) == len(others["_doubtful b"].get_xydata()) == 0
    assert legend_of(drawing) == ["a", "b", "median, to the right of the mean", "with doubtful runs"]
    assert (axes_of(drawing).get_xlabel(), axes_of(drawing).get_ylabel()) == ("data, GB", "time of the whole run, s")
    assert axes_of(drawing).get_ylim()[0] == axes_of(drawing).get_xlim()[0] == 0
    assert small_print(drawing) == (
        "Points: means over repeats without outliers; bars: minimum and maximum of the repeats. "
        "7 runs (5 whole, 2 doubtful); 2 incomplete left out. Measured on: Intel Xeon."
    )
    assert drawing.caption == (
        "Time of the whole run, s, against data, GB. a: 20 at 1 to 30 at 2; b: 50 at 4. Measured on: Intel Xeon."
    )
    assert (drawing.name, drawing.title) == ("time", "Time by data size")


def test_medians_are_drawn_next_to_their_means():
    drawing = figures.draw_study(STUDY, table(point(1, 20.0), point(5, 20.0)))
    axes, median = axes_of(drawing), lines(drawing)["_median "]
    place = median.get_transform().transform((1, 20.0)) - axes.transData.transform((1, 20.0))
    assert place.tolist() == pytest.approx([style.DPI * 6 / 72, 0])


def test_runs_of_unknown_completeness_and_incomplete_ones_are_counted():
    row = point(1, 20.0, runs=5) | {"whole": 1, "doubtful": 1, "incomplete": 2}
    drawing = figures.draw_study(STUDY, table(row))
    counts = "5 runs (1 whole, 1 doubtful, 2 incomplete, 1 of unknown completeness); none left out."
    assert small_print(drawing).endswith(f"{counts} Measured on: Intel Xeon.")


def test_a_mean_that_exceeds_the_maximum_by_rounding_is_drawn():
    row = point(1, 20.0) | {"low": 20.0, "high": np.nextafter(20, 0)}
    ((means, _),) = bars(axes_of(figures.draw_study(STUDY, table(row)))).values()
    assert means.tolist() == [[1, 20]]


def test_logarithmic_axes_have_plain_numbers_where_the_points_are():
    study = Study("b", "t", "batch_size", "x", "wall_seconds", "y", log_x=True, log_y=True)
    drawing = figures.draw_study(study, table(*(point(2**k, 3.0 * 5**k) for k in range(10))))
    axes = axes_of(drawing)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(2**k) for k in range(10)]
    assert {"10", "1,000", "100,000"} <= {text.get_text() for text in axes.get_yticklabels()}


def test_ticks_whose_labels_would_overlap_are_left_out():
    drawing = figures.draw_study(STUDY, table(*(point(x, 5.0) for x in (1, 2, 2.1, 2.2, 100, 1000))))
    assert [text.get_text() for text in axes_of(drawing).get_xticklabels()] == ["1", "100", "1,000"]


def test_the_caption_names_a_few_of_many_series_and_counts_the_rest():
    caption = figures.draw_study(STUDY, SEVERAL).caption
    assert caption.endswith("series 3: 41 at 1 to 48 at 8; and 5 more. Measured on: Intel Xeon.")


def test_nothing_to_draw_is_explained_in_the_figure_and_in_its_caption():
    absent = SEVERAL.assign(value=np.nan, low=np.nan, high=np.nan, median=np.nan)
    no_ranks, few = many_ranks(1, 1), make_accuracy(1)
    without_phases = no_ranks.assign(**dict.fromkeys(SECONDS, np.nan))
    without_magnitudes = replace(few, magnitude=None, no_magnitude="x is gone")
    nothing = [
        (figures.draw_study(STUDY, absent), "no run that may be averaged states both data, GB and time of"),
        (figures.draw_study(STUDY, SEVERAL[:0]), "no run states both data, GB and time of the whole run, s"),
        (figures.draw_phases(without_phases, RUNS), "no rank of these runs states its"),
        (figures.draw_stragglers(no_ranks, RUNS), "no run of several ranks states how long each of them worked"),
        (figures.draw_speed_up(SEVERAL[::4]), "no two runs that may be compared differ in their number of ranks"),
        (figures.draw_pareto_front(CHOICES.assign(dollars=np.nan)), "there is no choice with known time and cost"),
        (figures.draw_density(few, RUNS), "no galaxy of this run has"),
        (figures.draw_dz_by_redshift(few, RUNS), "no galaxy of this run has"),
        (figures.draw_dz_histogram(few, RUNS), "no galaxy of this run has"),
        (figures.draw_by_magnitude(few, RUNS), "no bin of r magnitude holds 30 galaxies"),
        (figures.draw_by_magnitude(without_magnitudes, RUNS), "r magnitudes: x is gone"),
    ]  # fmt: skip
    for drawing, reason in nothing:
        assert reason in axes_of(drawing).texts[0].get_text().replace("\n", " ")
        assert re.match(f"Nothing is drawn: .*{re.escape(reason)}", drawing.caption)
        assert not axes_of(drawing).lines


def test_density_counts_every_galaxy_in_its_frame():
    accuracy = make_accuracy()
    drawing = figures.draw_density(accuracy, RUNS)
    axes = axes_of(drawing)
    (low, high), cells = axes.get_xlim(), axes.collections[0].get_array()
    inside = ((accuracy.spec >= low) & (accuracy.spec <= high) & (accuracy.phot >= low) & (accuracy.phot <= high)).sum()
    assert int(cells.sum()) == inside
    assert cells.min() == 1
    assert small_print(drawing) == (
        f"5 of 3,005 galaxies lack one of the redshifts. Outside the frame: {3000 - inside:,} galaxies. "
        "Weights: demo, SHA-256 12. Measured on: AMD EPYC."
    )
    assert axes.collections[0].get_rasterized()
    one, limit = (line.get_xydata() for line in axes.lines[:2])
    assert one.tolist() == [[low, low], [high, high]]
    assert limit[:, 1] == pytest.approx(limit[:, 0] - 0.05 * (1 + limit[:, 0]))
    metrics = compute_metrics(accuracy.phot, accuracy.spec)
    assert metrics is not None
    assert f"R² {metrics.r2:.3g}\nMAE {metrics.mae:.3g}" in axes.texts[0].get_text()
    assert drawing.caption == (
        f"3,000 galaxies: bias {format_statistic(metrics.bias, 3000, '+')}, NMAD {metrics.precision:.3g}, "
        f"MAE {metrics.mae:.3g}, R² {metrics.r2:.3g}, {100 * metrics.outliers:.3g}% outliers with |dz| > 0.05. "
        "Measured on: AMD EPYC."
    )


def test_dz_against_z_shows_the_running_median_and_the_nmad_about_it():
    accuracy = make_accuracy()
    bins = bin_by_redshift(accuracy, 0.02)
    drawing = figures.draw_dz_by_redshift(accuracy, RUNS)
    median = lines(drawing)["median"].get_xydata()
    assert median.tolist() == bins[["middle", "median_dz"]].to_numpy().tolist()
    assert lines(drawing)["median ± NMAD"].get_ydata() == pytest.approx(bins["median_dz"] + bins["nmad"])
    edges = [line.get_ydata() for line in axes_of(drawing).lines if line.get_linestyle() == "--"]
    assert edges[0] == pytest.approx(bins["median_dz"] - bins["nmad"])


def test_the_histogram_of_dz_has_a_gaussian_as_wide_as_the_nmad():
    accuracy = make_accuracy()
    drawing = figures.draw_dz_histogram(accuracy, RUNS)
    counts, edges, _ = axes_of(drawing).patches[0].get_data()
    expected = np.histogram(accuracy.dz, bins=100, range=(edges[0], edges[-1]))[0]
    assert counts.tolist() == expected.tolist()
    metrics, gaussian = accuracy.metrics, lines(drawing)["Gaussian with σ = NMAD"]
    x, y = gaussian.get_xydata().T
    assert x[y.argmax()] == pytest.approx(np.median(accuracy.dz), abs=x[1] - x[0])
    assert np.trapezoid(y, x) == pytest.approx(3000 * (edges[1] - edges[0]), rel=1e-3)
    assert np.sqrt(np.trapezoid(y * (x - np.median(accuracy.dz)) ** 2, x) / np.trapezoid(y, x)) == pytest.approx(
        metrics.precision, rel=1e-3
    )
    assert lines(drawing)["bias (mean)"].get_xdata() == pytest.approx([metrics.bias] * 2)
    assert f"{3000 - expected.sum():,} galaxies" in small_print(drawing)


def test_metrics_by_magnitude_have_the_errors_of_the_table():
    accuracy = make_accuracy()
    bins, drawing = bin_by_magnitude(accuracy), figures.draw_by_magnitude(accuracy, RUNS)
    panels = drawing.figure.axes
    for number, (name, low, high) in enumerate(
        [
            ("median_dz", bins["median_dz"] - bins["median_dz_error"], bins["median_dz"] + bins["median_dz_error"]),
            ("nmad", bins["nmad"] - bins["nmad_error"], bins["nmad"] + bins["nmad_error"]),
            ("outliers", bins["outliers_low"], bins["outliers_high"]),
        ]
    ):
        ((points, ends),) = bars(panels[number]).values()
        assert points.tolist() == bins[["middle", name]].to_numpy().tolist()
        assert np.array(ends)[:, :, 1] == pytest.approx(np.stack([low, high], axis=1), abs=1e-12)
    assert [patch.get_height() for patch in panels[3].patches] == bins["galaxies"].to_list()  # type: ignore[attr-defined]
    assert "Wilson's interval" in small_print(drawing)
    assert f"{bins['galaxies'].sum():,} galaxies in {len(bins)} bins." in drawing.caption


def test_phases_are_stacked_medians_over_ranks_with_the_range_of_their_sums():
    ranks = many_ranks(3, 200)
    ranks.loc[ranks["run"] == "sweep/run-2", [f"{name}_seconds" for name in scaling.PHASES]] = np.nan
    ranks["write_seconds"] = np.nan
    drawing = figures.draw_phases(ranks, RUNS)
    axes = axes_of(drawing)
    names = ["start", "load", "read", "predict"]
    assert legend_of(drawing) == [*names, "sum: median, 5–95%"]
    medians = np.array([[patch.get_width() for patch in bar.patches] for bar in axes.containers[:4]]).T
    for run, widths in enumerate(medians):
        rows = ranks[ranks["run"] == f"sweep/run-{run}"]
        assert widths == pytest.approx([np.median(rows[f"{name}_seconds"]) for name in names])
        total = rows[[f"{name}_seconds" for name in names]].sum(axis=1)
        points, ends = bars(axes)["sum: median, 5–95%"]
        assert points[run, 0] == pytest.approx(np.median(total))
        assert ends[run][:, 0] == pytest.approx(np.quantile(total, [0.05, 0.95]))
    lefts = np.array([[patch.get_x() for patch in bar.patches] for bar in axes.containers[:4]]).T
    assert lefts[:, 1:] == pytest.approx(medians.cumsum(axis=1)[:, :-1])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["sweep/run-0 (200)", "sweep/run-1 (200)"]
    assert small_print(drawing).endswith("1 run without phases. Measured on: Intel Xeon.")


def test_the_first_of_many_runs_have_bars_and_the_others_are_counted():
    drawing = figures.draw_phases(many_ranks(20, 3), RUNS)
    assert len(axes_of(drawing).get_yticklabels()) == ranks_figures.MAX_BARS == 16
    assert "4 more runs not drawn." in small_print(drawing)


def test_stragglers_are_a_line_of_few_points_with_the_slowest_rank_on_it():
    ranks = pd.concat([many_ranks(9, 40), many_ranks(1, 10000, "large"), many_ranks(1, 1, "alone")])
    drawing = figures.draw_stragglers(ranks, RUNS)
    found = lines(drawing)
    assert next(iter(found)) == "large-0 (10,000 ranks)"
    assert len(found) == ranks_figures.MAX_LINES == 8
    assert small_print(drawing) == (
        "2 more runs of as many ranks or fewer not drawn. Measured on: Intel Xeon. Published, measured on: Rivanna."
    )
    seconds = np.sort(ranks.loc[ranks["run"] == "large-0", "seconds"].to_numpy())
    x, y = found["large-0 (10,000 ranks)"].get_xydata().T
    assert len(x) == ranks_figures.POINTS
    assert y.tolist() == seconds[np.round(x / 100 * 9999).astype(int)].tolist()
    assert (x[0], x[-1], y[0], y[-1]) == (0, 100, seconds[0], seconds[-1])
    small = np.sort(ranks.loc[ranks["run"] == "sweep/run-0", "seconds"].to_numpy())
    assert found["sweep/run-0 (40 ranks)"].get_ydata().tolist() == small.tolist()
    ratio, idle = seconds[-1] / np.median(seconds), 1 - seconds.mean() / seconds[-1]
    start = (
        f"large-0: the slowest of 10,000 ranks took {seconds[-1]:.3g} s, {ratio:.3g} times the median, and {idle:.0%}"
    )
    assert drawing.caption.startswith(start)


def test_speed_up_is_relative_to_the_fewest_ranks_with_the_fitted_law():
    times = np.array([90 + 10000 / n for n in (10, 20, 100)])
    shown = [point(n, seconds) for n, seconds in zip((10, 20, 100), times, strict=True)]
    drawing = figures.draw_speed_up(table(*shown, point(7, 3.0, "alone")))
    (series,) = bars(axes_of(drawing)).values()
    assert series[0].tolist() == [[10, 1], [20, pytest.approx(times[0] / times[1])], [100, pytest.approx(1090 / 190)]]
    assert np.array(series[1])[:, :, 1] == pytest.approx(np.stack([times[0] / times / 1.2, times[0] / times / 0.9]).T)
    x, y = lines(drawing)["_law "].get_xydata().T
    assert y == pytest.approx(times[0] / (90 + 10000 / x))
    (ideal,) = [line for line in axes_of(drawing).lines if line.get_color() == "#808080"]
    assert ideal.get_xydata().tolist() == [[10, 1], [100, 10]]
    assert legend_of(drawing) == ["measured", "proportional to the number of ranks"]
    assert "all runs: serial part 0.9% ± 0.0%" in small_print(drawing)
    assert drawing.caption.startswith("all runs: 5.7 times with 100 ranks over 10;")


def test_a_law_that_does_not_fit_is_reported():
    slower = figures.draw_speed_up(table(*(point(n, 10.0 + n) for n in (1, 2, 4))))
    assert "Amdahl's law does not fit, since more ranks take longer" in small_print(slower)
    faster = figures.draw_speed_up(table(*(point(n, 100 / n**1.3) for n in (1, 2, 4))))
    assert "Amdahl's law does not fit, since the speed-up exceeds the number of ranks" in small_print(faster)
    two = figures.draw_speed_up(table(point(1, 10.0), point(2, 6.0)))
    assert "_law " not in lines(two)


def test_choices_are_numbered_on_and_off_the_front():
    drawing = figures.draw_pareto_front(CHOICES)
    axes = axes_of(drawing)
    others, front = (line.get_xydata().tolist() for line in axes.lines)
    assert front == [[5.1, 0.22], [7.5, 0.16], [900, 0]]
    assert others == [[7.51, 0.161], [25, 0.38]]
    assert [text.get_text() for text in axes.texts] == ["1", "2, 4", "3", "5"]
    assert (axes.get_xscale(), axes.get_ylim()[0]) == ("log", 0)
    assert small_print(drawing) == (
        "1  Lambda, 10 MB: 5.1 s, 0.22 dollars 2  Lambda, 25 MB: 7.5 s, 0.16 dollars 3  laptop: 900 s, 0 dollars "
        "4  Lambda, 26 MB: 7.51 s, 0.161 dollars 5  Lambda, 100 MB: 25 s, 0.38 dollars "
        "Not drawn, since time or cost is not known: 1 of 6 choices. Times are predicted from "
        "measured runs. Measured on: AMD EPYC."
    )
    assert drawing.caption.startswith("3 of 5 choices are on the front: Lambda, 10 MB takes 5.1 s for 0.22 dollars;")


def test_choices_on_a_cluster_have_service_units():
    charged = CHOICES.rename(columns={"dollars": "service_units"})
    drawing = figures.draw_pareto_front(charged, cost="service_units", name="units")
    assert axes_of(drawing).get_ylabel() == "service units"
    assert [line.get_xydata().tolist() for line in axes_of(drawing).lines] == [
        line.get_xydata().tolist() for line in axes_of(figures.draw_pareto_front(CHOICES)).lines
    ]
    assert "1  Lambda, 10 MB: 5.1 s, 0.22 service units" in small_print(drawing)


def test_only_those_on_the_front_of_many_choices_are_listed():
    more = [CHOICES.assign(seconds=CHOICES["seconds"] + k, on_front=False) for k in range(1, 5)]
    drawing = figures.draw_pareto_front(pd.concat([CHOICES, *more]))
    assert small_print(drawing).count(" dollars") == 3
    assert len(axes_of(drawing).lines[0].get_xydata()) == 2 + 4 * 5


@pytest.mark.parametrize("name", EVERYTHING)
def test_files_are_the_same_each_time_and_small(name, tmp_path):
    drawing = EVERYTHING[name]()
    first = figures.save(drawing, tmp_path / "first")
    again = figures.save(EVERYTHING[name](), tmp_path / "again")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    svg, png = first
    assert svg.stat().st_size < 300_000
    assert png.stat().st_size < 300_000
    with Image.open(png) as picture:
        assert picture.width == 900
    text = svg.read_text()
    assert f"<title>{drawing.title}</title>" in text
    assert "<dc:date>" not in text
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert all(id.startswith(f"{drawing.name}-") for id in ids)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(ids)
    assert (svg.name, png.name) == (f"{drawing.name}.svg", f"{drawing.name}.png")


@pytest.mark.parametrize("name", EVERYTHING)
def test_nothing_overlaps_or_is_cut_off(name):
    drawing = EVERYTHING[name]()
    figure, axes = drawing.figure, axes_of(drawing)
    below, title = figure._supxlabel.get_window_extent(), figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
    for text in (figure._supxlabel, figure._suptitle, *(text for one in figure.axes for text in labels(one))):  # type: ignore[attr-defined]
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1 + 1
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.y1
    assert below.y1 <= min(text.get_window_extent().y0 for text in labels(figure.axes[-1]))
    if legend := axes.get_legend():
        box = legend.get_window_extent()
        assert axes.bbox.y1 - 1 <= box.y0
        assert box.y1 <= title.y0
        assert box.x1 <= figure.bbox.x1


def labels(axes):
    """Return the names of the axes and the numbers on them."""
    shown = [axes.xaxis.label, axes.yaxis.label]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())  # ticks outside are not drawn
        shown += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in shown if text.get_text() and text.get_visible()]


def test_long_names_and_dollar_signs_are_drawn():
    name = f"_a$\\alpha$b$x/{LONG}"
    for drawing in (
        figures.draw_study(STUDY, table(point(1, 2.0, name), point(2, 3.0, name), point(1, 2.0, "b"))),
        figures.draw_density(make_accuracy(run=name), RUNS),
        figures.draw_stragglers(many_ranks(2, 5, name), RUNS),
        figures.draw_phases(many_ranks(2, 5, name), RUNS),
        figures.draw_pareto_front(CHOICES.assign(label=name)),
    ):
        assert len(style.to_svg(drawing)) > 10_000
        assert figures_width(drawing) <= drawing.figure.bbox.x1 + 1
    assert len(legend_of(figures.draw_stragglers(many_ranks(2, 5, name), RUNS))) == 2


def figures_width(drawing):
    """Return the right edge of all text."""
    figure, legend = drawing.figure, axes_of(drawing).get_legend()
    texts = [figure._suptitle, *([figure._supxlabel] if figure._supxlabel else []), *([legend] if legend else [])]
    return max(text.get_window_extent().x1 for text in texts)


def test_series_differ_without_colour():
    assert len({(look.marker, str(look.dash)) for look in map(style.get_series_style, range(64))}) == 64
    drawing = figures.draw_study(STUDY, SEVERAL[SEVERAL["series"] < "series 6"])
    drawn = [bar.lines[0] for bar in axes_of(drawing).containers]
    looks = {(line.get_marker(), str(line._dash_pattern)) for line in drawn}
    assert len(looks) == len(drawn) == 6
    phases = [bar.patches[0] for bar in axes_of(figures.draw_phases(many_ranks(), RUNS)).containers[:5]]
    assert len({patch.get_hatch() for patch in phases}) == 5


def test_the_density_of_many_and_few_differs_in_its_greys():
    mesh = axes_of(figures.draw_density(make_accuracy(), RUNS)).collections[0]
    greys = [np.dot(mesh.cmap(value)[:3], [0.299, 0.587, 0.114]) for value in np.linspace(0, 1, 20)]
    assert (np.diff(greys) > 0).all()
    assert greys[0] < 0.2
    assert greys[-1] > 0.7


def test_colours_of_neighbours_differ_with_red_green_blindness():
    # Protanopia and deuteranopia: Viénot, Brettel & Mollon 1999, on linear RGB.
    views = (
        np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
        np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
    )
    for view in views:
        seen = [view @ np.array(to_rgb(color)) ** 2.2 for color in style.PALETTE]
        assert min(np.abs(a - b).max() for a, b in combinations(seen, 2)) > 0.05


def test_figures_drawn_in_several_threads_are_equal():
    def files(name):
        drawing = EVERYTHING[name]()
        return style.to_svg(drawing), style.to_png(drawing)

    names = ["draw", "density", "phases", "pareto"]
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(files, names))
    assert at_once == [files(name) for name in names]


def test_figures_need_no_display_and_no_home_and_change_no_settings(tmp_path):
    code = (
        "import os, sys, analysis.figures, matplotlib; assert 'matplotlib.pyplot' not in sys.modules; "
        "assert matplotlib.rcParams == matplotlib.rcParamsDefault; print(os.environ['MPLCONFIGDIR'])"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "COSMICAI_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env=environment | {"COSMICAI_IMAGE_VARIANT": "cpu", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"{tmp_path}/matplotlib\n", "")


def test_ten_thousand_ranks_and_a_million_galaxies_stay_small():
    drawing = figures.draw_stragglers(many_ranks(8, 10000), RUNS)
    assert len(style.to_svg(drawing)) < 300_000
    density = figures.draw_density(make_accuracy(1_000_000), RUNS)
    assert len(style.to_svg(density)) < 300_000
    with Image.open(io.BytesIO(style.to_png(density))) as picture:
        assert picture.convert("L").getextrema()[0] < 30  # type: ignore[operator]
