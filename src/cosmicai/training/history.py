"""The course of a training: one row per epoch in OUT.history.csv, and its curves in OUT.history.png."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec import structs

from .. import storage
from ..errors import describe_os_errors
from ..runs.figures import BOX, create_figure, save_figure
from ..runs.metrics import OUTLIER_DZ, Metrics
from .evaluate import Predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTORY_SUFFIX, CURVE_SUFFIX = ".history.csv", ".history.png"  # follow the name of the weights file


class Epoch(msgspec.Struct, frozen=True):
    """A row of the history; losses are means over the galaxies, the rest is as in `runs.metrics`.

    Those of training are of the network as it was at each step; those of validation are of its state at the end.
    """

    epoch: int  # from 1
    learning_rate: float  # at the end
    training_loss: float
    training_nmad: float
    validation_loss: float
    validation_nmad: float
    validation_mae: float
    validation_bias: float
    validation_r2: float
    validation_outliers: float


def write_history(uri: str, history: list[Epoch]) -> None:
    """Write the history as CSV, whole or not at all; numbers are written with all of their digits."""
    text = io.StringIO()
    rows = csv.DictWriter(text, Epoch.__struct_fields__, lineterminator="\n")
    rows.writeheader()
    rows.writerows(structs.asdict(epoch) for epoch in history)
    storage.write_bytes(uri, text.getvalue().encode())


def draw_history(
    uri: str, title: str, history: list[Epoch], best_epoch: int, test: Predictions | None, metrics: Metrics | None
) -> None:
    """Draw loss and NMAD by epoch, and the redshifts of the test galaxies if there are metrics of them, as PNG.

    The same training gives the same bytes.
    """

    columns = 2 if metrics is None else 3
    figure = create_figure(figsize=(4.2 * columns, 3.8), layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False)
    axes = figure.subplots(1, columns)
    _draw_curve(axes[0], "loss", [(row.training_loss, row.validation_loss) for row in history], best_epoch)
    _draw_curve(axes[1], "NMAD", [(row.training_nmad, row.validation_nmad) for row in history], best_epoch)
    if test is not None and metrics is not None:
        _draw_test(axes[2], test, metrics)
    with storage.atomic_write(uri) as temporary, describe_os_errors(uri, "write"):
        save_figure(figure, temporary, "png")


def _draw_curve(axes: Axes, name: str, pairs: list[tuple[float, float]], best_epoch: int) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = np.arange(1, len(pairs) + 1)
    for label, values in zip(("training", "validation"), zip(*pairs, strict=True), strict=True):
        axes.plot(epochs, values, marker=".", label=label)
    axes.axvline(best_epoch, color="0.6", linestyle=":", label="written weights")
    axes.set(xlabel="epoch", ylabel=name, yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def _draw_test(axes: Axes, test: Predictions, metrics: Metrics) -> None:
    known = np.isfinite(test.redshift_phot)
    phot, spec = test.redshift_phot[known].astype(np.float64), test.redshift_spec[known]
    low, high = min(phot.min(), spec.min()), max(phot.max(), spec.max())
    axes.hexbin(spec, phot, gridsize=60, bins="log", mincnt=1, linewidths=0.2, extent=(low, high, low, high))
    redshift = np.array([low, high])
    axes.plot(redshift, redshift, color="crimson", linewidth=1)
    for sign in (-1, 1):
        axes.plot(redshift, redshift + sign * OUTLIER_DZ * (1 + redshift), color="0.4", linestyle="--", linewidth=0.8)
    text = (
        f"{metrics.galaxies:,} test galaxies\n$R^2$ = {metrics.r2:.4g}\nbias = {metrics.bias:+.4g}\n"
        f"NMAD = {metrics.precision:.4g}\noutliers = {metrics.outliers:.2%}"
    )
    axes.text(0.03, 0.97, text, va="top", transform=axes.transAxes, fontsize=8, **BOX)
    axes.set(xlabel="spectroscopic redshift", ylabel="photometric redshift", xlim=(low, high), ylim=(low, high))
