"""The command `calibrate`."""

from __future__ import annotations

import click

from ..console import echo


@click.command()
@click.argument("run")
@click.option("--weights", required=True, help="Weights that RUN was made with.")
@click.option("--out", required=True, help="Weights file to write (safetensors): the same network with intervals.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
def calibrate(run: str, weights: str, out: str, overwrite: bool) -> None:
    """Calibrate intervals of the redshift on the spectroscopic redshifts of the galaxies in RUN.

    One half of the galaxies, chosen by their magnitudes, calibrates; the other measures the coverage of the intervals.
    """
    from .. import storage
    from ..runs.calibrate import calibrate_weights
    from ..runs.store import RunFolder
    from ..storage.outputs import require_new

    require_new(out, overwrite=overwrite)
    calibrated = calibrate_weights(RunFolder(storage.absolute(run)), weights)
    calibrated.weights.save(out)
    for line in calibrated.lines:
        echo(line)
    echo(out)


COMMANDS = (calibrate,)
