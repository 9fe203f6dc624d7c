"""A file that may describe runs, with its contents as text, JSON or CSV."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cosmicai import storage

_UNIT = re.compile(r"\s*\(")


@dataclass(frozen=True)
class Source:
    """A file: its address, and its name relative to the addresses that the user gave, from which runs are named.

    `parts` are the files of a run's ranks if they are read together; address and name are then those of the first.
    """

    uri: str
    name: str
    parts: tuple[Source, ...] = ()

    @property
    def folder(self) -> str:
        """Name of its folder, after which a run is named that has a folder of its own."""
        return self.name.rpartition("/")[0] or self.parent

    @property
    def parent(self) -> str:
        """Last part of its folder's address."""
        return storage.basename(self.uri.rpartition("/")[0])

    @property
    def stem(self) -> str:
        """Its name without the suffix, which starts the names of runs that share a file."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def file(self) -> str:
        """Its file name, without the folder."""
        return storage.basename(self.uri)

    def sibling(self, name: str) -> str:
        """Return the address of another file of the same folder."""
        return storage.join(self.uri.rpartition("/")[0], name)

    @cached_property
    def text(self) -> str:
        """Its text, read once. Raises StorageError if it cannot be read, ValueError if it is not UTF-8."""
        try:
            return storage.read_bytes(self.uri).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8 text") from None

    @cached_property
    def json(self) -> Any:
        """Its JSON value, read once. Raises ValueError if it is not JSON, or nested too deeply."""
        try:
            return json.loads(self.text)
        except RecursionError:
            raise ValueError("it is not usable JSON (nested too deeply); get it again") from None
        except ValueError as error:
            raise ValueError(f"it is not JSON ({error}); get it again") from None

    @cached_property
    def records(self) -> list[Any]:
        """The elements of its JSON if that is a list, and an object as the only one; none for a file that is not JSON.

        Those of all parts if it has some.
        """
        if self.parts:
            return [record for part in self.parts for record in part.records]
        value = self._json_or_none
        return value if isinstance(value, list) else [value] if isinstance(value, dict) else []

    @cached_property
    def values(self) -> dict[str, Any]:
        """The values of its JSON by key if that is an object, else none; none also for a file that is not JSON."""
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
        """The names of its columns if it is a CSV file, else none. Raises ValueError for a damaged first line.

        Published tables differ in the space before a unit; here all have one, as in `data (GB)`.
        """
        first = self.text.partition("\n")[0] if self.name.endswith(".csv") else ""
        return tuple(_UNIT.sub(" (", name.strip()) for name in next(iter(_parse_csv([first])), []))

    def has_columns(self, required: Iterable[str], optional: Iterable[str] = ()) -> bool:
        """Return whether it is a CSV file with the required columns, in any order, and no others than the optional."""
        required = frozenset(required)
        return required <= frozenset(self.columns) <= required.union(optional)

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of a CSV file by column, without empty lines; missing values are empty.

        Of columns of the same name, such as several without one, the first value counts. Raises ValueError if it is
        damaged.
        """
        padded = ([*line, *[""] * len(self.columns)] for line in _parse_csv(self.text.splitlines()[1:]) if line)
        rows: list[dict[str, str]] = []
        for line in padded:
            row = dict.fromkeys(self.columns, "")
            for name, value in zip(self.columns, line, strict=False):
                row[name] = row[name] or value.strip()
            rows.append(row)
        return rows


def _parse_csv(lines: list[str]) -> list[list[str]]:
    try:
        return list(csv.reader(lines))
    except csv.Error as error:
        raise ValueError(f"it is not a CSV table ({error}); get it again") from None
