"""train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from ..errors import InputError


@click.command()
@click.argument("survey")
@click.option("--out", required=True, help="Weights file (safetensors) to write.")
@click.option("--from", "initial", help="Weights to start from: fine-tune them on SURVEY.")
@click.option("--freeze-encoder", is_flag=True, help="Leave the transformer as it is, as published.")
@click.option("--network", default="published", show_default=True, type=click.Choice(["published", "demo"]), help="Size of a fresh network; `demo` also takes the demo's recipe where no option says otherwise.")  # fmt: skip  # noqa: E501
@click.option("--epochs", type=click.IntRange(1))
@click.option("--batch-size", type=click.IntRange(1))
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True))
@click.option("--validation-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True))
@click.option("--seed", type=click.IntRange(0))
@click.option("--device", type=click.Choice(["cpu", "cuda"]))
@click.option("--resume", is_flag=True, help="Go on after the last finished epoch.")
def train(survey: str, out: str, initial: str | None, network: str, resume: bool, **given: Any) -> None:
    """Fit a network on the spectroscopic redshifts of SURVEY, fresh or --from existing weights."""
    from ..models.config import AstroMAEConfig
    from ..models.weights import load_weights
    from ..ranks.cores import available_cores
    from ..surveys.survey import open_survey
    from ..training.loop import train as fit
    from ..training.options import DEMO_CONFIG, DEMO_OPTIONS, TrainingOptions

    if initial and network == "demo":
        raise InputError("--from brings its own network; leave out --network demo")
    start = load_weights(initial) if initial else None
    fresh = DEMO_CONFIG if network == "demo" else AstroMAEConfig()
    options = DEMO_OPTIONS if network == "demo" else TrainingOptions(threads=available_cores())
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    fit(open_survey(survey), out, start.config if start else fresh, options, start, resume, _print)
    click.echo(out)


def _print(epoch: Any) -> None:
    metrics = epoch.metrics
    click.echo(
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.5f}  R2 {metrics.r2:.4f}  MAE {metrics.mae:.5f}  "
        f"NMAD {metrics.precision:.5f}  outliers {metrics.outliers:.2%}  {epoch.seconds:.1f} s  "
        f"({epoch.trained} galaxies, {epoch.validated} for validation, {epoch.left_out} left out)",
        err=True,
    )


COMMANDS = (train,)
