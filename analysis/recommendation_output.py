"""Show a recommendation: as tables, as JSON, on the terminal and as files in a folder."""

from __future__ import annotations

import json
import math
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from cosmicai.console import echo

from . import formatting
from .candidates import Candidate, free_gpu_command
from .formatting import format_statistic
from .recommend import Recommendation
from .time_model import TimeModel

COLUMNS = (
    "choice", "platform", "seconds", "low", "high", "dollars", "service_units", "memory_mb", "on_front", "meets",
    "based_on", "origin", "machine", "remark", "command",
)  # fmt: skip
HEADINGS = {
    "seconds": "time, s",
    "dollars": "US dollars",
    "service_units": "service units",
    "memory_mb": "memory, MB",
    "on_front": "front",
    "meets": "within",
    "based_on": "based on runs",
    "left_out": "left out",
    "median_error": "median error",
    "largest_error": "largest error",
}
WIDTH = 100  # columns of a terminal
SMALLEST_ERROR = 0.01
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
        "recommended": best.name if (best := recommendation.recommended[0]) else None,
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
    """Print the recommendation and its reason, the choices on the front with their commands, and how far off it may be.

    Nothing but words that cannot be broken is wider than WIDTH.
    """
    if free := free_gpu_command(recommendation.target):
        kind, command = free
        _print_wrapped(f"Try first: GPUs of kind {kind} on {recommendation.target.site}, which it does not charge for.")
        _print_wrapped("How fast they are was not measured, so that they are not among the choices below.")
        for line in _wrap_command(command):
            echo(line)
        echo("")
    for line in describe_recommendation(recommendation):
        _print_wrapped(line)
    choices = tabulate_candidates(recommendation)
    # Platforms that are not on the front are shown by their fastest choice, so that none is omitted silently.
    others = choices[~choices["platform"].isin(choices.loc[choices["on_front"], "platform"])]
    is_shown = choices["on_front"] | choices.index.isin(others.drop_duplicates("platform").index)
    shown = [one for one, is_one in zip(recommendation.choices, is_shown, strict=True) if is_one]
    title = f"{recommendation.target.galaxies:,} galaxies: choices on the front, and the fastest of each other platform"
    echo("")
    marks = choices.loc[is_shown]
    formatting.print_table(_format_candidates(shown, marks["on_front"], marks["meets"]), title, HEADINGS, WIDTH)
    for one in shown:
        echo(f"{one.name}:")
        for line in _wrap_command(one.command):
            echo(line)
    echo("")
    title = "Errors of the models, each configuration left out in turn"
    formatting.print_table(_format_errors(recommendation.models), title, HEADINGS, WIDTH)
    for reason, excluded in {one.reason: one for one in reversed(recommendation.excluded)}.items():
        _print_wrapped(f"Not possible, for example {excluded.name}: {reason}")
    remarks = [part for one in shown for part in one.remark.split("; ") if part]
    for note in dict.fromkeys((*remarks, *recommendation.notes, recommendation.verdict)):
        _print_wrapped(f"{note[0].upper()}{note[1:]}")


def describe_recommendation(recommendation: Recommendation) -> list[str]:
    """Return what is recommended, why, and on what that is based, a line each."""
    one, reason = recommendation.recommended
    if one is None:
        return [recommendation.verdict]
    error = "unknown, too few configurations were measured"
    if one.model.error is not None:
        error = f"{format_error(one.model.error)} in the median"
    return [
        f"Recommended: {one.name}",
        f"Why: {reason}: {_format_seconds(one)} s, {_format_cost(one) or 'no charge'}.",
        f"Based on {describe_basis(one.model)}; error of the time: {error}.",
    ]


def format_error(error: float) -> str:
    """Return a relative error in whole percent: repeats of a run differ by more than a fraction of one."""
    return "<1%" if error < SMALLEST_ERROR else f"{error:.0%}"


def _format_seconds(one: Candidate) -> str:
    """Return the time of a candidate and its range, with as many digits as its runs justify."""
    sample = len(one.model.runs)
    texts = [format_statistic(value, sample) for value in (one.seconds, one.low, one.high) if value is not None]
    return texts[0] + (f" ({texts[1]} to {texts[2]})" if len(set(texts)) == 3 else "")


def _format_cost(one: Candidate) -> str | None:
    """Return what a candidate is charged, None for nothing."""
    sample = len(one.model.runs)
    if one.dollars is not None:
        return f"${format_statistic(one.dollars, sample)}"
    return None if one.service_units is None else f"{format_statistic(one.service_units, sample)} service units"


def _format_candidates(shown: Sequence[Candidate], on_front: Iterable[bool], meets: Iterable[bool]) -> pd.DataFrame:
    """Return the rows of a terminal's table, as text."""
    return pd.DataFrame(
        {
            "choice": [one.name for one in shown],
            "seconds": [_format_seconds(one) for one in shown],
            "cost": [_format_cost(one) for one in shown],
            "memory_mb": [None if one.memory_mb is None else f"{one.memory_mb:,.0f}" for one in shown],
            "on_front": ["yes" if value else "no" for value in on_front],
            "meets": ["yes" if value else "no" for value in meets],
            "based_on": [
                f"{len(one.model.runs)} {'published' if one.model.origin == 'published' else 'of yours'}"
                for one in shown
            ],
        },
        dtype="str",
    )


def _format_errors(models: Sequence[TimeModel]) -> pd.DataFrame:
    """Return the rows of a terminal's table of errors, as text."""
    table = tabulate_errors(models)
    errors = {
        name: [None if pd.isna(value) else format_error(value) for value in table[name]]
        for name in ("median_error", "largest_error")
    }
    return table.drop(columns="based_on").assign(**errors).dropna(axis="columns", how="all")


def _wrap_command(command: str) -> list[str]:
    """Return a command line in lines of at most WIDTH columns that a shell reads as one."""
    lines = textwrap.wrap(command, WIDTH - 6, break_long_words=False, break_on_hyphens=False)
    if shlex.split(" ".join(lines)) != shlex.split(command):  # a quoted name would lose some of its spaces
        return [f"  {command}"]
    broken = [f"{line} \\" for line in lines[:-1]] + lines[-1:]
    return [f"  {broken[0]}", *(f"    {line}" for line in broken[1:])]


def _print_wrapped(text: str) -> None:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False):
        echo(line)
