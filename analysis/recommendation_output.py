"""Show a recommendation: as tables, as JSON, on the terminal and as files in a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pandas as pd

from cosmicai.console import echo

from . import formatting
from .recommend import Recommendation
from .time_model import TimeModel

COLUMNS = (
    "choice", "platform", "seconds", "low", "high", "dollars", "service_units", "memory_mb", "on_front", "meets",
    "based_on", "origin", "machine", "remark", "command",
)  # fmt: skip
HEADINGS = {
    "seconds": "time, s",
    "low": "from",
    "high": "to",
    "dollars": "US dollars",
    "service_units": "service units",
    "memory_mb": "memory, MB",
    "on_front": "on the front",
    "meets": "within limits",
    "based_on": "based on",
    "left_out": "configurations left out in turn",
    "median_error": "median error",
    "largest_error": "largest error",
}
NAMED = 3  # runs of a model that are named


def tabulate_candidates(recommendation: Recommendation) -> pd.DataFrame:
    """Return COLUMNS, a row per choice, fastest first; seconds, US dollars, service units, MB (2^20 bytes)."""
    numbers = COLUMNS[2:8]
    rows = [
        {
            "choice": one.name,
            "platform": one.place,
            **{name: getattr(one, name) for name in numbers},
            "on_front": on_front,
            "meets": meets,
            "based_on": describe_basis(one.model),
            "origin": one.model.origin,
            "machine": one.model.machine,
            "remark": one.remark,
            "command": one.command,
        }
        for one, on_front, meets in zip(
            recommendation.choices, recommendation.on_front, recommendation.meets, strict=True
        )
    ]
    dtypes = dict.fromkeys(numbers, "float64") | {"on_front": "bool", "meets": "bool"}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(dtypes)


def tabulate_errors(models: Iterable[TimeModel]) -> pd.DataFrame:
    """Return a row per model with its error.

    Columns: platform, machine, based_on, runs, left_out (configurations left out one by one), median_error and
    largest_error (relative errors of their times; NA if there are too few to leave one out).
    """
    rows = [
        (one.place, one.machine, describe_basis(one), len(one.runs), len(one.withheld), one.error, one.largest_error)
        for one in models
    ]
    names = ["platform", "machine", "based_on", "runs", "left_out", "median_error", "largest_error"]
    return pd.DataFrame(rows, columns=names).astype({"median_error": "float64", "largest_error": "float64"})


def describe_basis(model: TimeModel) -> str:
    """Return which runs a model was fitted to, with the names of the first ones if they are the user's own."""
    count = len(model.runs)
    runs = f"{count} run{'' if count == 1 else 's'}"
    if model.origin == "published":
        return f"{runs} of the published code"
    more = f" and {count - NAMED} more" if count > NAMED else ""
    return f"{runs} of yours: {', '.join(model.runs[:NAMED])}{more}"


def to_json(recommendation: Recommendation) -> str:
    """Return the whole recommendation as JSON; unknown values are null."""
    table = json.loads(tabulate_candidates(recommendation).to_json(orient="records"))
    for row, one in zip(table, recommendation.choices, strict=True):
        row["runs"] = list(one.model.runs)
    values = {
        "survey": asdict(recommendation.target),
        "deadline": recommendation.deadline,
        "budget": recommendation.budget,
        "verdict": recommendation.verdict,
        "choices": table,
        "excluded": [asdict(one) for one in recommendation.excluded],
        "models": [_encode_model(one) for one in recommendation.models],
        "errors": json.loads(tabulate_errors(recommendation.models).to_json(orient="records")),
        "notes": list(recommendation.notes),
    }
    return json.dumps(values, indent=1, allow_nan=False) + "\n"


def _encode_model(model: TimeModel) -> dict[str, Any]:
    """Return a model as JSON values; an unknown partition size, which is infinite, is null."""
    peaks = [[value if math.isfinite(value) else None for value in pair] for pair in model.peaks]
    return asdict(model) | {"peaks": peaks}


def write_recommendation(recommendation: Recommendation, out: str) -> None:
    """Write all choices to the folder OUT: choices.csv, advice.json and figures of the Pareto front.

    Raises InputError as `report.require_local_folder`.
    """
    from .figures import draw_pareto_front, save  # only here, since matplotlib takes long to import
    from .report import require_local_folder

    folder, choices = require_local_folder(out), tabulate_candidates(recommendation)
    formatting.write_csv(str(folder / "choices.csv"), choices)
    formatting.write_text(str(folder / "advice.json"), to_json(recommendation))
    # Separate figures, since service units have no price: choices that cost dollars or nothing, and service units.
    labelled, charged = choices.rename(columns={"choice": "label"}), choices["service_units"].notna()
    save(draw_pareto_front(labelled[~charged].fillna({"dollars": 0.0})), folder)
    save(draw_pareto_front(labelled[charged], name="pareto-service-units", cost="service_units"), folder)


def print_recommendation(recommendation: Recommendation) -> None:
    """Print the choices on the front with their command lines, the errors of the models, and all notes."""
    choices = tabulate_candidates(recommendation)
    # Platforms that are not on the front are shown by their fastest choice, so that none is omitted silently.
    others = choices[~choices["platform"].isin(choices.loc[choices["on_front"], "platform"])]
    shown = choices[choices["on_front"] | choices.index.isin(others.drop_duplicates("platform").index)]
    title = f"{recommendation.target.galaxies:,} galaxies: choices on the front, and the fastest of each other platform"
    hidden = ["platform", "origin", "machine", "command", "remark"]
    formatting.print_table(_abbreviate(shown.drop(columns=hidden)), title, HEADINGS)
    for row in shown.itertuples():
        echo(f"{row.choice}:")
        echo(f"  {row.command}")
    echo("")
    title = "Errors of the models, each configuration left out in turn"
    formatting.print_table(_abbreviate(tabulate_errors(recommendation.models)), title, HEADINGS)
    for reason, one in {one.reason: one for one in reversed(recommendation.excluded)}.items():
        echo(f"Not possible, for example {one.name}: {reason}")
    remarks = [part for text in shown["remark"].dropna() for part in text.split("; ") if part]
    for note in (*dict.fromkeys(remarks), *recommendation.notes, recommendation.verdict):
        echo(f"{note[0].upper()}{note[1:]}")


def _abbreviate(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table without the names of the runs on which it is based."""
    return table.assign(based_on=table["based_on"].str.partition(":")[0])
