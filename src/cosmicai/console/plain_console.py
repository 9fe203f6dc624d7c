"""A rich console that shows all text as it is: neither markup nor control characters in it are obeyed."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from . import printable_line


class PlainConsole(Console):
    """A console whose text comes from anywhere: names of hosts, files and columns in lines, titles and cells."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text, such as rich makes of every title and cell, with its control characters shown."""
        return super().render_str(printable_line(text), **options)
