"""The few published values that reports quote, each with its source: published.csv, as a table and as runs.

Columns: `figure` (the measure: a column of RUN_COLUMNS, or `memory`), the settings of the measurement, `value`, `unit`,
`source` (the repository and the file in it), `remark`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from .tables import RANK_COLUMNS, RUN_COLUMNS, Collection, Row, make_table

PUBLISHED_CSV = Path(__file__).with_name("published.csv")
TEXTS = ("figure", "platform", "device", "machine", "unit", "source", "remark")
NUMBERS = ("partition_mb", "data_gb", "batch_size", "world_size", "value")
SETTINGS = ("platform", "device", "machine", "partition_mb", "data_gb", "batch_size", "world_size")
MB_PER_GB = 1024
MACHINES = {"lambda": "AWS Lambda", "slurm": "Rivanna"}


def read_published_values() -> pd.DataFrame:
    """Return all values, one per row; numbers are float64, NaN where they do not apply."""
    return pd.read_csv(PUBLISHED_CSV, dtype=dict.fromkeys(TEXTS, "str") | dict.fromkeys(NUMBERS, "float64"))


def build_published_runs() -> Collection:
    """Return the values as runs without ranks, one row for each set of settings; a mean of repeats is one run."""
    found = read_published_values().dropna(subset="platform")
    groups = found.groupby(list(SETTINGS), dropna=False, sort=False)
    return Collection(make_table((_build_run(group) for _, group in groups), RUN_COLUMNS), make_table((), RANK_COLUMNS))


def _build_run(group: pd.DataFrame) -> Row:
    """Return the run of values with the same settings."""
    settings = {name: group[name].iloc[0] for name in SETTINGS}
    known = {name: value for name, value in settings.items() if pd.notna(value)}
    values = dict(zip(group["figure"], group["value"], strict=True))
    if "memory" in values:
        values["peak_rss_mb"] = values.pop("memory") * MB_PER_GB
    units = {"partition_mb": "{:g}MB", "data_gb": "{:g}GB", "batch_size": "batches of {:g}", "world_size": "{:g} ranks"}
    name = "/".join(
        [known["platform"], known["device"], *(units[key].format(known[key]) for key in units if key in known)]
    )
    files = math.ceil(known.get("data_gb", 0) * MB_PER_GB / known["partition_mb"]) if "partition_mb" in known else 1
    return {
        "run": f"published.csv/{name}",
        "source": group["source"].iloc[-1],
        "origin": "published",
        "kind": "figure",
        "study": "data size" if "data_gb" in known else "single",
        "machine": MACHINES.get(known["platform"]),  # unless the value names it
        "engine": "published",
        "precision": "float32",
        "concurrency": known["world_size"] if known.get("world_size", files) < files else None,
        **known,
        **values,
    }
