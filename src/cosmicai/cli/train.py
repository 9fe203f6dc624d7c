"""The command `train`."""

from __future__ import annotations

from typing import Any

import click

from ..console import echo, notify
from ..errors import InputError
from .options import Amount


@click.command()
@click.argument("survey")
@click.option("--out", required=True, help="Weights file to write (safetensors).")
@click.option("--from", "initial", help="Weights to fine-tune on SURVEY.")
@click.option(
    "--freeze-encoder", is_flag=True, help="Keep the weights of the transformer fixed, as in the published fine-tuning."
)
@click.option("--network", default="published", show_default=True, type=click.Choice(["published", "demo"]), help="Size of a new network; `demo` also uses the demo's training options unless others are given.")  # fmt: skip  # noqa: E501
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training galaxies.")
@click.option("--batch-size", type=click.IntRange(1), help="Galaxies per training step.")
@click.option("--learning-rate", type=Amount(), help="Highest learning rate of the schedule.")
@click.option("--validation-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Fraction of the galaxies held out for validation.")  # fmt: skip  # noqa: E501
@click.option("--seed", type=click.IntRange(0), help="Seed of initial weights, batches and validation galaxies.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Device to train on.")
@click.option("--resume", is_flag=True, help="Continue after the last completed epoch.")
@click.option("--overwrite", is_flag=True, help="Replace --out if it exists.")
def train(
    survey: str, out: str, initial: str | None, network: str, resume: bool, overwrite: bool, **options_given: Any
) -> None:  # fmt: skip
    """Train a network on the spectroscopic redshifts of SURVEY, a new one or --from existing weights."""
    from msgspec.structs import replace

    from ..models.config import AstroMAEConfig
    from ..models.weights import load_weights
    from ..ranks.cores import available_cores
    from ..storage.outputs import require_new, require_regular
    from ..surveys.survey import open_survey
    from ..training.fit import STATE_SUFFIX
    from ..training.fit import train as fit
    from ..training.recipe import DEMO_CONFIG, DEMO_OPTIONS, TrainingOptions

    if initial and network == "demo":
        raise InputError("--from determines the network; leave out --network demo")
    require_new(out, overwrite=overwrite)
    require_regular(f"{out}{STATE_SUFFIX}")
    initial_weights = load_weights(initial) if initial else None
    new_config = DEMO_CONFIG if network == "demo" else AstroMAEConfig()
    config = initial_weights.config if initial_weights else new_config
    options = DEMO_OPTIONS if network == "demo" else TrainingOptions(threads=available_cores())
    options = replace(options, **{name: value for name, value in options_given.items() if value is not None})
    opened = open_survey(survey)
    for notice in opened.notices:
        notify(notice)
    fit(opened, out, config, options, initial_weights, resume, _print_epoch)
    echo(out)


def _print_epoch(epoch: Any) -> None:
    metrics = epoch.metrics
    echo(
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.5f}  R2 {metrics.r2:.4f}  MAE {metrics.mae:.5f}  "
        f"NMAD {metrics.precision:.5f}  outliers {metrics.outliers:.2%}  {epoch.seconds:.1f} s  "
        f"({epoch.trained} galaxies, {epoch.validated} for validation, {epoch.left_out} left out)",
        err=True,
    )


COMMANDS = (train,)
