"""Is a run whole? Verdicts on runs, each with the findings that it rests on."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from . import rules, timing_checks
from .rules import Finding, Rule, Severity
from .tables import Collection

__all__ = ["RULES", "Audit", "Finding", "Severity", "audit", "table"]

RULES: tuple[Rule, ...] = (
    rules.own_account,
    rules.missing_ranks,
    rules.missing_galaxies,
    rules.total,
    rules.page_limit,
    rules.repeated_files,
    rules.mixed_batch_sizes,
    rules.batches_against_galaxies,
    rules.unequal_repeats,
    rules.left_out,
    timing_checks.clock_disorder,
    timing_checks.cpu_time_for_time,
    timing_checks.no_clock,
    timing_checks.claimed_rate,
    timing_checks.impossible_rank,
)


@dataclass(frozen=True)
class Audit:
    """What was found, and a verdict per run: an index of run names, and `whole`, `doubtful`, `incomplete` or `unknown`.

    Unknown is a run in which nothing was found because there is nothing to count against.
    """

    findings: tuple[Finding, ...]
    verdicts: pd.Series

    def usable(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Those of these runs that are not incomplete."""
        return runs[runs["run"].map(self.verdicts).ne("incomplete")]


def audit(collection: Collection) -> Audit:
    """Holds every rule against every run."""
    findings = tuple(finding for rule in RULES for finding in rule(collection))
    of_severity = {severity: {one.run for one in findings if one.severity == severity} for severity in Severity}
    names = collection.runs["run"]
    verdicts = pd.Series("unknown", index=pd.Index(names, name="run"), dtype="str", name="verdict")
    verdicts[countable(collection.runs).to_numpy()] = "whole"
    verdicts[names.isin(of_severity[Severity.DOUBT]).to_numpy()] = "doubtful"
    verdicts[names.isin(of_severity[Severity.LOSS]).to_numpy()] = "incomplete"
    return Audit(findings, verdicts)


def countable(runs: pd.DataFrame) -> pd.Series:
    """Whether there is anything against which a run can be counted."""
    known = runs.notna()
    ranks, galaxies = known["ranks"] & known["asked_ranks"], known["asked_galaxies"] | known["data_gb"]
    return known["complete"] | ranks | (known["galaxies"] & galaxies)


def table(collection: Collection, audited: Audit) -> pd.DataFrame:
    """A row per run: run, kind, ranks, asked_ranks, galaxies, verdict, findings (their texts, joined by "; ")."""
    texts: dict[str, list[str]] = {}
    for finding in audited.findings:
        texts.setdefault(finding.run, []).append(finding.text)
    runs = collection.runs[["run", "kind", "ranks", "asked_ranks", "galaxies"]]
    return runs.assign(
        verdict=runs["run"].map(audited.verdicts),
        findings=[None if name not in texts else "; ".join(texts[name]) for name in runs["run"]],
    )
