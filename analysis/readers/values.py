"""Values of records and tables as numbers, or a sentence about why they are none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from cosmicai.runs.record import BITS_PER_GALAXY

_CLOCK = re.compile(r"(?:(\d+):)?([0-5]?\d):([0-5]\d(?:\.\d+)?)")


def number(values: Mapping[str, Any], key: str) -> float:
    """A number that is not negative. Raises ValueError, naming the key, if it is missing or anything else."""
    found = _found(values, key)
    try:
        value = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"its `{key}` is {found!r}; expected a number that is not negative")
    return value


def whole(values: Mapping[str, Any], key: str) -> int:
    """A whole number that is not negative. Raises ValueError, naming the key, if it is missing or anything else."""
    value = number(values, key)
    if value != int(value):
        raise ValueError(f"its `{key}` is {values[key]!r}; expected a whole number")
    return int(value)


def signed(values: Mapping[str, Any], key: str) -> float | None:
    """A number of either sign, None where there is none. Raises ValueError, naming the key, for anything else."""
    found = values.get(key)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise ValueError(f"its `{key}` is {found!r}; expected a number")
    return float(found)


def clock(values: Mapping[str, Any], key: str) -> float:
    """Seconds of a duration MM:SS or H:MM:SS. Raises ValueError, naming the key, if it is missing or anything else."""
    found = _found(values, key)
    match = _CLOCK.fullmatch(str(found))
    if match is None:
        raise ValueError(f"its `{key}` is {found!r}; expected MM:SS or H:MM:SS")
    return int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3])


def text(values: Mapping[str, Any], key: str) -> str:
    """A text. Raises ValueError, naming the key, if it is missing or anything else."""
    found = _found(values, key)
    if not isinstance(found, str):
        raise ValueError(f"its `{key}` is {found!r}; expected a text")
    return found


def rate(values: Mapping[str, Any], galaxies: str, bits: str) -> float:
    """Galaxies per second, told in galaxies and in bits. Raises ValueError if one is missing or the units differ."""
    value = number(values, galaxies)
    if not math.isclose(told := number(values, bits), value * BITS_PER_GALAXY, rel_tol=1e-3):
        raise ValueError(
            f"its units do not agree: `{bits}` is {told:g}, which is {told / BITS_PER_GALAXY:g} galaxies per second, "
            f"and `{galaxies}` is {value:g}"
        )
    return value


def _found(values: Mapping[str, Any], key: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError("it is no set of keys and values")
    if values.get(key) in (None, ""):
        raise ValueError(f"it has no `{key}`")
    return values[key]
