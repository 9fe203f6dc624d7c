"""Train AstroMAE on a survey in one plain, seeded loop, the same for a new network and for fine-tuning.

The network takes raw magnitudes and fluxes, whose mean and spread hinder optimisation. The loop therefore trains on
standardised inputs, ((magnitude - centre) / spread, image / scale), and folds that affine map
into the first layers of the written weights, which is exact algebra and keeps the architecture. Spread and scale are
powers of two, so that folding them rounds nothing and a frozen encoder stays the same bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import structs
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from .. import storage
from ..errors import InputError, describe_os_errors
from ..models.astromae import AstroMAE
from ..models.config import AstroMAEConfig
from ..models.weights import Weights, extract_weights, load_weights
from ..records import convert
from ..runs.metrics import Metrics, compute_metrics
from ..surveys.survey import Survey
from .network import InputScaling, copy_network, initialize_network, learned_tokens
from .recipe import TrainingOptions, check_options
from .sample import Sample, read_training_batches, read_validation_batches, scan_survey

STATE_SUFFIX = ".state.pt"  # of the file beside the weights with the state of an unfinished training
HUBER = 0.05  # redshift errors beyond this count linearly, so that outliers do not dominate


@dataclass(frozen=True)
class EpochReport:
    """Loss, duration and numbers of galaxies of one epoch; the metrics are those of the validation galaxies."""

    epoch: int  # from 1
    epochs: int
    loss: float  # mean over the epoch's batches
    metrics: Metrics
    seconds: float
    trained: int  # galaxies
    validated: int
    left_out: int  # without redshift or with quality flags


class BestEpoch(msgspec.Struct, frozen=True):
    """The epoch with the lowest validation MAE so far, and its network's tensors by name."""

    mae: float = math.inf
    r2: float = math.nan
    epoch: int = 0
    network: dict[str, Any] = {}


class TrainingState(msgspec.Struct, frozen=True):
    """Everything that a resumed training needs, as it is saved after every epoch."""

    identity: dict[str, Any]
    epoch: int
    best: BestEpoch
    network: dict[str, Any]
    optimizer: dict[str, Any]


def ignore_report(_: EpochReport) -> None:
    """Do nothing."""


def train(
    survey: Survey,
    out: str,
    config: AstroMAEConfig,
    options: TrainingOptions,
    initial: Weights | None = None,
    resume: bool = False,
    report: Callable[[EpochReport], None] = ignore_report,
) -> Weights:
    """Train the network and write the weights of the epoch with the lowest validation MAE to `out` (safetensors).

    After every epoch the state is saved as OUT.state.pt and `report` is called; `resume` continues from that state
    (from the beginning where there is none) to the same weights, bit for bit, as a training without interruption on
    the same machine's CPU. The state is removed at the end. The survey is read in chunks and never held whole.

    Raises InputError if an option is out of range, no usable galaxy is left, the initial weights or the state belong
    to another training, or the loss is not finite.
    """
    check_options(options, config, initial)
    if options.threads:
        torch.set_num_threads(options.threads)
    state_uri, identity = f"{out}{STATE_SUFFIX}", _identity(survey, config, options, initial)
    state = _load_state(state_uri, identity) if resume and storage.exists(state_uri) else None
    sample = scan_survey(survey, options)
    scaling = InputScaling.of(sample, config, options.device)
    network = (
        initialize_network(config, options.seed, sample.redshift) if initial is None else copy_network(initial, scaling)
    )
    network.to(options.device)
    optimizer = _create_optimizer(network, options)
    epoch, best = 0, BestEpoch()
    if state is not None:
        network.load_state_dict(state.network)
        optimizer.load_state_dict(state.optimizer)
        epoch, best = state.epoch, state.best

    while epoch < options.epochs:
        started = time.perf_counter()
        loss = _train_epoch(network, optimizer, survey, sample, scaling, options, epoch)
        metrics = _validate(network, survey, sample, scaling, options, epoch)
        epoch += 1
        if metrics.mae < best.mae:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            best = BestEpoch(metrics.mae, metrics.r2, epoch, tensors)
        _save_state(state_uri, TrainingState(identity, epoch, best, network.state_dict(), optimizer.state_dict()))
        seconds = time.perf_counter() - started
        counts = (sample.trained, sample.validated, sample.left_out)
        report(EpochReport(epoch, options.epochs, loss, metrics, seconds, *counts))

    network.to("cpu").load_state_dict(best.network)
    scaling.fold(network)
    notes = {
        "trained_on": storage.basename(survey.uri), "galaxies": str(sample.trained), "seed": str(options.seed),
        "epochs": str(options.epochs), "best_epoch": str(best.epoch), "validation_r2": f"{best.r2:.4f}",
    }  # fmt: skip
    extract_weights(network, notes).save(out)
    storage.remove(state_uri)
    return load_weights(out)


def _create_optimizer(network: AstroMAE, options: TrainingOptions) -> torch.optim.AdamW:
    if options.freeze_encoder:
        frozen: list[nn.Module | Tensor] = [network.patch, network.blocks, *learned_tokens(network)]
        for part in frozen:
            part.requires_grad_(False)
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        # Only matrices and kernels decay: shrinking biases and norms would move the function for nothing.
        {"params": [parameter for parameter in learned if parameter.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [parameter for parameter in learned if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _learning_rate(options: TrainingOptions, step: int, steps: int) -> float:
    """Return the learning rate of step 0 <= step < steps: linear warm-up, then half a cosine."""
    warmup = options.warmup * steps
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    return options.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _train_epoch(
    network: AstroMAE, optimizer: torch.optim.AdamW, survey: Survey, sample: Sample, scaling: InputScaling,
    options: TrainingOptions, epoch: int,
) -> float:  # fmt: skip
    """Train on all training galaxies once, and return the mean loss of the batches."""
    network.train()
    if options.freeze_encoder:
        network.blocks.eval()  # so that BatchNorm's running statistics stay the same, too
    rng = np.random.default_rng([options.seed, 1 + epoch])
    steps = max(1, sample.trained // options.batch_size)
    total = 0.0
    for number, galaxies in enumerate(read_training_batches(survey, sample, options.batch_size, rng)):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(options, epoch * steps + number, options.epochs * steps)
        image, magnitude = scaling(galaxies)
        # The sky has no preferred direction: one of the square's eight symmetries for each batch.
        image = torch.rot90(image, int(rng.integers(4)), (2, 3))
        image = image.flip(3) if rng.integers(2) else image
        redshift = torch.from_numpy(galaxies.redshift).float().to(options.device)
        loss = smooth_l1_loss(network(image, magnitude), redshift, beta=HUBER)
        if not math.isfinite(loss.item()):
            raise _divergence_error("the loss", loss.item(), epoch, options)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total / steps


def _divergence_error(what: str, value: float, epoch: int, options: TrainingOptions) -> InputError:
    return InputError(
        f"{what} became {value} in epoch {epoch + 1}; train again with a learning rate below "
        f"{options.learning_rate:g} or a longer warm-up, and look for extreme values in the survey"
    )


@torch.no_grad()
def _validate(
    network: AstroMAE, survey: Survey, sample: Sample, scaling: InputScaling, options: TrainingOptions, epoch: int
) -> Metrics:
    network.eval()
    pairs = [
        (network(*scaling(galaxies)).cpu().numpy(), galaxies.redshift)
        for galaxies in read_validation_batches(survey, sample)
    ]
    metrics = compute_metrics(*map(np.concatenate, zip(*pairs, strict=True)))
    if metrics is None or metrics.galaxies < sample.validated:
        raise _divergence_error("the validation error", math.nan, epoch, options)
    return metrics


def _identity(
    survey: Survey, config: AstroMAEConfig, options: TrainingOptions, initial: Weights | None
) -> dict[str, Any]:
    """Return everything that a resumed training must have in common with the one it continues."""
    shards = json.dumps(msgspec.to_builtins(survey.shards))
    digest = hashlib.sha256()
    for name, tensor in sorted(initial.tensors.items()) if initial is not None else []:
        digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
    known = {"survey": hashlib.sha256(shards.encode()).hexdigest(), "network": config.to_json()}
    return {**msgspec.to_builtins(options), **known, "initial weights": digest.hexdigest()}


def _save_state(uri: str, state: TrainingState) -> None:
    with storage.atomic_write(uri) as temporary, describe_os_errors(uri, "write"):
        torch.save({**structs.asdict(state), "best": structs.asdict(state.best)}, temporary)


def _load_state(uri: str, identity: dict[str, Any]) -> TrainingState:
    remedy = "remove it and train anew"
    try:
        content = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{uri} is not a whole training state ({error}); {remedy}") from None
    state = convert(content, TrainingState, where=uri, remedy=remedy)
    if differing := [name for name, value in identity.items() if state.identity.get(name) != value]:
        raise InputError(
            f"{uri} belongs to another training: {', '.join(differing)} differ; "
            "use the options of that training, or train anew without resuming"
        )
    return state
