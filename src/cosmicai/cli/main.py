"""The command line `cosmicai`: all of its commands and its entry point."""

from __future__ import annotations

import click

from ..console.command_line import run_command
from ..version import VERSION
from . import bench, calibrate, cost, reproduce, runs, surveys, train, weights


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def cli() -> None:
    """Photometric redshifts for millions of galaxy cutouts.

    Exit codes: 0 success, 2 invalid input, 3 the run is not complete, 130 interrupted.
    """


_modules = (runs, surveys, bench, cost, train, calibrate, weights, reproduce)
for command in (command for module in _modules for command in module.COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Run the command line of `cosmicai` and `python -m cosmicai`, and exit with its code."""
    run_command(cli, "cosmicai")
