"""Draw a study: means over repeats with their minimum and maximum, their medians, and marks of doubtful runs."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.transforms import ScaledTranslation

from ..formatting import format_statistic, join_texts
from ..studies import Study
from .style import (
    MAX_ROWS,
    Drawing,
    SeriesStyle,
    add_legend,
    create_figure,
    finish_drawing,
    format_number,
    get_series_style,
    label_axes,
    mark_empty,
    set_linear,
    set_logarithmic,
    set_ticks,
)  # fmt: skip

RIGHT, ABOVE = 6 / 72, 11 / 72  # inches from a mean to its median, and from the maximum to the dagger
MEDIAN, DOUBTFUL = "median, to the right of the mean", "with doubtful runs"
OTHERS = SeriesStyle("#b0b0b0", ".", "-")  # of series without a row in the legend
_DAGGER = TextPath((-0.25, -0.3), "†", size=1)


def draw_study(study: Study, table: pd.DataFrame) -> Drawing:
    """Draw a study from its `build_study_table`.

    Of more series than a legend has rows, ours and then those with the most points are named; the others are grey.
    """
    shown = table.dropna(subset=["x", "value"])
    names = list(dict.fromkeys(table["series"]))  # with those without points, so that styles do not depend on them
    figure = create_figure()
    axes = figure.add_subplot()
    label_axes(axes, study.x_label, study.y_label)
    if shown.empty:
        which = "no run that may be averaged" if len(table) else "no run"
        mark_empty(axes, reason := f"{which} states both {study.x_label} and {study.y_label}")
        return finish_drawing(
            figure, study.name, study.title, f"Nothing is drawn: {reason}.", shown, _make_notes(study, table)
        )
    axes.margins(y=0.12)  # room for the daggers
    marks = _make_marks(shown)
    named = _choose_named(shown, MAX_ROWS - len(marks))
    for name, points in shown.groupby("series", sort=False):
        style = get_series_style(names.index(name)) if name in named else OTHERS
        _draw_series(axes, str(name), points.sort_values("x"), style)
    series = [one for one in axes.get_legend_handles_labels()[0] if one.get_label() in named]
    if others := shown["series"].nunique() - len(named):
        look = {"color": OTHERS.color, "marker": OTHERS.marker, "linestyle": OTHERS.dash}
        marks.insert(0, Line2D([], [], markersize=6, label=f"and {others} more", **look))
    for axis, log in (("x", study.log_x), ("y", study.log_y)):
        if log:
            set_logarithmic(axes, axis)
        else:
            set_linear(axes, axis)
    set_ticks(axes, shown["x"])
    add_legend(axes, series, marks)
    return finish_drawing(
        figure, study.name, study.title, _make_caption(study, shown), shown, _make_notes(study, table)
    )


def _choose_named(shown: pd.DataFrame, rows: int) -> set[str]:
    """Return the series that the legend names in at most `rows` rows, one of which counts the others."""
    points = shown.groupby("series", sort=False).agg(origin=("origin", "first"), count=("x", "size"))
    points = points.assign(ours=points["origin"].eq("ours"))
    order = points.sort_values(["ours", "count"], ascending=False, kind="stable").index
    return set(order if len(order) <= rows else order[: rows - 1])


def _draw_series(axes: Axes, name: str, points: pd.DataFrame, style: SeriesStyle) -> None:
    """Draw a line through the means with bars from minimum to maximum, and open markers at medians of repeats."""
    below, above = points["value"] - points["low"], points["high"] - points["value"]
    axes.errorbar(
        points["x"], points["value"], [below.clip(lower=0), above.clip(lower=0)], color=style.color,
        marker=style.marker, linestyle=style.dash, linewidth=1.4, markersize=6, elinewidth=1, capsize=3,
        label=name,
    )  # fmt: skip
    repeated, doubtful = points[points["runs"] > 1], points[points["doubtful"] > 0]
    axes.plot(
        repeated["x"], repeated["median"], linestyle="none", marker=style.marker, markersize=5.5, color=style.color,
        markerfacecolor="white", transform=axes.transData + _make_offset(axes, RIGHT, 0), clip_on=False,
        in_layout=False, label=f"_median {name}",
    )  # fmt: skip
    axes.plot(
        doubtful["x"], doubtful["high"], linestyle="none", marker=_DAGGER, markersize=11, color="black",
        markeredgewidth=0, transform=axes.transData + _make_offset(axes, 0, ABOVE), clip_on=False,
        in_layout=False, label=f"_doubtful {name}",
    )  # fmt: skip


def _make_offset(axes: Axes, right: float, up: float) -> ScaledTranslation:
    assert axes.figure is not None
    return ScaledTranslation(right, up, axes.figure.dpi_scale_trans)


def _make_marks(shown: pd.DataFrame) -> list[Artist]:
    """Return legend entries of open markers and daggers, where there are any."""
    marks: list[Artist] = []
    if (shown["runs"] > 1).any():
        marks.append(Line2D([], [], color="black", marker="o", markerfacecolor="white", linestyle="none",
                            label=MEDIAN))  # fmt: skip
    if (shown["doubtful"] > 0).any():
        marks.append(Line2D([], [], color="black", marker=_DAGGER, markersize=11, markeredgewidth=0,
                            linestyle="none", label=DOUBTFUL))  # fmt: skip
    return marks


def _make_notes(study: Study, table: pd.DataFrame) -> list[str]:
    """Return the notes below the figure: how many runs it shows, by verdict, and how many it does not."""
    counts = table[["runs", "whole", "doubtful", "incomplete", "left_out"]].sum()
    unknown = counts["runs"] - counts["whole"] - counts["doubtful"] - counts["incomplete"]
    kinds = {"whole": counts["whole"], "doubtful": counts["doubtful"], "incomplete": counts["incomplete"]}
    kinds["of unknown completeness"] = unknown
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    left_out = f"{counts['left_out']} incomplete left out" if counts["left_out"] else "none left out"
    runs = f"{counts['runs']} runs ({shown}); {left_out}." if shown else f"No runs; {left_out}."
    bars = "Points: means over repeats without outliers; bars: minimum and maximum of the repeats. "
    return [(bars if (table["runs"] > 1).any() else "") + runs, study.note]


def _make_caption(study: Study, shown: pd.DataFrame) -> str:
    """Return each line from its first to its last point as text."""
    lines = []
    for name, points in shown.groupby("series", sort=False):
        first, last = (points.sort_values("x").iloc[end] for end in (0, -1))
        text = f"{format_statistic(first['value'], first['runs'])} at {format_number(first['x'])}"
        if last["x"] != first["x"]:
            text += f" to {format_statistic(last['value'], last['runs'])} at {format_number(last['x'])}"
        lines.append(f"{name}: {text}" if name else text)
    return f"{study.y_label[0].upper()}{study.y_label[1:]}, against {study.x_label}. {join_texts(lines)}."
