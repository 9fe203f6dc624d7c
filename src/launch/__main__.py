"""`python -m launch ...`: a run by several ranks."""

from __future__ import annotations

from typing import Any

import click

from cosmicai.cli import run_command
from cosmicai.commands.options import run_options, tell


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@run_options
@click.option("--procs", default=1, show_default=True, type=click.IntRange(1), help="Ranks, one process each.")
def launch(survey: str, procs: int, **options: Any) -> int:
    """Predict the redshift of every galaxy in SURVEY with several ranks on this machine."""
    from cosmicai.galaxies.survey import open_survey
    from cosmicai.report import conclude
    from cosmicai.run.begin import begin
    from cosmicai.run.summary import summarize

    from .local import launch as launch_local

    run = begin(open_survey(survey), **options, tell=tell)
    launch_local(run, procs)
    return conclude(summarize(run))


if __name__ == "__main__":
    run_command(launch, "launch")
