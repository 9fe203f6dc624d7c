"""The figure of the coverage of intervals shows the numbers of the report, for any report that a run may give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from cosmicai.calibration.coverage import CoverageCell, CoverageReport
from cosmicai.calibration.records import LEVELS
from cosmicai.runs.figures import save_figure
from cosmicai.runs.interval_figure import draw_intervals

PROVENANCE = {"weights": "w$a$", "weights_sha256": "0123456789abcdef" * 4, "survey": "sky"}
ALL = CoverageCell(1000, (0.7, 0.96), (0.0148, 0.0069), (0.0281, 0.0687))
BY_REDSHIFT = (
    CoverageCell(600, (0.71, 0.97), (0.019, 0.009), (0.02, 0.04), 0.1, 0.15),
    CoverageCell(400, (0.2, 0.9), (0.023, 0.011), (0.03, 0.06), 0.15, 0.2),
)
BY_MAGNITUDE = (CoverageCell(1000, (0.7, 0.96), (0.0148, 0.0069), (0.0281, 0.0687), 17.0, 17.5),)
PIT = tuple(range(1, 27))


def draw(report: CoverageReport) -> Figure:
    return draw_intervals(report, "900 galaxies of sky-2", PROVENANCE)


FULL = CoverageReport(ALL, BY_REDSHIFT, BY_MAGNITUDE, None, LEVELS, PIT)
ONE = CoverageCell(1, (1.0, 1.0), (0.466, 0.218), (0.1, 0.2))
LONE = CoverageReport(ONE, (), (), ONE, LEVELS, (0,) * 25 + (1,))


@pytest.mark.parametrize("report", [FULL, LONE])
def test_any_report_is_drawn_to_the_same_bytes(report: CoverageReport, tmp_path: Path) -> None:
    for kind, begin in (("png", b"\x89PNG\r\n\x1a\n"), ("pdf", b"%PDF-")):
        written = []
        for name in ("a", "b"):
            save_figure(draw(report), tmp_path / name, kind)
            written.append((tmp_path / name).read_bytes())
        assert written[0].startswith(begin) and written[0] == written[1]


def test_bins_are_drawn_with_their_errors_and_the_expected_coverage() -> None:
    by_redshift, by_magnitude, _ = draw(FULL).axes
    for axes, cells in ((by_redshift, BY_REDSHIFT), (by_magnitude, BY_MAGNITUDE)):
        dashed = [np.unique(line.get_ydata()).tolist() for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed == [[0.68], [0.95]]
        ranges = np.array([(cell.low, cell.high) for cell in cells], np.float64)
        for number, container in enumerate(axes.containers):
            points, _, bars = container.lines  # type: ignore[attr-defined]
            assert points.get_ydata().tolist() == [cell.fractions[number] for cell in cells]
            assert np.allclose(points.get_xdata(), ranges.mean(axis=1))
            across, up = (np.array(bar.get_segments()) for bar in bars)
            assert np.allclose(across[:, :, 0], ranges)
            assert np.allclose(np.diff(up[:, :, 1]) / 2, [[cell.errors[number]] for cell in cells])
    assert (by_redshift.get_xlabel(), by_magnitude.get_xlabel()) == ("photometric redshift", "r magnitude")
    low, high = by_redshift.get_ylim()
    assert low < 0.2 - 0.023 and high > 1 and by_magnitude.get_ylim() == (low, high)


def test_the_legend_and_the_title_say_what_was_measured_and_calibrated() -> None:
    by_redshift = draw(FULL).axes[0]
    legend = by_redshift.get_legend()
    assert legend and legend.get_title().get_text() == "1,000 galaxies"
    assert [text.get_text() for text in legend.get_texts()] == [
        "68%: 70.0% +- 1.5% (mean width 0.0281)", "95%: 96.0% +- 0.7% (mean width 0.0687)",
    ]  # fmt: skip
    assert by_redshift.get_title(loc="left").replace("\n", " ") == (
        "w$a$, SHA-256 0123456789abcdef; survey sky; intervals calibrated on 900 galaxies of sky-2"
    )


def test_the_density_between_quantiles_is_drawn_against_1() -> None:
    expected, measured = draw(FULL).axes[2].patches
    assert isinstance(expected, StepPatch) and isinstance(measured, StepPatch)
    density, edges, _ = measured.get_data()
    assert edges.tolist() == [0, *LEVELS, 1]
    assert np.allclose(density * np.diff(edges), np.arange(1, 27) / 351)
    upper, _, lower = expected.get_data()
    probability = np.diff(edges)
    assert np.allclose((upper + lower) / 2, 1)
    assert np.allclose((upper - lower) / 2 * 351 * probability, np.sqrt(351 * probability * (1 - probability)))


def test_without_bins_the_figure_says_so() -> None:
    for axes in draw(LONE).axes[:2]:
        assert [text.get_text() for text in axes.texts] == ["fewer than 50 galaxies in every bin"]
