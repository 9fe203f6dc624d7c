"""Training AstroMAE on a survey: one plain, seeded loop, the same for a fresh network and for fine-tuning.

The network takes raw magnitudes and fluxes, whose mean and spread are far from what an optimiser likes. The loop
therefore trains on standardised inputs, ((magnitude - centre) / spread, image / scale), and folds that affine map
into the first layers of the written weights, which is exact algebra and leaves the architecture alone. Spread and
scale are powers of two, so that folding them rounds nothing and a frozen encoder keeps its every bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from .. import storage
from ..errors import InputError, explained
from ..models.astromae import AstroMAE
from ..models.config import AstroMAEConfig
from ..models.weights import Weights, from_network, load_weights
from ..runs.metrics import Metrics, measure
from ..surveys.survey import Survey
from .network import Inputs, copy, fresh, tokens
from .options import TrainingOptions, check
from .sample import Sample, batches, examine, validation_galaxies

HUBER = 0.05  # redshift errors beyond this count linearly, so that outliers do not dominate


@dataclass(frozen=True)
class EpochReport:
    """How one epoch went; the metrics are those of the validation galaxies."""

    epoch: int  # from 1
    epochs: int
    loss: float  # mean over the epoch's batches
    metrics: Metrics
    seconds: float
    trained: int  # galaxies
    validated: int
    left_out: int  # without redshift or with quality flags


def no_report(_: EpochReport) -> None:
    """Says nothing."""


def train(
    survey: Survey,
    out: str,
    config: AstroMAEConfig,
    options: TrainingOptions,
    initial: Weights | None = None,
    resume: bool = False,
    report: Callable[[EpochReport], None] = no_report,
) -> Weights:
    """Trains the network and writes the weights of the epoch with the lowest validation MAE to `out` (safetensors).

    After every epoch the state is saved as OUT.state.pt and `report` is called; `resume` continues from that state
    (from the beginning where there is none) to the same weights, bit for bit, as a training without interruption on
    the same machine's CPU. The state is removed at the end. The survey is read in chunks and never held whole.

    Raises InputError if an option is senseless, no galaxy is left, the initial weights or the state belong to
    another training, or the loss stops being a number.
    """
    check(options, config, initial)
    if options.threads:
        torch.set_num_threads(options.threads)
    state_uri, identity = f"{out}.state.pt", _identity(survey, config, options, initial)
    state = _load_state(state_uri, identity) if resume and storage.exists(state_uri) else None
    sample = examine(survey, options)
    inputs = Inputs.of(sample, config, options.device)
    network = fresh(config, options.seed, sample.redshift) if initial is None else copy(initial, inputs)
    network.to(options.device)
    optimizer = _optimizer(network, options)
    epoch = 0
    best: dict[str, Any] = {"mae": math.inf}
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, best = state["epoch"], state["best"]

    while epoch < options.epochs:
        started = time.perf_counter()
        loss = _train_epoch(network, optimizer, survey, sample, inputs, options, epoch)
        metrics = _validate(network, survey, sample, inputs, options, epoch)
        epoch += 1
        if metrics.mae < best["mae"]:
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            best = {"mae": metrics.mae, "r2": metrics.r2, "epoch": epoch, "network": tensors}
        state = {"epoch": epoch, "best": best, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
        with storage.replacing(state_uri) as beside, explained(state_uri, "write"):
            torch.save({"identity": identity, **state}, beside)
        seconds = time.perf_counter() - started
        counts = (sample.trained, sample.validated, sample.left_out)
        report(EpochReport(epoch, options.epochs, loss, metrics, seconds, *counts))

    network.to("cpu").load_state_dict(best["network"])
    inputs.fold(network)
    notes = {
        "trained_on": storage.basename(survey.uri), "galaxies": str(sample.trained), "seed": str(options.seed),
        "epochs": str(options.epochs), "best_epoch": str(best["epoch"]), "validation_r2": f"{best['r2']:.4f}",
    }  # fmt: skip
    from_network(network, notes).save(out)
    storage.remove(state_uri)
    return load_weights(out)


def _optimizer(network: AstroMAE, options: TrainingOptions) -> torch.optim.AdamW:
    if options.freeze_encoder:
        frozen: list[nn.Module | Tensor] = [network.patch, network.blocks, *tokens(network)]
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
    """Rate of step 0 <= step < steps: linear warm-up, then half a cosine."""
    warmup = options.warmup * steps
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    return options.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _train_epoch(
    network: AstroMAE, optimizer: torch.optim.AdamW, survey: Survey, sample: Sample, inputs: Inputs,
    options: TrainingOptions, epoch: int,
) -> float:  # fmt: skip
    """One pass over the training galaxies; the mean loss of its batches."""
    network.train()
    if options.freeze_encoder:
        network.blocks.eval()  # BatchNorm's running statistics stay, too
    rng = np.random.default_rng([options.seed, 1 + epoch])
    steps = max(1, sample.trained // options.batch_size)
    total = 0.0
    for number, galaxies in enumerate(batches(survey, sample, options.batch_size, rng)):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(options, epoch * steps + number, options.epochs * steps)
        image, magnitude = inputs(galaxies)
        # The sky has no preferred direction: one of the square's eight symmetries for each batch.
        image = torch.rot90(image, int(rng.integers(4)), (2, 3))
        image = image.flip(3) if rng.integers(2) else image
        redshift = torch.from_numpy(galaxies.redshift).float().to(options.device)
        loss = smooth_l1_loss(network(image, magnitude), redshift, beta=HUBER)
        if not math.isfinite(loss.item()):
            raise _diverged("the loss", loss.item(), epoch, options)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total / steps


def _diverged(what: str, value: float, epoch: int, options: TrainingOptions) -> InputError:
    return InputError(
        f"{what} became {value} in epoch {epoch + 1}; train again with a learning rate below "
        f"{options.learning_rate:g} or a longer warm-up, and look for extreme values in the survey"
    )


@torch.no_grad()
def _validate(
    network: AstroMAE, survey: Survey, sample: Sample, inputs: Inputs, options: TrainingOptions, epoch: int
) -> Metrics:
    network.eval()
    pairs = [
        (network(*inputs(galaxies)).cpu().numpy(), galaxies.redshift)
        for galaxies in validation_galaxies(survey, sample)
    ]
    metrics = measure(*map(np.concatenate, zip(*pairs, strict=True)))
    if metrics is None or metrics.galaxies < sample.validated:
        raise _diverged("the validation error", math.nan, epoch, options)
    return metrics


def _identity(
    survey: Survey, config: AstroMAEConfig, options: TrainingOptions, initial: Weights | None
) -> dict[str, Any]:
    """Everything that a resumed training must share with the one it continues."""
    shards = json.dumps([asdict(shard) for shard in survey.shards])
    digest = hashlib.sha256()
    for name, tensor in sorted(initial.tensors.items()) if initial is not None else []:
        digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
    known = {"survey": hashlib.sha256(shards.encode()).hexdigest(), "network": config.to_json()}
    return {**asdict(options), **known, "initial weights": digest.hexdigest()}


def _load_state(uri: str, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
        theirs = state["identity"]
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{uri} is not a whole training state ({error}); remove it and train anew") from None
    differing = [name for name in identity if theirs.get(name) != identity[name]]
    if differing:
        raise InputError(
            f"{uri} belongs to another training: {', '.join(differing)} differ; "
            "give what that training was given, or train anew without resuming"
        )
    return state
