"""The network of a training: the scaling of its inputs, and its initial weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..models.astromae import AstroMAE
from ..models.config import AstroMAEConfig
from ..models.weights import Weights, build_network
from ..surveys.shard import Galaxies
from .sample import Sample


@dataclass(frozen=True)
class InputScaling:
    """The affine map that standardises the inputs for training, and that is folded into the written weights."""

    centre: Tensor  # (5,) float64, like spread
    spread: Tensor
    scale: Tensor  # (5, 1, 1) float32
    device: str

    @classmethod
    def of(cls, sample: Sample, config: AstroMAEConfig, device: str) -> InputScaling:
        """Return the map that standardises a sample."""
        # The centre can only be folded into a bias.
        centre = sample.magnitude if config.has_bias("magnitude_head") else np.zeros(5)
        spread, pixel = (
            torch.from_numpy(2.0 ** np.round(np.log2(np.where(values > 0, values, 1))))
            for values in (sample.spread, sample.pixel)
        )
        return cls(torch.from_numpy(centre), spread, pixel.float()[:, None, None], device)

    def __call__(self, galaxies: Galaxies) -> tuple[Tensor, Tensor]:
        image = torch.from_numpy(galaxies.image) / self.scale
        magnitude = (torch.from_numpy(galaxies.magnitude) - self.centre) / self.spread
        return image.to(self.device), magnitude.float().to(self.device)

    @torch.no_grad()
    def fold(self, network: AstroMAE) -> None:
        """Turn a network of standardised inputs into one of raw inputs, in place."""
        first, convolutions = _first_layers(network)
        first.weight /= self.spread
        if first.bias is not None:
            first.bias.sub_((first.weight.double() @ self.centre).float())
        for convolution in convolutions:
            convolution.weight /= self.scale

    @torch.no_grad()
    def unfold(self, network: AstroMAE) -> None:
        """Undo `fold`, in place."""
        first, convolutions = _first_layers(network)
        if first.bias is not None:
            first.bias.add_((first.weight.double() @ self.centre).float())
        first.weight *= self.spread
        for convolution in convolutions:
            convolution.weight *= self.scale


def _first_layers(network: AstroMAE) -> tuple[nn.Linear, tuple[nn.Conv2d, nn.Conv2d]]:
    first, stem = network.magnitude_head[0], network.inception[0]
    assert isinstance(first, nn.Linear) and isinstance(stem, nn.Conv2d)
    return first, (network.patch, stem)


def learned_tokens(network: AstroMAE) -> list[Tensor]:
    """Return the learned tokens: positions and, if present, the class token."""
    return [token for token in (network.position, network.class_token) if isinstance(token, Tensor)]


def initialize_network(config: AstroMAEConfig, seed: int, redshift: float) -> AstroMAE:
    """Return a new network with random weights that predicts about the mean `redshift`.

    Tokens and the transformer's linear layers are drawn from a normal distribution of deviation 0.02, truncated at two
    deviations, as in ViT (Dosovitskiy et al. 2021); layers followed by ReLU as in He et al. 2015; the convolutions of
    the encoder have torch's defaults.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = AstroMAE(config)
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear) and name.startswith(("blocks.", "projection")):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and name.startswith("inception")):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for token in learned_tokens(network):
            nn.init.trunc_normal_(token, std=0.02, a=-0.04, b=0.04)
        last = network.redshift_head[-1]
        assert isinstance(last, nn.Linear)
        nn.init.trunc_normal_(last.weight, std=0.02, a=-0.04, b=0.04)
        if last.bias is not None:
            nn.init.constant_(last.bias, redshift)
    return network


def copy_network(initial: Weights, scaling: InputScaling) -> AstroMAE:
    """Return a network with these weights that takes standardised inputs."""
    network = AstroMAE(initial.config)
    network.load_state_dict(build_network(initial).state_dict())
    scaling.unfold(network)
    return network
