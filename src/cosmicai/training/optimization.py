"""The loss of a training, its optimizer, and the schedule of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from ..models.astromae import AstroMAE
from .network import learned_tokens
from .recipe import TrainingOptions

HUBER = 0.05  # redshift errors beyond this count linearly, so that outliers do not dominate


def sum_losses(predicted: Tensor, redshift: Tensor) -> Tensor:
    """Return the sum of the galaxies' losses, of two tensors (B,)."""
    return smooth_l1_loss(predicted, redshift, beta=HUBER, reduction="sum")


def create_optimizer(network: AstroMAE, options: TrainingOptions) -> torch.optim.AdamW:
    """Return the optimizer of the parameters that learn; a frozen encoder's parameters no longer do after this call.

    Each of its groups has the factor on the learning rate as `rate`.
    """
    parts: list[nn.Module | Tensor] = [network.patch, network.blocks, *learned_tokens(network)]
    encoder = {
        id(tensor) for part in parts for tensor in (part.parameters() if isinstance(part, nn.Module) else [part])
    }
    if options.freeze_encoder:
        for part in parts:
            part.requires_grad_(False)
    for bias in _ineffective_biases(network):
        bias.requires_grad_(False)
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Only matrices and kernels decay: shrinking biases and norms would move the function for nothing.
    groups = [
        {
            "params": [
                parameter for parameter in learned
                if (parameter.ndim > 1) == decays and (id(parameter) in encoder) == in_encoder
            ],
            "weight_decay": options.weight_decay if decays else 0.0,
            "rate": options.encoder_rate if in_encoder else 1.0,
        }
        for in_encoder in (True, False)
        for decays in (True, False)
    ]  # fmt: skip
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.learning_rate)


def _ineffective_biases(network: AstroMAE) -> Iterator[Tensor]:
    """Yield the biases that BatchNorm takes away again.

    Their gradients are zero but for rounding, which AdamW would scale up to steps as large as any other.
    """
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            for layer, following in pairwise(module):
                if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d) and layer.bias is not None:
                    yield layer.bias


def set_learning_rate(optimizer: torch.optim.AdamW, options: TrainingOptions, step: int, steps: int) -> None:
    """Set the learning rates of step 0 <= step < steps: linear warm-up, then half a cosine."""
    warmup = options.warmup * steps
    if step < warmup:
        rate = options.learning_rate * (step + 1) / (warmup + 1)
    else:
        rate = options.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def step_optimizer(network: AstroMAE, optimizer: torch.optim.AdamW, options: TrainingOptions) -> None:
    """Take the step of the gradients that the parameters have, whose norm is limited, and remove them."""
    if options.clip:
        nn.utils.clip_grad_norm_(network.parameters(), options.clip)
    optimizer.step()
    optimizer.zero_grad()
