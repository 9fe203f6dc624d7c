"""The folded network as two OpenVINO graphs, built from arrays without torch or ONNX.

The transformer is a graph of its own because it alone tolerates a lower precision: magnitudes or Inception features
rounded to bfloat16 change redshifts by percents (docs/performance.md, "What did not help"). Two forms are chosen for
speed: each layer of grouped 1x1 convolutions in the parallel module is one batched matrix product, with neighbouring
groups merged until a product reads MERGED_INPUTS channels; and attention is OpenVINO's fused operation. Shapes are
static: B galaxies.

Shapes in comments: B batch, T tokens, P patches, C width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as op

from ...models.fold import Affine, FoldedBlock, FoldedInception, FoldedWeights, merge_groups, merged_products

VERSION = 3  # of the graphs; exports of another version are not used
INNER_BATCHES = (64, 128)  # candidates; 64 needs less memory
MERGED_INPUTS = 16
# With a slope for negative values ReLU multiplies, which keeps NaN. The products are so small that they change no bit
# of a redshift, yet far from denormal numbers, with which a slope of 2^-126 is 40 times slower.
NEGATIVE_SLOPE = 2.0**-100


def build_encoder(folded: FoldedWeights, batch: int) -> ov.Model:
    """Return the transformer: `image` (batch, bands, H, W) to `encoded` (batch, C), float32."""
    image = _image(folded, batch)
    return ov.Model([_encode(folded, image, batch)], [image], "encoder")


def build_rest(folded: FoldedWeights, batch: int) -> ov.Model:
    """Return everything else, all in float32.

    Inputs are `encoded` (batch, C), `image` (batch, bands, H, W) and `magnitude` (batch, magnitudes); the output is
    `redshift` (batch,).
    """
    encoded = op.parameter([batch, folded.config.width], np.float32, name="encoded")
    image = _image(folded, batch)
    magnitude = op.parameter([batch, folded.config.magnitudes], np.float32, name="magnitude")
    joined = op.concat(
        [
            _perceptron(encoded, folded.vit_head),
            _perceptron(_inception(folded, image), folded.inception_head),
            _perceptron(magnitude, folded.magnitude_head),
        ],
        1,
    )
    *hidden, last = folded.redshift_head
    redshift = op.reshape(_linear(_perceptron(joined, tuple(hidden)), last), _ints(-1), False)
    return ov.Model([redshift], [encoded, image, magnitude], "rest")


PARTS = {"encoder": build_encoder, "rest": build_rest}


def has_finite_constants(model: ov.Model) -> bool:
    """Return whether no constant of a graph from a file is NaN or infinite, as in the graphs that are built here."""
    constants = (node.data for node in model.get_ops() if node.get_type_name() == "Constant")
    values = (array for array in constants if array.size and array.dtype.kind == "f")
    return all(np.isfinite(array.min()) and np.isfinite(array.max()) for array in values)


def _image(folded: FoldedWeights, batch: int) -> Node:
    config = folded.config
    return op.parameter([batch, config.bands, config.image_size, config.image_size], np.float32, name="image")


def _array(values: NDArray[Any]) -> Node:
    return op.constant(np.ascontiguousarray(values, np.float32))


def _ints(*values: int) -> Node:
    return op.constant(np.array(values, np.int64))


def _linear(x: Node, layer: Affine) -> Node:
    y = op.matmul(x, _array(layer.weight), False, True)
    return op.add(y, _array(layer.bias)) if layer.bias.any() else y


def _relu(x: Node) -> Node:
    return op.prelu(x, _array(np.array([NEGATIVE_SLOPE])))


def _perceptron(x: Node, layers: tuple[Affine, ...]) -> Node:
    for layer in layers:
        x = _relu(_linear(x, layer))
    return x


def _normalize(x: Node, eps: float) -> Node:
    return op.mvn(x, _ints(-1), True, eps, "inside_sqrt")


def _tokens(x: Node, start: int, stop: int) -> Node:  # (B, T, C) -> (B, stop - start, C)
    return op.slice(x, _ints(start), _ints(stop), _ints(1), _ints(1))


def _encode(folded: FoldedWeights, image: Node, batch: int) -> Node:  # -> (B, C), normalized
    config = folded.config
    stride, skip = [config.patch_size] * 2, config.tokens - config.patches
    grid = op.convolution(image, _array(folded.patch), stride, [0, 0], [0, 0], [1, 1])  # (B, C, side, side)
    x = op.transpose(op.reshape(grid, _ints(0, 0, -1), True), _ints(0, 2, 1))  # (B, P, C)
    x = op.add(x, _array(folded.position[None, skip:]))
    if skip:
        token = np.broadcast_to(folded.position[:skip], (batch, skip, config.width))
        x = op.concat([_array(token), x], 1)
    *blocks, last = folded.blocks
    for block in blocks:
        x = _attend(folded, block, x, batch, skip, config.tokens)
        hidden = op.gelu(_linear(_normalize(x, config.norm_eps), block.mlp_in), "erf")
        x = op.add(x, _linear(hidden, block.mlp_out))
    x = _attend(folded, last, x, batch, skip, config.patches)  # (B, P, C)
    hidden = op.gelu(_linear(_normalize(x, config.norm_eps), last.mlp_in), "erf")
    mean = op.reduce_mean(x, _ints(1), False)
    mean = op.add(mean, _linear(op.reduce_mean(hidden, _ints(1), False), last.mlp_out))
    # Where the squares of tokens overflow, LayerNorm returns 0 for them; 0 * infinity is NaN.
    squares = op.reshape(op.reduce_sum(op.multiply(x, x), _ints(1, 2), False), _ints(-1, 1), False)
    return op.add(_normalize(mean, config.final_norm_eps), op.multiply(squares, op.constant(np.float32(0))))


def _attend(folded: FoldedWeights, block: FoldedBlock, x: Node, batch: int, skip: int, queries: int) -> Node:
    """Return the first half of a block for its last `queries` tokens: (B, T, C) -> (B, queries, C)."""
    config = folded.config
    normed, patches = _normalize(x, config.norm_eps), _tokens(x, skip, config.tokens) if skip else x
    if queries == config.tokens:
        query, key, value = op.split(_linear(normed, block.qkv), op.constant(np.int64(2)), 3).outputs()
        residual = x
    else:
        parts = zip(np.split(block.qkv.weight, 3), np.split(block.qkv.bias, 3), strict=True)
        queried = (_tokens(normed, skip, config.tokens), normed, normed)
        query, key, value = (_linear(y, Affine(*part)) for y, part in zip(queried, parts, strict=True))
        residual = patches
    query, key, value = (
        op.transpose(op.reshape(y, _ints(0, 0, config.heads, -1), True), _ints(0, 2, 1, 3)) for y in (query, key, value)
    )  # each (B, heads, T, head width)
    attended = op.scaled_dot_product_attention(query, key, value, scale=op.constant(np.float32(1)))
    attended = op.reshape(op.transpose(attended, _ints(0, 2, 1, 3)), _ints(0, 0, -1), True)
    x = op.add(residual, _linear(attended, block.proj))
    local = _convolve(folded, block, patches, batch)
    if queries == config.patches:
        return op.add(x, local)
    return op.concat([_tokens(x, 0, skip), op.add(_tokens(x, skip, config.tokens), local)], 1)


def _convolve(folded: FoldedWeights, block: FoldedBlock, patches: Node, batch: int) -> Node:
    """Return the parallel module: (B, P, C) -> (B, P, C)."""
    config = folded.config
    groups_in, groups_out = config.convolution_groups
    if config.convolution_kernel == 1 and groups_in == groups_out:
        products = merged_products(groups_in, config.width // groups_in, MERGED_INPUTS)
        rows = batch * config.patches
        x = op.reshape(patches, _ints(rows, products, config.width // products), False)
        x = op.transpose(x, _ints(1, 0, 2))  # (products, B * P, C / products)
        x = op.swish(_batched(x, block.convolution_in, groups_in, products))
        x = op.transpose(_batched(x, block.convolution_out, groups_in, products), _ints(1, 0, 2))
        return op.reshape(x, _ints(batch, config.patches, config.width), False)
    side = config.image_size // config.patch_size
    grid = op.reshape(op.transpose(patches, _ints(0, 2, 1)), _ints(0, 0, side, side), True)
    grid = op.swish(_convolution(grid, block.convolution_in, groups_in))
    grid = _convolution(grid, block.convolution_out, groups_out)
    return op.transpose(op.reshape(grid, _ints(0, 0, -1), True), _ints(0, 2, 1))


def _batched(x: Node, layer: Affine, groups: int, products: int) -> Node:
    """Return a grouped 1x1 convolution as matrix products: (products, rows, inputs) -> (products, rows, outputs)."""
    dense = merge_groups(layer, groups, products)
    return op.add(op.matmul(x, _array(dense.weight), False, True), _array(dense.bias))


def _convolution(x: Node, layer: Affine, groups: int = 1) -> Node:
    weight, pad = layer.weight, [layer.weight.shape[-1] // 2] * 2
    if groups == 1:
        y = op.convolution(x, _array(weight), [1, 1], pad, pad, [1, 1])
    else:
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        y = op.group_convolution(x, _array(grouped), [1, 1], pad, pad, [1, 1])
    return op.add(y, _array(layer.bias.reshape(1, -1, 1, 1)))


def _inception(folded: FoldedWeights, image: Node) -> Node:  # (B, bands, H, W) -> (B, features)
    def pool(x: Node) -> Node:
        return op.avg_pool(x, [folded.config.pool] * 2, [0, 0], [0, 0], [folded.config.pool] * 2, True)

    x = _convolution(pool(image), folded.stem) if folded.stem_after_pool else pool(_convolution(image, folded.stem))
    first, *others = folded.stages
    for block in first:
        x = _inception_block(block, x)
    for stage in others:
        x = pool(x)
        for block in stage:
            x = _inception_block(block, x)
    return op.reshape(x, _ints(0, -1), True)


def _inception_block(block: FoldedInception, x: Node) -> Node:  # (B, inputs, H, W) -> (B, channels, H, W)
    joint = _relu(_convolution(x, block.joint))
    direct, small, *large = op.variadic_split(joint, op.constant(np.int64(1)), _ints(*block.widths)).outputs()
    branches = [direct, _relu(_convolution(small, block.small))]
    if block.large is not None:
        branches.append(_relu(_convolution(large[0], block.large)))
    pooled = op.max_pool(x, [1, 1], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    branches.append(_relu(_convolution(pooled, block.pooled)))
    return op.concat(branches, 1)
