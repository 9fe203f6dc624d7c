"""The published rule for outliers: what lies more than 1.5 interquartile ranges outside the quartiles is left out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

FENCE = 1.5  # Tukey 1977; the published averages use it over the ranks of a run


def inlying(table: pd.DataFrame, by: str | Sequence[str], value: str) -> pd.Series:
    """Whether each row's value lies inside the fences of its group; False where there is no value."""
    groups = table.groupby(by, sort=False, dropna=False)[value]
    low, high = groups.transform("quantile", 0.25), groups.transform("quantile", 0.75)
    reach = FENCE * (high - low)
    return table[value].between(low - reach, high + reach)
