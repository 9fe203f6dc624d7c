"""The plot is drawn for any redshifts that a run may give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cosmicai.runs.figures import plot_redshifts
from cosmicai.runs.metrics import compute_metrics


@pytest.mark.parametrize(
    ("phot", "spec"),
    [
        ([0.1, 0.2], [0.11, 0.19]),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        ([0.1, 0.1], [0.1, 0.1]),
        ([0.1, np.nan], [0.1, 0.2]),
        ([0.1, 0.2, 0.3], [-1.0, -9999.0, np.nan]),
        ([3e38, -3e38, 0.1], [0.1, 0.2, 0.3]),
        ([57.0] + [0.1] * 3000, [0.2] * 3001),
    ],
)
def test_any_redshifts_are_drawn(phot: list[float], spec: list[float], tmp_path: Path) -> None:
    both = np.array(phot, np.float32), np.array(spec)
    plot_redshifts(tmp_path / "plot.png", *both, compute_metrics(*both), "weights")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
