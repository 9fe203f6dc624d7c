"""The common style of all figures, and how they are written to files.

Figures are readable without colour: series differ by marker and dash, bars by hatch, and the colours by their greys. At
a width of 400 pixels the smallest letters are 8 pixels tall. No figure changes global state: no pyplot, no settings.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from cosmicai.storage import atomic_write

from .attribution import describe_machines
from .labels import split_shared

WIDTH = 6.0  # inches
TITLE, LABEL, TICK, NOTE = 12.0, 11.0, 10.0, 8.5  # points; at a width of 400 pixels a point is 0.93 pixels
DPI = 150
MAX_ROWS = 8  # of a legend
ROOM, HANDLE, LETTERS = 62, 7, 54  # width of a legend, of a marker with its dash and of a label, in letters
MAX_TICKS, DIGIT = 16, 0.02  # ticks at points, and the width of a digit as a fraction of the x axis
# Okabe & Ito 2008, without its yellow, which is invisible on white paper; neighbours differ in lightness.
PALETTE = ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#009E73")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = (
    "-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)), (0, (3, 1, 1, 3)),
)  # fmt: skip
HATCHES = ("", "//", "..", "xx", "\\\\")
GREYS = ("#ffffff", "#bdbdbd", "#f0f0f0", "#969696", "#d9d9d9")  # of the bars with these hatches


@dataclass(frozen=True)
class Drawing:
    """A figure: the name of its files, its title, a caption with its main numbers as text alternative, and its rows.

    `rows` are those that the figure shows, with their `origin` and `machine` at least; the caption names the machines.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    rows: pd.DataFrame


@dataclass(frozen=True)
class SeriesStyle:
    """The style of a series; no two of the first 64 share both marker and dash."""

    color: str
    marker: str
    dash: Any


def get_series_style(number: int) -> SeriesStyle:
    """Return the style of the series with this number, from 0."""
    turn = number // len(MARKERS)
    return SeriesStyle(
        PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)], DASHES[(number + turn) % len(DASHES)]
    )


def create_figure(height: float = 3.9) -> Figure:
    """Return an empty figure; legend, notes and a second line of the title add to its `height` in inches."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def finish_drawing(
    figure: Figure, name: str, title: str, caption: str, rows: pd.DataFrame, notes: Iterable[str] = ()
) -> Drawing:
    """Return the figure with its title above and notes in small print below; its layout no longer changes.

    Caption and notes end with the machines of `rows`, which must be exactly the rows that are drawn; none is named if
    there are none.
    """
    machines = describe_machines(rows)
    notes, caption = [*notes, machines], f"{caption} {machines}".rstrip()
    figure.suptitle(above := _escape(fill(title, 56)), fontsize=TITLE, x=0.01, ha="left")
    if below := _escape("\n".join(fill(note, 90) for note in notes if note)):
        figure.supxlabel(below, fontsize=NOTE, x=0.01, ha="left", color="#404040")
    _grow(figure, TITLE * above.count("\n") + NOTE * len(below.splitlines()))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # else the layout is computed again for every file
    return Drawing(name, title, caption, figure, rows)


def _grow(figure: Figure, points: float) -> None:
    """Add room for lines of text with a total height in points."""
    figure.set_figheight(figure.get_figheight() + 1.35 * points / 72)


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Label both axes and set their fonts and grid."""
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(fill(y, 32), fontsize=LABEL)
    axes.tick_params(labelsize=TICK)
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def set_logarithmic(axes: Axes, name: str) -> None:
    """Make the `x` or `y` axis logarithmic, with plain numbers, and more ticks over a short range."""
    getattr(axes, f"set_{name}scale")("log")
    axis = getattr(axes, f"{name}axis")
    low, high = sorted(getattr(axes, f"get_{name}lim")())
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(format_number))
    axis.set_minor_formatter(NullFormatter())


def set_linear(axes: Axes, name: str) -> None:
    """Start the `x` or `y` axis at 0, unless there are negative values, and format its numbers."""
    if (axes.dataLim.x0 if name == "x" else axes.dataLim.y0) >= 0:
        getattr(axes, f"set_{name}lim")(0, None)
    getattr(axes, f"{name}axis").set_major_formatter(FuncFormatter(format_number))


def set_ticks(axes: Axes, values: Iterable[float]) -> None:
    """Put the ticks of the x axis at up to MAX_TICKS points, without those whose labels would overlap."""
    places = sorted(set(values))
    if len(places) > MAX_TICKS:
        return
    across = axes.transAxes.inverted().transform(axes.transData.transform([(value, 1) for value in places]))[:, 0]
    ticks: list[float] = []
    end = float("-inf")  # of the last label, as a fraction of the axis
    for value, place in zip(places, across, strict=True):
        half = DIGIT * len(format_number(value)) / 2
        if place - half >= end:
            ticks.append(value)
            end = place + half + DIGIT
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(format_number))
    axes.xaxis.set_minor_locator(NullLocator())


def format_number(value: float, _: object = None) -> str:
    """Return a number for an axis, without powers of ten if it is short."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def shorten(name: str, letters: int) -> str:
    """Return a name for a legend: of a long one start and end, and no underscore first, which would hide it."""
    end = 2 * letters // 3
    short = name if len(name) <= letters else f"{name[: letters - 1 - end]}…{name[-end:]}"
    return _escape(f" {short}" if short.startswith("_") else short)


def _escape(text: str) -> str:
    """Return the text with escaped dollar signs, between which matplotlib expects a formula."""
    return text.replace("$", r"\$")


def add_legend(axes: Axes, series: Iterable[Artist] | None = None, marks: Iterable[Artist] = ()) -> None:
    """Add a legend above the axes, where it hides no data, with as many columns as fit.

    It has the labels of `series`, by default those of the axes, without words that all share, which become its title;
    then those of `marks`. No label is repeated, and of more than MAX_ROWS only the first are shown and the others
    counted.
    """
    given: list[Any] = list(axes.get_legend_handles_labels()[0] if series is None else series)
    distinct = {str(handle.get_label()): handle for handle in reversed(given)}
    names, others = [*reversed(distinct)], list(marks)
    labels, title = split_shared(names)
    labels = [shorten(label, LETTERS) for label in labels]
    shown = [distinct[name] for name in names]
    if (more := len(shown) - (MAX_ROWS - len(others))) > 0:
        shown, labels = shown[: -more - 1], [*labels[: -more - 1], f"and {more + 1} more"]
        shown.append(Line2D([], [], linestyle="none"))
    shown, labels = [*shown, *others], [*labels, *(str(handle.get_label()) for handle in others)]
    if shown:
        columns = max(1, min(3, ROOM // (HANDLE + max(map(len, labels)))))
        legend = axes.legend(
            shown, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=TICK, frameon=False,
            borderaxespad=0.3, columnspacing=1.2, handlelength=2.8, title=shorten(title, LETTERS) or None,
            title_fontsize=TICK, alignment="left",
        )  # fmt: skip
        legend.get_title().set_multialignment("left")
        assert isinstance(axes.figure, Figure)
        _grow(axes.figure, 1.1 * TICK * (ceil(len(shown) / columns) + bool(title)))


def mark_empty(axes: Axes, reason: str) -> None:
    """Write into empty axes why there is nothing to draw."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, _escape(fill(reason, 50)), ha="center", va="center", fontsize=LABEL, transform=axes.transAxes)


def save(drawing: Drawing, folder: str | Path) -> tuple[Path, Path]:
    """Write NAME.svg and NAME.png (150 dots per inch) and return their paths; equal figures give equal bytes.

    Letters in the SVG are paths, which look the same without the font; its title and description are those of the
    drawing. Raises StorageError if a file cannot be written.
    """
    svg, png = (Path(folder, f"{drawing.name}.{kind}") for kind in ("svg", "png"))
    for path, data in ((svg, to_svg(drawing)), (png, to_png(drawing))):
        with atomic_write(str(path)) as temporary:
            temporary.write_bytes(data)
    return svg, png


# `Figure.savefig` would draw everything twice, first to measure its size.
def to_png(drawing: Drawing) -> bytes:
    """Return the figure as PNG with a width of 900 pixels."""
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(drawing.figure)
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(drawing: Drawing) -> bytes:
    """Return the figure as SVG; rasterized parts have DPI dots per inch."""
    buffer = io.StringIO()
    metadata = {"Title": drawing.title, "Description": drawing.caption, "Date": None, "Creator": None}
    canvas: Any = FigureCanvasSVG(drawing.figure)
    try:
        canvas.print_svg(buffer, metadata=metadata)
    finally:
        drawing.figure.set_dpi(DPI)  # which print_svg changes
    return _make_ids_unique(buffer.getvalue(), drawing.name).encode()


_ID = re.compile(r'(\bid="|href="#|url\(#)([^")]+)')
_RANDOM = re.compile(r"[a-z]+[0-9a-f]{10}")


def _make_ids_unique(svg: str, name: str) -> str:
    """Return the SVG with reproducible ids that are unique in a page with several figures.

    matplotlib's own ids are random, or depend on a global setting.
    """
    numbers: dict[str, int] = {}

    def replace(found: re.Match[str]) -> str:
        before, old = found.groups()
        if _RANDOM.fullmatch(old):
            old = f"n{numbers.setdefault(old, len(numbers))}"
        return f"{before}{name}-{old}"

    return _ID.sub(replace, svg)
