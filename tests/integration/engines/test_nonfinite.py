"""Non-finite intermediate results reach the redshift in every engine and precision, and usable galaxies keep theirs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from openvino import opset13 as op

from cosmicai.engines.openvino import graph
from cosmicai.engines.openvino.graph import build_encoder, build_rest
from cosmicai.engines.openvino.int8 import quantize, read_quantized
from cosmicai.engines.openvino.processor import cpu_settings, get_core
from cosmicai.models.fold import FoldedWeights, fold
from cosmicai.models.folded import FoldedAstroMAE
from cosmicai.models.weights import Weights, build_network, extract_weights, load_weights
from support.networks import SMALL, random_network

BATCH = 8
PRECISIONS = ("float32", "bfloat16", "int8")
# One tensor of every kind of layer whose results may be of any size.
LAYERS = (
    "patch.weight", "position", "blocks.0.convolution.0.weight", "blocks.1.convolution.3.bias", "inception.0.weight",
    "inception.2.direct.0.weight", "inception.2.small.1.0.weight", "inception.2.large.0.1.weight",
    "inception.2.pooled.1.0.weight", "inception.4.small.1.1.weight", "norm.weight", "vit_head.2.weight",
    "inception_head.0.weight", "magnitude_head.2.weight", "redshift_head.0.weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> Weights:
    return extract_weights(random_network(SMALL), {})


def galaxies() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return galaxies of which two have absurd, yet finite, pixels."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(BATCH, 5, 32, 32)).astype(np.float32)
    image[1] *= 1e4
    image[3] *= 1e11
    return image, rng.uniform(15, 22, (BATCH, 5)).astype(np.float32)


def predict_with_graphs(folded: FoldedWeights, precision: str) -> NDArray[np.float32]:
    image, magnitude = galaxies()
    model = build_encoder(folded, BATCH)
    if precision == "int8":
        model, precision = read_quantized(quantize(folded, BATCH, image[4:])), "float32"
    encoder = get_core().compile_model(model, "CPU", cpu_settings(precision, 1))
    rest = get_core().compile_model(build_rest(folded, BATCH), "CPU", cpu_settings("float32", 1))
    redshift: NDArray[np.float32] = rest([encoder([image])[0], image, magnitude])[0]
    return redshift


def predict_with_torch(network: torch.nn.Module) -> NDArray[np.float32]:
    with torch.inference_mode():
        redshift: NDArray[np.float32] = network(*map(torch.from_numpy, galaxies())).numpy()
    return redshift


@pytest.mark.parametrize("name", LAYERS)
def test_overflows_of_any_layer_reach_the_redshift(
    weights: Weights, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cosmicai.models.weights.LARGEST_WEIGHT", math.inf)  # else one layer alone does not overflow
    for scale in (1e36, -1e36):
        spoiled = replace(weights, tensors=weights.tensors | {name: weights.tensors[name] * np.float32(scale)})
        folded = fold(spoiled, np.float32)
        lost = ~np.isfinite(predict_with_torch(build_network(spoiled)))
        assert (~np.isfinite(predict_with_torch(FoldedAstroMAE(folded, torch.float32))) >= lost).all()
        for precision in PRECISIONS if name in LAYERS[:1] else PRECISIONS[:2]:
            assert (~np.isfinite(predict_with_graphs(folded, precision)) >= lost).all(), (scale, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_squares_that_overflow_in_the_transformer_are_no_plausible_redshift(weights: Weights, precision: str) -> None:
    tensors = weights.tensors | {"patch.weight": weights.tensors["patch.weight"] * np.float32(1e8)}
    spoiled = replace(weights, tensors=tensors)  # tokens of 1e19, which are finite, for the galaxy with pixels of 1e11
    folded, expected = fold(spoiled, np.float32), np.arange(BATCH) != 3
    assert np.array_equal(np.isfinite(predict_with_torch(build_network(spoiled))), expected)
    assert np.array_equal(np.isfinite(predict_with_torch(FoldedAstroMAE(folded, torch.float32))), expected)
    assert np.array_equal(np.isfinite(predict_with_graphs(folded, precision)), expected)


def test_the_slope_of_relu_changes_no_bit_of_the_demos_redshifts(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = fold(load_weights("demo"), np.float32)
    found = predict_with_graphs(folded, "float32")
    monkeypatch.setattr(graph, "_relu", op.relu)
    assert np.array_equal(found, predict_with_graphs(folded, "float32")) and np.isfinite(found).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weights_of_blocks_overflow_nowhere(weights: Weights, sign: int) -> None:
    """Attention and 8-bit integers would hide it."""
    rng = np.random.default_rng(1)
    tensors = {
        name: sign * rng.choice([-1e4, 1e4], tensor.shape).astype(np.float32)
        if name.startswith("blocks.") and ".convolution." not in name
        else tensor
        for name, tensor in weights.tensors.items()
    }
    spoiled = replace(weights, tensors=tensors)
    folded = fold(spoiled, np.float32)
    for precision in PRECISIONS:
        assert np.isfinite(predict_with_graphs(folded, precision)).all(), precision
    assert np.isfinite(predict_with_torch(build_network(spoiled))).all()
