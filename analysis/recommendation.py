"""What came of advising: choices with their marks, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from .candidates import Choice, Excluded, Target
from .model import Model

COLUMNS = (
    "choice", "platform", "seconds", "low", "high", "dollars", "service_units", "memory_mb", "on_front", "meets",
    "based_on", "remark", "command",
)  # fmt: skip
NAMED = 3  # runs of which the names are told


@dataclass(frozen=True)
class Advice:
    """What there is to choose from, fastest first.

    `deadline` in seconds and `budget` in US dollars are None if nothing was asked for. `on_front` and `meets` tell of
    each choice; `excluded` are ways that do not work, `models` all that was fitted, `notes` what a reader must know.
    """

    target: Target
    deadline: float | None
    budget: float | None
    choices: tuple[Choice, ...]
    on_front: tuple[bool, ...]
    meets: tuple[bool, ...]
    excluded: tuple[Excluded, ...]
    models: tuple[Model, ...]
    notes: tuple[str, ...]

    @property
    def nearest(self) -> Choice | None:
        """The choice that misses deadline and budget by the smallest factor; None if there is no choice."""
        return min(self.choices, key=lambda one: (miss(one, self.deadline, self.budget), one.seconds), default=None)

    @property
    def verdict(self) -> str:
        """One sentence: how many choices meet what was asked for, or which comes nearest."""
        limits = [f"{self.deadline:,.6g} s"] if self.deadline is not None else []
        limits += [f"${self.budget:,.6g}"] if self.budget is not None else []
        count, near = sum(self.meets), self.nearest
        if near is None:
            return "There is no choice at all: nothing that was measured can run this survey."
        if not limits:
            return f"{len(self.choices)} choices, {sum(self.on_front)} of them on the front."
        if count:
            return f"{count} of {len(self.choices)} choices stay within {' and '.join(limits)}."
        cost = "" if near.dollars is None else f" and ${near.dollars:,.4g}"
        return (
            f"None of {len(self.choices)} choices stays within {' and '.join(limits)}; the nearest is {near.name}, "
            f"with {near.seconds:,.4g} s{cost}."
        )


def miss(one: Choice, deadline: float | None, budget: float | None) -> float:
    """By what factor a choice misses deadline and budget, the worse of both; 1 or less if it meets them."""
    late = 0.0 if deadline is None else one.seconds / deadline
    if budget is None or not one.dollars:
        return late
    return max(late, one.dollars / budget if budget else math.inf)


def advice_table(advice: Advice) -> pd.DataFrame:
    """COLUMNS, a row per choice, fastest first; seconds, US dollars, service units, MB (2^20 bytes)."""
    rows = [
        {
            "choice": one.name,
            "platform": one.place,
            **{
                name: getattr(one, name) for name in ("seconds", "low", "high", "dollars", "service_units", "memory_mb")
            },
            "on_front": on_front,
            "meets": meets,
            "based_on": based_on(one.model),
            "remark": one.remark,
            "command": one.command,
        }
        for one, on_front, meets in zip(advice.choices, advice.on_front, advice.meets, strict=True)
    ]
    numbers = dict.fromkeys(COLUMNS[2:8], "float64")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(numbers | {"on_front": "bool", "meets": "bool"})


def error_table(models: Iterable[Model]) -> pd.DataFrame:
    """How far each model is off: platform, machine, based_on, runs, configurations left out one by one, and the median
    and the largest relative error of their times; NA where there were too few to leave one out."""
    rows = [
        (one.place, one.machine, based_on(one), len(one.runs), len(one.withheld), one.error, one.largest_error)
        for one in models
    ]
    names = ["platform", "machine", "based_on", "runs", "left_out", "median_error", "largest_error"]
    return pd.DataFrame(rows, columns=names).astype({"median_error": "float64", "largest_error": "float64"})


def based_on(model: Model) -> str:
    """Whose runs a model was fitted to: of ours the names of the first ones."""
    count = len(model.runs)
    runs = f"{count} run{'' if count == 1 else 's'}"
    if model.origin == "published":
        return f"{runs} of the published code"
    more = f" and {count - NAMED} more" if count > NAMED else ""
    return f"{runs} of yours: {', '.join(model.runs[:NAMED])}{more}"


def to_json(advice: Advice) -> str:
    """All of it as JSON; what is not known is null."""
    table = json.loads(advice_table(advice).to_json(orient="records"))
    for row, one in zip(table, advice.choices, strict=True):
        row["runs"] = list(one.model.runs)
    values = {
        "survey": asdict(advice.target),
        "deadline": advice.deadline,
        "budget": advice.budget,
        "verdict": advice.verdict,
        "choices": table,
        "excluded": [asdict(one) for one in advice.excluded],
        "models": [asdict(one) | {"peaks": [_finite(pair) for pair in one.peaks]} for one in advice.models],
        "errors": json.loads(error_table(advice.models).to_json(orient="records")),
        "notes": list(advice.notes),
    }
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def _finite(pair: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in pair]
