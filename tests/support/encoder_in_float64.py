"""The folded transformer in float64 numpy, written from its definition: an independent computation of its features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmicai.models.fold import Affine, FoldedBlock, FoldedWeights

Array = NDArray[np.float64]
_erf = np.vectorize(math.erf)


def encode(folded: FoldedWeights, image: NDArray[Any]) -> Array:
    """Return features (B, C) of cutouts (B, 5, 32, 32)."""
    size = folded.config.patch_size
    side = image.shape[-1] // size
    pixels = image.astype(np.float64).reshape(len(image), -1, side, size, side, size)
    pixels = pixels.transpose(0, 2, 4, 1, 3, 5).reshape(len(image), side * side, -1)
    tokens = pixels @ folded.patch.reshape(len(folded.patch), -1).T.astype(np.float64) + folded.position[1:]
    first = np.broadcast_to(folded.position[:1].astype(np.float64), (len(image), 1, tokens.shape[-1]))
    x = np.concatenate([first, tokens], axis=1)
    for block in folded.blocks:
        x = transform(folded, block, x)
    return normalize(x[:, 1:].mean(axis=1), folded.config.final_norm_eps)


def transform(folded: FoldedWeights, block: FoldedBlock, x: Array) -> Array:
    """Return tokens (B, T, C) after one block."""
    eps, local = folded.config.norm_eps, np.zeros_like(x)
    local[:, 1:] = convolve(block, x[:, 1:])
    x = x + attend(folded.config.heads, block, normalize(x, eps)) + local
    hidden = _linear(normalize(x, eps), block.mlp_in)
    return x + _linear(hidden * (0.5 + 0.5 * _erf(hidden / math.sqrt(2))), block.mlp_out)


def attend(heads: int, block: FoldedBlock, x: Array) -> Array:
    """Return the projected attention of normalized tokens; the scale is folded into the queries."""
    parts = np.split(_linear(x, block.qkv), 3, axis=-1)
    query, key, value = (part.reshape(*part.shape[:2], heads, -1).transpose(0, 2, 1, 3) for part in parts)
    scores = query @ key.transpose(0, 1, 3, 2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mean = weights / weights.sum(axis=-1, keepdims=True) @ value
    return _linear(mean.transpose(0, 2, 1, 3).reshape(x.shape), block.proj)


def convolve(block: FoldedBlock, x: Array) -> Array:
    """Return the parallel module: two grouped 1x1 convolutions with SiLU between them."""
    y = _grouped(x, block.convolution_in)
    return _grouped(y / (1 + np.exp(-y)), block.convolution_out)


def normalize(x: Array, eps: float) -> Array:
    """Return LayerNorm without scale and shift."""
    mean = x.mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + eps)


def _linear(x: Array, layer: Affine) -> Array:
    result: Array = x @ layer.weight.T.astype(np.float64) + layer.bias
    return result


def _grouped(x: Array, layer: Affine) -> Array:
    outputs, inputs = layer.weight.shape[:2]
    groups = x.shape[-1] // inputs
    weight = layer.weight.reshape(groups, outputs // groups, inputs).astype(np.float64)
    y = np.einsum("btgi,goi->btgo", x.reshape(*x.shape[:2], groups, inputs), weight)
    return y.reshape(*x.shape[:2], outputs) + layer.bias
