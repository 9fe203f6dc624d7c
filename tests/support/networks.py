"""Small networks with random weights, and galaxies for them."""

from __future__ import annotations

import torch
from msgspec.structs import replace

from cosmicai.models.astromae import AstroMAE
from cosmicai.models.config import AstroMAEConfig, InceptionConfig

UNUSED = InceptionConfig(8, 8, 8, 8, 8, 8, uses_large=False)


SMALL = AstroMAEConfig(
    width=24, depth=2, heads=3, attention_width=24, attention_scale=8**-0.5, mlp_width=48, convolution_width=48,
    convolution_groups=(6, 6), projection_width=24, vit_head=(20, 20), stem_channels=8,
    inception_stages=((InceptionConfig(4, 3, 5, 2, 6, 3),), (UNUSED,)), inception_head=(20,), magnitude_head=(16, 16),
    redshift_head=(16, 1),
)  # fmt: skip


CONFIGS = {
    "small": SMALL,
    "no class token": replace(SMALL, class_token=False),
    "patches of 4": replace(SMALL, patch_size=4),
    "cutouts of 16": replace(SMALL, image_size=16),
    "kernel 3": replace(SMALL, convolution_kernel=3, stem_kernel=3),
    "narrow attention": replace(SMALL, attention_width=12),
    "other inputs": replace(SMALL, bands=3, magnitudes=7),
    "all biases": replace(SMALL, without_bias=()),
}


def random_network(config: AstroMAEConfig, seed: int = 0) -> AstroMAE:
    """Return a network without tensors that are zero."""
    torch.manual_seed(seed)
    network = AstroMAE(config).eval()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 or name in ("class_token", "position"):
                tensor.normal_(0.5, 0.3)  # few ReLU without a gradient
    return network


def galaxies(
    config: AstroMAEConfig, count: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    image = torch.randn(count, config.bands, config.image_size, config.image_size, generator=random)
    return image.to(dtype), torch.randn(count, config.magnitudes, generator=random, dtype=torch.float64)
