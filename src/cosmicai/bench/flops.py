"""Floating-point operations per galaxy in matrix products and convolutions.

A multiplication and an addition are two operations. Softmax, norms and activations are not counted, as is usual.
"""

from __future__ import annotations

from ..models.config import AstroMAEConfig
from ..models.fold import FoldedWeights


def count_published_flop(config: AstroMAEConfig) -> int:
    """Return operations per galaxy of the network as published, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ..models.astromae import AstroMAE

    with torch.device("meta"):
        network = AstroMAE(config).eval()
        image = torch.empty(1, config.bands, config.image_size, config.image_size)
        magnitude = torch.empty(1, config.magnitudes)
    with FlopCounterMode(display=False) as counter:
        network(image, magnitude)
    return int(counter.get_total_flops())


def count_folded_flop(folded: FoldedWeights) -> int:
    """Return operations per galaxy of the folded network.

    Every weight of a layer is used once per row or pixel of its input. Zeros that an engine adds to merge the groups of
    a convolution do not count.
    """
    config = folded.config
    tokens, patches = config.tokens, config.patches
    products = folded.patch.size * patches
    *_, last = folded.blocks
    for block in folded.blocks:
        queries = patches if block is last else tokens
        products += block.qkv.weight.size // 3 * (queries + 2 * tokens)
        products += 2 * queries * tokens * config.attention_width  # scores, and values weighted by them
        products += (block.proj.weight.size + block.mlp_in.weight.size) * queries
        products += block.mlp_out.weight.size * (1 if block is last else tokens)
        products += (block.convolution_in.weight.size + block.convolution_out.weight.size) * patches
    side = config.image_size
    products += folded.stem.weight.size * (side // config.pool if folded.stem_after_pool else side) ** 2
    for stage in folded.stages:
        side //= config.pool
        for inception in stage:
            layers = (inception.joint, inception.small, inception.large, inception.pooled)
            products += sum(layer.weight.size for layer in layers if layer) * side**2
    heads = (folded.vit_head, folded.inception_head, folded.magnitude_head, folded.redshift_head)
    products += sum(layer.weight.size for head in heads for layer in head)
    return 2 * products
