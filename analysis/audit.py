"""Audit runs for completeness: a verdict on each run, with the findings that support it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from . import coverage_checks, timing_checks
from .findings import AuditCheck, Finding, Severity
from .tables import Collection

CHECKS: tuple[AuditCheck, ...] = (
    coverage_checks.check_plan_coverage,
    coverage_checks.check_duplicate_ids,
    coverage_checks.check_missing_ranks,
    coverage_checks.check_missing_galaxies,
    coverage_checks.check_total,
    coverage_checks.check_page_limit,
    coverage_checks.check_repeated_files,
    coverage_checks.check_batch_sizes,
    coverage_checks.check_batch_counts,
    coverage_checks.check_repeats,
    coverage_checks.check_left_out,
    coverage_checks.check_contradictions,
    timing_checks.check_clock_order,
    timing_checks.check_cpu_time_rates,
    timing_checks.check_missing_clocks,
    timing_checks.check_stated_rates,
    timing_checks.check_possible_rates,
)


@dataclass(frozen=True)
class Audit:
    """Findings, and a verdict per run, indexed by its name: `whole`, `doubtful`, `incomplete` or `unknown`.

    A run is unknown if nothing was found because there is nothing to compare it with.
    """

    findings: tuple[Finding, ...]
    verdicts: pd.Series

    def usable(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Return those of these runs that are not incomplete."""
        return runs[runs["run"].map(self.verdicts).ne("incomplete")]


def audit(collection: Collection) -> Audit:
    """Apply every check to every run."""
    findings = tuple(finding for check in CHECKS for finding in check(collection))
    by_severity = {severity: {one.run for one in findings if one.severity == severity} for severity in Severity}
    names = collection.runs["run"]
    verdicts = pd.Series("unknown", index=pd.Index(names, name="run"), dtype="str", name="verdict")
    verdicts[is_countable(collection.runs).to_numpy()] = "whole"
    verdicts[names.isin(by_severity[Severity.DOUBT]).to_numpy()] = "doubtful"
    verdicts[names.isin(by_severity[Severity.LOSS]).to_numpy()] = "incomplete"
    return Audit(findings, verdicts)


def is_countable(runs: pd.DataFrame) -> pd.Series:
    """Return for each run whether there is a number with which it can be compared."""
    known = runs.notna()
    ranks, galaxies = known["ranks"] & known["asked_ranks"], known["asked_galaxies"] | known["data_gb"]
    return known["complete"] | ranks | (known["galaxies"] & galaxies)


def tabulate_audit(collection: Collection, audited: Audit) -> pd.DataFrame:
    """Return a row per run: run, kind, ranks, asked_ranks, galaxies, verdict, findings (texts, joined by "; ")."""
    texts: dict[str, list[str]] = {}
    for finding in audited.findings:
        texts.setdefault(finding.run, []).append(finding.text)
    runs = collection.runs[["run", "kind", "ranks", "asked_ranks", "galaxies"]]
    return runs.assign(
        verdict=runs["run"].map(audited.verdicts),
        findings=[None if name not in texts else "; ".join(texts[name]) for name in runs["run"]],
    )
