"""Options that several commands share, declared once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from ..engines.registry import BATCH_SIZE, ENGINES, LARGEST_BATCH_SIZE, PRECISIONS
from ..runs.request import VIEWS


class Amount(click.FloatRange):
    """A number above zero, or also zero; a range alone accepts NaN."""

    def __init__(self, maximum: float = 1e9, or_zero: bool = False) -> None:
        super().__init__(0, maximum, min_open=not or_zero)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises BadParameter of click for any other value."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


_sizes = ", ".join(f"{size} ({device})" for device, size in BATCH_SIZE.items())
PRECISION_NAMES = sorted({precision for offered in PRECISIONS.values() for precision in offered})
NO_WEIGHTS = "--weights is missing; name the weights file, since `--weights demo` is for synthetic galaxies only"
_weights = click.option(
    "--weights", help="Weights file; required, except for the survey `demo`. `demo` is for synthetic galaxies only."
)
_RUN_OPTIONS = (
    click.option(
        "--batch-size",
        type=click.IntRange(1, LARGEST_BATCH_SIZE),
        help=f"Galaxies predicted at once; default {_sizes}.",
    ),
    click.option(
        "--engine",
        default="auto",
        show_default=True,
        type=click.Choice(ENGINES),
        help="Inference engine; `auto` uses a GPU if there is one, else OpenVINO, and reports why.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISION_NAMES),
        help="Precision of the engine's arithmetic; default float32, on a GPU bfloat16.",
    ),
    click.option("--accept-precision-loss", is_flag=True, help="Run even if the precision changes the redshifts."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Device of the engine; default: its own."),
    click.option(
        "--views",
        type=click.Choice([str(views) for views in VIEWS]),
        callback=lambda context, option, value: None if value is None else int(value),
        help="Views of each cutout whose redshifts are averaged: 1, or 8 for its rotations by right angles and their "
        "reflections, which take 8 times as long; default 1.",
    ),
    click.option("--quantiles", is_flag=True, help="Write all 25 quantiles of each redshift into the catalogue."),
    click.option(
        "--calibrate-on-spectra",
        is_flag=True,
        help="Calibrate the intervals on half of the galaxies with a spectroscopic redshift, and report on the others.",
    ),
    click.option(
        "--limit-files", "--file-limit", type=click.IntRange(1), help="Use only the first N shards of the survey."
    ),
    click.option("--strict", is_flag=True, help="Refuse a survey that does not look right (`cosmicai survey check`)."),
    click.option("--resume", is_flag=True, help="Finish the run in --out: compute only what is missing."),
)

schedule_option = click.option(
    "--schedule",
    default="dynamic",
    show_default=True,
    type=click.Choice(["dynamic", "static"]),
    help="Assign work items to ranks when they are free, or by size in advance. Ranks that cannot communicate always "
    "use the latter.",
)


def require_weights(survey: str, weights: str | None) -> str:
    """Return the requested weights of a run, by default those of the demo for the survey `demo`.

    Raises click.UsageError if weights for other galaxies are missing.
    """
    if weights is None and survey != "demo":
        raise click.UsageError(NO_WEIGHTS)
    return weights or "demo"


def run_options(command: Callable[..., Any], *, survey_required: bool = True) -> Callable[..., Any]:
    """Add SURVEY, --out and the other options of every command that starts a run."""
    survey = click.argument("survey", required=survey_required)
    out = click.option("--out", required=survey_required, help="Run folder: a new local folder or s3:// prefix.")
    for option in reversed((survey, _weights, out, *_RUN_OPTIONS)):
        command = option(command)
    return command
