"""Files that hold the same galaxies by their names: `1.h5` beside `1.pt`, and the copies that file managers make."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = r"(?:copy|kopie|copie|copia)"
# What file managers, browsers and editors make of a name: "Copy of 1", "Copy (2) of 1"; "1 (copy)", "1 (another copy)",
# "1 (3rd copy)"; "1 copy", "1_copy2", "1 - Copy (2)"; "1.bak", "1~".
_COPIES = (
    re.compile(rf"{_WORD}(?: ?\(?\d+\)?)? (?:of|von|de|di) (?P<original>.+)", re.IGNORECASE),
    re.compile(rf"(?P<original>.+?)[ _-]*\([^()]*\b{_WORD}\b[^()]*\)", re.IGNORECASE),
    re.compile(rf"(?P<original>.+?)[ ._-]+{_WORD}[ ._-]*\(?\d*\)?", re.IGNORECASE),
    re.compile(r"(?P<original>.+?)[ ._-]+(?:bak|backup|orig)\d*", re.IGNORECASE),
    re.compile(r"(?P<original>.+?)\.?~\d*~?"),
    re.compile(r"(?P<original>.+?)\.(?:pt|h5|hdf5)", re.IGNORECASE),  # "1.pt.h5", converted
)
_NUMBERED = re.compile(r"(?P<original>.+?) ?\(\d+\)")  # "1 (1)", of a browser; or a name that its owner chose


def find_copies(names: Iterable[str]) -> list[str]:
    """Return the first files among `names` that are copies of one file, and that file if it is there; else nothing.

    A number in parentheses is a copy only beside its original: `sky (1).h5` and `sky (2).h5` are not.
    """
    groups: dict[str, list[str]] = {}
    chosen: dict[str, bool] = {}  # whether all names of a group may be what their owner chose
    for name in names:
        stem = name.rpartition(".")[0]
        original, is_numbered = _find_original(stem)
        groups.setdefault(original, []).append(name)
        chosen[original] = chosen.get(original, True) and is_numbered
    return next((group for original, group in groups.items() if len(group) > 1 and not chosen[original]), [])


def _find_original(stem: str) -> tuple[str, bool]:
    """Return the name, without its ending, of the file of which this would be a copy, and whether only numbers say so.

    A name that is not that of a copy is its own original.
    """
    kinds = set()
    while found := next((found for pattern in (*_COPIES, _NUMBERED) if (found := pattern.fullmatch(stem))), None):
        stem = found["original"]
        kinds.add(found.re)
    return stem, kinds == {_NUMBERED}
