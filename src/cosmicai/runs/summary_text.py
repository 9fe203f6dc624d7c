"""What a run prints at its end."""

from __future__ import annotations

from msgspec import UNSET

from ..calibration.coverage import CoverageCell
from ..calibration.records import INTERVAL_LEVELS
from ..console import echo
from ..models.weights import SHORT_DIGEST
from .summary import Intervals, Summary


def print_summary(summary: Summary) -> int:
    """Print the summary of a run and return the exit code: 0 if the run is complete, else 3."""
    coverage, totals = summary.coverage, summary.totals
    lines = [("coverage", f"{coverage.completed}/{coverage.planned}")]
    flagged = {} if coverage.flagged is UNSET else {name: count for name, count in coverage.flagged.items() if count}
    if flagged:
        lines.append(("flagged", ", ".join(f"{count} {name}" for name, count in flagged.items())))
    if coverage.duplicate_objid:
        lines.append(("duplicates", f"{coverage.duplicate_objid} ids that several galaxies have"))
    if summary.unchecked_parts is not UNSET:
        lines.append(("unchecked", f"{summary.unchecked_parts} parts of an earlier version, which have no digest"))
    if metrics := summary.metrics:
        lines += [
            ("R2", _format(metrics.r2, ".6f")),
            ("MAE", _format(metrics.mae, ".6f")),
            ("NMAD", _format(metrics.precision, ".6f")),
            ("bias", _format(metrics.bias, "+.6f")),
            ("outliers", f"{_format(metrics.outliers, '.2%')} with |dz| > 0.05"),
        ]
    if summary.intervals is not UNSET:
        lines += [("intervals", text) for text in describe_coverage(summary.intervals)]
    if summary.weights is not UNSET and summary.weights_sha256 is not UNSET:
        lines.append(("weights", describe_weights(summary.weights, summary.weights_sha256)))
    lines += [
        ("galaxies/s", f"{totals.galaxies_per_second:,.0f}"),
        ("peak memory", f"{totals.peak_rss_mb:,.0f} MB in the largest rank"),
        *(("measured on", machine) for machine in summary.machines),
        ("catalogue", summary.catalogue),
        ("plot", summary.plot),
    ]
    if summary.survey_check is not UNSET:
        lines += [("WARNING", contradiction) for contradiction in summary.survey_check.contradictions]
    for name, value in lines:
        echo(f"{name:<13}{value}")
    for problem in () if summary.left_out is UNSET else summary.left_out:
        echo(f"left out: {problem}", err=True)
    if summary.complete:
        return 0
    if coverage.missing:
        where = f"{coverage.missing} galaxies missing in the items {', '.join(coverage.missing_items)}"
        echo(f"incomplete: {where}; finish the run with --resume", err=True)
    for failure in summary.failures:
        echo(f"{failure.item}: {failure.reason}", err=True)
    return 3


def describe_coverage(intervals: Intervals) -> tuple[str, ...]:
    """Return in lines what calibrated the intervals of a run, and how often they hold the spectroscopic redshift."""
    calibrated = f"calibrated on {intervals.calibrated_on}"
    report = intervals.coverage
    if report is None:
        return calibrated, "coverage not measured: no other galaxies with spectroscopic redshifts"
    cells = [
        ("galaxies that did not calibrate", report.all),
        ("of these outside the training domain", report.outside_domain),
    ]
    return calibrated, *(
        f"{', '.join(describe_levels(cell))} of {cell.galaxies:,} {which}" for which, cell in cells if cell
    )


def describe_levels(cell: CoverageCell) -> tuple[str, ...]:
    """Return for each interval how many galaxies of a cell are in theirs, and its mean width."""
    found = zip(INTERVAL_LEVELS, cell.fractions, cell.errors, cell.widths, strict=True)
    return tuple(
        f"{percent}%: {fraction:.1%} +- {error:.1%} (mean width {width:.4f})"
        for percent, fraction, error, width in found
    )


def describe_weights(label: str, sha256: str) -> str:
    """Return the weights of a run in one line."""
    return f"{label}, SHA-256 {sha256[:SHORT_DIGEST]}"


def _format(value: float | None, how: str) -> str:
    return "undefined" if value is None else format(value, how)
