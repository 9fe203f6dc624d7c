"""The HTML page of a report: sections of sentences, tables and figures, and the files that go with them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from . import formatting
from .figures import Drawing, save

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_ROWS = 100  # of a table on the page; its file has all rows
_DPI = 150  # of the PNGs; a page has 96 pixels per inch


@dataclass(frozen=True)
class Table:
    """A table, the name of its CSV file, its headings by column, and the columns that the page shows (None: all).

    The page omits columns without any value. `file` is the content of the CSV file, if it is not the table.
    """

    name: str
    caption: str
    table: pd.DataFrame
    headings: Mapping[str, str] = field(default_factory=dict)
    shown: Sequence[str] | None = None
    file: pd.DataFrame | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page: sentences, tables and drawings, and sentences that explain what is not shown.

    `verdict` has the main results as pairs of a heading and a sentence, which come first.
    """

    name: str
    title: str
    verdict: Sequence[tuple[str, str]] = ()
    prose: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    not_shown: Sequence[str] = ()


def write_page(folder: Path, title: str, facts: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write index.html and, for further use, the tables (CSV) and figures (SVG, PNG); return the path of index.html.

    The page is self-contained: it has no scripts and loads nothing from the network.
    """
    from jinja2 import Environment, StrictUndefined

    views = [_render_section(folder, section) for section in sections]
    # Runs are named after folders, so that names may contain anything; none of it must become HTML.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    page = folder / "index.html"
    formatting.write_text(str(page), template.render(title=title, facts=facts, sections=views, zip=zip))
    return page


def _render_section(folder: Path, section: Section) -> dict[str, object]:
    """Write the files of a section and return its values for the template."""
    return {
        "name": section.name,
        "title": section.title,
        "verdict": section.verdict,
        "prose": section.prose,
        "not_shown": section.not_shown,
        "tables": [_render_table(folder, table) for table in section.tables],
        "pictures": [_render_figure(folder, drawing) for drawing in section.drawings],
    }


def _render_table(folder: Path, table: Table) -> dict[str, object]:
    file = f"{table.name}.csv"
    formatting.write_csv(str(folder / file), table.table if table.file is None else table.file)
    filled = [name for name in table.shown or table.table if table.table[name].notna().any()]
    shown = formatting.format_table(table.table[filled].head(MAX_ROWS))
    return {
        "caption": table.caption,
        "columns": [
            {"name": name, "heading": table.headings.get(str(name), str(name)), "number": _are_numbers(shown[name])}
            for name in filled
        ],
        "rows": shown.to_numpy().tolist(),
        "file": file,
        "more": len(table.table) - len(shown),
    }


def _are_numbers(texts: pd.Series) -> bool:
    """Return whether a column holds only numbers, such as 1,234.5 or 1.20 (1.18) or 5%; these are right-aligned."""
    return bool(texts[texts.ne("")].str.fullmatch(r"[-+0-9.,e]+%?( \([-+0-9.,e]+\))?").all())


def _render_figure(folder: Path, drawing: Drawing) -> dict[str, object]:
    svg, png = save(drawing, folder / "figures")
    width, height = struct.unpack(">II", png.read_bytes()[16:24])  # from the header of the PNG
    return {
        "name": drawing.name,
        "title": drawing.title,
        "caption": drawing.caption,
        "data": f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}",
        "width": round(width * 96 / _DPI),
        "height": round(height * 96 / _DPI),
        "svg": f"figures/{svg.name}",
        "png": f"figures/{png.name}",
    }
