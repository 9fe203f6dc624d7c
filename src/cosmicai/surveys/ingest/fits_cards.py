"""The cards of FITS headers as plain dictionaries: astropy parses every card anew for each question."""

from __future__ import annotations

import re
from typing import Any

_LENGTH = 80  # characters of a card
_TEXT = re.compile(r" *'((?:[^']|'')*)' *(?:/.*)?$")
_INTEGER = re.compile(r" *([+-]?\d{1,18}) *(?:/.*)?$")
_FLOAT = re.compile(r" *([+-]?(?:\d+\.\d*|\.\d+)(?:[EeDd][+-]?\d+)?) *(?:/.*)?$")
_LOGICAL = re.compile(r" *([TF]) *(?:/.*)?$")
_PLAIN = re.compile(r"[A-Z0-9_-]+ *")
_COMMENTARY = ("COMMENT", "HISTORY", "END", "CONTINUE", "")


def read_cards(text: str) -> dict[str, Any]:
    """Return the values of a header by their keywords in upper case, None for cards without a value.

    `text` is the header as it is written, cards of 80 characters. The first of several cards of one keyword counts, as
    in astropy; comments and history are left out.
    """
    values: dict[str, Any] = {}
    for begin in range(0, len(text), _LENGTH):
        keyword = text[begin : begin + 8].rstrip()
        if keyword in _COMMENTARY or keyword in values:
            continue
        card = text[begin : begin + _LENGTH]
        if keyword == "HIERARCH" or text.startswith("CONTINUE", begin + _LENGTH) or card[8:10] != "= ":
            name, value = _parse_unusual(text, begin)
            if name not in _COMMENTARY:
                values.setdefault(name, value)
        else:
            values[keyword if _PLAIN.fullmatch(keyword) else keyword.upper()] = _parse_value(card)
    return values


def read_comment(text: str, keyword: str) -> str:
    """Return the comment of a card, empty if there is none."""
    starts = (begin for begin in range(0, len(text), _LENGTH) if text.startswith(f"{keyword:<8}=", begin))
    card = next((text[begin : begin + _LENGTH] for begin in starts), "")
    return card.rpartition("/")[2].strip() if "/" in card else ""


def _parse_value(card: str) -> Any:
    rest = card[10:]
    if match := _TEXT.match(rest):
        return match[1].replace("''", "'").rstrip()
    if match := _FLOAT.match(rest):
        return float(match[1].upper().replace("D", "E"))
    if match := _INTEGER.match(rest):
        return int(match[1])
    if match := _LOGICAL.match(rest):
        return match[1] == "T"
    return _parse_unusual(card, 0)[1]


def _parse_unusual(text: str, begin: int) -> tuple[str, Any]:
    """Return keyword and value of a card as astropy reads it, with the cards that continue it."""
    from astropy.io import fits

    end = begin + _LENGTH
    while text.startswith("CONTINUE", end):
        end += _LENGTH
    card = fits.Card.fromstring(text[begin:end])
    return card.keyword.upper(), None if isinstance(card.value, fits.card.Undefined) else card.value
