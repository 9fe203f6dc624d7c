"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..engine.choose import ENGINES

_RUN_OPTIONS = (
    click.argument("survey"),
    click.option("--weights", default="demo", show_default=True, help="Weights file, or `demo` (synthetic galaxies)."),
    click.option("--out", required=True, help="Run folder: a new local folder or s3:// prefix."),
    click.option("--batch-size", default=512, show_default=True, type=click.IntRange(1), help="Galaxies at once."),
    click.option("--engine", default="reference", show_default=True, type=click.Choice(ENGINES)),
    click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"])),
    click.option("--limit-files", type=click.IntRange(1), help="Only the first N shards of the survey."),
    click.option("--resume", is_flag=True, help="Finish the run that is in --out: do what is missing, nothing else."),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """SURVEY and the options of every command that starts a run."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command
