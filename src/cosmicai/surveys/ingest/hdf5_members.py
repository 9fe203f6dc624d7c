"""The datasets of an HDF5 file, and which of them are our fields."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import basename, dirname
from typing import Any

import h5py

from ...errors import NO_READ_PERMISSION, InputError
from .names import ALIASES, ambiguous, band_sets, find_fields, last_part, magnitude_sets, match_field, require_fields
from .source import IngestOptions, is_auxiliary

_CACHE_SLOTS = 521
_SMALL_CACHE = 2**18  # bytes


@dataclass(frozen=True)
class Member:
    """A dataset, or one field of a compound dataset; `external` names the other file that a link leads to.

    An `alias` is reached through a soft link to its group, and is a member by another path as well.
    """

    path: str
    dataset: Any
    column: str = ""
    external: str = ""
    alias: bool = False

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

    @property
    def place(self) -> tuple[int, int, str]:
        """What is the same for two members only if they are the same values, by whatever link."""
        return (*_place(self.dataset), self.column)


@dataclass(frozen=True)
class Selection:
    """The members of each field, and those of the same galaxies by their full names, from which columns are kept.

    `partner` is the group of the magnitudes where that is not the image's and was not named by the user.
    """

    found: dict[str, list[Member]]
    home: dict[str, Member]
    partner: str = ""


def list_members(file: Any) -> tuple[list[Member], dict[str, str]]:
    """Return all datasets of an open file, and the links that cannot be followed with where they lead and why not.

    Every group is listed once, however many hard links lead to it. The datasets of a group to which a soft link leads
    are aliases: the group is listed where it is as well, unless it is in another file.
    """
    members: list[Member] = []
    dangling: dict[str, str] = {}
    groups: list[tuple[str, Any, str, bool]] = [("", file, "", False)]
    seen: set[tuple[int, int]] = set()
    while groups:
        prefix, group, origin, alias = groups.pop()
        if not alias and (place := _place(group)) in seen:
            continue
        if not alias:
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
            if isinstance(item, h5py.Group) and not alias:  # links in groups of links could be endless
                groups.append((path, item, external, isinstance(link, h5py.SoftLink)))
            elif isinstance(item, h5py.Dataset):
                if item.chunks and len(item.shape) == 1 and not (item.dtype.names or external):
                    chunk_bytes = item.chunks[0] * item.dtype.itemsize
                    item = None  # an open dataset keeps the cache that it has
                    item = _open_column(group, name, chunk_bytes)
                columns = item.dtype.names or ("",)
                members += [Member(path, item, column, external, alias) for column in columns]
    return sorted(members, key=lambda member: member.full_name), dangling


def _open_column(group: Any, name: str, chunk_bytes: int) -> Any:
    """Return a dataset of one axis with a cache of one chunk: those for images would hold many columns whole."""
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(_CACHE_SLOTS, max(chunk_bytes, _SMALL_CACHE), 0.75)
    return h5py.Dataset(h5py.h5d.open(group.id, name.encode("utf-8", "surrogateescape"), access), readonly=True)


def _require_file(folder: Path, name: str) -> None:
    """Raise FileNotFoundError unless HDF5 finds a regular file: to open a pipe would wait for ever."""
    if not ((folder / name).is_file() or Path(name).is_file()):
        raise FileNotFoundError(name)


def _is_closed(folder: Path, name: str) -> bool:
    """Return whether the file of an external link is there, but may not be read."""
    return any(path.is_file() and not os.access(path, os.R_OK) for path in (folder / name, Path(name)))


def _place(item: Any) -> tuple[int, int]:
    """Return what is the same for two groups or datasets only if they are one."""
    information = h5py.h5o.get_info(item.id)
    return information.fileno, information.addr


def select_members(
    source: str, members: list[Member], dangling: Mapping[str, str], options: IngestOptions
) -> Selection:
    """Return the datasets of each field: named by the user, else from the groups that belong to the image.

    These are the image's own group, and where it has no magnitudes, the one group or compound dataset with magnitudes
    of as many galaxies. Raises InputError naming the candidates if there are several, or if a field is missing.
    """
    with_rows = [member for member in members if member.dataset.shape]
    by_name = {member.full_name: member for member in with_rows if not member.alias}
    aliases = {member.full_name: member for member in with_rows if member.alias}
    found: dict[str, list[Member]] = {}
    for field, name in options.names.items():
        if field in options.wanted:
            _refuse_dangling(source, field, (name.strip("/").lower(),), dangling)
            found[field] = _match(source, by_name, aliases, field, name)
    groups = _by_group({**by_name, **aliases}, found)
    taken = {member.place for columns in found.values() for member in columns}
    home = _find_home(groups, found, source, options)
    own = groups.get(home or "", {})
    _find_rest(source, own, taken, found, options)
    is_given = "magnitude" in found
    partner = _find_partner(groups, found, source, options)
    if partner not in (None, home):
        _find_rest(source, groups[partner or ""], taken, found, options)
        own = own | groups[partner or ""]
    for field in options.required:
        if field not in found:
            _refuse_dangling(source, field, ALIASES[field][0], dangling)
            _refuse_blocks(source, by_name)
    require_fields(source, found, by_name, options.required)
    return Selection(found, own, "" if is_given or partner in (None, home) else partner or "/")


def _match(
    source: str, by_name: Mapping[str, Member], aliases: Mapping[str, Member], field: str, name: str
) -> list[Member]:
    """Return the members that the user's name of a field means, an alias only where no other member has this name."""
    try:
        return [by_name[each] for each in match_field(source, by_name, field, name)]
    except InputError:
        if not aliases:
            raise
        every = {**by_name, **aliases}
        exact = match_field(source, every, field, name)
        return [every[each] for each in exact]


def _by_group(members: Mapping[str, Member], found: Mapping[str, list[Member]]) -> dict[str, dict[str, Member]]:
    """Return the members of every group, each once whatever links lead to it; of aliases only what the user named."""
    named = {member.group for columns in found.values() for member in columns}
    groups: dict[str, dict[str, Member]] = {}
    seen: set[tuple[str, tuple[int, int, str]]] = set()
    for name, member in members.items():
        if (not member.alias or member.group in named) and (key := (member.group, member.place)) not in seen:
            seen.add(key)
            groups.setdefault(member.group, {})[name] = member
    return groups


def _find_rest(
    source: str,
    group: Mapping[str, Member],
    taken: set[tuple[int, int, str]],
    found: dict[str, list[Member]],
    options: IngestOptions,
) -> None:
    """Add what a group has of the fields that are not found yet."""
    rest = [field for field in options.wanted if field not in found]
    free = [name for name, member in group.items() if member.place not in taken]
    for field, names in find_fields(source, free, {}, rest).items():
        found[field] = [group[name] for name in names]
        taken |= {member.place for member in found[field]}


def _find_partner(
    groups: Mapping[str, Mapping[str, Member]],
    found: Mapping[str, list[Member]],
    source: str,
    options: IngestOptions,
) -> str | None:
    """Return the group with the magnitudes: the given ones', else the only one with those of as many galaxies.

    A group that has images of its own is another sample, even if it is of the same size.
    """
    if "image" not in found or "magnitude" not in options.wanted:
        return None
    if "magnitude" in found:
        partners = {member.group for member in found["magnitude"]}
        return partners.pop() if len(partners) == 1 else None
    galaxies = found["image"][0].dataset.shape[0]
    sets = {}
    for name, group in groups.items():
        if any(not _has_rows_alone(group[each]) for each in _named(group, "image")):
            continue
        rows = [each for each, member in group.items() if member.dataset.shape[0] == galaxies]
        if candidates := _named(rows, "magnitude") or list(magnitude_sets(rows)):
            sets[name] = candidates
    places = {frozenset(member.place for member in groups[name].values()) for name in sets}
    if len(places) > 1:
        raise ambiguous(source, "magnitude", [each for candidates in sets.values() for each in candidates])
    return next(iter(sets), None)


def _refuse_blocks(source: str, members: Mapping[str, Member]) -> None:
    blocks = [name for name, member in members.items() if "block" in member.name and "values" in member.name]
    if blocks:
        raise InputError(
            f"{source}: {blocks[0]} holds columns of a pandas table without their names; write it with "
            "df.to_parquet, or with df.to_hdf(format='table', data_columns=True)"
        )


def _refuse_dangling(source: str, field: str, names: tuple[str, ...], dangling: Mapping[str, str]) -> None:
    for path, target in dangling.items():
        if path.lower() in names or basename(path).lower() in names:
            raise InputError(f"{source}: {field} ({path}) is a link to {target}")


def _find_home(
    groups: Mapping[str, Mapping[str, Member]],
    given: Mapping[str, list[Member]],
    source: str,
    options: IngestOptions,
) -> str | None:
    """Return the group whose datasets belong together: the given image's, else the only one with all that is needed."""
    if "image" in given:
        return given["image"][0].group
    images = {
        group: [name for name in _named(members, "image") if not _has_rows_alone(members[name])]
        for group, members in groups.items()
    }
    if not any(images.values()):
        images = {group: _named(members, "image") for group, members in groups.items()}
    homes = [group for group, names in images.items() if names]
    if "magnitude" in options.required and "magnitude" not in given:
        complete = [group for group in homes if _named(groups[group], "magnitude") or band_sets(groups[group])]
        homes = complete or homes
    # Groups of links to the same datasets are one.
    places = {frozenset(groups[group][name].place for name in images[group]) for group in homes}
    if len(places) > 1:
        raise ambiguous(source, "image", [name for group in homes for name in images[group]])
    return homes[0] if homes else None


def _named(names: Iterable[str], field: str) -> list[str]:
    """Return those of a group's members that are named like a field."""
    strong, weak = ALIASES[field]
    return [name for name in names if last_part(name).lower() in (*strong, *weak) and not is_auxiliary(last_part(name))]


def _has_rows_alone(member: Member) -> bool:
    """Return whether a member has one value per galaxy, and so is no image whatever its name: many have a `flux`."""
    dtype = member.dataset.dtype[member.column] if member.column else member.dataset.dtype
    return len(member.dataset.shape) == 1 and dtype.subdtype is None
