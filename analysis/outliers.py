"""The published rule for outliers: values more than 1.5 interquartile ranges outside the quartiles are left out."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

FENCE = 1.5  # Tukey 1977; the published averages apply it over the ranks of a run


def is_inlier(table: pd.DataFrame, by: str | Sequence[str], value: str) -> pd.Series:
    """Return for each row whether its value lies inside the fences of its group; False for a missing value."""
    groups = table.groupby(by, sort=False, dropna=False)[value]
    low, high = groups.transform("quantile", 0.25), groups.transform("quantile", 0.75)
    reach = FENCE * (high - low)
    return table[value].between(low - reach, high + reach)
