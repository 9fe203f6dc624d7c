"""Findings of the audit: what a check found in a run, how severe it is, and what it means for the run's verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pandas as pd

from .tables import Collection


class Severity(StrEnum):
    """How severe a finding is.

    A remark changes nothing. A run with a doubt is doubtful: it is used, and marked. A run with a loss is incomplete:
    some of its results are missing.
    """

    REMARK = "remark"
    DOUBT = "doubt"
    LOSS = "loss"


@dataclass(frozen=True)
class Finding:
    """What a check found in a run, as one sentence with the numbers.

    `run` is the name of the run, empty if the finding holds for many runs alike; `check` names the check.
    """

    run: str
    severity: Severity
    check: str
    text: str


AuditCheck = Callable[[Collection], Iterator[Finding]]


def select_rows(table: pd.DataFrame, condition: pd.Series) -> Iterator[Any]:
    """Yield the rows for which `condition` is true, as named tuples; NA counts as false."""
    yield from table[condition.fillna(False).astype(bool)].itertuples()
