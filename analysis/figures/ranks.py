"""Where the time of ranks goes, how far they lie apart, and how much faster more of them are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from cosmicai.errors import InputError

from .. import scaling
from .style import (
    GREYS,
    HATCHES,
    PALETTE,
    TICK,
    Drawing,
    begin,
    empty,
    finish,
    label,
    legend,
    linear,
    listed,
    logarithmic,
    look,
    plain,
    shortened,
    ticks_at,
)  # fmt: skip

MOST_BARS, MOST_LINES = 16, 8  # runs
POINTS = 300  # of a line: ten thousand ranks would be half a megabyte, and not be seen
RANGE = (0.05, 0.95)  # quantiles of ranks


def phases(ranks: pd.DataFrame, source: str = "", name: str = "phases") -> Drawing:
    """Seconds of a rank in each phase, a bar per run: medians over ranks; beside it the range of their sums.

    `ranks` has RANK_COLUMNS, of any runs; those of which no rank tells of its phases have no bar. Of more than
    MOST_BARS runs the first are drawn.
    """
    title = "Where the time of ranks goes"
    table = scaling.phases(ranks)
    shown = table.head(MOST_BARS)
    figure = begin(1.4 + 0.42 * max(len(shown), 2))
    axes = figure.add_subplot()
    label(axes, "seconds of a rank", "")
    if shown.empty:
        empty(axes, reason := "no rank of these runs tells of its phases")
        return finish(figure, name, title, f"Nothing is drawn: {reason}.", [source])
    columns = [f"{phase}_seconds" for phase in scaling.PHASES]
    told = ranks[ranks["run"].isin(shown["run"])]
    sums = told[columns].sum(axis=1, min_count=1).groupby(told["run"])
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
    names = [f"{shortened(run, 26)} ({count:,})" for run, count in zip(shown["run"], attempts, strict=True)]
    axes.set_yticks(places, names, fontsize=TICK)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05 * max(left.max(), high.max()))
    legend(axes)
    others = len(table) - len(shown)
    notes = [
        "Bars: median over ranks of each phase; what no rank tells of is absent. In "
        "brackets: ranks, every attempt counted.",
        f"{others} more runs are not drawn." if others else "",
        _silent(ranks, table),
        source,
    ]
    return finish(figure, name, title, _phases_caption(shown, middle), notes)


def stragglers(ranks: pd.DataFrame, source: str = "", name: str = "stragglers") -> Drawing:
    """The seconds of each run's ranks in ascending order, from the fastest to the slowest.

    `ranks` has RANK_COLUMNS, of any runs; a run of one rank, or whose ranks do not say how long they worked, has no
    line. Of more than MOST_LINES runs those with the most ranks are drawn, through POINTS of their ranks.
    """
    title = "Ranks from the fastest to the slowest"
    found = {}
    for run, rows in ranks.groupby("run", sort=False):
        try:
            found[str(run)] = scaling.stragglers(rows)
        except InputError:  # its ranks do not tell
            continue
    several = sorted((run for run in found if len(found[run].seconds) > 1), key=lambda run: -len(found[run].seconds))
    shown = several[:MOST_LINES]
    figure = begin()
    axes = figure.add_subplot()
    label(axes, "ranks, from the fastest to the slowest, %", "seconds that a rank worked")
    if not shown:
        empty(axes, reason := "no run of several ranks tells how long each of them worked")
        return finish(figure, name, title, f"Nothing is drawn: {reason}.", [source])
    captions = []
    for number, run in enumerate(shown):
        seconds, style = found[run].seconds, look(number)
        taken = np.unique(np.linspace(0, len(seconds) - 1, min(POINTS, len(seconds))).round().astype(int))
        axes.plot(
            100 * taken / (len(seconds) - 1), seconds[taken], color=style.color, linestyle=style.dash, linewidth=1.4,
            marker=style.marker, markersize=5, markevery=(0.02 * (number + 1), 0.2),
            label=f"{shortened(run, 34)} ({len(seconds):,} ranks)",
        )  # fmt: skip
        captions.append(
            f"{run}: the slowest of {len(seconds):,} ranks took {seconds[-1]:.4g} s, "
            f"{found[run].slowest_to_median:.2f} times the median, and {found[run].idle:.0%} of all rank-seconds would "
            "be spent waiting for it"
        )
    fastest = min(found[run].seconds[0] for run in shown)
    if fastest > 0 and max(found[run].seconds[-1] for run in shown) > 30 * fastest:
        logarithmic(axes, "y")
    else:
        linear(axes, "y")
    legend(axes)
    others = len(several) - len(shown)
    notes = [f"{others} more runs, of as many ranks or fewer, are not drawn." if others else "", source]
    return finish(figure, name, title, f"{listed(captions)}.", notes)


def speed_up(table: pd.DataFrame, source: str = "", name: str = "speed-up") -> Drawing:
    """How many times faster more ranks are than the fewest, with the law of Amdahl through each series' times.

    `table` is that of a study of seconds by ranks (`studies.study_table`). Bars: the least and the greatest repeat.
    """
    title, figure = "Speed-up by number of ranks", begin(4.4)
    axes = figure.add_subplot()
    label(axes, "ranks", "times faster than the fewest")
    measured = table.dropna(subset=["x", "value"])
    several = measured.groupby("series")["x"].transform("nunique") > 1
    if not several.any():
        empty(axes, reason := "no two runs that may be compared differ in their number of ranks")
        return finish(figure, name, title, f"Nothing is drawn: {reason}.", [source])
    axes.set(xscale="log", yscale="log")
    fits, captions, handles = [], [], []
    for number, (series, points) in enumerate(measured[several].sort_values("x").groupby("series", sort=False)):
        style, first, last = look(number), points.iloc[0], points.iloc[-1]
        seconds = points["value"].to_numpy(float)
        faster = first["value"] / seconds
        bars = [faster - first["value"] / points["high"], first["value"] / points["low"] - faster]
        axes.errorbar(
            points["x"], faster, np.clip(bars, 0, None), color=style.color, marker=style.marker, linestyle="none",
            capsize=3, label=series,
        )  # fmt: skip
        ends = np.array([first["x"], last["x"]])
        axes.plot(ends, ends / ends[0], color="#808080", linewidth=0.9)
        law = _law(points["x"], seconds)
        if law:
            x = np.geomspace(ends[0], ends[1], 60)
            axes.plot(
                x, first["value"] / law.seconds(x), color=style.color, linestyle=style.dash, label=f"_law {series}"
            )
            fits.append(f"{series or 'all runs'}: {_told(law)}")
        captions.append(
            f"{series or 'all runs'}: {faster[-1]:.2f} times with {last['x']:,.0f} ranks over {ends[0]:,.0f}"
        )
        handles.append(
            Line2D([], [], color=style.color, marker=style.marker, linestyle=style.dash if law else "none",
                   label=shortened(str(series) or "measured", 50))
        )  # fmt: skip
    handles.append(Line2D([], [], color="#808080", linewidth=0.9, label="as the number of ranks"))
    logarithmic(axes, "x")
    logarithmic(axes, "y")
    ticks_at(axes, measured.loc[several, "x"])
    legend(axes, handles)
    notes = ["Points: measured, bars: the least and the greatest repeat; lines: the law of Amdahl, fitted."]
    return finish(figure, name, title, f"{listed([*captions, *fits], 6)}.", [*notes, *fits, source])


def _law(ranks: pd.Series, seconds: NDArray[np.float64]) -> scaling.Amdahl | None:
    """The law through these times, if they are of enough numbers of ranks."""
    try:
        return scaling.fit_amdahl(ranks.to_list(), seconds.tolist())
    except InputError:
        return None


def _told(law: scaling.Amdahl) -> str:
    if law.serial_fraction > 1:
        return "the law does not fit, since more ranks take longer"
    if law.serial_fraction < 0:
        return "the law does not fit, since the speed-up is more than the number of ranks"
    return f"serial part {law.serial_fraction:.1%} ± {law.sigma:.1%}"


def _silent(ranks: pd.DataFrame, table: pd.DataFrame) -> str:
    runs = ranks["run"].nunique() - len(table)
    return f"{runs} runs do not tell of phases." if runs else ""


def _phases_caption(shown: pd.DataFrame, middle: NDArray[np.float64]) -> str:
    told = []
    for (_, row), seconds in zip(shown.iterrows(), middle, strict=True):
        parts = ", ".join(
            f"{phase} {plain(float(f'{row[phase]:.3g}'))} s" for phase in scaling.PHASES if row[phase] > 0
        )
        told.append(f"{row['run']}: {seconds:.4g} s in the median of its ranks ({parts})")
    return f"{listed(told)}."
