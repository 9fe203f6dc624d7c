"""Options that several commands share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from ..engines.registry import BATCH_SIZE, ENGINES, PRECISIONS

_sizes = ", ".join(f"{size} ({device})" for device, size in BATCH_SIZE.items())
PRECISION_NAMES = sorted({precision for offered in PRECISIONS.values() for precision in offered})
_RUN_OPTIONS = (
    click.argument("survey"),
    click.option("--weights", default="demo", show_default=True, help="Weights file, or `demo` (synthetic galaxies)."),
    click.option("--out", required=True, help="Run folder: a new local folder or s3:// prefix."),
    click.option("--batch-size", type=click.IntRange(1), help=f"Galaxies at once; default {_sizes}."),
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        type=click.Choice(ENGINES),
        help="What computes; `auto` takes a GPU, else OpenVINO, and says why.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISION_NAMES),
        help="Of the engine's arithmetic; default float32, on a GPU bfloat16.",
    ),
    click.option("--accept-precision-loss", is_flag=True, help="Run in a precision that changes the redshifts."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Where the engine runs; default its own."),
    click.option(
        "--limit-files", "--file-limit", type=click.IntRange(1), help="Only the first N shards of the survey."
    ),
    click.option("--resume", is_flag=True, help="Finish the run that is in --out: do what is missing, nothing else."),
)

schedule_option = click.option(
    "--schedule",
    default="dynamic",
    show_default=True,
    type=click.Choice(["dynamic", "static"]),
    help="Items to whoever is free, or dealt beforehand by size; the latter wherever ranks cannot talk.",
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """SURVEY and the options of every command that starts a run."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command
