"""Fold the network exactly: the same function of cutout and magnitudes with fewer and cheaper operations.

The steps, each an identity in real arithmetic:

- BatchNorm in evaluation is affine per channel: it is merged into the convolution before it.
- A LayerNorm's scale and shift are merged into the Linear layer after it.
- Linear layers with nothing between them become one: the projection into the first layer of the transformer's head, and
  the last layer of each of the three heads into its columns of the first joint layer.
- A key's bias adds the same to all scores of a query, which softmax ignores: it is dropped. A value's bias passes
  through attention unchanged, since the weights of softmax add up to one: it is merged into the bias of `proj`. The
  scale of the scores is merged into the queries.
- The patch embedding's bias and the class token are merged into the positions.
- The output of the last block at the class token is not used, so only its key and value are needed; and the second MLP
  layer commutes with the mean over tokens, so it processes one row per galaxy.
- A 1x1 stem commutes with the average pool after it, so it processes a quarter of the pixels.
- The 1x1 convolutions of one Inception block's input become one. The branch that is never run is dropped.

Everything is computed in float64, so that folding causes no rounding error that is visible in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..errors import InputError
from .config import AstroMAEConfig
from .weights import Weights, check_architecture

Array = NDArray[np.floating[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Affine:
    """The map weight @ x + bias; weight is (outputs, inputs), of a convolution (outputs, inputs per group, k, k)."""

    weight: Array
    bias: Array


@dataclass(frozen=True)
class FoldedBlock:
    """One transformer block. `qkv`: queries (scaled), keys and values; its bias is 0 but for the queries."""

    qkv: Affine
    proj: Affine
    convolution_in: Affine
    convolution_out: Affine
    mlp_in: Affine
    mlp_out: Affine


@dataclass(frozen=True)
class FoldedInception:
    """One Inception block.

    `joint` combines all 1x1 convolutions of its input; `widths` divides its outputs into those of the direct branch
    and the inputs of `small` and (if present) `large`. ReLU follows each convolution.
    """

    joint: Affine
    widths: tuple[int, ...]
    small: Affine
    large: Affine | None
    pooled: Affine


@dataclass(frozen=True)
class FoldedWeights:
    """The weights of the folded network.

    Every layer of the three heads is followed by ReLU; `redshift_head` reads their concatenated outputs
    (transformer, Inception, magnitudes), with ReLU between its layers and none after the last.
    """

    config: AstroMAEConfig
    patch: Array  # (width, bands, patch, patch)
    position: Array  # (tokens, width), the class token (if any) first, with its position
    blocks: tuple[FoldedBlock, ...]
    stem: Affine  # before the first average pool, unless `stem_after_pool`
    stages: tuple[tuple[FoldedInception, ...], ...]
    vit_head: tuple[Affine, ...]
    inception_head: tuple[Affine, ...]
    magnitude_head: tuple[Affine, ...]
    redshift_head: tuple[Affine, ...]

    @property
    def stem_after_pool(self) -> bool:
        """Whether the stem may follow the first average pool: not if it uses zero padding."""
        return self.config.stem_kernel == 1

    @property
    def parameters(self) -> int:
        """Number of values in all arrays."""
        return sum(array.size for array in _arrays(self))


def _arrays(value: object) -> Iterator[Array]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _arrays(item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))


def _cast(value: T, dtype: DTypeLike) -> T:
    """Return the same dataclass, tuple or array with all arrays of this dtype."""
    if isinstance(value, np.ndarray):
        return value.astype(dtype, copy=False)  # type: ignore[return-value]
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)  # type: ignore[return-value]
    if is_dataclass(value):
        return type(value)(*(_cast(getattr(value, field.name), dtype) for field in fields(value)))  # type: ignore
    return value


def fold(weights: Weights, dtype: DTypeLike = np.float64) -> FoldedWeights:
    """Return the folded network of these weights, rounded to `dtype` after each block is folded.

    Raises InputError if the weights are not AstroMAE's, or if a product of them is infinite or NaN.
    """
    with np.errstate(all="ignore"):
        folded = _Folder(check_architecture(weights), weights, dtype).fold_network()
    for array in _arrays(folded):
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise InputError(
                f"{weights.uri}: products of its weights are infinite or NaN; expected weights of a converged training"
            )
    return folded


def _compose(second: Affine, first: Affine) -> Affine:
    """Return the layer that applies `first` and then `second`."""
    return Affine(second.weight @ first.weight, second.weight @ first.bias + second.bias)


def merged_products(groups: int, inputs: int, most: int) -> int:
    """Return the number of matrix products into which the groups of a grouped 1x1 convolution are merged.

    Neighbouring groups, of `inputs` channels each, are merged as long as a product reads at most `most` channels.
    """
    return next(
        products for products in range(1, groups + 1)
        if groups % products == 0 and groups // products * inputs <= max(inputs, most)
    )  # fmt: skip


def merge_groups(layer: Affine, groups: int, products: int) -> Affine:
    """Return a grouped 1x1 convolution as dense matrix products: weight (products, outputs, inputs of each product),
    bias (products, 1, outputs of each product)."""
    outputs, inputs, merged = len(layer.bias) // groups, layer.weight.shape[1], groups // products
    grouped = layer.weight.reshape(products, merged, outputs, inputs)
    dense = np.zeros((products, merged, outputs, merged, inputs))
    for own in range(merged):
        dense[:, own, :, own] = grouped[:, own]
    weight = dense.reshape(products, merged * outputs, merged * inputs)
    return Affine(weight, layer.bias.reshape(products, 1, -1))


class _Folder:
    """Folds the tensors of one network; intermediate results are float64."""

    def __init__(self, config: AstroMAEConfig, weights: Weights, dtype: DTypeLike) -> None:
        self.config, self.tensors, self.dtype = config, weights.tensors, dtype

    def read_tensor(self, name: str) -> Array:
        return self.tensors[name].astype(np.float64)

    def read_layer(self, name: str) -> Affine:
        weight = self.read_tensor(f"{name}.weight")
        bias = self.read_tensor(f"{name}.bias") if f"{name}.bias" in self.tensors else np.zeros(len(weight))
        return Affine(weight, bias)

    def merge_batch_norm(self, name: str, norm: str, eps: float) -> Affine:
        layer = self.read_layer(name)
        scale = self.read_tensor(f"{norm}.weight") / np.sqrt(self.read_tensor(f"{norm}.running_var") + eps)
        shift = self.read_tensor(f"{norm}.bias") - self.read_tensor(f"{norm}.running_mean") * scale
        return Affine(layer.weight * scale[:, None, None, None], layer.bias * scale + shift)

    def merge_layer_norm(self, layer: Affine, norm: str) -> Affine:
        shift = layer.weight @ self.read_tensor(f"{norm}.bias")
        return Affine(layer.weight * self.read_tensor(f"{norm}.weight"), layer.bias + shift)

    def fold_attention(self, name: str) -> tuple[Affine, Affine]:
        width = self.config.attention_width
        names = (f"{name}.attention.{kind}_bias" for kind in ("query", "key", "value"))
        bias = np.concatenate([self.read_tensor(own) if own in self.tensors else np.zeros(width) for own in names])
        qkv = self.merge_layer_norm(Affine(self.read_tensor(f"{name}.attention.qkv.weight"), bias), f"{name}.norm1")
        query, value = slice(0, width), slice(2 * width, None)
        proj = self.read_layer(f"{name}.attention.proj")
        proj = Affine(proj.weight, proj.bias + proj.weight @ qkv.bias[value])
        qkv.weight[query] *= self.config.attention_scale
        qkv.bias[query] *= self.config.attention_scale
        qkv.bias[width:] = 0
        return qkv, proj

    def fold_block(self, name: str) -> FoldedBlock:
        eps = self.config.convolution_norm_eps
        block = FoldedBlock(
            *self.fold_attention(name),
            self.merge_batch_norm(f"{name}.convolution.0", f"{name}.convolution.1", eps),
            self.read_layer(f"{name}.convolution.3"),
            self.merge_layer_norm(self.read_layer(f"{name}.mlp.0"), f"{name}.norm2"),
            self.read_layer(f"{name}.mlp.2"),
        )
        return _cast(block, self.dtype)

    def fold_inception(self, name: str, uses_large: bool) -> FoldedInception:
        def convolution(branch: str) -> Affine:
            return self.merge_batch_norm(f"{name}.{branch}.0", f"{name}.{branch}.1", self.config.inception_norm_eps)

        ones = [convolution(branch) for branch in ("direct", "small.0", "large.0")[: 2 + uses_large]]
        joint = Affine(np.concatenate([one.weight for one in ones]), np.concatenate([one.bias for one in ones]))
        large = convolution("large.1") if uses_large else None
        widths = tuple(len(one.bias) for one in ones)
        return FoldedInception(joint, widths, convolution("small.1"), large, convolution("pooled.1"))

    def fold_stages(self) -> Iterator[tuple[FoldedInception, ...]]:
        index = 1
        for stage in self.config.inception_stages:
            index += 1  # the average pool
            yield tuple(
                self.fold_inception(f"inception.{index + own}", block.uses_large) for own, block in enumerate(stage)
            )
            index += len(stage)

    def read_perceptron(self, name: str, widths: tuple[int, ...]) -> list[Affine]:
        return [self.read_layer(f"{name}.{2 * index}") for index in range(len(widths))]

    def fold_network(self) -> FoldedWeights:
        config = self.config
        patch, position = self.read_layer("patch"), self.read_tensor("position")[0]
        position[config.tokens - config.patches :] += patch.bias
        if config.class_token:
            position[0] += self.read_tensor("class_token")[0, 0]
        heads = [
            self.read_perceptron("vit_head", config.vit_head),
            self.read_perceptron("inception_head", config.inception_head),
            self.read_perceptron("magnitude_head", config.magnitude_head),
        ]
        heads[0][0] = _compose(heads[0][0], self.merge_layer_norm(self.read_layer("projection"), "norm"))
        first, *others = self.read_perceptron("redshift_head", config.redshift_head)
        ends = np.cumsum([len(head[-1].bias) for head in heads])
        columns = np.split(first.weight, ends[:-1], axis=1)
        lasts = [
            _compose(Affine(own, np.zeros(len(own))), head.pop()) for own, head in zip(columns, heads, strict=True)
        ]
        joint = Affine(
            np.concatenate([last.weight for last in lasts], axis=1), first.bias + sum(last.bias for last in lasts)
        )
        folded = FoldedWeights(
            config, patch.weight, position,
            tuple(self.fold_block(f"blocks.{index}") for index in range(config.depth)),
            self.read_layer("inception.0"), tuple(self.fold_stages()),
            tuple(heads[0]), tuple(heads[1]), tuple(heads[2]), (joint, *others),
        )  # fmt: skip
        return _cast(folded, self.dtype)
