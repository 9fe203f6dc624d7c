"""The plot is drawn for any redshifts that a run may give, and says with which weights and of which survey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch

from cosmicai.calibration.coverage import CoverageCell, CoverageReport
from cosmicai.calibration.records import LEVELS
from cosmicai.runs.catalogue.facts import read_facts
from cosmicai.runs.figures import draw_redshifts, save_figure
from cosmicai.runs.metrics import compute_metrics

PROVENANCE = {"weights": "w$a$ " * 30, "weights_sha256": "0123456789abcdef" * 4, "survey": "sky"}


def draw(path: Path, phot: list[float], spec: list[float], coverage: CoverageReport | None = None) -> Figure:
    """Write a catalogue of these redshifts with row groups of 1,000, and draw it."""
    flag = np.where(np.isfinite(phot), 32, 1)
    columns = {"objid": pa.array(range(len(phot))), "redshift_phot": pa.array(phot, pa.float32())}
    columns |= {"redshift_spec": pa.array(spec, pa.float64()), "flag": pa.array(flag, pa.uint8())}
    pq.write_table(pa.table(columns), path, row_group_size=1000)
    return draw_redshifts(path, read_facts(path), PROVENANCE, coverage)


@pytest.mark.parametrize(
    ("phot", "spec"),
    [
        ([0.1, 0.2], [0.11, 0.19]),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        ([0.1, 0.1], [0.1, 0.1]),
        ([0.1, np.nan], [0.1, 0.2]),
        ([np.nan, np.nan], [0.1, 0.2]),
        ([0.1, 0.2, 0.3], [-1.0, -9999.0, np.nan]),
        ([3e38, -3e38, 0.1], [0.1, 0.2, 0.3]),
        ([57.0] + [0.1] * 3000, [0.2] * 3001),
    ],
)
def test_any_redshifts_are_drawn(phot: list[float], spec: list[float], tmp_path: Path) -> None:
    for kind, begin in (("png", b"\x89PNG\r\n\x1a\n"), ("pdf", b"%PDF-")):
        written = []
        for name in ("a", "b"):
            save_figure(draw(tmp_path / "c.parquet", phot, spec), tmp_path / name, kind)
            written.append((tmp_path / name).read_bytes())
        assert written[0].startswith(begin) and written[0] == written[1]


def test_the_density_holds_every_galaxy_within_the_axes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    spec = random.uniform(0.1, 1, 2500)
    phot = (spec + random.normal(0, 0.02, 2500)).astype(np.float32)
    phot[7] = 9.0  # an outlier, which does not shrink the others
    plane, residuals, *_ = draw(tmp_path / "c.parquet", phot.tolist(), spec.tolist()).axes
    low, high = plane.get_xlim()
    inside = (phot >= low) & (phot <= high) & (spec >= low) & (spec <= high)
    assert high < 1.2 and 2490 <= np.count_nonzero(inside) < 2500
    density, legend = plane.collections[0].get_array(), plane.get_legend()
    assert density is not None and density.sum() == np.count_nonzero(inside)
    assert legend and [label.get_text() for label in legend.get_texts()] == ["1:1", "outliers: |dz| > 0.05"]
    assert residuals.get_ylabel() == r"$\Delta z\,/\,(1+z)$" and residuals.get_ylim() == (-0.2, 0.2)


def test_the_box_has_a_line_on_the_coverage_of_intervals(tmp_path: Path) -> None:
    pair = ([0.1, 0.2], [0.11, 0.19])
    report = CoverageReport(CoverageCell(2, (0.5, 1.0), (0.3, 0.2), (0.1, 0.2)), (), (), None, LEVELS, (0,) * 26)
    without, with_intervals = (
        draw(tmp_path / "c.parquet", *pair, coverage).axes[0].texts[0].get_text() for coverage in (None, report)
    )
    assert without.startswith("2 galaxies\n") and with_intervals == f"{without}\nin 68%: 50.0%, in 95%: 100.0%"


def test_without_spectroscopic_redshifts_the_numbers_and_flags_are_drawn(tmp_path: Path) -> None:
    (axes,) = draw(tmp_path / "c.parquet", [0.1, 0.2, 0.3, np.nan], [np.nan] * 4).axes
    (numbers,) = axes.patches
    assert isinstance(numbers, StepPatch) and numbers.get_data()[0].sum() == 3
    assert axes.texts[0].get_text() == (
        "4 galaxies, no spectroscopic redshifts to compare with\n"
        "NONFINITE_PIXEL: 1 (25.00%)\nIMPLAUSIBLE_REDSHIFT: 3 (75.00%)"
    )


def test_bins_of_numbers_are_round(tmp_path: Path) -> None:
    (axes,) = draw(tmp_path / "c.parquet", [0.0255, 0.2555, 0.5355], [np.nan] * 3).axes
    (numbers,) = axes.patches
    assert isinstance(numbers, StepPatch)
    counts, edges, _ = numbers.get_data()
    assert axes.get_ylabel() == "galaxies per 0.01 in redshift"
    assert np.allclose(edges, 0.01 * np.arange(2, 55)) and np.flatnonzero(counts).tolist() == [0, 23, 51]


def test_the_title_names_weights_and_survey(tmp_path: Path) -> None:
    for spec in ([0.1, 0.2], [np.nan, np.nan]):
        title = draw(tmp_path / "c.parquet", [0.1, 0.2], spec).axes[0].get_title(loc="left")
        assert title.replace("\n", " ") == f"{'w$a$ ' * 30}, SHA-256 0123456789abcdef; survey sky"
        assert max(map(len, title.splitlines())) <= 90


def test_metrics_of_pieces_are_those_of_all_galaxies(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    spec = random.uniform(0.01, 2, 4321)
    phot = (spec + random.normal(0, 0.1, 4321)).astype(np.float32)
    draw(tmp_path / "c.parquet", phot.tolist(), spec.tolist())
    whole, pieces = compute_metrics(phot, spec), read_facts(tmp_path / "c.parquet").metrics
    assert whole and pieces and whole.precision == pieces.precision and whole.galaxies == pieces.galaxies == 4321
    for name in ("mae", "mse", "bias", "r2", "outliers"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-12)
