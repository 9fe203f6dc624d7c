"""The command `cosmicai reproduce`."""

from __future__ import annotations

import click

from ..console import echo, notify


@click.command()
@click.option("--folder", default=".", show_default=True, help="Folder that `cosmicai weights fetch` downloaded to.")
@click.option("--out", default="reproduce", show_default=True, help="Folder for the imported weights and the run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and the table on standard error.")
def reproduce(folder: str, out: str, as_json: bool) -> int:
    """Run the published checkpoint on the 1,253 published galaxies and compare our metrics with the published ones.

    Exit code 0 if all agree to the quoted digits, else 3.
    """
    from ..measurement.table import print_measurements
    from ..verification.reproduce import reproduce as run_reproduction

    measurements, agrees = run_reproduction(folder, out, notify)
    print_measurements(measurements, as_json, None)
    if not agrees:
        echo("our metrics do not agree with the published ones", err=True)
    return 0 if agrees else 3


COMMANDS = (reproduce,)
