"""How all figures look, and how they are written.

They are read without colour: series differ by marker and dash, bars by hatch, and the palette by its greys. At 400
pixels across, the smallest letters are 8 pixels tall. No figure touches what other threads use: no pyplot, no settings.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from cosmicai.storage import replacing

WIDTH = 6.0  # inches
TITLE, LABEL, TICK, NOTE = 12.0, 11.0, 10.0, 8.5  # points; at 400 pixels across a point is 0.93 pixels
DPI = 150
ROOM, HANDLE = 62, 7  # letters across a legend, and how many of them a marker with its dash takes
MOST_TICKS, DIGIT = 16, 0.02  # ticks at points, and the part of the x axis that a digit takes
# Okabe & Ito 2008, without its yellow, which white paper swallows; neighbours differ in lightness.
PALETTE = ("#000000", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#CC79A7", "#009E73")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES: tuple[Any, ...] = (
    "-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)), (0, (3, 1, 1, 3)),
)  # fmt: skip
HATCHES = ("", "//", "..", "xx", "\\\\")
GREYS = ("#ffffff", "#bdbdbd", "#f0f0f0", "#969696", "#d9d9d9")  # of the bars with these hatches


@dataclass(frozen=True)
class Drawing:
    """A figure: the name of its files, its title, and a sentence with its main numbers for who cannot see it."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Look:
    """How a series is drawn; no two of the first 64 share both marker and dash."""

    color: str
    marker: str
    dash: Any


def look(number: int) -> Look:
    """The look of the series with this number, from 0."""
    turn = number // len(MARKERS)
    return Look(PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)], DASHES[(number + turn) % len(DASHES)])


def begin(height: float = 3.9) -> Figure:
    """An empty figure, `height` in inches without legend, notes, and a second line of the title, which add to it."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def finish(figure: Figure, name: str, title: str, caption: str, notes: Iterable[str] = ()) -> Drawing:
    """The figure with its title above and notes in small print below; its layout no longer changes."""
    figure.suptitle(above := _literal(fill(title, 56)), fontsize=TITLE, x=0.01, ha="left")
    if below := _literal("\n".join(fill(note, 90) for note in notes if note)):
        figure.supxlabel(below, fontsize=NOTE, x=0.01, ha="left", color="#404040")
    _grow(figure, TITLE * above.count("\n") + NOTE * len(below.splitlines()))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # or every file would be laid out anew
    return Drawing(name, title, caption, figure)


def _grow(figure: Figure, points: float) -> None:
    """Makes room for lines of letters of so many points in all."""
    figure.set_figheight(figure.get_figheight() + 1.35 * points / 72)


def label(axes: Axes, x: str, y: str) -> None:
    """Names both axes and sets their letters and grid."""
    axes.set_xlabel(x, fontsize=LABEL)
    axes.set_ylabel(fill(y, 32), fontsize=LABEL)
    axes.tick_params(labelsize=TICK)
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic(axes: Axes, name: str) -> None:
    """Makes the `x` or the `y` axis logarithmic, with plain numbers and enough of them over a short range."""
    getattr(axes, f"set_{name}scale")("log")
    axis = getattr(axes, f"{name}axis")
    low, high = sorted(getattr(axes, f"get_{name}lim")())
    subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(plain))
    axis.set_minor_formatter(NullFormatter())


def linear(axes: Axes, name: str) -> None:
    """Begins the `x` or the `y` axis at 0, unless there is less, and writes its numbers as on others."""
    if (axes.dataLim.x0 if name == "x" else axes.dataLim.y0) >= 0:
        getattr(axes, f"set_{name}lim")(0, None)
    getattr(axes, f"{name}axis").set_major_formatter(FuncFormatter(plain))


def ticks_at(axes: Axes, values: Iterable[float]) -> None:
    """Puts the ticks of the x axis where there are points, without those whose numbers would touch; if few points."""
    wanted = sorted(set(values))
    if len(wanted) > MOST_TICKS:
        return
    across = axes.transAxes.inverted().transform(axes.transData.transform([(value, 1) for value in wanted]))[:, 0]
    taken: list[float] = []
    end = float("-inf")  # of the last number, in parts of the axis
    for value, place in zip(wanted, across, strict=True):
        half = DIGIT * len(plain(value)) / 2
        if place - half >= end:
            taken.append(value)
            end = place + half + DIGIT
    axes.set_xticks(taken)
    axes.xaxis.set_major_formatter(FuncFormatter(plain))
    axes.xaxis.set_minor_locator(NullLocator())


def plain(value: float, _: object = None) -> str:
    """A number on an axis, without powers of ten as long as it is short."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def shortened(name: str, letters: int) -> str:
    """The name, of a long one beginning and end, for a legend, which leaves out what begins with an underscore."""
    end = 2 * letters // 3
    short = name if len(name) <= letters else f"{name[: letters - 1 - end]}…{name[-end:]}"
    return _literal(f" {short}" if short.startswith("_") else short)


def _literal(text: str) -> str:
    """The text without formulas, which matplotlib sees between two dollar signs."""
    return text.replace("$", r"\$")


def legend(axes: Axes, handles: Iterable[Artist] | None = None) -> None:
    """The legend above the axes, where it hides no data, of as many columns as there is room for."""
    shown: list[Any] = list(axes.get_legend_handles_labels()[0] if handles is None else handles)
    if shown:
        letters = max(len(str(handle.get_label())) for handle in shown)
        columns = max(1, min(3, ROOM // (HANDLE + letters)))
        axes.legend(
            handles=shown, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=TICK,
            frameon=False, borderaxespad=0.3, columnspacing=1.2, handlelength=2.8,
        )  # fmt: skip
        assert isinstance(axes.figure, Figure)
        _grow(axes.figure, 1.1 * TICK * ceil(len(shown) / columns))


def listed(texts: Sequence[str], most: int = 4) -> str:
    """The texts in a row, and of many how many more there are."""
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return "; ".join([*texts[:most], *more])


def empty(axes: Axes, reason: str) -> None:
    """Says in the axes why there is nothing in them."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, _literal(fill(reason, 50)), ha="center", va="center", fontsize=LABEL, transform=axes.transAxes)


def save(drawing: Drawing, folder: str | Path) -> tuple[Path, Path]:
    """Writes NAME.svg and NAME.png (150 dots an inch), the same bytes for the same figure; returns their paths.

    Letters in the SVG are paths, since they then look the same without the font; its title and description are the
    drawing's. Raises StorageError if a file cannot be written.
    """
    svg, png = (Path(folder, f"{drawing.name}.{kind}") for kind in ("svg", "png"))
    for path, data in ((svg, to_svg(drawing)), (png, to_png(drawing))):
        with replacing(str(path)) as beside:
            beside.write_bytes(data)
    return svg, png


# `Figure.savefig` would draw everything once more before, to see how large it is.
def to_png(drawing: Drawing) -> bytes:
    """The figure as PNG, of 900 pixels across."""
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(drawing.figure)
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(drawing: Drawing) -> bytes:
    """The figure as SVG; what was rasterized in it has DPI dots an inch."""
    buffer = io.StringIO()
    metadata = {"Title": drawing.title, "Description": drawing.caption, "Date": None, "Creator": None}
    canvas: Any = FigureCanvasSVG(drawing.figure)
    try:
        canvas.print_svg(buffer, metadata=metadata)
    finally:
        drawing.figure.set_dpi(DPI)  # which it has changed
    return _own_ids(buffer.getvalue(), drawing.name).encode()


_ID = re.compile(r'(\bid="|href="#|url\(#)([^")]+)')
_RANDOM = re.compile(r"[a-z]+[0-9a-f]{10}")


def _own_ids(svg: str, name: str) -> str:
    """The SVG with ids that are no others' in a page that holds several, and the same each time.

    By itself matplotlib takes random ones, or such that depend on a setting that all threads share.
    """
    numbers: dict[str, int] = {}

    def own(found: re.Match[str]) -> str:
        before, old = found.groups()
        if _RANDOM.fullmatch(old):
            old = f"n{numbers.setdefault(old, len(numbers))}"
        return f"{before}{name}-{old}"

    return _ID.sub(own, svg)
