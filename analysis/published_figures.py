"""The few published figures that reports quote, each with its source: published.csv, in a table and as runs.

Columns: `figure` (a column of RUN_COLUMNS, or `memory`), what it was measured with, `value`, `unit`, `source` (the
repository and the file in it), `remark`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from .tables import RANK_COLUMNS, RUN_COLUMNS, Collection, Row, frame

FIGURES = Path(__file__).with_name("published.csv")
TEXTS = ("figure", "platform", "device", "unit", "source", "remark")
NUMBERS = ("partition_mb", "data_gb", "batch_size", "world_size", "value")
MEASURED_WITH = ("platform", "device", "partition_mb", "data_gb", "batch_size", "world_size")
MB_PER_GB = 1024
MACHINES = {"lambda": "AWS Lambda", "slurm": "Rivanna"}


def figures() -> pd.DataFrame:
    """All figures, one a row; numbers are float64, and missing where they do not apply."""
    return pd.read_csv(FIGURES, dtype=dict.fromkeys(TEXTS, "str") | dict.fromkeys(NUMBERS, "float64"))


def published_runs() -> Collection:
    """What the figures tell of runs, one row for each set of settings, without ranks; a mean of repeats is one run."""
    found = figures().dropna(subset="platform")
    groups = found.groupby(list(MEASURED_WITH), dropna=False, sort=False)
    return Collection(frame((_run(group) for _, group in groups), RUN_COLUMNS), frame((), RANK_COLUMNS))


def _run(group: pd.DataFrame) -> Row:
    """The run of figures with the same settings."""
    settings = {name: group[name].iloc[0] for name in MEASURED_WITH}
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
        "machine": MACHINES.get(known["platform"]),
        "engine": "published",
        "precision": "float32",
        "concurrency": known["world_size"] if known.get("world_size", files) < files else None,
        **known,
        **values,
    }
