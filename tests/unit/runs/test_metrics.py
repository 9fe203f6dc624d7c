"""Metrics against an independent computation."""

import numpy as np
import pytest

from cosmicai.runs.metrics import compute_metrics


def test_metrics_agree_with_their_written_definitions():
    phot = np.array([0.11, 0.19, 0.32, 0.38, 0.9, np.nan, 0.2], np.float32)
    spec = np.array([0.10, 0.20, 0.30, 0.40, 0.5, 0.1, np.nan])
    metrics = compute_metrics(phot, spec)
    assert metrics is not None
    pairs = [(float(p), float(s)) for p, s in zip(phot, spec, strict=True) if p == p and s == s]
    dz = sorted((p - s) / (1 + s) for p, s in pairs)
    mean = sum(s for _, s in pairs) / 5
    assert metrics.galaxies == 5
    assert metrics.mae == pytest.approx(sum(abs(p - s) for p, s in pairs) / 5, rel=1e-12)
    assert metrics.mse == pytest.approx(sum((p - s) ** 2 for p, s in pairs) / 5, rel=1e-12)
    assert metrics.bias == pytest.approx(sum(dz) / 5, rel=1e-12)
    assert metrics.precision == pytest.approx(1.48 * sorted(abs(d - dz[2]) for d in dz)[2], rel=1e-12)
    total = sum((s - mean) ** 2 for _, s in pairs)
    assert metrics.r2 == pytest.approx(1 - sum((p - s) ** 2 for p, s in pairs) / total, rel=1e-12)
    assert metrics.outliers == 1 / 5


def test_fewer_than_two_galaxies_have_no_metrics():
    assert compute_metrics(np.array([0.1, np.nan], np.float32), np.array([0.1, 0.2])) is None
