"""What a run prints at its end."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.table import Table


def conclude(summary: dict[str, Any]) -> int:
    """Prints a run's summary and returns the exit code: 0 if it is complete, else 3."""
    coverage, metrics, totals = summary["coverage"], summary["metrics"], summary["totals"]
    table = Table(show_header=False, box=None)
    table.add_row("coverage", f"{coverage['done']}/{coverage['asked']}")
    flagged = {name: count for name, count in coverage["flagged"].items() if count}
    if flagged:
        table.add_row("flagged", ", ".join(f"{count} {name}" for name, count in flagged.items()))
    if metrics:
        table.add_row("R2", f"{metrics['r2']:.6f}")
        table.add_row("MAE", f"{metrics['mae']:.6f}")
        table.add_row("NMAD", f"{metrics['precision']:.6f}")
        table.add_row("bias", f"{metrics['bias']:+.6f}")
        table.add_row("outliers", f"{metrics['outliers']:.2%} with |dz| > 0.05")
    table.add_row("galaxies/s", f"{totals['galaxies_per_second']:,.0f}")
    table.add_row("peak memory", f"{totals['peak_rss_mb']:,.0f} MB in the largest rank")
    for machine in summary["machines"]:
        table.add_row("measured on", machine)
    table.add_row("catalogue", summary["catalogue"])
    table.add_row("plot", summary["plot"])
    Console(soft_wrap=True, highlight=False).print(table)
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
