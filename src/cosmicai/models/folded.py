"""The folded network (`fold.py`) in torch, written for speed on a GPU; the same function as `astromae.py`.

Shapes in comments: B batch, T tokens (P patches, and the class token in front where there is one), C width.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import AstroMAEConfig
from .fold import Affine, FoldedBlock, FoldedInception, FoldedWeights, merge_groups, merged_products

# A grouped 1x1 convolution runs as one batched matrix product, with neighbouring groups merged until a product reads
# this many channels: tensor cores process 16 to 32 of them at a time, even if there are fewer.
MERGED_INPUTS = 32


class Layer(nn.Module):
    """An `Affine` in one precision, to which its input is cast: a linear layer, or a convolution with an odd kernel."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Affine, dtype: torch.dtype, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.convolves = layer.weight.ndim == 4
        weight = torch.tensor(layer.weight, dtype=dtype)
        if weight.shape[2:] == (1, 1) and groups == 1:
            weight = weight.flatten(1)  # per pixel: as a linear layer, which adds the bias without an extra step
        elif self.convolves:
            weight = weight.contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.tensor(layer.bias, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:  # (..., inputs) -> (..., outputs); of a convolution (B, channels, H, W)
        x = x.to(self.weight.dtype)
        if not self.convolves:
            return F.linear(x, self.weight, self.bias)
        if self.weight.ndim == 2:
            return F.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2, groups=self.groups)


class MergedGroups(nn.Module):
    """A grouped 1x1 convolution as `products` dense matrix products."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Affine, dtype: torch.dtype, groups: int, products: int) -> None:
        super().__init__()
        dense = merge_groups(layer, groups, products)
        self.register_buffer("weight", torch.tensor(np.ascontiguousarray(dense.weight.swapaxes(1, 2)), dtype=dtype))
        self.register_buffer("bias", torch.tensor(dense.bias, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:  # (products, rows, inputs) -> (products, rows, outputs)
        return torch.baddbmm(self.bias, x, self.weight)


class Block(nn.Module):
    """A transformer block; the last one returns the mean over patches (B, C) and has no queries for the class token.

    The mean is NaN where the squares of tokens overflow in float32, since LayerNorm then returns 0 for them.
    """

    def __init__(self, config: AstroMAEConfig, block: FoldedBlock, dtype: torch.dtype, last: bool) -> None:
        super().__init__()
        self.last, self.heads, self.eps = last, config.heads, config.norm_eps
        self.side = config.image_size // config.patch_size
        self.skip = config.tokens - config.patches
        ends = [config.attention_width] if last else []  # the last block's queries are a layer of their own
        parts = zip(np.split(block.qkv.weight, ends), np.split(block.qkv.bias, ends), strict=True)
        self.qkv = nn.ModuleList(Layer(Affine(*part), dtype) for part in parts)
        self.proj = Layer(block.proj, dtype)
        groups_in, groups_out = config.convolution_groups
        self.products = 0
        if config.convolution_kernel == 1 and groups_in == groups_out:
            self.products = merged_products(groups_in, config.width // groups_in, MERGED_INPUTS)
            self.convolution = nn.Sequential(
                MergedGroups(block.convolution_in, dtype, groups_in, self.products),
                nn.SiLU(),
                MergedGroups(block.convolution_out, dtype, groups_in, self.products),
            )
        else:
            self.convolution = nn.Sequential(
                Layer(block.convolution_in, dtype, groups_in),
                nn.SiLU(),
                Layer(block.convolution_out, dtype, groups_out),
            )
        self.mlp_in, self.mlp_out = Layer(block.mlp_in, dtype), Layer(block.mlp_out, dtype)

    def attend(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C), of the last block (B, P, C)
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)  # its statistics are float32 in bfloat16, too
        if self.last:
            queries, keys_values = self.qkv
            patches = normed[:, self.skip :].contiguous()  # else one product per galaxy
            parts = (queries(patches), *keys_values(normed).chunk(2, dim=-1))
        else:
            parts = self.qkv[0](normed).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # (B, heads, T or P, head width)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected

    def convolve(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, P, C)
        batch, tokens, width = x.shape
        if self.products:
            # The class token is processed, too, and dropped at the end: cheaper than a copy of the patches.
            rows = x.view(batch * tokens, self.products, -1).transpose(0, 1)  # (products, B * T, C / products)
            local: Tensor = self.convolution(rows)
            return local.transpose(0, 1).reshape(batch, tokens, width)[:, self.skip :]
        grid = x[:, self.skip :].transpose(1, 2).reshape(batch, width, self.side, self.side)
        local = self.convolution(grid)
        return local.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C), of the last block (B, C)
        local = self.convolve(x)
        if self.last:
            x = x[:, self.skip :] + self.attend(x) + local
            hidden = F.gelu(self.mlp_in(F.layer_norm(x, x.shape[-1:], eps=self.eps)))
            squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum((1, 2)).unsqueeze(1)
            return x.mean(dim=1) + self.mlp_out(hidden.mean(dim=1)) + (0 * squares).to(x.dtype)  # type: ignore[no-any-return]
        x = x + self.attend(x)
        x[:, self.skip :].add_(local)  # with += the sum would be copied onto itself
        hidden = F.gelu(self.mlp_in(F.layer_norm(x, x.shape[-1:], eps=self.eps)))
        return x + self.mlp_out(hidden)  # type: ignore[no-any-return]


class InceptionBlock(nn.Module):
    """An Inception block with all 1x1 convolutions of the input in one; ReLU after each convolution."""

    def __init__(self, block: FoldedInception, dtype: torch.dtype) -> None:
        super().__init__()
        self.widths = list(block.widths)
        self.joint, self.pooled = Layer(block.joint, dtype), Layer(block.pooled, dtype)
        inner = (block.small, block.large)
        self.inner = nn.ModuleList(Layer(layer, dtype) for layer in inner if layer is not None)

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, channels, H, W)
        direct, *reduced = F.relu(self.joint(x)).split_with_sizes(self.widths, dim=1)
        branches = [F.relu(layer(part)) for layer, part in zip(self.inner, reduced, strict=True)]
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        return torch.cat([direct, *branches, F.relu(pooled)], dim=1)


def _layers(layers: tuple[Affine, ...], dtypes: list[torch.dtype]) -> nn.ModuleList:
    return nn.ModuleList(Layer(layer, dtype) for layer, dtype in zip(layers, dtypes, strict=True))


def _perceptron(x: Tensor, layers: Iterable[nn.Module]) -> Tensor:
    for layer in layers:
        x = F.relu(layer(x))
    return x


class FoldedAstroMAE(nn.Module):
    """The folded network in `dtype` (float64, float32 or bfloat16), built on the CPU; inference only.

    `forward(image, magnitude)` takes image (B, bands, H, W) and magnitude (B, magnitudes) in any float dtype and
    returns redshift (B,), float64 from float64 and float32 from the others.
    """

    position: Tensor
    patch: Tensor

    def __init__(self, folded: FoldedWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self.config, self.stem_after_pool = folded.config, folded.stem_after_pool
        self.register_buffer("position", torch.tensor(folded.position, dtype=dtype))
        self.register_buffer("patch", torch.tensor(folded.patch.reshape(len(folded.patch), -1), dtype=dtype))
        *blocks, last = folded.blocks
        self.blocks = nn.ModuleList(Block(folded.config, block, dtype, last=False) for block in blocks)
        self.blocks.append(Block(folded.config, last, dtype, last=True))
        self.stem = Layer(folded.stem, dtype)
        self.stages = nn.ModuleList(
            nn.Sequential(*(InceptionBlock(block, dtype) for block in stage)) for stage in folded.stages
        )
        # In bfloat16 the redshift itself would be rounded by up to 0.4%.
        self.result_dtype = torch.promote_types(dtype, torch.float32)
        magnitude_head = [dtype] * len(folded.magnitude_head)
        redshift_head = [dtype] * (len(folded.redshift_head) - 1) + [self.result_dtype]
        # bfloat16 rounds a magnitude of 20 by up to 0.06, TF32 by 0.008: the layer that reads the magnitudes (the joint
        # layer if their head has a single one) is in float64, which TF32 does not affect and which costs little.
        (magnitude_head or redshift_head)[0] = torch.float64
        self.vit_head = _layers(folded.vit_head, [dtype] * len(folded.vit_head))
        self.inception_head = _layers(folded.inception_head, [dtype] * len(folded.inception_head))
        self.magnitude_head = _layers(folded.magnitude_head, magnitude_head)
        self.redshift_head = _layers(folded.redshift_head, redshift_head)

    def encode(self, image: Tensor) -> Tensor:  # (B, bands, H, W) -> (B, C), normalized
        size, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        pixels = image.reshape(len(image), self.config.bands, side, size, side, size).permute(0, 2, 4, 1, 3, 5)
        skip = self.config.tokens - self.config.patches
        x = F.linear(pixels.flatten(3).flatten(1, 2), self.patch) + self.position[skip:]  # (B, P, C)
        if skip:
            x = torch.cat([self.position[:skip].expand(len(x), -1, -1), x], dim=1)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return F.layer_norm(x, x.shape[-1:], eps=self.config.final_norm_eps)

    def inception_features(self, image: Tensor) -> Tensor:  # (B, bands, H, W) -> (B, features)
        pool, (first, *others) = self.config.pool, self.stages
        image = image.contiguous(memory_format=torch.channels_last)  # as tensor cores and linear layers read pixels
        x = self.stem(F.avg_pool2d(image, pool)) if self.stem_after_pool else F.avg_pool2d(self.stem(image), pool)
        x = first(x)
        for stage in others:
            x = stage(F.avg_pool2d(x, pool))
        return x.flatten(1)  # type: ignore[no-any-return]

    def forward(self, image: Tensor, magnitude: Tensor) -> Tensor:
        image = image.to(self.position.dtype)
        heads = [
            _perceptron(self.encode(image), self.vit_head),
            _perceptron(self.inception_features(image), self.inception_head),
            _perceptron(magnitude, self.magnitude_head),
        ]
        *hidden, last = self.redshift_head
        redshift: Tensor = last(_perceptron(torch.cat(heads, dim=1), hidden))
        return redshift.squeeze(1).to(self.result_dtype)
