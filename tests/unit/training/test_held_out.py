import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from cosmicai.calibration.fit import SpectroscopicSample, fit_calibration
from cosmicai.calibration.records import trust_of
from cosmicai.calibration.split import is_for_calibration
from cosmicai.errors import InputError
from cosmicai.models.weights import build_network
from cosmicai.runs.metrics import Metrics, compute_metrics
from cosmicai.surveys import synthetic
from cosmicai.surveys.shard import FIELDS, Galaxies
from cosmicai.surveys.survey import ShardEntry, Survey, write_survey
from cosmicai.training.evaluate import finish
from cosmicai.training.fit import EpochReport, train
from cosmicai.training.network import initialize_network
from cosmicai.training.optimization import create_optimizer, set_learning_rate, step_optimizer
from cosmicai.training.recipe import DEMO_CONFIG, TrainingOptions, check_options
from cosmicai.training.sample import CHUNK, read_held_out_batches, scan_survey, split_chunks

# The heads and a small encoder learn in well under a second per epoch.
TINY = structs.replace(
    DEMO_CONFIG, width=16, depth=1, heads=2, attention_width=16, mlp_width=16, convolution_width=16,
    convolution_groups=(2, 2), stem_channels=4, inception_stages=(DEMO_CONFIG.inception_stages[0][:1],),
    projection_width=16, vit_head=(16,), inception_head=(16,), magnitude_head=(32, 32), redshift_head=(32, 1),
)  # fmt: skip
OPTIONS = TrainingOptions(epochs=2, batch_size=32, learning_rate=3e-3, seed=5, threads=1)


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    out = tmp_path_factory.mktemp("surveys") / "small"
    return write_survey(str(out), synthetic.generate_batches(300), 300, 150, FIELDS)


def ran(survey: Survey, out: Path, options: TrainingOptions = OPTIONS, **arguments: Any) -> list[EpochReport]:
    reports: list[EpochReport] = []
    train(survey, str(out), TINY, options, report=reports.append, **arguments)
    return reports


@pytest.mark.parametrize("validation", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("test", [0.0, 0.02, 0.09])
def test_training_validation_and_test_share_no_row_and_lie_in_one_run_each(
    survey: Survey, validation: float, test: float
) -> None:
    options = structs.replace(OPTIONS, validation_fraction=validation, test_fraction=test)
    sizes = (1, 2, 3, 100, CHUNK, 3 * CHUNK + 17)
    shards = tuple(ShardEntry(f"{size:06}.h5", size, 0) for size in sizes)
    chunks = list(split_chunks(replace(survey, shards=shards), options))
    assert [(chunk.stop - chunk.start) for chunk in chunks] == [1, 2, 3, 100, *[CHUNK] * 4, 17]
    for chunk in chunks:
        rows, held_out = range(chunk.start, chunk.stop), [*chunk.validation, *chunk.test]
        assert set(held_out) <= set(rows) and len(set(held_out)) == len(held_out)
        assert len(chunk.validation) == max(1, round(len(rows) * validation))
        assert len(chunk.test) == min(round(len(rows) * test), len(rows) - len(chunk.validation))
    assert sum(len(chunk.test) > 0 for chunk in chunks) >= (4 if test else 0)


def test_the_two_held_out_runs_lie_anywhere_and_in_either_order(survey: Survey) -> None:
    shards = tuple(ShardEntry(f"{number:06}.h5", 10, 0) for number in range(4000))
    options = structs.replace(OPTIONS, validation_fraction=0.2, test_fraction=0.4)
    chunks = list(split_chunks(replace(survey, shards=shards), options))
    assert 0.45 < np.mean([chunk.validation.start < chunk.test.start for chunk in chunks]) < 0.55
    for part in ("validation", "test"):
        rows = np.bincount([row for chunk in chunks for row in getattr(chunk, part)], minlength=10)
        assert rows.min() > 0.3 * rows.max()


def test_the_test_metrics_are_those_of_the_written_weights_on_the_test_galaxies(survey: Survey, tmp_path: Path) -> None:
    said: list[Metrics | None] = []
    weights = train(survey, str(tmp_path / "w.safetensors"), TINY, OPTIONS, report_test=said.append)
    galaxies = Galaxies.concatenate(read_held_out_batches(survey, split_chunks(survey, OPTIONS), "test"))
    assert len(galaxies) == 30
    with torch.no_grad():
        network = build_network(weights)
        phot = network(torch.from_numpy(galaxies.image), torch.from_numpy(galaxies.magnitude)).numpy()
    [metrics] = said
    expected = compute_metrics(phot, galaxies.redshift)
    assert metrics is not None and expected is not None
    assert metrics.galaxies == 30
    assert (metrics.mae, metrics.r2) == pytest.approx((expected.mae, expected.r2), rel=1e-5)
    assert weights.notes["test_galaxies"] == "30"
    assert weights.notes["test_r2"] == f"{metrics.r2:.4f}"
    finished = finish(weights, survey, scan_survey(survey, OPTIONS), "cpu")
    assert np.array_equal(finished.test.magnitude, galaxies.magnitude)
    assert np.array_equal(finished.test.redshift_spec, galaxies.redshift)
    assert (finished.test.redshift_phot.dtype, finished.test.redshift_phot.shape) == (np.float32, (30,))


def test_one_half_of_the_test_galaxies_calibrates_and_the_training_galaxies_make_the_domain(tmp_path: Path) -> None:
    survey = write_survey(str(tmp_path / "s"), synthetic.generate_batches(1000), 1000, 500, FIELDS)
    options = structs.replace(OPTIONS, epochs=1, test_fraction=0.6)
    weights = train(survey, str(tmp_path / "w.safetensors"), TINY, options)
    trust = trust_of(weights.notes, "w")
    sample = scan_survey(survey, options)
    test = finish(weights, survey, sample, "cpu").test
    own = is_for_calibration(test.magnitude)
    assert trust.calibration is not None and trust.calibration.coverage is not None
    assert trust.calibration.galaxies == own.sum() and trust.calibration.coverage.galaxies <= (~own).sum()
    assert trust.calibration == fit_calibration(
        SpectroscopicSample(test.magnitude, test.redshift_phot.astype(np.float64), test.redshift_spec),
        trust.calibration.origin,
    )
    assert trust.domain is not None and (trust.domain.purpose, trust.domain.galaxies) == ("training", sample.trained)


def test_without_test_galaxies_there_are_no_test_metrics(survey: Survey, tmp_path: Path) -> None:
    said: list[Metrics | None] = []
    options = structs.replace(OPTIONS, epochs=1, test_fraction=0.0)
    weights = train(survey, str(tmp_path / "w.safetensors"), TINY, options, report_test=said.append)
    assert said == [None]
    assert "test_r2" not in weights.notes and weights.notes["galaxies"] == "270"


def test_the_history_has_a_row_per_epoch_and_survives_an_interruption(survey: Survey, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole/w.safetensors", tmp_path / "resumed/w.safetensors"
    reports = ran(survey, whole)

    def stop(_: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(survey, str(resumed), TINY, OPTIONS, report=stop)
    assert len(Path(f"{resumed}.history.csv").read_text().splitlines()) == 2
    ran(survey, resumed, resume=True)
    for suffix in ("", ".history.csv", ".history.png"):
        assert Path(f"{resumed}{suffix}").read_bytes() == Path(f"{whole}{suffix}").read_bytes(), suffix
    rows = list(csv.DictReader(Path(f"{whole}.history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    for row, report in zip(rows, reports, strict=True):
        assert float(row["training_loss"]) == report.loss
        assert float(row["validation_nmad"]) == report.metrics.precision
        assert float(row["validation_mae"]) == report.metrics.mae
    assert Path(f"{whole}.history.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_training_ends_after_epochs_without_a_better_one(survey: Survey, tmp_path: Path) -> None:
    reports = ran(
        survey, tmp_path / "w.safetensors", structs.replace(OPTIONS, epochs=40, patience=2, learning_rate=0.1)
    )
    errors = [report.metrics.mae for report in reports]
    assert len(errors) == int(np.argmin(errors)) + 3 < 40


def test_the_encoder_has_a_rate_of_its_own() -> None:
    network = initialize_network(TINY, 0, 0.2)
    optimizer = create_optimizer(network, structs.replace(OPTIONS, encoder_rate=0.25))
    set_learning_rate(optimizer, structs.replace(OPTIONS, learning_rate=0.1, warmup=0.0), 0, 10)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {names[id(one)]: group["lr"] for group in optimizer.param_groups for one in group["params"]}
    encoder = ("patch.", "class_token", "position", "blocks.")
    assert {rate for name, rate in rates.items() if name.startswith(encoder)} == {0.025}
    assert {rate for name, rate in rates.items() if not name.startswith(encoder)} == {0.1}


@pytest.mark.parametrize(("clip", "norm"), [(0.5, 0.5), (5.0, 4.0), (0.0, 4.0)])
def test_the_norm_of_the_gradient_is_limited(clip: float, norm: float) -> None:
    network = initialize_network(TINY, 0, 0.2)
    optimizer: Any = torch.optim.SGD(network.parameters(), lr=1.0)  # its steps are as long as the gradient
    last: Any = network.redshift_head[-1]
    last.bias.grad = torch.tensor([4.0])
    before = last.bias.detach().clone()
    step_optimizer(network, optimizer, structs.replace(OPTIONS, clip=clip))
    assert float(before - last.bias.detach()) == pytest.approx(norm, rel=1e-5)
    assert last.bias.grad is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"validation_fraction": 0.6, "test_fraction": 0.4}, "leave no galaxies to train; their sum must be below 1"),
        ({"test_fraction": 1.0}, "field test_fraction: expected"),
        ({"noise": 1.0, "augment": "none"}, "--noise is a part of the augmentation"),
        ({"augment": "some"}, "the training options cannot be used"),
        ({"freeze_encoder": True, "encoder_rate": 0.5}, "leave out --freeze-encoder or --encoder-rate"),
        ({"clip": -1.0}, "field clip: expected"),
        ({"patience": -1}, "field patience: expected"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_options(structs.replace(OPTIONS, **changes), TINY, None)


def test_the_progress_of_an_epoch_ends_with_its_galaxies(survey: Survey, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    @contextmanager
    def progress(total: int) -> Iterator[Callable[[int], None]]:
        seen.append([total])
        yield seen[-1].append

    ran(survey, tmp_path / "w.safetensors", progress=progress)
    assert seen == [[224, *[32] * 7]] * 2
