"""The command `train`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from ..console import echo, notify
from ..console.progress import show_progress
from ..errors import InputError
from .options import Amount

if TYPE_CHECKING:
    from ..runs.metrics import Metrics
    from ..training.fit import EpochReport


@click.command()
@click.argument("survey")
@click.option("--out", required=True, help="Weights file to write (safetensors).")
@click.option("--from", "initial", help="Weights to fine-tune on SURVEY.")
@click.option(
    "--freeze-encoder", is_flag=True, help="Keep the weights of the transformer fixed, as in the published fine-tuning."
)
@click.option("--encoder-rate", type=Amount(), help="Factor on the learning rate of the transformer.")
@click.option("--network", default="published", show_default=True, type=click.Choice(["published", "demo"]), help="Size of a new network; `demo` also uses the demo's training options unless others are given.")  # fmt: skip  # noqa: E501
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training galaxies.")
@click.option("--patience", type=click.IntRange(0), help="End after so many epochs without a lower validation MAE; 0: never.")  # fmt: skip  # noqa: E501
@click.option("--batch-size", type=click.IntRange(1), help="Galaxies per training step, of all ranks together.")
@click.option("--learning-rate", type=Amount(), help="Highest learning rate of the schedule.")
@click.option("--clip", type=Amount(or_zero=True), help="Largest norm of the gradient; 0 for no limit.")
@click.option("--augment", type=click.Choice(["full", "none"]), help="`full` mirrors, turns and shifts the training cutouts (torchvision).")  # fmt: skip  # noqa: E501
@click.option("--noise", type=Amount(or_zero=True), help="Most noise added to a training cutout, relative to its own.")
@click.option("--validation-fraction", type=Amount(1), help="Fraction of the galaxies held out for validation.")  # fmt: skip  # noqa: E501
@click.option("--test-fraction", type=Amount(1, or_zero=True), help="Fraction of the galaxies held out for the test at the end.")  # fmt: skip  # noqa: E501
@click.option("--seed", type=click.IntRange(0), help="Seed of all that is random: initial weights, batches, augmentation, held-out galaxies.")  # fmt: skip  # noqa: E501
@click.option("--threads", type=click.IntRange(1), help="Threads of each rank; default: all cores that it may use.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Device to train on.")
@click.option("--resume", is_flag=True, help="Continue after the last completed epoch.")
@click.option("--overwrite", is_flag=True, help="Replace --out and its history files if they exist.")
def train(
    survey: str, out: str, initial: str | None, network: str, resume: bool, overwrite: bool, **options_given: Any
) -> None:
    """Train a network on the spectroscopic redshifts of SURVEY, a new one or --from existing weights."""
    # Threads that wait for work would otherwise spin. The library of threads, which comes with torch, reads it once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from msgspec.structs import replace

    from ..calibration.describe import describe_fit
    from ..calibration.records import trust_of
    from ..models.config import AstroMAEConfig
    from ..models.weights import load_weights
    from ..ranks.cores import available_cores
    from ..storage import exists
    from ..storage.outputs import require_new, require_regular
    from ..surveys.survey import open_survey
    from ..training.fit import train as fit
    from ..training.history import CURVE_SUFFIX, HISTORY_SUFFIX
    from ..training.parallel import started_rank
    from ..training.recipe import DEMO_CONFIG, DEMO_OPTIONS, TrainingOptions
    from ..training.state import STATE_SUFFIX

    if initial and network == "demo":
        raise InputError("--from determines the network; leave out --network demo")
    require_new(out, overwrite=overwrite)
    require_regular(f"{out}{STATE_SUFFIX}")
    continues = resume and exists(f"{out}{STATE_SUFFIX}")
    for suffix in (HISTORY_SUFFIX, CURVE_SUFFIX):
        require_new(f"{out}{suffix}", overwrite=overwrite or continues)
    initial_weights = load_weights(initial) if initial else None
    new_config = DEMO_CONFIG if network == "demo" else AstroMAEConfig()
    config = initial_weights.config if initial_weights else new_config
    options = DEMO_OPTIONS if network == "demo" else TrainingOptions()
    rank, threads = started_rank(), options.threads or available_cores()
    if rank.local_size > 1:
        threads = max(1, available_cores() // rank.local_size)
    given = {name: value for name, value in options_given.items() if value is not None}
    options = replace(options, **{"threads": threads, **given})
    opened = open_survey(survey)
    if rank.rank > 0:
        fit(opened, out, config, options, initial_weights, resume)
        return
    for notice in opened.notices:
        notify(notice)
    trained = fit(opened, out, config, options, initial_weights, resume, _print_epoch, _print_test, show_progress)
    calibration = trust_of(trained.notes, out).calibration
    for line in describe_fit(calibration) if calibration else ("no intervals: too few galaxies were held out",):
        echo(line, err=True)
    echo(out)


def _print_epoch(epoch: EpochReport) -> None:
    metrics = epoch.metrics
    echo(
        f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.5f}  R2 {metrics.r2:.4f}  MAE {metrics.mae:.5f}  "
        f"NMAD {metrics.precision:.5f}  outliers {metrics.outliers:.2%}  {epoch.seconds:.1f} s  "
        f"({epoch.trained} galaxies, {epoch.validated} for validation, {epoch.tested} for the test, "
        f"{epoch.left_out} left out)",
        err=True,
    )


def _print_test(metrics: Metrics | None) -> None:
    if metrics is None:
        echo("test: fewer than two galaxies were held out, so nothing is measured", err=True)
        return
    echo(
        f"test: R2 {metrics.r2:.4f}  MAE {metrics.mae:.5f}  bias {metrics.bias:+.5f}  NMAD {metrics.precision:.5f}  "
        f"outliers {metrics.outliers:.2%}  ({metrics.galaxies} galaxies that the training has not seen)",
        err=True,
    )


COMMANDS = (train,)
