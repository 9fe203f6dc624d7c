"""Make labels for legends short and distinct: what all share is said once, as the title of the legend."""

from __future__ import annotations

import re
from collections.abc import Sequence

UNSTATED = "not stated"  # label of a series without any words but those that all share
_WORD = re.compile(r"[^ /]*[ /]?")


def split_shared(names: Sequence[str]) -> tuple[list[str], str]:
    """Return the names without what all of them share, and a title that says this once; … stands for the rest.

    Names consist of parts with commas between them. Parts that all names have are left out; names of which a single
    part remains lose the words, or folders of a path, with which all begin or end.
    """
    if len(set(names)) < 2:
        return [*names], ""
    parts = [name.split(", ") for name in names]
    shared = [part for part in dict.fromkeys(parts[0]) if all(part in own for own in parts)]
    rests = [[part for part in own if part not in shared] for own in parts]
    if any(len(rest) != 1 for rest in rests):
        title = ", ".join([*shared, "…"]) if shared else ""
        return [", ".join(rest) or UNSTATED for rest in rests], title
    words = [[word for word in _WORD.findall(rest[0]) if word] for rest in rests]
    first = _count_equal(words)
    last = _count_equal([own[first:][::-1] for own in words])
    before, after = "".join(words[0][:first]), "".join(words[0][len(words[0]) - last :])
    labels = ["".join(own[first : len(own) - last]).strip() for own in words]
    varying = f"{before}… {after}".strip()
    return labels, ", ".join([*shared, varying]) if shared or before or after else ""


def _count_equal(words: Sequence[Sequence[str]]) -> int:
    """Return with how many words all sequences begin alike, while each keeps at least one."""
    count = 0
    while all(len(own) > count + 1 for own in words) and len({own[count] for own in words}) == 1:
        count += 1
    return count
