"""The end of a training: what the written weights are worth on galaxies that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..calibration.attach import attach, describe_source
from ..calibration.domain import measure_domain
from ..calibration.fit import LEAST, SpectroscopicSample, fit_calibration
from ..calibration.records import Calibration
from ..calibration.split import is_for_calibration
from ..models.weights import Weights, build_network
from ..runs.metrics import Metrics, compute_metrics
from ..surveys.shard import Galaxies
from ..surveys.survey import Survey
from .sample import Sample, TrainingChunk, read_domain_batches, read_held_out_batches


@dataclass(frozen=True)
class Predictions:
    """Galaxies that were held out, what the network predicts of them, and their redshifts."""

    magnitude: NDArray[np.float64]  # (N, 5)
    redshift_phot: NDArray[np.float32]  # (N,)
    redshift_spec: NDArray[np.float64]  # (N,)

    @classmethod
    def concatenate(cls, parts: Iterable[Predictions]) -> Predictions:
        """Join predictions, in their order; none at all have no galaxies."""
        empty = cls(np.zeros((0, 5)), np.zeros(0, np.float32), np.zeros(0))
        joined = [empty, *parts]
        return cls(
            np.concatenate([part.magnitude for part in joined]),
            np.concatenate([part.redshift_phot for part in joined]),
            np.concatenate([part.redshift_spec for part in joined]),
        )


@dataclass(frozen=True)
class Finished:
    """The weights of a training as they are to be written, with what they predict of the test galaxies.

    The metrics are None if fewer than two galaxies were held out for the test.
    """

    weights: Weights
    test: Predictions
    metrics: Metrics | None


@torch.no_grad()
def predict_held_out(
    predict: Callable[[Galaxies], Tensor], survey: Survey, chunks: Iterable[TrainingChunk],
    part: Literal["validation", "test"],
) -> Predictions:  # fmt: skip
    """Predict the galaxies of these chunks that are held out for validation or for the test.

    `predict` returns the photometric redshifts (N,) of N galaxies.
    """
    return Predictions.concatenate(
        Predictions(galaxies.magnitude, predict(galaxies).float().cpu().numpy(), galaxies.redshift)
        for galaxies in read_held_out_batches(survey, chunks, part)
    )


def finish(weights: Weights, survey: Survey, sample: Sample, device: str) -> Finished:
    """Evaluate the weights of a training, which take raw inputs, on its test galaxies, and note how good they are.

    One half of these calibrates intervals of the redshift, and the other measures their coverage; the ranges of the
    training galaxies are the training domain.
    """
    network = build_network(weights).to(device)

    def predict(galaxies: Galaxies) -> Tensor:
        image, magnitude = torch.from_numpy(galaxies.image), torch.from_numpy(galaxies.magnitude)
        return network(image.to(device), magnitude.to(device))  # type: ignore[no-any-return]

    test = predict_held_out(predict, survey, sample.chunks, "test")
    domain = measure_domain(describe_source(survey), "training", read_domain_batches(survey, sample))
    weights = attach(weights, _calibrate(survey, test), domain)
    metrics = compute_metrics(test.redshift_phot, test.redshift_spec)
    if metrics is None:
        return Finished(weights, test, None)
    notes = {
        "test_galaxies": str(metrics.galaxies), "test_r2": f"{metrics.r2:.4f}", "test_nmad": f"{metrics.precision:.5f}",
    }  # fmt: skip
    return Finished(replace(weights, notes=weights.notes | notes), test, metrics)


def _calibrate(survey: Survey, test: Predictions) -> Calibration | None:
    """Return the calibration on one half of the test galaxies, None if that is too few."""
    known = np.isfinite(test.redshift_phot)
    sample = SpectroscopicSample(
        test.magnitude[known], test.redshift_phot[known].astype(np.float64), test.redshift_spec[known]
    )
    if np.count_nonzero(is_for_calibration(sample.magnitude)) < LEAST:
        return None
    return fit_calibration(sample, describe_source(survey))
