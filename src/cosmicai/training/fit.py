"""Train AstroMAE on a survey in one plain, seeded loop, the same for a new network and for fine-tuning.

The network takes raw magnitudes and fluxes, whose mean and spread hinder optimisation. The loop therefore trains on
standardised inputs, ((magnitude - centre) / spread, image / scale), and folds that affine map
into the first layers of the written weights, which is exact algebra and keeps the architecture. Spread and scale are
powers of two, so that folding them rounds nothing and a frozen encoder stays the same bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import storage
from ..errors import InputError
from ..models.astromae import AstroMAE
from ..models.config import AstroMAEConfig
from ..models.weights import Weights, extract_weights, load_weights
from ..runs.metrics import Metrics, compute_metrics
from ..surveys.shard import Galaxies
from ..surveys.survey import Survey
from .augmentation import augment, check_augmentation, draw_augmentation
from .evaluate import Predictions, finish, predict_held_out
from .history import CURVE_SUFFIX, HISTORY_SUFFIX, Epoch, draw_history, write_history
from .network import InputScaling, copy_network, initialize_network
from .optimization import create_optimizer, set_learning_rate, step_optimizer, sum_losses
from .parallel import Ranks, connect_ranks, share_batches
from .recipe import TrainingOptions, check_options
from .sample import Sample, read_training_batches, scan_survey
from .state import STATE_SUFFIX, BestEpoch, TrainingState, identify_training, load_state, save_state

Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class EpochReport:
    """Loss, duration and numbers of galaxies of one epoch; the metrics are those of the validation galaxies."""

    epoch: int  # from 1
    epochs: int
    loss: float  # mean over the epoch's galaxies
    metrics: Metrics
    seconds: float
    trained: int  # galaxies
    validated: int
    tested: int
    left_out: int  # without redshift or with quality flags


@dataclass(frozen=True)
class _Training:
    """What the epochs of a training share."""

    network: AstroMAE
    shared: nn.Module  # the network, whose batches are those of all ranks
    optimizer: torch.optim.AdamW
    survey: Survey
    sample: Sample
    scaling: InputScaling
    options: TrainingOptions
    ranks: Ranks

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return max(1, self.sample.trained // self.options.batch_size)


def ignore_report(_: object) -> None:
    """Do nothing."""


@contextmanager
def ignore_progress(_: int) -> Iterator[Callable[[int], None]]:
    """Show nothing of the progress."""
    yield ignore_report


def train(
    survey: Survey,
    out: str,
    config: AstroMAEConfig,
    options: TrainingOptions,
    initial: Weights | None = None,
    resume: bool = False,
    report: Callable[[EpochReport], None] = ignore_report,
    report_test: Callable[[Metrics | None], None] = ignore_report,
    progress: Progress = ignore_progress,
) -> Weights:
    """Train the network and write the weights of the epoch with the lowest validation MAE to `out` (safetensors).

    After every epoch the state is saved as OUT.state.pt, the history as OUT.history.csv, and `report` is called;
    `resume` continues from that state (from the beginning where there is none) to the same weights, bit for bit, as a
    training without interruption on the same machine's CPU. At the end `report_test` is called with the metrics of the
    written weights on the test galaxies (None if there are fewer than two), OUT.history.png is drawn and the state
    removed. `progress` shows the progress of an epoch, by the number of its galaxies. The survey is read in chunks and
    never held whole. Of several ranks only the first one writes and reports.

    Raises InputError if an option is out of range, no usable galaxy is left, the initial weights or the state belong
    to another training, the loss is not finite, or torchvision, which augments, is absent or does not fit torch.
    """
    check_options(options, config, initial)
    check_augmentation(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    state_uri, identity = f"{out}{STATE_SUFFIX}", identify_training(survey, config, options, initial)
    state = load_state(state_uri, identity) if resume and storage.exists(state_uri) else None
    with connect_ranks(options) as ranks:
        training = _prepare(survey, config, options, initial, ranks)
        best, history = BestEpoch(), list[Epoch]()
        if state is not None:
            training.network.load_state_dict(state.network)
            training.optimizer.load_state_dict(state.optimizer)
            best, history = state.best, state.history
        while len(history) < options.epochs and not _is_stalled(best, history, options):
            started = time.perf_counter()
            row, metrics = _run_epoch(training, len(history), progress if ranks.is_first else ignore_progress)
            history.append(row)
            best = _choose(best, row, training.network)
            if ranks.is_first:
                network, optimizer = training.network.state_dict(), training.optimizer.state_dict()
                save_state(state_uri, TrainingState(identity, best, history, network, optimizer))
                write_history(f"{out}{HISTORY_SUFFIX}", history)
                report(_report(training, row, metrics, time.perf_counter() - started))
        if ranks.is_first:
            finished = finish(_fold(training, best, len(history)), survey, training.sample, options.device)
            finished.weights.save(out)
            title = f"{storage.basename(out)}; survey {storage.basename(survey.uri)}"
            draw_history(f"{out}{CURVE_SUFFIX}", title, history, best.epoch, finished.test, finished.metrics)
            storage.remove(state_uri)
            report_test(finished.metrics)
        ranks.gather(None)  # the others wait for the file
    return load_weights(out)


def _prepare(
    survey: Survey, config: AstroMAEConfig, options: TrainingOptions, initial: Weights | None, ranks: Ranks
) -> _Training:
    sample = scan_survey(survey, options)
    scaling = InputScaling.of(sample, config, options.device)
    network = (
        initialize_network(config, options.seed, sample.redshift) if initial is None else copy_network(initial, scaling)
    )
    network.to(options.device)
    optimizer = create_optimizer(network, options)
    shared = share_batches(network, ranks, options.device)
    return _Training(network, shared, optimizer, survey, sample, scaling, options, ranks)


def _is_stalled(best: BestEpoch, history: list[Epoch], options: TrainingOptions) -> bool:
    return options.patience > 0 and len(history) - best.epoch >= options.patience


def _choose(best: BestEpoch, row: Epoch, network: AstroMAE) -> BestEpoch:
    """Return the better one of the best epoch so far and the one that has just ended."""
    if row.validation_mae >= best.mae:
        return best
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return BestEpoch(row.validation_mae, row.validation_r2, row.epoch, tensors)


def _report(training: _Training, row: Epoch, metrics: Metrics, seconds: float) -> EpochReport:
    sample = training.sample
    counts = (sample.trained, sample.validated, sample.tested, sample.left_out)
    return EpochReport(row.epoch, training.options.epochs, row.training_loss, metrics, seconds, *counts)


def _run_epoch(training: _Training, epoch: int, progress: Progress) -> tuple[Epoch, Metrics]:
    """Train on all training galaxies once and validate; return the epoch's row, and the metrics of the validation."""
    with progress(min(training.steps * training.options.batch_size, training.sample.trained)) as advance:
        loss, pairs = _train_epoch(training, epoch, advance)
    learned = compute_metrics(*pairs)
    held_out = _validate(training)
    metrics = compute_metrics(held_out.redshift_phot, held_out.redshift_spec)
    if learned is None or metrics is None or metrics.galaxies < training.sample.validated:
        raise _divergence_error("the validation error", math.nan, epoch, training.options)
    phot, spec = torch.from_numpy(held_out.redshift_phot), torch.from_numpy(held_out.redshift_spec).float()
    row = Epoch(
        epoch + 1, max(group["lr"] for group in training.optimizer.param_groups), loss, learned.precision,
        float(sum_losses(phot, spec)) / len(spec), metrics.precision, metrics.mae, metrics.bias, metrics.r2,
        metrics.outliers,
    )  # fmt: skip
    return row, metrics


def _train_epoch(
    training: _Training, epoch: int, advance: Callable[[int], None]
) -> tuple[float, tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Return the mean loss of the galaxies, and their photometric and spectroscopic redshifts."""
    network, optimizer, options, ranks = training.network, training.optimizer, training.options, training.ranks
    training.shared.train()
    if options.freeze_encoder:
        network.blocks.eval()  # so that BatchNorm's running statistics stay the same, too
    rng = np.random.default_rng([options.seed, 1 + epoch])
    augmentation = np.random.default_rng([options.seed, 1 + epoch, 1])
    total, pairs = 0.0, []
    batches = read_training_batches(training.survey, training.sample, options.batch_size, rng)
    for number, batch in enumerate(batches):
        set_learning_rate(optimizer, options, epoch * training.steps + number, options.epochs * training.steps)
        part, draws = ranks.part(len(batch)), draw_augmentation(augmentation, batch.image.shape, options)
        galaxies = batch[part]
        image, magnitude = training.scaling(galaxies)
        if draws is not None:
            image = augment(image, draws[part])
        redshift = torch.from_numpy(galaxies.redshift).float().to(options.device)
        predicted = training.shared(image, magnitude)
        # The mean over the whole batch; DistributedDataParallel divides the gradients by the number of ranks.
        loss = sum_losses(predicted, redshift)
        value = loss.item()
        if not math.isfinite(value):
            raise _divergence_error("the loss", value, epoch, options)
        (loss * (ranks.count / len(batch))).backward()  # type: ignore[no-untyped-call]
        step_optimizer(network, optimizer, options)
        total += value
        pairs.append((predicted.detach().cpu().numpy(), galaxies.redshift))
        advance(len(batch))
    phot, spec = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    shares = ranks.gather((total, phot, spec))
    phot, spec = np.concatenate([share[1] for share in shares]), np.concatenate([share[2] for share in shares])
    return sum(share[0] for share in shares) / len(spec), (phot, spec)


def _divergence_error(what: str, value: float, epoch: int, options: TrainingOptions) -> InputError:
    return InputError(
        f"{what} became {value} in epoch {epoch + 1}; train again with a learning rate below "
        f"{options.learning_rate:g} or a longer warm-up, and look for extreme values in the survey"
    )


def _validate(training: _Training) -> Predictions:
    """Predict the validation galaxies, each rank those of its chunks."""
    network, ranks = training.network.eval(), training.ranks

    def predict(galaxies: Galaxies) -> Tensor:
        return network(*training.scaling(galaxies))  # type: ignore[no-any-return]

    chunks = training.sample.chunks[ranks.part(len(training.sample.chunks))]
    own = predict_held_out(predict, training.survey, chunks, "validation")
    return Predictions.concatenate(ranks.gather(own))


def _fold(training: _Training, best: BestEpoch, epochs: int) -> Weights:
    """Return the best epoch's weights, which take raw inputs, with notes on their origin."""
    network, sample = training.network.to("cpu"), training.sample
    network.load_state_dict(best.network)
    training.scaling.fold(network)
    notes = {
        "trained_on": storage.basename(training.survey.uri), "galaxies": str(sample.trained),
        "seed": str(training.options.seed), "epochs": str(epochs), "best_epoch": str(best.epoch),
        "validation_r2": f"{best.r2:.4f}",
    }  # fmt: skip
    return extract_weights(network, notes)
