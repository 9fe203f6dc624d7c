"""Names by which other surveys call an id or a spectroscopic redshift, to name what would else be left out silently."""

from __future__ import annotations

import re
from collections.abc import Iterable

_KINDS = r"(spec|best|photo)?obj(ect)?|target|source|thing|galaxy|gal|cat(alog)?"
_LIKELY = {
    "redshift": re.compile(
        r"(\w+[_-])?(redshift|z_?spec|spec_?z)s?([_-](spec|true|best|hel\w*|cmb))?|z[_-]?(true|best|hel\w*|cmb)|zred|z"
    ),
    "objid": re.compile(rf"((\w+[_-])?({_KINDS})?[_-]?|\w+[_-])ids?|(\w+[_-])?names?"),
}
_UNLIKELY = re.compile(r".*(phot(?!o?obj)|err|band|filter|file).*")


def has_band_columns(names: Iterable[str]) -> bool:
    """Return whether these are columns named by bands, so that `z` is the band and not a redshift."""
    return len({name.lower() for name in names} & set("ugri")) >= 2


def find_likely(field: str, names: Iterable[str]) -> list[str]:
    """Return which of these names of arrays, groups before them left out, may well be that of an id or a redshift."""
    names = list(names)
    own = {name: re.split(r"[/\[]", name.rstrip("]"))[-1].lower() for name in names}
    is_band = has_band_columns(own.values())
    return [
        name
        for name in names
        if _LIKELY[field].fullmatch(own[name])
        and not _UNLIKELY.fullmatch(own[name])
        and not (is_band and own[name] == "z")
    ]
