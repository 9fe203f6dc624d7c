"""The columns that a user asked to carry into the survey: which a source has, and which of them cannot be carried."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ...errors import InputError
from .names import list_names, select_kept
from .source import IngestOptions

_KINDS = "biufSU"


def find_problem(shape: tuple[int, ...], dtype: np.dtype[Any], galaxies: int, is_text: bool = False) -> str:
    """Return why an array cannot be carried as a column, an empty text if it can: one plain value per galaxy.

    `is_text` says that objects are texts of any length.
    """
    if shape != (galaxies,):
        return f"has the shape {shape}"
    return "" if dtype.kind in _KINDS or is_text else f"is of dtype {dtype}"


def select_columns(
    source: str, problems: Mapping[str, str], used: Collection[str], options: IngestOptions
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the columns to carry, by their names in the survey those in the source, and sentences for the user.

    `problems` are those of every array of the source (`find_problem`). Of all columns, those with a problem are left
    out and named. Raises InputError if a column that is named has one, or if there is no such column.
    """
    if options.image_only or not options.keep:
        return {}, ()
    if tuple(options.keep) == ("all",):
        left_out = [name for name, problem in problems.items() if problem and name not in used]
        kept = select_kept(source, [name for name in problems if not problems[name]], used, options.keep)
        said = f"{source}: {list_names(left_out)} cannot be kept as columns of one number or text per galaxy"
        return kept, (said,) if left_out else ()
    kept = select_kept(source, problems, used, options.keep)
    for name in kept.values():
        if problems[name]:
            raise InputError(
                f"{source}: {name} {problems[name]}; expected one number or text per galaxy, leave it out of --keep"
            )
    return kept, ()
