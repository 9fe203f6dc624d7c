"""Which file is the cutout of which galaxy: by its name, by a column of the catalogue, or by one name for each band."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from ...errors import InputError
from ...storage import basename
from ..bands import BANDS
from ..identity import has_objid, is_text, objids
from .catalogue import Catalogue
from .cutouts import SourceFile
from .gate import ending

_EXAMPLES = 10


@dataclass(frozen=True)
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
        notices.append(f"galaxies left out, since files of bands are missing: {len(broken):,}, as {_examples(broken)}")
    if others:
        notices.append(
            f"files left out, since their names are not like {per_band}: {len(others):,}, as {_examples(others)}"
        )
    return whole, notices


def match_cutouts(cutouts: Sequence[Cutout], catalogue: Catalogue) -> Matches:
    """Return the cutout of each row of a catalogue, by the names of its column of files, else by the ids.

    A file belongs to an id if it is called so, or if the id is the only one among the words of its name. Rows without a
    cutout and cutouts without a row are left out and counted. Raises InputError if a match is not clear.
    """
    wanted = _file_names(catalogue) if catalogue.files is not None else _ids(catalogue)
    rows: dict[str, int] = {}
    for row, name in wanted:
        if (first := rows.setdefault(name, row)) != row:
            raise InputError(
                f"{catalogue.path}: rows {first} and {row} both have {name}; expected one row for each cutout, remove "
                "one"
            )
    found: dict[int, Cutout] = {}
    unmatched: list[str] = []
    for cutout in cutouts:
        fitting = _find(cutout, rows, catalogue.files is not None)
        if fitting is None:
            unmatched.append(cutout.files[0].name)
            continue
        if (first_cutout := found.setdefault(rows[fitting], cutout)) is not cutout:
            raise InputError(
                f"{first_cutout.uri} and {cutout.uri} both fit {fitting} of {catalogue.path}; remove one, "
                "or name the right one in a column with --file COLUMN"
            )
    if not found:
        names = ", ".join(islice(rows, 3)) or "none"
        raise InputError(
            f"no cutout fits a row of {catalogue.path}: files are called as {cutouts[0].files[0].name}, ids are as "
            f"{names}; name the column of ids with --id or that of file names with --file"
        )
    matched = set(found)
    without = [name for name, row in rows.items() if row not in matched]
    notices = []
    if missing := catalogue.rows - len(found):
        notices.append(f"rows left out, since they have no cutout: {missing:,}, as {_examples(without)}")
    if unmatched:
        notices.append(f"cutouts left out, since they have no row: {len(unmatched):,}, as {_examples(unmatched)}")
    order = sorted(found)
    return Matches(tuple(found[row] for row in order), tuple(order), tuple(notices))


def _find(cutout: Cutout, rows: Mapping[str, int], by_file: bool) -> str | None:
    if by_file:
        names = (cutout.files[0].name, cutout.uri, basename(cutout.files[0].name), cutout.id)
        return next((name for name in names if name in rows), None)
    if cutout.id in rows:
        return cutout.id
    words = {word for word in re.split(r"[^0-9A-Za-z]+", cutout.id) if word in rows}
    if len(words) > 1:
        raise InputError(
            f"{cutout.uri} has the ids {' and '.join(sorted(words))} in its name; name the file of each row in a "
            "column with --file COLUMN"
        )
    return words.pop() if words else None


def _ids(catalogue: Catalogue) -> Iterable[tuple[int, str]]:
    if "objid" not in catalogue.fields:
        raise InputError(
            f"{catalogue.path} has no column of ids, by which to find the cutouts; name it with --id, or the column of "
            "file names with --file"
        )
    return _texts(catalogue.fields["objid"][0], f"{catalogue.path}: objid")


def _file_names(catalogue: Catalogue) -> Iterable[tuple[int, str]]:
    assert catalogue.files is not None
    return _texts(catalogue.files, f"{catalogue.path}: file names")


def _texts(values: NDArray[Any], where: str) -> Iterable[tuple[int, str]]:
    """Return the rows that have a value, with it as text."""
    ids = objids(values, where)
    present = has_objid(ids)
    for row in present.nonzero()[0].tolist():
        value = ids[row]
        yield row, value.decode() if is_text(ids.dtype) else str(int(value))


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
