"""The datasets of an HDF5 file, and which of them are our fields."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, dirname
from typing import Any

import h5py

from ...errors import NO_READ_PERMISSION, InputError
from .names import ALIASES, ambiguous, band_sets, find_fields, last_part, match_field, require_fields
from .source import IngestOptions, is_auxiliary


@dataclass(frozen=True)
class Member:
    """A dataset, or one field of a compound dataset; `external` names the other file that a link leads to."""

    path: str
    dataset: Any
    column: str = ""
    external: str = ""

    @property
    def name(self) -> str:
        """Its own name, by which it may be a field of ours."""
        return self.column or basename(self.path)

    @property
    def full_name(self) -> str:
        """The name by which the user can select it: a path, or PATH[FIELD] of a compound dataset."""
        return f"{self.path}[{self.column}]" if self.column else self.path

    @property
    def group(self) -> str:
        """What it shares with the members that belong to it: its group, or its compound dataset."""
        return self.path if self.column else dirname(self.path)


def list_members(file: Any) -> tuple[list[Member], dict[str, str]]:
    """Return all datasets of an open file, and the links that cannot be followed with where they lead and why not.

    Every group is listed once, however many links lead to it; soft links to groups are not followed, since such a group
    is listed where it is, or is in another file.
    """
    members: list[Member] = []
    dangling: dict[str, str] = {}
    groups: list[tuple[str, Any, str]] = [("", file, "")]
    seen: set[tuple[int, int]] = set()
    while groups:
        prefix, group, origin = groups.pop()
        if (place := _place(group)) in seen:
            continue
        seen.add(place)
        for name in group:
            path, link = f"{prefix}/{name}".lstrip("/"), group.get(name, getlink=True)
            external = str(link.filename) if isinstance(link, h5py.ExternalLink) else origin
            try:
                if isinstance(link, h5py.ExternalLink):
                    _require_file(Path(group.file.filename).parent, external)
                item = group[name]
            except (KeyError, OSError, RuntimeError):
                is_external = isinstance(link, h5py.ExternalLink)
                target = f"{external}:{link.path}" if is_external else str(getattr(link, "path", "nowhere"))
                is_closed = is_external and _is_closed(Path(group.file.filename).parent, external)
                problem = f"cannot be read: {NO_READ_PERMISSION}" if is_closed else "does not exist; restore it"
                dangling[path] = f"{target}, which {problem}"
                continue
            if isinstance(item, h5py.Group) and not isinstance(link, h5py.SoftLink):
                groups.append((path, item, external))
            elif isinstance(item, h5py.Dataset):
                columns = item.dtype.names or ("",)
                members += [Member(path, item, column, external) for column in columns]
    return sorted(members, key=lambda member: member.full_name), dangling


def _require_file(folder: Path, name: str) -> None:
    """Raise FileNotFoundError unless HDF5 finds a regular file: to open a pipe would wait for ever."""
    if not ((folder / name).is_file() or Path(name).is_file()):
        raise FileNotFoundError(name)


def _is_closed(folder: Path, name: str) -> bool:
    """Return whether the file of an external link is there, but may not be read."""
    return any(path.is_file() and not os.access(path, os.R_OK) for path in (folder / name, Path(name)))


def _place(group: Any) -> tuple[int, int]:
    """Return what is the same for two groups only if they are one."""
    information = h5py.h5o.get_info(group.id)
    return information.fileno, information.addr


def select_members(
    source: str, members: list[Member], dangling: Mapping[str, str], options: IngestOptions
) -> dict[str, list[Member]]:
    """Return the datasets of each field: named by the user, else from the one group that has image and magnitudes.

    Raises InputError naming the candidates if there are several such groups, or if a field is missing.
    """
    by_name = {member.full_name: member for member in members if member.dataset.shape}
    found: dict[str, tuple[str, ...]] = {}
    for field, name in options.names.items():
        if field in options.wanted:
            _refuse_dangling(source, field, (name.strip("/").lower(),), dangling)
            found[field] = match_field(source, by_name, field, name)
    groups: dict[str, list[str]] = {}
    for name, member in by_name.items():
        groups.setdefault(member.group, []).append(name)
    given = {field: by_name[names[0]] for field, names in found.items()}
    home = groups.get(_find_home(groups, given, source, options) or "", [])
    taken = {name for names in found.values() for name in names}
    rest = [field for field in options.wanted if field not in found]
    found |= find_fields(source, [name for name in home if name not in taken], {}, rest)
    for field in options.required:
        if field not in found:
            _refuse_dangling(source, field, ALIASES[field][0], dangling)
    require_fields(source, found, by_name, options.required)
    return {field: [by_name[name] for name in names] for field, names in found.items()}


def _refuse_dangling(source: str, field: str, names: tuple[str, ...], dangling: Mapping[str, str]) -> None:
    for path, target in dangling.items():
        if path.lower() in names or basename(path).lower() in names:
            raise InputError(f"{source}: {field} ({path}) is a link to {target}")


def _find_home(
    groups: Mapping[str, list[str]], given: Mapping[str, Member], source: str, options: IngestOptions
) -> str | None:
    """Return the group whose datasets belong together: the given image's, else the only one with all that is needed."""
    if "image" in given:
        return given["image"].group

    def candidates(group: str, field: str) -> list[str]:
        strong, weak = ALIASES[field]
        fitting = [
            name
            for name in groups[group]
            if last_part(name).lower() in (*strong, *weak) and not is_auxiliary(last_part(name))
        ]
        return fitting or (list(band_sets(groups[group])) if field == "magnitude" else [])

    needed = [field for field in options.required if field not in given]
    complete = [group for group in groups if all(candidates(group, field) for field in needed)]
    homes = complete or [group for group in groups if candidates(group, "image")]
    if len(homes) > 1:
        raise ambiguous(source, "image", [name for group in homes for name in candidates(group, "image")])
    return homes[0] if homes else None
