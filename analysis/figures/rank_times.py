"""Draw the phases of ranks, the spread of their times, and the speed-up by number of ranks."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cosmicai.errors import InputError

from .. import scaling
from ..formatting import count_noun, format_statistic, join_texts
from .style import (
    GREYS,
    HATCHES,
    MAX_ROWS,
    PALETTE,
    TICK,
    Drawing,
    add_legend,
    create_figure,
    finish_drawing,
    get_series_style,
    label_axes,
    mark_empty,
    set_linear,
    set_logarithmic,
    set_ticks,
    shorten,
)  # fmt: skip

MAX_BARS, MAX_LINES = 16, 8  # runs
POINTS = 300  # of a line: ten thousand would take half a megabyte without a visible difference
RANGE = (0.05, 0.95)  # quantiles over ranks


def draw_phases(ranks: pd.DataFrame, runs: pd.DataFrame, name: str = "phases") -> Drawing:
    """Draw the seconds of a rank in each phase, a bar per run: medians over ranks, and the range of their sums.

    `ranks` has RANK_COLUMNS, for any runs, and `runs` has those with their origin and machine; runs without phases have
    no bar. Of more than MAX_BARS runs only the first are drawn.
    """
    title = "Time of ranks by phase"
    table = scaling.summarize_phases(ranks)
    shown = table.head(MAX_BARS)
    figure = create_figure(1.4 + 0.42 * max(len(shown), 2))
    axes = figure.add_subplot()
    label_axes(axes, "seconds of a rank", "")
    if shown.empty:
        mark_empty(axes, reason := "no rank of these runs states its phases")
        return finish_drawing(figure, name, title, f"Nothing is drawn: {reason}.", runs[:0])
    columns = [f"{phase}_seconds" for phase in scaling.PHASES]
    drawn = ranks[ranks["run"].isin(shown["run"])]
    sums = drawn[columns].sum(axis=1, min_count=1).groupby(drawn["run"])
    low, middle, high = (sums.quantile(q).reindex(shown["run"]).to_numpy() for q in (RANGE[0], 0.5, RANGE[1]))
    attempts = sums.count().reindex(shown["run"]).to_numpy()
    places, left = np.arange(len(shown)), np.zeros(len(shown))
    for number, phase in enumerate(scaling.PHASES):
        if shown[phase].isna().all():
            continue
        width = shown[phase].fillna(0).to_numpy()
        axes.barh(
            places, width, 0.5, left, label=phase, facecolor=GREYS[number], hatch=HATCHES[number], edgecolor="black",
            linewidth=0.7,
        )  # fmt: skip
        left = left + width
    axes.errorbar(
        middle, places + 0.37, xerr=[middle - low, high - middle], linestyle="none", marker="D", markersize=4,
        color=PALETTE[4], capsize=3, label="sum: median, 5–95%",
    )  # fmt: skip
    names = [f"{shorten(run, 26)} ({count:,})" for run, count in zip(shown["run"], attempts, strict=True)]
    axes.set_yticks(places, names, fontsize=TICK)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05 * max(left.max(), high.max()))
    add_legend(axes)
    others = len(table) - len(shown)
    notes = [
        "Bars: median over ranks of each phase, without unknown phases. In brackets: number of ranks, with all "
        "attempts.",
        f"{count_noun(others, 'more run')} not drawn." if others else "",
        _count_without_phases(ranks, table),
    ]
    rows = runs[runs["run"].isin(shown["run"])]
    return finish_drawing(figure, name, title, _make_phases_caption(shown, middle, attempts), rows, notes)


def draw_stragglers(ranks: pd.DataFrame, runs: pd.DataFrame, name: str = "stragglers") -> Drawing:
    """Draw the seconds of each run's ranks in ascending order, from the fastest to the slowest.

    `ranks` has RANK_COLUMNS, for any runs, and `runs` has those with their origin and machine; a run of one rank, or
    whose ranks do not state how long they worked, has no line. Of more than MAX_LINES runs those with the most ranks
    are drawn, through POINTS of their ranks.
    """
    title = "Ranks from the fastest to the slowest"
    found = {}
    for run, rows in ranks.groupby("run", sort=False):
        try:
            found[str(run)] = scaling.measure_stragglers(rows)
        except InputError:  # its ranks do not state their times
            continue
    several = sorted((run for run in found if len(found[run].seconds) > 1), key=lambda run: -len(found[run].seconds))
    shown = several[:MAX_LINES]
    figure = create_figure()
    axes = figure.add_subplot()
    label_axes(axes, "ranks, from the fastest to the slowest, %", "seconds that a rank worked")
    if not shown:
        mark_empty(axes, reason := "no run of several ranks states how long each of them worked")
        return finish_drawing(figure, name, title, f"Nothing is drawn: {reason}.", runs[:0])
    captions = []
    for number, run in enumerate(shown):
        seconds, style = found[run].seconds, get_series_style(number)
        places = np.unique(np.linspace(0, len(seconds) - 1, min(POINTS, len(seconds))).round().astype(int))
        axes.plot(
            100 * places / (len(seconds) - 1), seconds[places], color=style.color, linestyle=style.dash, linewidth=1.4,
            marker=style.marker, markersize=5, markevery=(0.02 * (number + 1), 0.2),
            label=f"{run} ({len(seconds):,} ranks)",
        )  # fmt: skip
        captions.append(
            f"{run}: the slowest of {len(seconds):,} ranks took {format_statistic(seconds[-1], len(seconds))} s, "
            f"{format_statistic(found[run].slowest_to_median, len(seconds))} times the median, and "
            f"{found[run].idle:.0%} of all rank-seconds would be spent waiting for it"
        )
    fastest = min(found[run].seconds[0] for run in shown)
    if fastest > 0 and max(found[run].seconds[-1] for run in shown) > 30 * fastest:
        set_logarithmic(axes, "y")
    else:
        set_linear(axes, "y")
    add_legend(axes, axes.lines)  # also those with an underscore first, which matplotlib would leave out
    others = len(several) - len(shown)
    notes = [f"{count_noun(others, 'more run')} of as many ranks or fewer not drawn." if others else ""]
    rows = runs[runs["run"].isin(shown)]
    return finish_drawing(figure, name, title, f"{join_texts(captions)}.", rows, notes)


def draw_speed_up(table: pd.DataFrame, name: str = "speed-up") -> Drawing:
    """Draw the speed-up relative to the fewest ranks, with Amdahl's law fitted to the times of each series.

    `table` is that of a study of seconds by ranks (`studies.build_study_table`). Bars are minimum and maximum of the
    repeats. Of more series than a legend has rows those with the most points are drawn. Where threads per rank change
    with the ranks, a note says so.
    """
    title, figure = "Speed-up by number of ranks", create_figure(4.4)
    axes = figure.add_subplot()
    label_axes(axes, "ranks", "speed-up relative to the fewest ranks")
    measured = table.dropna(subset=["x", "value"])
    several = measured.groupby("series")["x"].transform("nunique") > 1
    if not several.any():
        mark_empty(axes, reason := "no two runs that may be compared differ in their number of ranks")
        return finish_drawing(figure, name, title, f"Nothing is drawn: {reason}.", measured[:0])
    axes.set(xscale="log", yscale="log")
    counts = measured.loc[several, "series"].value_counts(sort=False).sort_values(ascending=False, kind="stable")
    named = counts.index[: MAX_ROWS - 1]
    shown, others = measured[measured["series"].isin(named)].sort_values("x"), len(counts) - len(named)
    fits, captions, handles = [], [], []
    for number, (series, points) in enumerate(shown.groupby("series", sort=False)):
        style, first, last = get_series_style(number), points.iloc[0], points.iloc[-1]
        seconds = points["value"].to_numpy(float)
        faster = first["value"] / seconds
        bars = [faster - first["value"] / points["high"], first["value"] / points["low"] - faster]
        axes.errorbar(
            points["x"], faster, np.clip(bars, 0, None), color=style.color, marker=style.marker, linestyle="none",
            capsize=3, label=series,
        )  # fmt: skip
        ends = np.array([first["x"], last["x"]])
        axes.plot(ends, ends / ends[0], color="#808080", linewidth=0.9)
        law = _fit_law(points["x"], seconds)
        if law:
            x = np.geomspace(ends[0], ends[1], 60)
            axes.plot(
                x, first["value"] / law.seconds(x), color=style.color, linestyle=style.dash, label=f"_law {series}"
            )
            fits.append(f"{series or 'all runs'}: {_describe_law(law)}")
        times = format_statistic(faster[-1], min(first["runs"], last["runs"]))
        captions.append(f"{series or 'all runs'}: {times} times with {last['x']:,.0f} ranks over {ends[0]:,.0f}")
        handles.append(
            Line2D([], [], color=style.color, marker=style.marker, linestyle=style.dash if law else "none",
                   label=str(series) or "measured")
        )  # fmt: skip
    ideal = Line2D([], [], color="#808080", linewidth=0.9, label="proportional to the number of ranks")
    set_logarithmic(axes, "x")
    set_logarithmic(axes, "y")
    set_ticks(axes, shown["x"])
    add_legend(axes, handles, [ideal])
    notes = [
        "Points: measurements; bars: minimum and maximum of the repeats; lines: fits of Amdahl's law.",
        _describe_threads(shown),
        f"{others} more series not drawn." if others else "",
    ]
    return finish_drawing(figure, name, title, f"{join_texts([*captions, *fits], 6)}.", shown, [*notes, *fits])


def _describe_threads(points: pd.DataFrame) -> str:
    """Return the threads per rank with each number of ranks, if they change along a line; else nothing."""
    if not points.groupby("series")["threads"].nunique().gt(1).any():
        return ""
    pairs = points.dropna(subset="threads").drop_duplicates(["x", "threads"])
    texts = [f"{row.threads:,} with {count_noun(int(row.x), 'rank')}" for row in pairs.itertuples()]
    return f"Threads per rank: {', '.join(texts)}."


def _fit_law(ranks: pd.Series, seconds: NDArray[np.float64]) -> scaling.Amdahl | None:
    """Return Amdahl's law fitted to these times, or None for too few numbers of ranks."""
    try:
        return scaling.fit_amdahl(ranks.to_list(), seconds.tolist())
    except InputError:
        return None


def _describe_law(law: scaling.Amdahl) -> str:
    if law.serial_fraction > 1:
        return "Amdahl's law does not fit, since more ranks take longer"
    if law.serial_fraction < 0:
        return "Amdahl's law does not fit, since the speed-up exceeds the number of ranks"
    return f"serial part {law.serial_fraction:.1%} ± {law.sigma:.1%}"


def _count_without_phases(ranks: pd.DataFrame, table: pd.DataFrame) -> str:
    runs = ranks["run"].nunique() - len(table)
    return f"{count_noun(runs, 'run')} without phases." if runs else ""


def _make_phases_caption(shown: pd.DataFrame, middle: NDArray[np.float64], attempts: NDArray[np.int64]) -> str:
    runs = []
    for (_, row), seconds, count in zip(shown.iterrows(), middle, attempts, strict=True):
        parts = ", ".join(
            f"{phase} {format_statistic(row[phase], count)} s" for phase in scaling.PHASES if row[phase] > 0
        )
        runs.append(f"{row['run']}: median of {format_statistic(seconds, count)} s per rank ({parts})")
    return f"{join_texts(runs)}."
