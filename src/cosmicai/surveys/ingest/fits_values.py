"""What FITS files hold beside the image: magnitudes, redshifts, ids, positions and kept columns.

They are the columns of a table of many galaxies, or the cards in the header of a single one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..bands import BANDS
from .fits_cards import read_comment
from .fits_hdus import Hdu, list_labels
from .fits_positions import Position, find_wcs_centre, parse_angle, separation, to_icrs
from .fits_tables import TableColumn, list_columns, read_columns
from .names import ALIASES, Found, find_fields, match_field, require_fields, select_kept
from .source import IngestOptions, SourceArray, check_dtype, from_sliceable

_POSITION = ("ra", "dec")
# Cards that may be a field of ours, so that they are listed where one is missing.
_FIELD_CARD = re.compile(r"(MAG|Z_|ZSPEC|SPECZ|REDSHIFT|OBJ|SPECOBJ|PETRO|DERED).*|.*MAG_?[UGRIZ]|ID|[UGRIZ]")
# Cards that describe how the file is written and where its pixels lie: no properties of the galaxy.
_STRUCTURE = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|PCOUNT|GCOUNT|TFIELDS|GROUPS|BSCALE|BZERO|BLANK|CHECKSUM|DATASUM|EXTNAME"
    r"|EXTVER|EXTLEVEL|INHERIT|WCSAXES|C(RPIX|RVAL|TYPE|UNIT|DELT|ROTA)\d+|(CD|PC|PV|PS)\d+_\d+|LONPOLE|LATPOLE|RADE?C?SYS"
    r"|EQUINOX|BUNIT|(BAND|FILTER)S?\d*|Z(IMAGE|BITPIX|NAXIS\d*|CMPTYPE|TILE\d+|QUANTIZ|NAME\d+|VAL\d+|HECKSUM|DATASUM)"
)  # fmt: skip
_DEGREES_PER_UNIT = {"": 1.0, "deg": 1.0, "degree": 1.0, "degrees": 1.0, "rad": 180 / np.pi, "radian": 180 / np.pi}


@dataclass(frozen=True)
class Values:
    """The fields of galaxies beside their image, and what is said of them."""

    fields: dict[str, SourceArray]
    columns: dict[str, SourceArray] = field(default_factory=dict)
    column_units: dict[str, str] = field(default_factory=dict)
    magnitude_bands: tuple[str, ...] = ()
    magnitude_unit: str = ""
    others: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def read_header_values(source: str, hdus: Sequence[Hdu], image: Hdu, options: IngestOptions) -> Values:
    """Return the values of a single galaxy from the header of its image, or from the primary one.

    Raises InputError if the header lacks what is required, or if a field could be several cards.
    """
    cards = {**hdus[0].cards, **image.cards}
    explicit = {name for name in options.names if name != "image"}
    own = [name for name in cards if not _STRUCTURE.fullmatch(name)]
    shown = own if explicit else [name for name in own if _FIELD_CARD.fullmatch(name)]
    found = _find(source, ["image", *shown], options)
    fields: dict[str, SourceArray] = {}
    for name, parts in found.items():
        if name not in _POSITION:
            values = [_one(cards[part]) for part in parts]
            fields[name] = _field(source, name, values)
    position, notices, used = _position(source, hdus, image, options)
    if position is not None:
        fields |= {name: from_sliceable(np.array([value])) for name, value in zip(_POSITION, position, strict=True)}
    taken = {part for parts in found.values() for part in parts} | set(used)
    fit = {name for name in own if _one(cards[name]).dtype.kind in "biufU"} if options.keep else set()
    kept, text = _kept(source, own, taken, fit, options)
    columns = {short: from_sliceable(_one(cards[name])) for short, name in kept.items()}
    return Values(
        fields,
        columns,
        magnitude_bands=_magnitude_bands(found),
        others=tuple(name for name in own if name not in taken),
        notices=(*notices, *text),
    )


def _one(value: Any) -> NDArray[Any]:
    return np.array([np.nan if value is None else value])


def _position(
    source: str, hdus: Sequence[Hdu], image: Hdu, options: IngestOptions
) -> tuple[Position | None, list[str], tuple[str, ...]]:
    """Return the position of a single galaxy, notices about it, and the cards that it is from."""
    cards = {**hdus[0].cards, **image.cards}
    centre, radius = find_wcs_centre(image)
    unknown = [f"{source}: the WCS gives no position that is known in ICRS"] if centre is None and radius else []
    # With a catalogue the names are of its columns, and the position serves to compare with the catalogue's.
    names = [None if options.image_only else options.names.get(name) for name in _POSITION]
    used = tuple(
        match_field(source, list(cards), field_, name)[0] if name is not None else field_.upper()
        for field_, name in zip(_POSITION, names, strict=True)
    )
    present = [name for name in used if cards.get(name) is not None]
    if not present:
        return centre, unknown, ()
    problem = ""
    angles = [parse_angle(cards.get(name), index == 0) for index, name in enumerate(used)]
    comments = " ".join(read_comment(hdu.text, name) for hdu in (hdus[0], image) for name in present)
    stated = None
    if None in angles or re.search(r"\bh(ou)?rs?\b|\[h\]|\brad(ian)?s?\b|\[rad\]", comments, flags=re.I):
        problem = "are no right ascension and declination in degrees"
    else:
        stated = to_icrs(cards, (float(angles[0] or 0), float(angles[1] or 0)))
        if stated is None:
            problem = "are in a frame that is neither ICRS, FK5 nor FK4"
        elif centre is not None and separation(stated, centre) > radius and None in names:
            problem = "lie outside the cutout, as those of a telescope's pointing do,"
    if not problem:
        return stated, [], used
    instead = "the centre of the cutout by its WCS is taken" if centre is not None else "no position is taken"
    shown = " and ".join(f"{name} {cards[name]}" for name in present)
    return centre, [f"{source}: {shown} {problem} and are not used; {instead}"], ()


def read_table_values(
    source: str, hdus: Sequence[Hdu], table: Hdu | None, options: IngestOptions, images: Sequence[str] = ()
) -> Values:
    """Return the values of the galaxies in a table, but for the columns of its `images`.

    Raises InputError if the table lacks what is required, or if a field could be several columns.
    """
    columns = {} if table is None else {each.name: each for each in list_columns(source, table) if each.name}
    upper = {name.upper(): name for name in columns if name not in images}
    found = _find(source, ["image", *upper], options)
    wanted = {name: tuple(upper[part] for part in parts) for name, parts in found.items()}
    used = {part for parts in wanted.values() for part in parts}
    fit = {name for name, column in columns.items() if column.is_scalar}
    kept, notices = _kept(source, list(columns), {*used, *images}, fit, options)
    values = {} if table is None else read_columns(source, table, dict.fromkeys([*sorted(used), *kept.values()]))
    fields, units = {}, set()
    for name, parts in wanted.items():
        if name in _POSITION:
            array = _degrees(name, columns[parts[0]], values[parts[0]])
            if array is None and name not in options.names:
                notices.append(f"{source}: {parts[0]} is not in degrees and not used")
                continue
            if array is None:
                raise InputError(f"{source}: {parts[0]} is no {name} in degrees; convert it, or name another column")
            fields[name] = from_sliceable(array)
            continue
        fields[name] = _field(source, name, [values[part] for part in parts])
        if name == "magnitude":
            units |= {columns[part].unit for part in parts}
    if len(fields.keys() & set(_POSITION)) == 1:  # half a position is none
        fields = {name: array for name, array in fields.items() if name not in _POSITION}
    return Values(
        fields,
        {short: from_sliceable(values[name]) for short, name in kept.items()},
        {short: columns[name].unit for short, name in kept.items() if columns[name].unit},
        _magnitude_bands(found),
        next((text for text in sorted(units, reverse=True) if text), ""),
        tuple(name for name in columns if name not in used and name not in images),
        (*notices, *_unused(source, hdus, table, found, options)),
    )


def _find(source: str, available: list[str], options: IngestOptions) -> Found:
    """Return the columns or cards of each field but the image: one, or one per band of the magnitudes."""
    names = {name: given for name, given in options.names.items() if name != "image"}
    found = find_fields(source, available, names, [name for name in options.wanted if name != "image"])
    require_fields(source, ["image", *found], available, options.required)
    return found


def _magnitude_bands(found: Found) -> tuple[str, ...]:
    return tuple(BANDS) if len(found.get("magnitude", ())) > 1 else ()


def _field(source: str, name: str, values: Sequence[NDArray[Any]]) -> SourceArray:
    arrays = [each if name == "objid" else _floating(each) for each in values]
    array = np.stack(arrays, axis=-1) if len(arrays) > 1 else arrays[0]
    check_dtype(source, name, array.dtype)
    return from_sliceable(array)


def _floating(values: NDArray[Any]) -> NDArray[Any]:
    """Return integers with nulls as floating point with NaN; other values as they are."""
    if not isinstance(values, np.ma.MaskedArray) or values.dtype.kind == "b":  # which is no number: refused later
        return values
    return np.ma.filled(values.astype(np.float64), np.nan)


def _degrees(name: str, column: TableColumn, values: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return a column of angles in degrees; None if it is of text, or in another unit."""
    unit = column.unit.strip().lower()
    factor = 15.0 if name == "ra" and unit in ("h", "hour", "hourangle") else _DEGREES_PER_UNIT.get(unit)
    if factor is None or values.dtype.kind not in "fiu" or values.ndim != 1:
        return None
    return np.asarray(_floating(values), np.float64) * factor


def _kept(
    source: str, available: Sequence[str], used: set[str], fit: set[str], options: IngestOptions
) -> tuple[dict[str, str], list[str]]:
    """Return the columns to keep by their names in the survey, and a notice about those that are not `fit` for it."""
    keep = () if options.image_only else options.keep
    kept = select_kept(source, available, used, keep)
    unfit = {short: name for short, name in kept.items() if name not in fit}
    if unfit and tuple(keep) != ("all",):
        raise InputError(
            f"{source}: {', '.join(unfit.values())} cannot be kept; expected one number or text for each galaxy"
        )
    text = f"{source}: {', '.join(unfit.values())} are not one number or text for each galaxy and are not kept"
    return {short: name for short, name in kept.items() if name in fit}, [text] if unfit else []


def _unused(
    source: str, hdus: Sequence[Hdu], table: Hdu | None, found: Found, options: IngestOptions
) -> tuple[str, ...]:
    """Return a sentence about redshifts and ids in other tables than the one of the magnitudes."""
    unused = [
        f"{column.name} of {list_labels([hdu])}"
        for hdu in hdus
        if table is not None and not options.image_only and hdu.is_table and hdu is not table
        for column in list_columns(source, hdu)
        for name in ("redshift", "objid")
        if name not in found and column.name.lower() in ALIASES[name][0]
    ]
    text = f"{source}: {', '.join(unused)} is in another table than the magnitudes and not used; join the tables"
    return (text,) if unused else ()
