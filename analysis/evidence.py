"""The contents of a report: collected runs with their costs and their audit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from .audit import Audit
from .studies import STUDIES, Study, build_study_table
from .tables import Collection


@dataclass(frozen=True)
class Evidence:
    """The contents of a report: `collection` with its costs (`costs.add_costs`), and its audit."""

    collection: Collection
    audit: Audit

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs with their verdicts, without those made from single published values."""
        runs = self.collection.runs[self.collection.runs["kind"].ne("figure")]
        return runs.assign(verdict=runs["run"].map(self.audit.verdicts))

    @cached_property
    def studies(self) -> list[tuple[Study, pd.DataFrame]]:
        """Each study with its table."""
        return [(study, build_study_table(study, self.collection.runs, self.audit.verdicts)) for study in STUDIES]
