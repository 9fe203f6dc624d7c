"""Draw time and cost of the choices of a recommendation."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from ..formatting import format_statistic, join_texts
from .style import (
    TICK,
    Drawing,
    add_legend,
    create_figure,
    finish_drawing,
    label_axes,
    mark_empty,
    set_linear,
    set_logarithmic,
)

MAX_NUMBERED = 16  # choices that are all numbered and listed; of more, only those on the front
WIDE = 30  # ratio of maximum to minimum above which an axis is logarithmic
PREDICTED = "Times are predicted from measured runs."
NEAR = 0.035  # fraction of an axis: points this close share the label of their numbers


def draw_pareto_front(choices: pd.DataFrame, name: str = "pareto", cost: str = "dollars") -> Drawing:
    """Draw seconds and cost of each choice; a choice is on the front if no other is both faster and cheaper.

    `choices` has the columns label, seconds, on_front, `cost`, which is dollars or service_units, and origin and
    machine of the runs from which its time is predicted. A choice without seconds or cost is counted but not drawn. The
    numbers of points refer to the list below the axes.
    """
    unit = cost.replace("_", " ")
    title, known = f"Time and {unit} of each choice", choices.dropna(subset=["seconds", cost])
    is_on, by = known["on_front"].astype(bool), ["seconds", cost]
    front, others = known[is_on].sort_values(by), known[~is_on].sort_values(by)
    numbered = pd.concat([front, others]) if len(known) <= MAX_NUMBERED else front
    figure = create_figure()
    axes = figure.add_subplot()
    label_axes(axes, "seconds from start to end", f"US {unit}" if cost == "dollars" else unit)
    absent = len(choices) - len(known)
    left_out = f"Not drawn, since time or cost is not known: {absent} of {len(choices)} choices." if absent else ""
    if known.empty:
        mark_empty(axes, reason := "there is no choice with known time and cost")
        return finish_drawing(figure, name, title, f"Nothing is drawn: {reason}.", known, [left_out])
    axes.plot(
        others["seconds"], others[cost], linestyle="none", marker="s", markersize=6, markerfacecolor="white",
        color="#606060", label="not on the front" if len(others) else None,
    )  # fmt: skip
    axes.plot(
        front["seconds"], front[cost], linestyle="--", drawstyle="steps-post", linewidth=1, marker="o",
        markersize=8, color="black", label="on the front: no other is both faster and cheaper",
    )  # fmt: skip
    _set_scale(axes, "x", known["seconds"])
    _set_scale(axes, "y", known[cost])
    _number_points(axes, numbered[by])
    add_legend(axes)
    lines = [
        f"{number}  {row.label}: {format_statistic(row.seconds)} s, {format_statistic(getattr(row, cost))} {unit}"
        for number, row in enumerate(numbered.itertuples(), start=1)
    ]
    best = [
        f"{row.label} takes {format_statistic(row.seconds)} s for {format_statistic(getattr(row, cost))} {unit}"
        for row in front.itertuples()
    ]
    caption = f"{len(front)} of {len(known)} choices are on the front: {join_texts(best, 6)}."
    return finish_drawing(figure, name, title, caption, known, [*lines, left_out, PREDICTED])


def _set_scale(axes: Axes, name: str, values: pd.Series) -> None:
    """Make an axis logarithmic if its values differ widely, with a linear part if some are 0."""
    positive = values[values > 0]
    if len(positive) and values.max() > WIDE * positive.min():
        if len(positive) == len(values):
            set_logarithmic(axes, name)
            return
        getattr(axes, f"set_{name}scale")("symlog", linthresh=positive.min())
    set_linear(axes, name)


def _number_points(axes: Axes, points: pd.DataFrame) -> None:
    """Write numbers next to the points; points that nearly coincide share a label."""
    to_axes = axes.transData + axes.transAxes.inverted()
    placed: list[tuple[float, float, list[str]]] = []
    for number, (x, y) in enumerate(to_axes.transform(points.to_numpy(float)), start=1):
        near = next((numbers for left, low, numbers in placed if max(abs(left - x), abs(low - y)) < NEAR), None)
        if near is None:
            placed.append((x, y, [str(number)]))
        else:
            near.append(str(number))
    for x, y, numbers in placed:
        axes.annotate(
            ", ".join(numbers),
            (x, y),
            xycoords="axes fraction",
            xytext=(7, 5),
            textcoords="offset points",
            fontsize=TICK,
        )
