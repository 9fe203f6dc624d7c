"""Which file is the cutout of which galaxy: by its name, by a column of the catalogue, or by one name for each band."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...storage import basename
from ..bands import BANDS
from ..identity import ObjIds, has_objid, is_text, objids
from .catalogue import Catalogue
from .cutouts import SourceFile
from .gate import ending

_EXAMPLES = 10
# Of the words of a file's name: an id may have signs and dots inside, as J123400.78+012300.6.
_SEPARATORS = (r"[^0-9A-Za-z]+", r"[^0-9A-Za-z.+-]+")


@dataclass(frozen=True, slots=True)
class Cutout:
    """The files of one galaxy's cutout, one or five in the order of the bands, and what their names say of its id."""

    files: tuple[SourceFile, ...]
    id: str

    @property
    def uri(self) -> str:
        """The address of its first file, by which messages name it."""
        return self.files[0].uri


@dataclass(frozen=True)
class Matches:
    """Cutouts in the order of the catalogue's rows that have one, the numbers of these rows, and what was left out."""

    cutouts: tuple[Cutout, ...]
    rows: tuple[int, ...]
    notices: tuple[str, ...]


def group_cutouts(files: Sequence[SourceFile], per_band: str | None) -> tuple[list[Cutout], list[str]]:
    """Return the cutouts that the files make up, and sentences about files that belong to none.

    `per_band` is the pattern of the names of files that hold one band, with `{id}` and `{band}`. Raises InputError if
    no file has such a name, or if two files would be the same band of a galaxy.
    """
    if per_band is None:
        return [Cutout((file,), _stem(file.name)) for file in files], []
    pattern = _compile(per_band)
    bands: dict[str, dict[str, SourceFile]] = {}
    others = []
    for file in files:
        found = pattern.fullmatch(file.name if "/" in per_band else basename(file.name))
        if found is None:
            others.append(file.name)
            continue
        band = found["band"].lower()
        if (first := bands.setdefault(found["id"], {}).setdefault(band, file)) is not file:
            raise InputError(
                f"{first.uri} and {file.uri} are both the {band} band of {found['id']}; remove one of them"
            )
    if not bands:
        raise InputError(f"no file has a name like {per_band}; the first is {files[0].name}, check --per-band")
    whole = [Cutout(tuple(own[band] for band in BANDS), id_) for id_, own in bands.items() if len(own) == len(BANDS)]
    broken = [
        f"{id_} ({', '.join(band for band in BANDS if band not in own)})" for id_, own in bands.items() if len(own) < 5
    ]
    if not whole:
        raise InputError(f"no galaxy has a file for each of u, g, r, i, z: {_examples(broken)} are missing; add them")
    notices = []
    if broken:
        notices.append(
            f"galaxies left out, since files of bands are missing: {len(broken):,}, for example {_examples(broken)}"
        )
    if others:
        examples = _examples(others)
        notices.append(f"files left out, since their names are not like {per_band}: {len(others):,}, as {examples}")
    return whole, notices


def match_cutouts(cutouts: Sequence[Cutout], catalogue: Catalogue) -> Matches:
    """Return the cutout of each row of a catalogue, by the names of its column of files, else by the ids.

    A file belongs to an id if it is called so, or if the id is the only one among the words of its name and the rest of
    the name is the same for all files. Rows without a cutout and cutouts without a row are left out and counted. Raises
    InputError if a match is not clear.
    """
    by_file = catalogue.files is not None
    rows, without, nameless = _find_rows(catalogue, {name for cutout in cutouts for name in _names(cutout, by_file)})
    found: dict[int, Cutout] = {}
    patterns: dict[str, Cutout] = {}
    unmatched: list[str] = []
    for cutout in cutouts:
        names = [name for name in _names(cutout, by_file) if name in rows]
        if not names:
            unmatched.append(cutout.files[0].name)
            continue
        if not by_file:
            patterns.setdefault(_pattern(cutout, names), cutout)
        if (first := found.setdefault(rows[names[0]], cutout)) is not cutout:
            raise InputError(
                f"{first.uri} and {cutout.uri} both fit {names[0]} of {catalogue.path}; remove one, or name the right "
                "one in a column with --file COLUMN"
            )
    if len(patterns) > 1:
        (one, first), (other, second), *_ = patterns.items()
        raise InputError(
            f"{first.uri} has its id as {one} and {second.uri} as {other}, so that either may be a chance; expected "
            "the ids at one place in all names, or a column with the file names, --file COLUMN"
        )
    if not found:
        raise InputError(
            f"no cutout fits a row of {catalogue.path}: files have names such as {cutouts[0].files[0].name}, the rows "
            f"{'file names' if by_file else 'ids'} such as {', '.join(without[:3]) or 'none'}; name the column of ids "
            "with --id, or that of file names with --file"
        )
    without += [name for name, row in rows.items() if row not in found][: _EXAMPLES - len(without)]
    notices = []
    if len(nameless):
        kind = "file name" if by_file else "id"
        notices.append(f"rows left out, since they have no {kind}: {len(nameless):,}, the first is row {nameless[0]:,}")
    if missing := catalogue.rows - len(found) - len(nameless):
        notices.append(f"rows left out, since they have no cutout: {missing:,}, for example {_examples(without)}")
    if unmatched:
        notices.append(
            f"cutouts left out, since they have no row: {len(unmatched):,}, for example {_examples(unmatched)}"
        )
    order = sorted(found)
    return Matches(tuple(found[row] for row in order), tuple(order), tuple(notices))


def _find_rows(catalogue: Catalogue, names: set[str]) -> tuple[dict[str, int], list[str], NDArray[np.intp]]:
    """Return the rows that have one of these names, the first names that no cutout has, and the rows without a name."""
    rows: dict[str, int] = {}
    others: list[str] = []
    ids = _file_names(catalogue) if catalogue.files is not None else _ids(catalogue)
    present = has_objid(ids)
    for row in present.nonzero()[0].tolist():
        name = ids[row].decode() if is_text(ids.dtype) else str(int(ids[row]))
        if name not in names:
            if len(others) < _EXAMPLES:
                others.append(name)
        elif (first := rows.setdefault(name, row)) != row:
            raise InputError(
                f"{catalogue.path}: rows {first} and {row} both have {name}; expected one row for each cutout, remove "
                "one"
            )
    return rows, others, (~present).nonzero()[0]


def _names(cutout: Cutout, by_file: bool) -> tuple[str, ...]:
    """Return what may name a cutout in a catalogue, the surest first."""
    if by_file:
        name = cutout.files[0].name
        return (name, cutout.uri, str(Path(cutout.uri).absolute()), basename(name), cutout.id)
    words = [word for separators in _SEPARATORS for word in re.split(separators, cutout.id)]
    return (cutout.id, basename(cutout.files[0].name), *dict.fromkeys(words))


def _pattern(cutout: Cutout, names: Sequence[str]) -> str:
    """Return the name of a cutout with `{id}` in place of its id. Raises InputError if it has several ids."""
    if names[0] in (cutout.id, basename(cutout.files[0].name)):
        return "{id}"
    if len(set(names)) > 1:
        raise InputError(
            f"{cutout.uri} has the ids {' and '.join(names)} in its name; name the file of each row in a column with "
            "--file COLUMN"
        )
    return re.sub(rf"(?<![0-9A-Za-z]){re.escape(names[0])}(?![0-9A-Za-z])", "{id}", cutout.id)


def _ids(catalogue: Catalogue) -> ObjIds:
    if "objid" not in catalogue.fields:
        raise InputError(
            f"{catalogue.path} has no column of ids, by which to find the cutouts; name it with --id, or the column of "
            "file names with --file"
        )
    return objids(catalogue.fields["objid"][0], f"{catalogue.path}: objid")


def _file_names(catalogue: Catalogue) -> ObjIds:
    return objids(catalogue.files, f"{catalogue.path}: file names")


def _stem(name: str) -> str:
    """Return the name of a file without folder and ending: `123` of `a/123.fits.gz`."""
    base = basename(name)
    base = base[:-3] if base.lower().endswith(".gz") else base
    return base[: len(base) - len(ending(base))]


def _compile(per_band: str) -> re.Pattern[str]:
    if "{id}" not in per_band or "{band}" not in per_band:
        raise InputError(
            f"--per-band {per_band}: expected a pattern with {{id}} and {{band}}, as '{{id}}_{{band}}.fits'"
        )
    parts = re.split(r"(\{id\}|\{band\})", per_band)
    groups = {"{id}": "(?P<id>.+)", "{band}": "(?P<band>[ugrizUGRIZ])"}
    if len([part for part in parts if part in groups]) > len(groups):
        raise InputError(f"--per-band {per_band}: expected {{id}} and {{band}} once each")
    return re.compile("".join(groups.get(part) or re.escape(part) for part in parts))


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES])
