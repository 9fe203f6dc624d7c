"""State on which machines the values of a figure were measured, from exactly the rows that it draws."""

from __future__ import annotations

import pandas as pd

from ..formatting import join_texts

MAX_MACHINES = 8  # that are named for each origin
UNKNOWN = {"ours": "a machine that its records do not name", "published": "machines that their sources do not name"}


def describe_machines(rows: pd.DataFrame) -> str:
    """Return on which machines rows with the columns `origin` and `machine` were measured; empty without rows.

    Published values are named as such, with the machines that their sources state: never as measured on ours.
    """
    ours, published = (_list_machines(rows, origin) for origin in UNKNOWN)
    sentences = [f"Measured on: {ours}." if ours else "", f"Published, measured on: {published}." if published else ""]
    return " ".join(filter(None, sentences))


def _list_machines(rows: pd.DataFrame, origin: str) -> str:
    """Return the machines of the rows of one origin, in their order."""
    named = rows.loc[rows["origin"].eq(origin), "machine"].astype("str").fillna(UNKNOWN[origin])
    # A run on several machines has them all in one cell.
    return join_texts([*dict.fromkeys(one for cell in named.unique() for one in cell.split("; "))], MAX_MACHINES)
