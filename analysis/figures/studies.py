"""A study's figure: means over repeats with their least and greatest, medians beside them, and what to doubt."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.transforms import ScaledTranslation

from ..studies import Study
from .style import (
    Drawing,
    Look,
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

BESIDE, ABOVE = 6 / 72, 11 / 72  # inches from a mean to its median, from the greatest to the dagger
MEDIAN, DOUBTFUL = "median, beside the mean", "with doubtful runs"
_DAGGER = TextPath((-0.25, -0.3), "†", size=1)


def draw(study: Study, table: pd.DataFrame, source: str = "") -> Drawing:
    """The figure of a study from its `study_table`; `source`, such as the machine, is printed small."""
    shown = table.dropna(subset=["x", "value"])
    names = list(dict.fromkeys(table["series"]))  # also of those without points, so that looks do not change
    figure = begin()
    axes = figure.add_subplot()
    label(axes, study.x_label, study.y_label)
    if shown.empty:
        which = "no run that may be averaged" if len(table) else "no run"
        empty(axes, reason := f"{which} tells of both {study.x_label} and {study.y_label}")
        return finish(figure, study.name, study.title, f"Nothing is drawn: {reason}.", [*_notes(study, table), source])
    axes.margins(y=0.12)  # for the daggers
    for name, points in shown.groupby("series", sort=False):
        _series(axes, str(name), points.sort_values("x"), look(names.index(name)))
    for axis, log in (("x", study.log_x), ("y", study.log_y)):
        if log:
            logarithmic(axes, axis)
        else:
            linear(axes, axis)
    ticks_at(axes, shown["x"])
    legend(axes, _legend(axes, shown))
    return finish(figure, study.name, study.title, _caption(study, shown), [*_notes(study, table), source])


def _series(axes: Axes, name: str, points: pd.DataFrame, style: Look) -> None:
    """A line through the means, from least to greatest; where runs were repeated their median as an open marker."""
    least, greatest = points["value"] - points["low"], points["high"] - points["value"]
    axes.errorbar(
        points["x"], points["value"], [least.clip(lower=0), greatest.clip(lower=0)], color=style.color,
        marker=style.marker, linestyle=style.dash, linewidth=1.4, markersize=6, elinewidth=1, capsize=3,
        label=shortened(name, 54),
    )  # fmt: skip
    repeated, doubtful = points[points["runs"] > 1], points[points["doubtful"] > 0]
    axes.plot(
        repeated["x"], repeated["median"], linestyle="none", marker=style.marker, markersize=5.5, color=style.color,
        markerfacecolor="white", transform=axes.transData + _shift(axes, BESIDE, 0), clip_on=False,
        in_layout=False, label=f"_median {name}",
    )  # fmt: skip
    axes.plot(
        doubtful["x"], doubtful["high"], linestyle="none", marker=_DAGGER, markersize=11, color="black",
        markeredgewidth=0, transform=axes.transData + _shift(axes, 0, ABOVE), clip_on=False,
        in_layout=False, label=f"_doubtful {name}",
    )  # fmt: skip


def _shift(axes: Axes, right: float, up: float) -> ScaledTranslation:
    assert axes.figure is not None
    return ScaledTranslation(right, up, axes.figure.dpi_scale_trans)


def _legend(axes: Axes, shown: pd.DataFrame) -> list[Artist]:
    """The series, if they have names, and what open markers and daggers are."""
    series = axes.get_legend_handles_labels()[0]
    explained = []
    if (shown["runs"] > 1).any():
        explained.append(Line2D([], [], color="black", marker="o", markerfacecolor="white", linestyle="none",
                                label=MEDIAN))  # fmt: skip
    if (shown["doubtful"] > 0).any():
        explained.append(Line2D([], [], color="black", marker=_DAGGER, markersize=11, markeredgewidth=0,
                                linestyle="none", label=DOUBTFUL))  # fmt: skip
    return [*series, *explained]


def _notes(study: Study, table: pd.DataFrame) -> list[str]:
    """What must be read with the figure: how many runs it shows, and how many it does not."""
    counts = table[["runs", "whole", "doubtful", "incomplete", "left_out"]].sum()
    unknown = counts["runs"] - counts["whole"] - counts["doubtful"] - counts["incomplete"]
    kinds = {"whole": counts["whole"], "doubtful": counts["doubtful"], "incomplete": counts["incomplete"]}
    kinds["that nothing tells to be whole"] = unknown
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    left_out = f"{counts['left_out']} incomplete left out" if counts["left_out"] else "none left out"
    runs = f"{counts['runs']} runs ({told}); {left_out}." if told else f"No runs; {left_out}."
    bars = "Points: means over repeats without outliers; bars: the least and the greatest repeat. "
    return [(bars if (table["runs"] > 1).any() else "") + runs, study.note]


def _caption(study: Study, shown: pd.DataFrame) -> str:
    """Each line from its first to its last point, in words."""
    told = []
    for name, points in shown.groupby("series", sort=False):
        first, last = (points.sort_values("x").iloc[end] for end in (0, -1))
        text = f"{_number(first['value'])} at {plain(first['x'])}"
        if last["x"] != first["x"]:
            text += f" to {_number(last['value'])} at {plain(last['x'])}"
        told.append(f"{name}: {text}" if name else text)
    return f"{study.y_label[0].upper()}{study.y_label[1:]}, against {study.x_label}. {listed(told)}."


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
