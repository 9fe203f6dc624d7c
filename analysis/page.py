"""What the pages of a report are made of: sections of sentences, tables and pictures, and the HTML of them all."""

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
MOST_ROWS = 100  # of a table on the page; its file has them all
_DPI = 150  # of the PNGs; a page counts 96 to the inch


@dataclass(frozen=True)
class Table:
    """A table, the name of its CSV, how its columns are called, and which of them the page shows if not all.

    The page leaves out columns without any value. `file` is what goes into the CSV, if it is not the table.
    """

    name: str
    caption: str
    table: pd.DataFrame
    headings: Mapping[str, str] = field(default_factory=dict)
    shown: Sequence[str] | None = None
    file: pd.DataFrame | None = None


@dataclass(frozen=True)
class Section:
    """A part of the page: what it says, its tables and drawings, and why something that it could show is not there."""

    name: str
    title: str
    prose: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
    absent: Sequence[str] = ()


def write_page(folder: Path, title: str, facts: Sequence[str], sections: Sequence[Section]) -> Path:
    """Writes index.html, which needs nothing beside it, and for further use the tables (CSV) and figures (SVG, PNG).

    Returns the path of index.html. The page has no script, and asks nobody for anything.
    """
    from jinja2 import Environment, StrictUndefined

    views = [_view(folder, section) for section in sections]
    # Runs are called as their folders are: whatever is in a name must not become HTML.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text())
    page = folder / "index.html"
    formatting.write_text(str(page), template.render(title=title, facts=facts, sections=views, zip=zip))
    return page


def _view(folder: Path, section: Section) -> dict[str, object]:
    """A section as the template wants it; its files are written."""
    return {
        "name": section.name,
        "title": section.title,
        "prose": section.prose,
        "absent": section.absent,
        "tables": [_table_view(folder, table) for table in section.tables],
        "pictures": [_picture(folder, drawing) for drawing in section.drawings],
    }


def _table_view(folder: Path, table: Table) -> dict[str, object]:
    file = f"{table.name}.csv"
    formatting.write_csv(str(folder / file), table.table if table.file is None else table.file)
    filled = [name for name in table.shown or table.table if table.table[name].notna().any()]
    shown = formatting.texts(table.table[filled].head(MOST_ROWS))
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
    """Whether there are but numbers in a column, such as 1,234.5 or 1.20 (1.18) or 5%; these are set to the right."""
    return bool(texts[texts.ne("")].str.fullmatch(r"[-+0-9.,e]+%?( \([-+0-9.,e]+\))?").all())


def _picture(folder: Path, drawing: Drawing) -> dict[str, object]:
    svg, png = save(drawing, folder / "figures")
    width, height = struct.unpack(">II", png.read_bytes()[16:24])  # of the PNG's header
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
