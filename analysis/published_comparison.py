"""Ours beside the published figures, platform by platform, with where each was measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from .published_figures import published_runs
from .tables import GALAXY_BYTES, GB

PUBLISHED_GALAXIES = 1253  # of which the published accuracy is
MILLION = 10**6
COLUMNS = ("measure", "platform", "published", "published_at", "source", "ours", "ours_at", "ratio")
HEADINGS = {
    "platform": "where",
    "published_at": "published: run",
    "ours_at": "ours: run and machine",
    "ratio": "ours / published",
}
_ACCURACY = {"r2": False, "mae": True, "mse": True, "bias": True, "nmad": True}  # and whether less is better


def beside_published(runs: pd.DataFrame, verdicts: pd.Series) -> pd.DataFrame:
    """COLUMNS, a row per measure and platform; `ours` is missing where no whole run of ours tells it.

    Published are the figures of published.csv. Best is set against best: the settings differ, and so do machines and
    galaxies, so that the ratio tells what a user gets and not what the code alone gained. Accuracy is compared on the
    published galaxies alone.
    """
    ours = _measured(runs[runs["origin"].eq("ours") & runs["run"].map(verdicts).eq("whole")])
    theirs = _measured(published_runs().runs)
    rows: list[dict[str, Any]] = []
    for measure, column, least in (
        ("galaxies per second, best", "rate", False),
        ("US dollars per million galaxies, least", "dollars_per_million", True),
    ):
        rows += _by_platform(measure, column, least, ours, theirs)
    rows += _by_platform("memory of a rank, MB, least", "peak_rss_mb", True, ours, theirs)
    same = ours[ours["galaxies"].eq(PUBLISHED_GALAXIES)]
    for column, least in _ACCURACY.items():
        rows.append(_row(f"{column}, published galaxies", "any", column, least, same, theirs))
    table = pd.DataFrame(rows, columns=[*COLUMNS])
    return table.assign(ratio=table["ours"].astype("float64") / table["published"].astype("float64"))


def _measured(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with galaxies per second of the clock and dollars per million galaxies.

    A run that does not tell its galaxies has as many as its data size holds.
    """
    galaxies = runs["galaxies"].astype("float64").fillna(runs["data_gb"] * GB / GALAXY_BYTES)
    return runs.assign(rate=galaxies / runs["wall_seconds"], dollars_per_million=runs["dollars"] / galaxies * MILLION)


def _by_platform(
    measure: str, column: str, least: bool, ours: pd.DataFrame, theirs: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    known = theirs.dropna(subset=[column])
    for (platform, device), published in known.groupby(["platform", "device"]):
        here = ours[ours["platform"].eq(platform) & ours["device"].eq(device)]
        yield _row(measure, f"{platform} {device}", column, least, here, published)


def _row(
    measure: str, platform: str, column: str, least: bool, ours: pd.DataFrame, theirs: pd.DataFrame
) -> dict[str, Any]:
    """The best of ours and the best of theirs; ours is missing where there is none."""
    published, own = _best(theirs, column, least), _best(ours, column, least)
    assert published is not None
    return {
        "measure": measure,
        "platform": platform,
        "published": published[column],
        "published_at": published["run"].removeprefix("published.csv/"),
        "source": published["source"],
        "ours": None if own is None else own[column],
        "ours_at": None if own is None else f"{own['run']}: {own['machine']}",
    }


def _best(runs: pd.DataFrame, column: str, least: bool) -> pd.Series | None:
    known = runs.dropna(subset=[column]).sort_values(column, ascending=least, kind="stable")
    return None if known.empty else known.iloc[0]
