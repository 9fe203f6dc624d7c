import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec import structs

import cosmicai
from cosmicai.errors import InputError
from cosmicai.models.config import AstroMAEConfig, InceptionConfig
from cosmicai.models.weights import Weights, build_network, load_weights
from cosmicai.surveys import synthetic
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import Survey, write_survey
from cosmicai.training import sample as samples
from cosmicai.training.fit import EpochReport, train
from cosmicai.training.recipe import DEMO_CONFIG, TrainingOptions

FIELDS = ("image", "magnitude", "redshift", "objid")
TINY = AstroMAEConfig(
    width=16, depth=1, heads=2, attention_width=16, mlp_width=16, convolution_width=16, convolution_groups=(2, 2),
    projection_width=16, vit_head=(16,), stem_channels=4,
    inception_stages=((InceptionConfig(2, 2, 2, 2, 2, 2),), (InceptionConfig(2, 2, 2, 2, 2, 2, uses_large=False),)),
    inception_head=(16,), magnitude_head=(32, 32), redshift_head=(32, 1),
)  # fmt: skip
OPTIONS = TrainingOptions(epochs=3, batch_size=32, learning_rate=3e-3, seed=5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    out = tmp_path_factory.mktemp("surveys") / "tiny"
    return write_survey(str(out), synthetic.generate_batches(400), 400, 150, FIELDS)


@pytest.fixture(scope="module")
def trained(survey: Survey, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    torch.set_num_threads(1)
    return train(survey, str(tmp_path_factory.mktemp("trained") / "w.safetensors"), TINY, OPTIONS)


def same(one: Weights, other: Weights) -> bool:
    assert one.tensors.keys() == other.tensors.keys()
    return all(np.array_equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def rows_of(survey: Survey, part: str) -> list[int]:
    """The rows of the survey, which are also the objid, that are held out for a part."""
    shards = [shard.name for shard in survey.shards]
    return [
        150 * shards.index(chunk.shard.name) + row
        for chunk in samples.split_chunks(survey, OPTIONS) for row in getattr(chunk, part)
    ]  # fmt: skip


def predict(weights: Weights, galaxies: Galaxies) -> np.ndarray:
    with torch.no_grad():
        return (
            build_network(weights)(torch.from_numpy(galaxies.image), torch.from_numpy(galaxies.magnitude))
            .double()
            .numpy()
        )


def stop_after(epoch: int) -> Callable[[EpochReport], None]:
    def report(done: EpochReport) -> None:
        if done.epoch == epoch:
            raise KeyboardInterrupt

    return report


def changed(survey: Survey, out: Path, change: Callable[[Galaxies], Galaxies]) -> Survey:
    return write_survey(str(out), map(change, survey.read_batches(1000)), survey.galaxies, 150, FIELDS)


def test_the_same_seed_gives_the_same_weights(survey: Survey, trained: Weights, tmp_path: Path) -> None:
    assert same(train(survey, str(tmp_path / "w.safetensors"), TINY, OPTIONS), trained)
    other = train(survey, str(tmp_path / "o.safetensors"), TINY, structs.replace(OPTIONS, seed=6))
    assert not same(other, trained)


def test_notes_state_the_origin_of_the_weights(trained: Weights) -> None:
    assert trained.notes.keys() == {
        "trained_on", "galaxies", "seed", "epochs", "best_epoch", "validation_r2", "test_galaxies", "test_r2",
        "test_nmad", "training_domain",
    }  # fmt: skip
    assert trained.notes["trained_on"] == "tiny"
    assert [trained.notes[name] for name in ("galaxies", "seed", "epochs", "test_galaxies")] == ["320", "5", "3", "40"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_training_ends_bit_for_bit_the_same(
    survey: Survey, trained: Weights, tmp_path: Path, epoch: int
) -> None:
    out = str(tmp_path / "w.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(survey, out, TINY, OPTIONS, report=stop_after(epoch))
    assert files(tmp_path) == ["w.safetensors.history.csv", "w.safetensors.state.pt"]
    seen: list[int] = []
    assert same(train(survey, out, TINY, OPTIONS, resume=True, report=lambda r: seen.append(r.epoch)), trained)
    assert seen == list(range(epoch + 1, 4))
    assert files(tmp_path) == ["w.safetensors", "w.safetensors.history.csv", "w.safetensors.history.png"]


def test_resuming_without_a_state_starts_from_the_beginning(survey: Survey, trained: Weights, tmp_path: Path) -> None:
    assert same(train(survey, str(tmp_path / "w.safetensors"), TINY, OPTIONS, resume=True), trained)


def test_a_state_of_another_training_is_refused(survey: Survey, trained: Weights, tmp_path: Path) -> None:
    out = str(tmp_path / "w.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(survey, out, TINY, OPTIONS, report=stop_after(1))
    with pytest.raises(InputError, match="another training: batch_size, seed differ"):
        train(survey, out, TINY, structs.replace(OPTIONS, batch_size=16, seed=1), resume=True)
    with pytest.raises(InputError, match="another training: network differ"):
        train(survey, out, structs.replace(TINY, depth=2), OPTIONS, resume=True)
    with pytest.raises(InputError, match="another training: initial weights differ"):
        train(survey, out, TINY, OPTIONS, initial=trained, resume=True)
    with pytest.raises(InputError, match="another training: survey differ"):
        train(dataclasses.replace(survey, shards=survey.shards[:2]), out, TINY, OPTIONS, resume=True)


def test_a_damaged_state_is_refused(survey: Survey, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors.state.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match=r"w\.safetensors\.state\.pt is not a whole training state"):
        train(survey, str(tmp_path / "w.safetensors"), TINY, OPTIONS, resume=True)


def test_a_frozen_encoder_keeps_every_bit_while_the_rest_learns(
    survey: Survey, trained: Weights, tmp_path: Path
) -> None:
    options = structs.replace(OPTIONS, epochs=1, freeze_encoder=True)
    tuned = train(survey, str(tmp_path / "w.safetensors"), TINY, options, initial=trained)
    kept = {name for name in trained.tensors if np.array_equal(tuned.tensors[name], trained.tensors[name])}
    # The last Inception block never runs its large branch, so nothing teaches it; BatchNorm takes biases away again.
    unchanging = r"(patch\.|class_token|position|blocks\.|inception\.4\.large\.).*|inception\.[24]\..*\.0\.bias"
    assert kept == {name for name in trained.tensors if re.fullmatch(unchanging, name)}


def test_fine_tuning_starts_from_the_initial_weights(survey: Survey, trained: Weights, tmp_path: Path) -> None:
    # A step too small for float32 to notice: folding the standardisation in and out is all that is left.
    options = structs.replace(OPTIONS, epochs=1, learning_rate=1e-12, weight_decay=0, freeze_encoder=True)
    tuned = train(survey, str(tmp_path / "w.safetensors"), TINY, options, initial=trained)
    for name in trained.tensors:
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            np.testing.assert_allclose(tuned.tensors[name], trained.tensors[name], rtol=1e-5, atol=1e-6)


def test_the_validation_metrics_are_those_of_the_written_weights(survey: Survey, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    weights = train(survey, str(tmp_path / "w.safetensors"), TINY, OPTIONS, report=reports.append)
    best = min(reports, key=lambda report: report.metrics.mae)
    assert weights.notes["best_epoch"] == str(best.epoch)
    drawn, rows = Galaxies.concatenate(synthetic.generate_batches(400)), rows_of(survey, "validation")
    galaxies = Galaxies(drawn.image[rows], drawn.magnitude[rows], drawn.redshift[rows], drawn.objid[rows])
    assert len(galaxies) == best.validated == 40
    mae = np.abs(predict(weights, galaxies) - galaxies.redshift).mean()
    assert mae == pytest.approx(best.metrics.mae, rel=1e-4)


def test_training_reduces_the_error(survey: Survey, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    train(survey, str(tmp_path / "w.safetensors"), TINY, structs.replace(OPTIONS, epochs=10), report=reports.append)
    assert reports[-1].loss < reports[0].loss / 3
    assert reports[-1].metrics.r2 > 0.6


def test_every_training_galaxy_is_seen_once_per_epoch(survey: Survey) -> None:
    sample = samples.scan_survey(survey, OPTIONS)
    seen = [list(samples.read_training_batches(survey, sample, 40, np.random.default_rng(epoch))) for epoch in (0, 1)]
    held_out = {*rows_of(survey, "validation"), *rows_of(survey, "test")}
    orders = [np.concatenate([batch.objid for batch in batches]).tolist() for batches in seen]
    assert orders[0] != orders[1]
    kept = sorted(set(range(400)) - held_out)
    for order in orders:
        assert sorted(order) == kept
    drawn = Galaxies.concatenate(synthetic.generate_batches(400))
    read = Galaxies.concatenate(samples.read_domain_batches(survey, sample))
    assert np.array_equal(read.magnitude, drawn.magnitude[kept]) and np.array_equal(read.image, drawn.image[kept])


def test_galaxies_without_redshift_or_with_bad_values_are_left_out(survey: Survey, tmp_path: Path) -> None:
    def spoil(galaxies: Galaxies) -> Galaxies:
        galaxies.redshift[(galaxies.objid % 10 == 0) | (galaxies.objid >= 300)] = np.nan
        galaxies.magnitude[galaxies.objid % 10 == 1, 2] = -9999
        galaxies.image[galaxies.objid % 10 == 2, 0, 3, 4] = np.inf
        return galaxies

    # The last of the survey's three shards has no redshift at all, validation rows included.
    reports: list[EpochReport] = []
    spoilt = changed(survey, tmp_path / "spoilt", spoil)
    weights = train(
        spoilt, str(tmp_path / "w.safetensors"), TINY, structs.replace(OPTIONS, epochs=1), report=reports.append
    )
    assert reports[0].left_out == 190
    assert reports[0].trained + reports[0].validated + reports[0].tested == 210
    assert all(np.isfinite(tensor).all() for tensor in weights.tensors.values())


def test_no_galaxy_left_is_an_error(survey: Survey, tmp_path: Path) -> None:
    def without_redshift(galaxies: Galaxies) -> Galaxies:
        return dataclasses.replace(galaxies, redshift=galaxies.redshift * np.nan)

    blind = changed(survey, tmp_path / "blind", without_redshift)
    with pytest.raises(InputError, match=r"0 galaxies are left to train and 0 to validate \(400 have no redshift"):
        train(blind, str(tmp_path / "w.safetensors"), TINY, OPTIONS)


def test_a_loss_that_is_not_finite_is_an_error(survey: Survey, tmp_path: Path) -> None:
    options = structs.replace(OPTIONS, learning_rate=1e30)
    with pytest.raises(InputError, match=r"the loss became (inf|nan) in epoch 1; train again with a learning rate"):
        train(survey, str(tmp_path / "w.safetensors"), TINY, options)
    assert not (tmp_path / "w.safetensors").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", 0.0), ("validation_fraction", 1.0), ("warmup", 1.0)],
)
def test_options_out_of_range_are_refused(survey: Survey, tmp_path: Path, field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"field {field}: expected `.*; see `cosmicai train -h`"):
        train(survey, str(tmp_path / "w.safetensors"), TINY, structs.replace(OPTIONS, **{field: value}))


def test_a_new_encoder_cannot_be_frozen(survey: Survey, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a new encoder cannot be frozen"):
        train(survey, str(tmp_path / "w.safetensors"), TINY, structs.replace(OPTIONS, freeze_encoder=True))


def test_initial_weights_of_another_network_are_refused(survey: Survey, trained: Weights, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the initial weights are of another configuration"):
        train(survey, str(tmp_path / "w.safetensors"), structs.replace(TINY, depth=2), OPTIONS, initial=trained)


def test_the_demo_weights_predict_galaxies_outside_the_training_set() -> None:
    weights = load_weights(str(Path(cosmicai.__file__).parent / "models" / "demo.safetensors"))
    assert weights.config == DEMO_CONFIG
    galaxies = Galaxies.concatenate(synthetic.generate_batches(1024, seed=0))
    predicted = predict(weights, galaxies)
    error = predicted - galaxies.redshift
    assert 1 - (error**2).mean() / galaxies.redshift.var() > 0.95
    assert (np.abs(error / (1 + galaxies.redshift)) > 0.05).mean() < 0.05
