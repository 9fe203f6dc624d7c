"""reproduce."""

from __future__ import annotations

import click

from ..console import notify


@click.command()
@click.option("--folder", default=".", show_default=True, help="Where `cosmicai weights fetch` has put the two files.")
@click.option("--out", default="reproduce", show_default=True, help="Folder for the imported weights and the run.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, the table on standard error.")
def reproduce(folder: str, out: str, as_json: bool) -> int:
    """Run the published checkpoint on the 1,253 published galaxies; show our metrics beside the published ones.

    Exit code 0 if all agree to the digits that are quoted, else 3.
    """
    from ..measurement.report import show
    from ..verification.reproduce import reproduce as run_reproduction

    report, agrees = run_reproduction(folder, out, notify)
    show(report, as_json, None)
    if not agrees:
        click.echo("ours do not agree with the published metrics", err=True)
    return 0 if agrees else 3


COMMANDS = (reproduce,)
