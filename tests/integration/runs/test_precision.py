"""A reduced precision is checked on a sample of the survey before a run starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cosmicai.engines.base import EngineChoice
from cosmicai.errors import InputError
from cosmicai.models.weights import WeightsFile, load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.runs import precision
from cosmicai.runs.metrics import compute_metrics
from cosmicai.runs.precision import CHECKED, CHUNK, compare_precisions, sample_galaxies, select_precision
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import Survey, open_survey
from support.helpers import make_run, make_survey, random_galaxies, run, run_worker, tiny_weights

FILE = WeightsFile("w", "0")
Rounding = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass
class RoundingEngine:
    """An engine whose float32 redshifts are hidden in a pixel, and whose reduced ones have a known rounding."""

    precision: str
    rounding: Rounding

    def predict(self, image: NDArray[np.float32], magnitude: NDArray[np.float64]) -> NDArray[np.float32]:
        exact = image[:, 0, 0, 0].copy()
        return exact if self.precision == "float32" else self.rounding(exact)


@pytest.fixture
def use_rounding(monkeypatch: pytest.MonkeyPatch) -> Callable[[Rounding], None]:
    def install(rounding: Rounding) -> None:
        monkeypatch.setattr(precision, "open_engine", lambda choice, *_: RoundingEngine(choice.precision, rounding))

    return install


def make_noisy_survey(path: Path, count: int) -> Survey:
    galaxies = random_galaxies(count)
    noise = np.random.default_rng(5).normal(0, 0.02, count)
    galaxies.image[:, 0, 0, 0] = galaxies.redshift + noise
    return make_survey(path, galaxies, 700)


def select(
    path: Path, survey: Survey, requested: str | None, accept: bool = False
) -> tuple[precision.PrecisionDecision, list[str]]:
    notices: list[str] = []
    choice = EngineChoice("openvino", requested or "bfloat16", "cpu", 64)
    return select_precision(
        RunFolder(str(path / "run")), survey, FILE, choice, requested, accept, notices.append
    ), notices


def test_a_harmless_rounding_is_accepted_and_recorded(tmp_path: Path, use_rounding: Callable[[Rounding], None]) -> None:
    use_rounding(lambda z: (z + 1e-5).astype(np.float32))
    survey = make_noisy_survey(tmp_path / "s", 5000)
    decision, notices = select(tmp_path, survey, "bfloat16")
    assert decision.choice.precision == "bfloat16" and decision.quantized is None and notices == []
    check = decision.check
    assert check is not None and (check.requested, check.used, check.reason) == ("bfloat16", "bfloat16", "checked")
    galaxies = sample_galaxies(survey, CHECKED + precision.CALIBRATING)
    exact = galaxies.image[:, 0, 0, 0]
    moved = np.abs((exact + 1e-5).astype(np.float32) - exact) / (1 + np.maximum(exact, 0))
    before = compute_metrics(exact, galaxies.redshift)
    assert check.galaxies == len(galaxies) and abs(len(galaxies) - CHECKED - precision.CALIBRATING) <= 5 * CHUNK
    assert check.largest_shift == pytest.approx(moved.max(), rel=1e-12)
    assert before is not None and check.nmad_float32 == before.precision


def move_one_far(z: NDArray[np.float32]) -> NDArray[np.float32]:
    far = z.copy()
    far[17] += 0.011 * (1 + max(far[17], 0))
    return far


def move_one_near(z: NDArray[np.float32]) -> NDArray[np.float32]:
    near = z.copy()
    near[17] += 0.009 * (1 + max(near[17], 0))
    return near


def test_one_galaxy_that_moves_too_far_is_a_refusal(tmp_path: Path, use_rounding: Callable[[Rounding], None]) -> None:
    survey = make_noisy_survey(tmp_path / "s", 3000)
    use_rounding(move_one_far)
    with pytest.raises(InputError, match=r"moves a galaxy by 0\.0110 \(1 \+ z\), allowed is 0\.01; use --precision fl"):
        select(tmp_path, survey, "bfloat16")
    use_rounding(move_one_near)
    assert select(tmp_path, survey, "bfloat16")[0].choice.precision == "bfloat16"


@pytest.mark.parametrize(("spread", "passes"), [(1.005, True), (1.02, False), (0.98, False)])
def test_a_spread_that_changes_by_more_than_a_percent_is_refused(
    tmp_path: Path, use_rounding: Callable[[Rounding], None], spread: float, passes: bool
) -> None:
    survey = make_noisy_survey(tmp_path / "s", 3000)
    true = {float(z): spec for z, spec in _pairs(survey)}

    def widen(z: NDArray[np.float32]) -> NDArray[np.float32]:
        spec = np.array([true[float(one)] for one in z])
        return (spec + (z - spec) * spread).astype(np.float32)

    use_rounding(widen)
    if passes:
        assert select(tmp_path, survey, "bfloat16")[0].choice.precision == "bfloat16"
    else:
        with pytest.raises(InputError, match=r"changes NMAD from 0\.0\d+ to 0\.0\d+ \(2\.\d%\), allowed is 1%"):
            select(tmp_path, survey, "bfloat16")


def _pairs(survey: Survey) -> list[tuple[float, float]]:
    galaxies = Galaxies.concatenate(survey.read_batches(1000))
    return list(zip(galaxies.image[:, 0, 0, 0].tolist(), galaxies.redshift.tolist(), strict=True))


def test_a_loss_can_be_accepted_and_is_recorded(tmp_path: Path, use_rounding: Callable[[Rounding], None]) -> None:
    use_rounding(move_one_far)
    decision, _ = select(tmp_path, make_noisy_survey(tmp_path / "s", 3000), "bfloat16", accept=True)
    assert decision.choice.precision == "bfloat16"
    assert decision.check is not None and decision.check.reason.startswith("accepted though it moves a galaxy by")


def test_a_default_precision_is_replaced_by_float32(tmp_path: Path, use_rounding: Callable[[Rounding], None]) -> None:
    use_rounding(move_one_far)
    decision, notices = select(tmp_path, make_noisy_survey(tmp_path / "s", 3000), None)
    assert decision.choice.precision == "float32"
    assert len(notices) == 1 and notices[0].startswith("bfloat16 is replaced by float32: on ")


def test_a_prediction_that_is_not_finite_is_a_loss(tmp_path: Path, use_rounding: Callable[[Rounding], None]) -> None:
    use_rounding(lambda z: np.where(np.arange(len(z)) == 3, np.nan, z).astype(np.float32))
    with pytest.raises(InputError, match="moves a galaxy by nan"):
        select(tmp_path, make_noisy_survey(tmp_path / "s", 300), "bfloat16")
    decision, _ = select(tmp_path, make_noisy_survey(tmp_path / "s2", 300), "bfloat16", accept=True)
    assert decision.check is not None and decision.check.largest_shift is None, "JSON has no NaN"
    assert decision.check.reason.startswith("accepted though it moves a galaxy by nan")


def test_without_enough_spectroscopic_redshifts_nmad_is_not_checked(
    tmp_path: Path, use_rounding: Callable[[Rounding], None]
) -> None:
    use_rounding(lambda z: z)
    galaxies = random_galaxies(200)
    galaxies.redshift[99:] = np.nan
    survey = make_survey(tmp_path / "s", galaxies, 200)
    check = compare_precisions(
        FILE, EngineChoice("openvino", "bfloat16", "cpu", 64), None, sample_galaxies(survey, 1000)
    )
    assert (check.galaxies, check.nmad, check.nmad_float32, check.largest_shift) == (200, None, None, 0.0)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 500, 4000])
def test_a_sample_is_spread_over_the_whole_survey_and_has_no_flagged_galaxies(tmp_path: Path, count: int) -> None:
    galaxies = random_galaxies(3000)
    galaxies.image[::10] = np.nan
    found = sample_galaxies(make_survey(tmp_path / "s", galaxies, 700), count)
    rows = found.objid - 1000
    assert len(set(rows.tolist())) == len(rows) and (rows % 10 != 0).all()
    assert np.array_equal(found.image, galaxies.image[rows])
    chunks = min(-(-count // CHUNK), 48)  # the shards of 700, 700, 700, 700 and 200 galaxies make 4 * 11 + 4 chunks
    assert 0.7 * chunks * CHUNK <= len(rows) <= 0.9 * chunks * CHUNK + 7
    assert rows.max() >= 3000 * (1 - 1 / chunks) - CHUNK
    assert count < 3000 or len(rows) == 2700  # all of them


@pytest.mark.usefixtures("bfloat16")
def test_a_run_in_bfloat16_is_checked_and_its_records_hold_the_check(tmp_path: Path) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(1500), 700)
    weights = tiny_weights(tmp_path / "w.safetensors")
    folder = make_run(
        survey, weights, str(tmp_path / "run"), engine="openvino", precision="bfloat16", accept_precision_loss=True
    )
    record = run_worker(folder, Rank(threads=2))
    assert record.precision == "bfloat16"
    assert record.precision_check == folder.plan().precision_check
    check = record.precision_check
    assert check is not None and check.largest_shift is not None
    assert check.galaxies == 1500 and check.largest_shift > 0
    again = make_run(open_survey(survey.uri), weights, str(tmp_path / "run"), precision="bfloat16", resume=True)
    assert again == folder


@pytest.mark.usefixtures("bfloat16")
def test_a_refusal_is_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    survey = make_survey(tmp_path / "s", random_galaxies(300), 300)
    weights = tiny_weights(tmp_path / "w.safetensors")
    scaled = load_weights(weights)
    scaled.tensors["vit_head.0.weight"] *= 1000  # to make the rounding of the transformer in bfloat16 visible
    scaled.save(weights)
    done = run("infer", survey.uri, "--weights", weights, "--out", str(tmp_path / "run"), "--precision", "bfloat16")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "bfloat16 is not good enough: on 300 galaxies of" in done.stderr and "--accept-precision-loss" in done.stderr
    assert not (tmp_path / "run").exists()
    options = ("--weights", weights, "--out", str(tmp_path / "run"), "--precision", "bfloat16")
    accepted = run("infer", survey.uri, *options, "--accept-precision-loss")
    assert accepted.returncode == 0, accepted.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["complete"]


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_any_number_of_ranks_gives_one_catalogue_in_a_reduced_precision(tmp_path: Path, precision: str) -> None:
    survey, weights = make_survey(tmp_path / "s", random_galaxies(5000), 5000), tiny_weights(tmp_path / "w.safetensors")
    digests = set()
    for size in (1, 3):
        folder = make_run(
            survey, weights, str(tmp_path / f"run-{size}"), precision=precision, accept_precision_loss=True
        )
        for rank in range(size):
            record = run_worker(folder, Rank(rank, size, "local", 2))
            assert record.precision == folder.plan().precision
        digests.add(summarize(folder).catalogue_sha256)
        assert bool(folder.plan().quantized) == (folder.plan().precision == "int8")
    assert len(digests) == 1


def test_a_damaged_network_in_int8_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    name = folder.write_quantized(b"abc")
    assert folder.read_quantized(name) == b"abc"
    Path(folder.quantized_path(name)).write_bytes(b"abd")
    with pytest.raises(InputError, match="is damaged; expected what the plan was made with"):
        folder.read_quantized(name)
