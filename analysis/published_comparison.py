"""Compare the runs of this project with the published values, platform by platform."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .published_values import build_published_runs
from .tables import GALAXY_BYTES, GB

PUBLISHED_GALAXIES = 1253  # for which the accuracy is published
MILLION = 10**6
COLUMNS = ("measure", "platform", "published", "published_at", "source", "ours", "ours_at", "ratio")
HEADINGS = {
    "platform": "where",
    "published_at": "published: run",
    "ours_at": "ours: run and machine",
    "ratio": "ours / published",
}
_ACCURACY = {"r2": False, "mae": True, "mse": True, "bias": True, "nmad": True}  # and whether lower is better


def compare_with_published(runs: pd.DataFrame, verdicts: pd.Series) -> pd.DataFrame:
    """Return COLUMNS, a row per measure and platform; `ours` is missing if no whole run of this project has it.

    The published values are those of published.csv. The best value of each side is shown: settings, machines and
    galaxies differ, so that the ratio includes more than the gain of the code. Accuracy is compared for the published
    galaxies alone.
    """
    own = _add_rates(runs[runs["origin"].eq("ours") & runs["run"].map(verdicts).eq("whole")])
    published = _add_rates(build_published_runs().runs)
    rows: list[dict[str, Any]] = []
    for measure, column, lowest in (
        ("galaxies per second, best", "rate", False),
        ("US dollars per million galaxies, least", "dollars_per_million", True),
        ("memory of a rank, MB, least", "peak_rss_mb", True),
    ):
        rows += _compare_platforms(measure, column, lowest, own, published)
    same = own[own["galaxies"].eq(PUBLISHED_GALAXIES)]
    for column, lowest in _ACCURACY.items():
        rows.append(_make_row(f"{column}, published galaxies", "any", column, lowest, same, published))
    table = pd.DataFrame(rows, columns=[*COLUMNS])
    return table.assign(ratio=table["ours"].astype("float64") / table["published"].astype("float64"))


def _add_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with galaxies per second of wall-clock time and dollars per million galaxies.

    A run that does not state its galaxies has as many as its data size holds.
    """
    galaxies = runs["galaxies"].astype("float64").fillna(runs["data_gb"] * GB / GALAXY_BYTES)
    return runs.assign(rate=galaxies / runs["wall_seconds"], dollars_per_million=runs["dollars"] / galaxies * MILLION)


def _compare_platforms(
    measure: str, column: str, lowest: bool, own: pd.DataFrame, published: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    known = published.dropna(subset=[column])
    for (platform, device), group in known.groupby(["platform", "device"]):
        here = own[own["platform"].eq(platform) & own["device"].eq(device)]
        yield _make_row(measure, f"{platform} {device}", column, lowest, here, group)


def _make_row(
    measure: str, platform: str, column: str, lowest: bool, own: pd.DataFrame, published: pd.DataFrame
) -> dict[str, Any]:
    """Return the best own and the best published value; the own one is missing if there is none."""
    theirs, ours = _select_best(published, column, lowest), _select_best(own, column, lowest)
    assert theirs is not None
    return {
        "measure": measure,
        "platform": platform,
        "published": theirs[column],
        "published_at": theirs["run"].removeprefix("published.csv/"),
        "source": theirs["source"],
        "ours": None if ours is None else ours[column],
        "ours_at": None if ours is None else f"{ours['run']}: {ours['machine']}",
    }


def _select_best(runs: pd.DataFrame, column: str, lowest: bool) -> pd.Series | None:
    known = runs.dropna(subset=[column]).sort_values(column, ascending=lowest, kind="stable")
    return None if known.empty else known.iloc[0]
