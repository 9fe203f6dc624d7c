"""Average runs of the same settings, with their spread, their verdicts, and the number of runs left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from cosmicai.errors import InputError

from .outliers import is_inlier
from .tables import RUN_COLUMNS

# Runs that differ in any of these are never averaged together, whatever --by is; nor are runs of a study that differ in
# the setting that it varied.
KEYS = ("origin", "study", "platform", "device", "machine", "threads", "engine", "precision", "weights", "data_gb")
VARIED = {"batch_size": ("batch size", "world size"), "world_size": ("world size",)}  # column: studies that vary it
SHORT_NAMES = {"partition": "partition_mb", "data_size": "data_gb", "batch": "batch_size", "world": "world_size"}
SETTINGS = (
    *(*KEYS, "partition_mb", "batch_size", "world_size", "concurrency", "memory_mb"),
    *("repeat", "run", "kind", "source", "git_commit", "image_digest"),
)
COUNTS = ("runs", "whole", "doubtful", "unknown", "incomplete", "left_out", "outliers")
STATISTICS = ("", "_median", "_std", "_min", "_max")


@dataclass(frozen=True)
class Measure:
    """A column of runs that is averaged: heading, unit, format of its values, and if `format_averages` shows it."""

    column: str
    heading: str
    unit: str = ""
    spec: str = ",.2f"
    shown: bool = True


MEASURES = (
    Measure("ranks", "ranks", "", ",.5g", shown=False),
    Measure("galaxies", "galaxies", "", ",.0f"),
    Measure("wall_seconds", "time", "s"),
    Measure("working_seconds", "working time of the run", "s", shown=False),
    Measure("rank_seconds", "time of a rank", "s", shown=False),
    Measure("slowest_seconds", "time of the slowest rank", "s", shown=False),
    Measure("mean_cpu_seconds", "CPU time of a rank", "s"),
    Measure("cpu_seconds", "CPU time of all ranks", "s", ",.1f", shown=False),
    Measure("galaxies_per_second", "galaxies per second", "", ",.0f"),
    Measure("summed_galaxies_per_second", "rates summed over ranks", "", ",.0f"),
    Measure("allocated_mb", "memory allocated by all ranks", "10^6 B", ",.0f", shown=False),
    Measure("peak_rss_mb", "memory of a rank", "MB", ",.0f"),
    Measure("peak_gpu_mb", "memory of a GPU", "MB", ",.0f"),
    Measure("memory_mb", "memory of the function", "MB", ",.0f", shown=False),
    Measure("billed_seconds", "billed time", "s", ",.1f", shown=False),
    Measure("dollars", "cost", "US dollars", ",.4f"),
    Measure("service_units", "cost", "service units"),
    Measure("mae", "MAE", "", ".6f", shown=False),
    Measure("mse", "MSE", "", ".6f", shown=False),
    Measure("bias", "bias", "", ".6f", shown=False),
    Measure("nmad", "precision", "", ".6f"),
    Measure("r2", "R2", "", ".6f"),
)


def average(runs: pd.DataFrame, verdicts: pd.Series, by: Sequence[str], incomplete: bool = False) -> pd.DataFrame:
    """Return a row per group of runs that agree in KEYS and in `by` (names of SETTINGS or SHORT_NAMES).

    The columns are those of `summarize_groups`. A setting that a study varied has a column too, NA for runs of other
    studies unless `by` names it. If runs have a `dollars_source` (see `costs.add_costs`), the table has all those of
    the averaged runs. Raises InputError for an unknown name in `by`.
    """
    named = [*dict.fromkeys(map(resolve_column, by))]
    varied = {
        column: runs[column].where(runs["study"].isin(studies))
        for column, studies in VARIED.items()
        if column not in named and runs["study"].isin(studies).any()
    }
    keys = [*(key for key in KEYS if key not in named), *named, *varied]
    measures = [one.column for one in MEASURES if one.column in runs and one.column not in keys]
    return summarize_groups(runs.assign(**varied), verdicts, keys, measures, incomplete)


def resolve_column(name: str) -> str:
    """Return the column of runs for a name in --by. Raises InputError for an unknown name."""
    column = SHORT_NAMES.get(name, name)
    if column not in SETTINGS:
        known = ", ".join(dict.fromkeys([*SHORT_NAMES, *SETTINGS]))
        raise InputError(f"--by {name}: runs cannot be grouped by this; use names from {known}")
    return column


def summarize_groups(
    runs: pd.DataFrame, verdicts: pd.Series, keys: Sequence[str], measures: Sequence[str], incomplete: bool = False
) -> pd.DataFrame:
    """Return a row per group of runs that agree in `keys`, ordered by them: keys, COUNTS, STATISTICS per measure.

    `verdicts` is indexed by the name of the run; a run that is not in it is "unknown". Incomplete runs are left out
    unless `incomplete` is true; a group without other runs has NaN. `runs` counts the runs that are averaged. Mean and
    sample standard deviation (NaN for one run) are over values inside the fences of `outliers.is_inlier`; median,
    minimum and maximum are over all. `outliers` counts runs with any value outside. Three repeats have no outliers:
    with a <= b <= c the upper fence is (b + c) / 2 + 0.75 (c - a), which is c or more.
    """
    verdict = runs["run"].map(verdicts).astype("str").fillna("unknown")
    used = verdict.ne("incomplete") | incomplete
    number = runs.groupby([*keys], sort=True, dropna=False).ngroup()  # an index does not handle NA in keys well
    first = number.drop_duplicates().sort_values()
    table = runs.loc[first.index, [*keys]].set_axis(first.to_numpy())
    counts = {
        "runs": used,
        **{name: used & verdict.eq(name) for name in COUNTS[1:5]},
        "left_out": ~used,
    }
    found = {name: truth.groupby(number).sum() for name, truth in counts.items()}
    outlying = pd.Series(False, index=runs.index)
    averages: dict[str, pd.Series] = {}
    for name in measures:
        values = pd.DataFrame({"group": number, "value": runs[name].astype("float64").where(used)})
        inside = is_inlier(values, "group", "value")
        outlying |= values["value"].notna() & ~inside
        inner, everything = values["value"].where(inside).groupby(number), values["value"].groupby(number)
        spread = (inner.mean(), everything.median(), inner.std(), everything.min(), everything.max())
        averages |= {name + suffix: column for suffix, column in zip(STATISTICS, spread, strict=True)}
    found["outliers"] = outlying.groupby(number).sum()
    if "dollars" in measures and "dollars_source" in runs and "dollars_source" not in keys:
        sources = runs["dollars_source"].where(used).groupby(number)
        averages["dollars_source"] = sources.agg(lambda texts: "; ".join(sorted({*texts.dropna()}))).astype("str")
    return pd.concat([table, pd.DataFrame(found | averages, index=table.index)], axis=1).reset_index(drop=True)


def format_averages(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `average` as text, with headings that include units.

    Each measure that is shown has its mean, followed by its median in brackets if that differs; `runs` counts the runs
    by verdict. The basis of the cost is in its heading, or in a column if there are several. KEYS that are equal in all
    rows, and measures that no row has, are omitted.
    """
    units = {column.name: column.unit.partition(" ")[0] for column in RUN_COLUMNS}
    shown: dict[str, list[str]] = {}
    for name in table.columns[: table.columns.get_loc("runs")]:
        if table[name].nunique(dropna=False) > 1 or name not in KEYS:
            heading = name.removesuffix("_mb").removesuffix("_gb").replace("_", " ")
            unit = units[name] if units[name] in ("MB", "GB") else ""
            shown[_with_unit(heading, unit)] = [_format_value(value, ",.6g") for value in table[name]]
    shown["runs"] = [
        ", ".join(f"{row[name]} {name.replace('_', ' ')}" for name in COUNTS[1:-1] if row[name])
        for row in table[[*COUNTS]].to_dict("records")
    ]
    sources = {*table["dollars_source"]} - {""} if "dollars_source" in table else set()
    for one in MEASURES:
        if one.shown and f"{one.column}_median" in table and table[one.column].notna().any():
            pairs = zip(table[one.column], table[f"{one.column}_median"], strict=True)
            texts = [(_format_value(mean, one.spec), _format_value(median, one.spec)) for mean, median in pairs]
            only = f" ({sources.pop()})" if one.column == "dollars" and len(sources) == 1 else ""
            shown[_with_unit(one.heading, one.unit) + only] = [
                mean if mean == median else f"{mean} ({median})" for mean, median in texts
            ]
    if sources:
        shown["basis of the cost"] = [*table["dollars_source"]]
    return pd.DataFrame(shown, dtype="str")


def _with_unit(heading: str, unit: str) -> str:
    return f"{heading}, {unit}" if unit else heading


def _format_value(value: object, spec: str) -> str:
    if pd.isna(value):
        return ""
    return value if isinstance(value, str) else format(value, spec)
