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
from .source import ALIASES, ambiguous, find_fields, is_auxiliary, missing_field, require_fields


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
    source: str, members: list[Member], dangling: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, Member]:
    """Return the dataset of each field: named by the user, else from the one group that has image and magnitudes.

    Raises InputError naming the candidates if there are several such groups, or if a field is missing.
    """
    by_name = {member.full_name: member for member in members if member.dataset.shape}
    found = {field: _find_named(source, field, name, by_name, dangling) for field, name in names.items()}
    groups: dict[str, dict[str, Member]] = {}
    for member in by_name.values():
        groups.setdefault(member.group, {})[member.name] = member
    home = groups.get(_find_home(groups, found, source) or "", {})
    rest = [field for field in ALIASES if field not in found]
    taken = [member.full_name for member in found.values()]
    available = [name for name, member in home.items() if member.full_name not in taken]
    found |= {field: home[name] for field, name in find_fields(source, available, {}, rest).items()}
    for field in ("image", "magnitude"):
        if field not in found:
            _refuse_dangling(source, field, ALIASES[field][0], dangling)
    require_fields(source, found, by_name)
    return found


def _find_named(
    source: str, field: str, name: str, by_name: Mapping[str, Member], dangling: Mapping[str, str]
) -> Member:
    wanted = name.strip("/")
    matches = [member for full_name, member in by_name.items() if full_name.lower() == wanted.lower()]
    exact = [member for member in matches if member.full_name == wanted]
    if not matches:
        _refuse_dangling(source, field, (wanted.lower(),), dangling)
        raise missing_field(source, name, list(by_name), field)
    return (exact or matches)[0]


def _refuse_dangling(source: str, field: str, names: tuple[str, ...], dangling: Mapping[str, str]) -> None:
    for path, target in dangling.items():
        if path.lower() in names or basename(path).lower() in names:
            raise InputError(f"{source}: {field} ({path}) is a link to {target}")


def _find_home(groups: Mapping[str, Mapping[str, Member]], given: Mapping[str, Member], source: str) -> str | None:
    """Return the group whose datasets belong together: the given image's, else the only one with all that is needed."""
    if "image" in given:
        return given["image"].group
    needed = [field for field in ("image", "magnitude") if field not in given]

    def candidates(group: str, field: str) -> list[Member]:
        strong, weak = ALIASES[field]
        return [
            member
            for member in groups[group].values()
            if member.name.lower() in (*strong, *weak) and not is_auxiliary(member.name)
        ]

    complete = [group for group in groups if all(candidates(group, field) for field in needed)]
    homes = complete or [group for group in groups if candidates(group, "image")]
    if len(homes) > 1:
        images = [member.full_name for group in homes for member in candidates(group, "image")]
        raise ambiguous(source, "image", images)
    return homes[0] if homes else None
