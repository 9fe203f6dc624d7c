"""Decode what files and the environment hold into typed records; every mistake becomes one sentence.

Records are `msgspec.Struct` types whose fields say what a file must hold. `decode_json` is the only way in which JSON
enters the program, so that broken, deep, mistyped or non-UTF-8 text is always reported in the same way: the file, the
field, and what was expected.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from .errors import InputError

Kind = TypeVar("Kind")


def decode_json(data: bytes | str, kind: type[Kind], *, where: str, remedy: str) -> Kind:
    """Return the record of type `kind` that JSON text holds.

    `where` names the file or variable in messages, and `remedy` says what the user can do, as in "choose another run
    folder". Raises InputError naming file, field and expectation if the text is not JSON or does not fit the type.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError:
        problem = "it is not UTF-8 text"
    except RecursionError:
        problem = "it is nested too deeply"
    except (msgspec.DecodeError, ValueError) as error:
        problem = explain(error)
    raise InputError(f"{where} cannot be used: {problem}; {remedy}") from None


def convert(value: object, kind: type[Kind], *, where: str, remedy: str) -> Kind:
    """Return the record of type `kind` that plain values (from TOML, an event or an attribute) make up.

    Raises InputError as `decode_json`.
    """
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be used: {explain(error)}; {remedy}") from None


def explain(error: Exception) -> str:
    """Return the reason for which a value was refused, as part of a sentence that names the field."""
    text = str(error).strip()
    field = re.search(r" - at `\$\.?([^`]*)`$", text)
    if field is None:
        return _lower_first(text)
    return f"field {field.group(1) or 'at the top'}: {_lower_first(text[: field.start()])}"


def _lower_first(text: str) -> str:
    return text if text.startswith("JSON") else text[:1].lower() + text[1:]
