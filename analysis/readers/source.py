"""A file that may tell of runs."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cosmicai import storage


@dataclass(frozen=True)
class Source:
    """A file: its address, and its name below what the user gave, by which runs are called."""

    uri: str
    name: str

    @property
    def folder(self) -> str:
        """Name of its folder, by which a run is called that has a folder of its own."""
        return self.name.rpartition("/")[0] or self.parent

    @property
    def parent(self) -> str:
        """Last part of its folder's address."""
        return storage.basename(self.uri.rpartition("/")[0])

    @property
    def stem(self) -> str:
        """Its name without the suffix, under which runs are called that share a file."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def file(self) -> str:
        """Its own name, without its folder."""
        return storage.basename(self.uri)

    def beside(self, name: str) -> str:
        """The address of another file of the same folder."""
        return storage.join(self.uri.rpartition("/")[0], name)

    @cached_property
    def text(self) -> str:
        """Its text, read once. Raises StorageError if it cannot be read, ValueError if it is none."""
        try:
            return storage.read_bytes(self.uri).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("it is no text in UTF-8") from None

    @cached_property
    def json(self) -> Any:
        """Its JSON, read once. Raises ValueError if it is none."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is no JSON ({error}); get it again") from None

    @cached_property
    def records(self) -> list[Any]:
        """The values of its JSON if that is a list, else none; none also if it is no JSON."""
        value = self._json_or_none
        return value if isinstance(value, list) else []

    @cached_property
    def values(self) -> dict[str, Any]:
        """The values of its JSON by key if it has keys, else none; none also if it is no JSON."""
        value = self._json_or_none
        return value if isinstance(value, dict) else {}

    @property
    def _json_or_none(self) -> Any:
        if not self.name.endswith(".json"):
            return None
        try:
            return self.json
        except ValueError:
            return None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns if it is a CSV file, else none."""
        first = self.text.partition("\n")[0] if self.name.endswith(".csv") else ""
        return tuple(name.strip() for name in next(csv.reader([first]), []))

    def rows(self) -> list[dict[str, str]]:
        """The rows of a CSV file by column, `` where a row is too short; empty lines are none."""
        lines = csv.reader(self.text.splitlines()[1:])
        full = ([*line, *[""] * len(self.columns)] for line in lines if line)
        return [dict(zip(self.columns, map(str.strip, line), strict=False)) for line in full]
