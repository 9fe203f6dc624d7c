"""What a run prints at its end."""

from __future__ import annotations

from typing import Any

import click


def conclude(summary: dict[str, Any]) -> int:
    """Prints a run's summary and returns the exit code: 0 if it is complete, else 3."""
    coverage, metrics, totals = summary["coverage"], summary["metrics"], summary["totals"]
    lines = [("coverage", f"{coverage['done']}/{coverage['asked']}")]
    flagged = {name: count for name, count in coverage["flagged"].items() if count}
    if flagged:
        lines.append(("flagged", ", ".join(f"{count} {name}" for name, count in flagged.items())))
    if metrics:
        lines += [
            ("R2", "undefined" if metrics["r2"] is None else f"{metrics['r2']:.6f}"),
            ("MAE", f"{metrics['mae']:.6f}"),
            ("NMAD", f"{metrics['precision']:.6f}"),
            ("bias", f"{metrics['bias']:+.6f}"),
            ("outliers", f"{metrics['outliers']:.2%} with |dz| > 0.05"),
        ]
    lines += [
        ("galaxies/s", f"{totals['galaxies_per_second']:,.0f}"),
        ("peak memory", f"{totals['peak_rss_mb']:,.0f} MB in the largest rank"),
        *(("measured on", machine) for machine in summary["machines"]),
        ("catalogue", summary["catalogue"]),
        ("plot", summary["plot"]),
    ]
    for name, value in lines:
        click.echo(f"{name:<13}{value}")
    if summary["complete"]:
        return 0
    click.echo(
        f"incomplete: {coverage['missing']} galaxies missing in the items {', '.join(coverage['missing_items'])}; "
        "finish the run with --resume",
        err=True,
    )
    for failure in summary["failures"]:
        click.echo(f"{failure['item']}: {failure['reason']}", err=True)
    return 3
