"""Names in other people's files: which array or column is the image, the redshift, or the magnitude in each band.

A name is the path of a dataset or the name of a column. The columns of a structured array or a compound dataset are
called `labels[z]`. Wherever a name is asked for, its last part is enough if only one array has it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import islice

from ...errors import InputError
from ..bands import BANDS
from ..field_names import has_band_columns

# Letter case does not matter. A name of the second group counts only where there is none of the first: `z` and `id` may
# mean anything.
ALIASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "image": (("image", "images", "img", "cutout", "cutouts", "cube"), ("image_array", "flux")),
    "magnitude": (("magnitude", "magnitudes", "mag", "mags"), ()),
    "redshift": (("redshift", "redshifts", "redshift_spec", "z_spec", "zspec", "specz"), ("z",)),
    "objid": (("objid", "object_id"), ("id", "specobjid")),
    "ra": (("ra",), ()),
    "dec": (("dec",), ()),
}
REQUIRED = ("image", "magnitude")
OPTIONS = {"magnitude": "--magnitudes", "redshift": "--redshift", "objid": "--id", "ra": "--ra", "dec": "--dec"}
_OTHER_OPTIONS = {"keep": "--keep", "file": "--file"}  # of columns that are no fields
_LISTED, _CANDIDATES = 40, 10
# What the names of magnitudes by bands have in them, and those of their errors, extinctions and fluxes.
_MAGNITUDE_WORDS = ("mag", "petro", "dered")
_OTHER_WORDS = ("err", "sig", "var", "unc", "ext", "flux", "flag")

Found = dict[str, tuple[str, ...]]  # the names of each field: one, or those of the five magnitudes in the order ugriz


def last_part(name: str) -> str:
    """Return the name of an array without its path: `z` of `group/labels[z]`."""
    inside = re.fullmatch(r".*\[([^\[\]]+)\]", name) if name.endswith("]") else None
    return inside[1] if inside else name.rpartition("/")[2]


def find_fields(
    source: str,
    available: Collection[str],
    names: Mapping[str, str],
    fields: Iterable[str] = tuple(ALIASES),
) -> Found:
    """Return the source's names of each of these `fields` of ours, by the given `names` or else by `ALIASES`.

    Magnitudes are one array (N, 5), or five columns whose names differ by the band alone; columns that are named u, g,
    r, i, z and nothing else count only where nothing else could be the magnitudes.
    Raises InputError if a field in `names` is not among the `available` ones, or if several names fit one field. An
    image or magnitude that is not found is left to `require_fields`.
    """
    found: Found = {}
    for field in fields:
        if field in names:
            found[field] = match_field(source, available, field, names[field])
            continue
        aliases, weak = ALIASES[field]
        fitting: list[tuple[str, ...]] = [(name,) for name in available if last_part(name).lower() in aliases]
        if field == "magnitude":
            sets = magnitude_sets(available)
            fitting += [columns for pattern, columns in sets.items() if last_part(pattern) != "{band}"]
            fitting = fitting or list(sets.values())
        if not fitting and not (field == "redshift" and has_band_columns(map(last_part, available))):
            fitting = [(name,) for name in available if last_part(name).lower() in weak]
        if len(fitting) > 1:
            raise ambiguous(source, field, [_pattern(columns) for columns in fitting])
        if fitting:
            found[field] = fitting[0]
    return found


def match_field(source: str, available: Collection[str], field: str, given: str) -> tuple[str, ...]:
    """Return the names that the user's name of a field means: one, or five of magnitudes.

    Five are given as `A,B,C,D,E`, as `labels[A,B,C,D,E]`, or as a pattern with `{band}`. Raises InputError if there is
    no such name, or several.
    """
    parts = [given]
    if field == "magnitude" and "{band}" in given:
        lower = [given.replace("{band}", band) for band in BANDS]
        upper = [given.replace("{band}", band.upper()) for band in BANDS]
        known = [each for each in (lower, upper) if all(_matches(available, name, exactly=True) for name in each)]
        parts = (known or [lower])[0]
    elif field == "magnitude" and "," in given:
        inside = re.fullmatch(r"(.*)\[(.+)\]", given)
        columns = (inside[2] if inside else given).split(",")
        parts = [f"{inside[1]}[{column.strip()}]" if inside else column.strip() for column in columns]
    if len(parts) not in (1, len(BANDS)):
        raise InputError(
            f"{source}: {given} names {len(parts)} columns of magnitudes; expected those of u, g, r, i and z, in this "
            "order"
        )
    return tuple(match_name(source, available, part, field) for part in parts)


def match_name(source: str, available: Collection[str], name: str, field: str) -> str:
    """Return the one array that a name means. Raises InputError if there is none, or several."""
    matches = _matches(available, name)
    if not matches:
        raise missing_field(source, name, available, field)
    if len(matches) > 1:
        raise ambiguous(source, field, matches)
    return matches[0]


def _matches(available: Collection[str], name: str, exactly: bool = False) -> list[str]:
    """Return the arrays that a name may mean: the same name, else but for letter case, else with this last part."""
    wanted = name.strip("/")
    if wanted in available:
        return [wanted]
    found = [each for each in available if last_part(each) == wanted]
    if found or exactly:
        return found
    lower = wanted.lower()
    whole = [each for each in available if each.lower() == lower]
    return whole or [each for each in available if last_part(each).lower() == lower]


def require_fields(
    source: str, found: Iterable[str], available: Collection[str], required: Iterable[str] = REQUIRED
) -> None:
    """Raise InputError unless image and magnitude, or what else is `required`, are among the fields that were found."""
    found = set(found)
    for name in required:
        if name not in found:
            raise missing_field(source, name, available, name)


def missing_field(source: str, name: str, available: Collection[str], field: str) -> InputError:
    """Return the error for a field that is not among the names that a source has."""
    remedy = f"name the field with {(OPTIONS | _OTHER_OPTIONS).get(field, f'--field {field}=')}"
    if field == "magnitude":
        sets = [pattern for pattern in band_sets(available) if pattern != "{band}"]
        remedy += " NAME, an array (N, 5) in the order u g r i z; or five columns, as U,G,R,I,Z or as NAME_{band}"
        remedy += f", here {' or '.join(sets[:5])}" if sets else ""
    else:
        remedy += "NAME" if remedy.endswith("=") else " NAME"
    return InputError(f"{source} has no {name}, it holds {list_names(available)}; {remedy}")


def list_names(available: Collection[str], most: int = _LISTED) -> str:
    """Return names for a message, of many the first."""
    more = f" and {len(available) - most} more" if len(available) > most else ""
    return (", ".join(islice(available, most)) or "nothing") + more


def ambiguous(source: str, field: str, candidates: Iterable[str]) -> InputError:
    """Return the error for several arrays that could be one field."""
    options = OPTIONS | _OTHER_OPTIONS
    option = f"{options[field]} NAME" if field in options else f"--field {field}=NAME"
    return InputError(
        f"{source} has several candidates for {field}: {list_names(list(candidates), _CANDIDATES)}; name the right one "
        f"with {option}"
    )


def split_masks(available: Collection[str]) -> tuple[list[str], dict[str, str]]:
    """Return the names without those of masks, as astropy writes them: `x.mask` beside `x`; and the mask of each."""
    own = {name: f"{name[:-1]}.mask]" if name.endswith("]") else f"{name}.mask" for name in available}
    masks = {name: mask for name, mask in own.items() if mask in own}
    return [name for name in available if name not in masks.values()], masks


def band_sets(available: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the sets of five names that differ by the band alone, by their pattern with `{band}` in its place."""
    known, sets = set(available), {}
    for name in available:
        begin = len(name) - len(last_part(name)) - name.endswith("]")
        for at in [at for at in range(begin, len(name)) if name[at] in "uU"]:
            letters = BANDS if name[at] == "u" else BANDS.upper()
            columns = tuple(f"{name[:at]}{letter}{name[at + 1 :]}" for letter in letters)
            if known.issuperset(columns):
                sets[f"{name[:at]}{{band}}{name[at + 1 :]}"] = columns
    return sets


def magnitude_sets(available: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the sets of five names that can be magnitudes by their pattern: named so, or else by the bands alone."""
    sets = band_sets(available)
    named = {pattern: columns for pattern, columns in sets.items() if _is_magnitude(last_part(pattern).lower())}
    return named or {pattern: columns for pattern, columns in sets.items() if last_part(pattern) == "{band}"}


def select_kept(source: str, available: Collection[str], used: Collection[str], keep: Iterable[str]) -> dict[str, str]:
    """Return the columns to carry into the survey: their names there, and those in the source.

    `keep` are names, or `all` for every column but the `used` ones. Raises InputError if there is no such column, or if
    two of them have the same name.
    """
    requested = list(keep)
    everything = [name for name in available if name not in used]
    chosen = everything if requested == ["all"] else [match_name(source, available, name, "keep") for name in requested]
    kept: dict[str, str] = {}
    for name in chosen:
        short = last_part(name)
        if kept.setdefault(short, name) != name:
            raise InputError(f"{source}: {kept[short]} and {name} would both be the column {short}; keep one of them")
    return kept


def _is_magnitude(pattern: str) -> bool:
    return any(word in pattern for word in _MAGNITUDE_WORDS) and not any(word in pattern for word in _OTHER_WORDS)


def _pattern(columns: tuple[str, ...]) -> str:
    """Return how the user can name an array, or a set of columns."""
    if len(columns) == 1:
        return columns[0]
    return next((pattern for pattern, names in band_sets(columns).items() if names == columns), ",".join(columns))
