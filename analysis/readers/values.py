"""Get typed values from the records and tables of foreign files, or raise ValueError with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cosmicai.runs.record import BITS_PER_GALAXY

from ..tables import LARGEST_COUNT

_DURATION = re.compile(r"(?:(\d{1,6}):)?([0-5]?\d):([0-5]\d(?:\.\d+)?)")


def get_number(values: Mapping[str, Any], key: str) -> float:
    """Return a finite number that is not negative. Raises ValueError, naming the key, for anything else."""
    found = _get(values, key)
    try:
        value = math.nan if isinstance(found, bool) else float(found)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"its `{key}` is {_quote(found)}; expected a number that is not negative")
    return value


def get_integer(values: Mapping[str, Any], key: str) -> int:
    """Return a whole number from 0 to LARGEST_COUNT. Raises ValueError, naming the key, for anything else."""
    value = get_number(values, key)
    if value != int(value) or value > LARGEST_COUNT:
        raise ValueError(f"its `{key}` is {_quote(values[key])}; expected a whole number")
    return int(value)


def get_optional_number(values: Mapping[str, Any], key: str) -> float | None:
    """Return a finite number of either sign, or None if it is missing. Raises ValueError, naming the key, else."""
    found = values.get(key)
    if found is None:
        return None
    try:
        value = float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan
    except OverflowError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"its `{key}` is {_quote(found)}; expected a number")
    return value


def get_duration(values: Mapping[str, Any], key: str) -> float:
    """Return the seconds of a duration MM:SS or H:MM:SS. Raises ValueError, naming the key, for anything else."""
    found = _get(values, key)
    match = _DURATION.fullmatch(str(found))
    if match is None:
        raise ValueError(f"its `{key}` is {_quote(found)}; expected MM:SS or H:MM:SS")
    return int(match[1] or 0) * 3600 + int(match[2]) * 60 + float(match[3])


def get_text(values: Mapping[str, Any], key: str) -> str:
    """Return a text. Raises ValueError, naming the key, if it is missing, empty or of another type."""
    found = _get(values, key)
    if not isinstance(found, str):
        raise ValueError(f"its `{key}` is {_quote(found)}; expected a text")
    return found


def get_paths(values: Mapping[str, Any], key: str) -> str:
    """Return one path, or several that are joined. Raises ValueError, naming the key, for anything else."""
    found = _get(values, key)
    if isinstance(found, list) and found and all(isinstance(path, str) for path in found):
        return ", ".join(found)
    return get_text(values, key)


def get_rate(values: Mapping[str, Any], galaxies: str, bits: str) -> float:
    """Return the galaxies per second that a record states twice, in galaxies and in bits.

    Raises ValueError if one of the two is missing or the units contradict each other.
    """
    value = get_number(values, galaxies)
    if not math.isclose(stated := get_number(values, bits), value * BITS_PER_GALAXY, rel_tol=1e-3):
        raise ValueError(
            f"its units do not agree: `{bits}` is {stated:g}, which is {stated / BITS_PER_GALAXY:g} galaxies per "
            f"second, and `{galaxies}` is {value:g}"
        )
    return value


def count_galaxies(per_second: float, seconds: float = 1.0) -> int:
    """Return the whole number of galaxies of a rate and a time. Raises ValueError if it exceeds LARGEST_COUNT."""
    galaxies = per_second * seconds
    if galaxies > LARGEST_COUNT:
        raise ValueError(f"its values amount to {galaxies:g} galaxies; expected no more than 10^15")
    return round(galaxies)


def parse_time(text: str) -> datetime:
    """Return a time in ISO 8601, by default in UTC, as a time in UTC. Raises ValueError if it is not one."""
    time = datetime.fromisoformat(text)
    try:
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is outside the years 1 to 9999") from None


def _get(values: Mapping[str, Any], key: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError("it is not a set of keys and values")
    if values.get(key) in (None, ""):
        raise ValueError(f"it has no `{key}`")
    return values[key]


def _quote(value: Any) -> str:
    """Return a value for a message, shortened: a damaged file may hold megabytes in one value."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."
