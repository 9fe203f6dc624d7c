"""What the choices of an advice would take and cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from .style import TICK, Drawing, begin, empty, finish, label, legend, linear, listed, logarithmic

NUMBERED = 16  # choices that are numbered and listed; of more, only those on the front
WIDE = 30  # times from the least to the greatest at which an axis is logarithmic
NEAR = 0.035  # of an axis: points as near as this share a place for their numbers


def pareto(choices: pd.DataFrame, source: str = "", name: str = "pareto", cost: str = "dollars") -> Drawing:
    """Seconds and cost of each choice; on the front are those than which no other is both faster and cheaper.

    `choices` has columns label, seconds, on_front and the cost: dollars or service_units, whichever all of them are
    charged. One without seconds or cost cannot be drawn, and is counted. The numbers of points are those of the list
    below them.
    """
    unit = cost.replace("_", " ")
    title, known = f"Time and {unit} of each choice", choices.dropna(subset=["seconds", cost])
    is_on, by = known["on_front"].astype(bool), ["seconds", cost]
    front, others = known[is_on].sort_values(by), known[~is_on].sort_values(by)
    numbered = pd.concat([front, others]) if len(known) <= NUMBERED else front
    figure = begin()
    axes = figure.add_subplot()
    label(axes, "seconds from start to end", f"US {unit}" if cost == "dollars" else unit)
    absent = len(choices) - len(known)
    left_out = f"Not drawn, since time or cost is not known: {absent} of {len(choices)} choices." if absent else ""
    if known.empty:
        empty(axes, reason := "of no choice both time and cost are known")
        return finish(figure, name, title, f"Nothing is drawn: {reason}.", [left_out, source])
    axes.plot(
        others["seconds"], others[cost], linestyle="none", marker="s", markersize=6, markerfacecolor="white",
        color="#606060", label="off the front" if len(others) else None,
    )  # fmt: skip
    axes.plot(
        front["seconds"], front[cost], linestyle="--", drawstyle="steps-post", linewidth=1, marker="o",
        markersize=8, color="black", label="on the front: none is both faster and cheaper",
    )  # fmt: skip
    _scale(axes, "x", known["seconds"])
    _scale(axes, "y", known[cost])
    _number(axes, numbered[by])
    legend(axes)
    lines = [
        f"{number}  {row.label}: {row.seconds:,.4g} s, {getattr(row, cost):.4g} {unit}"
        for number, row in enumerate(numbered.itertuples(), start=1)
    ]
    best = [f"{row.label} takes {row.seconds:,.4g} s for {getattr(row, cost):.4g} {unit}" for row in front.itertuples()]
    caption = f"{len(front)} of {len(known)} choices are on the front: {listed(best, 6)}."
    return finish(figure, name, title, caption, [*lines, left_out, source])


def _scale(axes: Axes, name: str, values: pd.Series) -> None:
    """A logarithmic axis where values lie far apart; with room for those that are 0, as what costs nothing."""
    positive = values[values > 0]
    if len(positive) and values.max() > WIDE * positive.min():
        if len(positive) == len(values):
            logarithmic(axes, name)
            return
        getattr(axes, f"set_{name}scale")("symlog", linthresh=positive.min())
    linear(axes, name)


def _number(axes: Axes, points: pd.DataFrame) -> None:
    """Numbers beside the points, those of points that nearly coincide together."""
    to_axes = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, float, list[str]]] = []
    for number, (x, y) in enumerate(to_axes.transform(points.to_numpy(float)), start=1):
        near = next((told for left, low, told in taken if max(abs(left - x), abs(low - y)) < NEAR), None)
        if near is None:
            taken.append((x, y, [str(number)]))
        else:
            near.append(str(number))
    for x, y, told in taken:
        axes.annotate(
            ", ".join(told), (x, y), xycoords="axes fraction", xytext=(7, 5), textcoords="offset points", fontsize=TICK
        )
