"""Test that folding changes nothing, by comparison with the unfolded network in double precision."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from cosmicai.models import folded as folded_module
from cosmicai.models.astromae import AstroMAE
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.config import AstroMAEConfig
from cosmicai.models.fold import FoldedWeights, fold
from cosmicai.models.folded import FoldedAstroMAE
from cosmicai.models.tensor_shapes import tensor_shapes
from cosmicai.models.weights import build_network, extract_weights, load_weights
from cosmicai.surveys import synthetic
from cosmicai.surveys.shard import open_shard
from support.network_configs import MORE
from support.networks import SMALL, galaxies, random_network

every_config = pytest.mark.parametrize("config", MORE.values(), ids=MORE.keys())


@every_config
def test_the_tensor_shapes_are_those_of_the_network(config: AstroMAEConfig) -> None:
    state = AstroMAE(config).state_dict()
    assert tensor_shapes(config) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def folded_network(network: AstroMAE, dtype: torch.dtype = torch.float64) -> FoldedAstroMAE:
    return FoldedAstroMAE(fold(extract_weights(network, {})), dtype)


def assert_nothing_changed(network: AstroMAE, count: int) -> None:
    """Compare both networks in double precision, to 1e-12 of 1 or of the largest redshift if that is larger."""
    image, magnitude = galaxies(network.config, count, torch.float64)
    with torch.inference_mode():
        found = folded_network(network)(image, magnitude)  # before .double() replaces the parameters
        expected = network.double()(image, magnitude)
    assert (found.shape, found.dtype) == ((count,), torch.float64)
    assert (found - expected).abs().max() <= 1e-12 * max(1, float(expected.abs().max()))


@every_config
@pytest.mark.parametrize("count", [1, 7])
def test_folding_changes_nothing(config: AstroMAEConfig, count: int) -> None:
    assert_nothing_changed(random_network(config), count)


@pytest.mark.parametrize("merged", [1, 8, 24])
def test_merging_the_groups_of_a_convolution_changes_nothing(merged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folded_module, "MERGED_INPUTS", merged)
    network = random_network(SMALL)
    assert folded_network(network).blocks[0].products == {1: 6, 8: 3, 24: 1}[merged]
    assert_nothing_changed(network, 3)


@every_config
def test_a_folded_network_is_smaller(config: AstroMAEConfig) -> None:
    weights = extract_weights(random_network(config), {})
    assert fold(weights).parameters < weights.parameters


def test_folding_the_published_network_changes_nothing_and_leaves_12384337_parameters() -> None:
    network = random_network(AstroMAEConfig())
    folded = fold(extract_weights(network, {}))

    def layer(inputs: int, outputs: int, kernel: int = 1) -> int:
        return outputs * inputs * kernel**2 + outputs

    def inception(inputs: int, width: int, large: bool = True) -> int:
        branches = layer(inputs, (2 + large) * width) + layer(width, width, 3) + layer(inputs, width)
        return branches + (layer(width, width, 5) if large else 0)

    block = layer(192, 3 * 192) + layer(192, 192) + layer(192 // 48, 768) + layer(768 // 48, 192)
    block += layer(192, 768) + layer(768, 192)
    look = layer(5, 32) + inception(32, 16) + inception(64, 16) + inception(64, 8) + inception(32, 8)
    look += inception(32, 4, large=False)
    # The second layer of the first two heads, the fifth of the third and the projection are in the joint layer.
    heads = layer(192, 1096) + layer(192, 1096) + layer(5, 1024) + 3 * layer(1024, 1024)
    heads += layer(1096 + 1096 + 1024, 1024) + layer(1024, 1)
    assert 192 * 5 * 8 * 8 + 17 * 192 + 12 * block + look + heads == folded.parameters == 12_384_337
    assert_nothing_changed(network, 3)


def test_the_published_fixture_predicts_what_the_published_code_predicts(shared: Path) -> None:
    network = FoldedAstroMAE(fold(import_checkpoint(str(shared / "upstream" / "checkpoint.pt"))), torch.float64)
    with open_shard(str(shared / "upstream" / "partition_512.pt")) as shard, torch.inference_mode():
        some = shard.read(0, 48)
        found = network(torch.tensor(some.image), torch.tensor(some.magnitude)).numpy()
    expected = np.load(shared / "upstream" / "expected.npz")["z_float64"][:48]
    assert np.abs(found - expected).max() <= 1e-12


# Identities, one at a time.


def changed(**values: float) -> tuple[FoldedWeights, FoldedWeights]:
    """Fold a network with all biases: unchanged, and with these values added to tensors of its first block."""
    before = extract_weights(random_network(structs.replace(SMALL, without_bias=())), {})
    names = {f"blocks.0.{name.replace('__', '.')}": value for name, value in values.items()}
    added = {name: before.tensors[name] + np.float32(value) for name, value in names.items()}
    return fold(before), fold(replace(before, tensors=before.tensors | added))


def differing(before: FoldedWeights, after: FoldedWeights) -> set[str]:
    """Return the names of the arrays of block 0 that differ, and check that all others are the same."""

    def layers(folded: FoldedWeights) -> dict[str, np.ndarray]:
        block = folded.blocks[0]
        parts = {field.name: getattr(block, field.name) for field in fields(block)}
        return {f"{name}.{kind}": getattr(part, kind) for name, part in parts.items() for kind in ("weight", "bias")}

    assert np.array_equal(before.blocks[1].qkv.weight, after.blocks[1].qkv.weight)
    return {name for name, array in layers(before).items() if not np.array_equal(array, layers(after)[name])}


def test_a_bias_of_the_keys_is_dropped() -> None:
    assert differing(*changed(attention__key_bias=3)) == set()


def test_a_bias_of_the_values_is_merged_after_attention() -> None:
    before, after = changed(attention__value_bias=3)
    assert differing(before, after) == {"proj.bias"}
    moved = after.blocks[0].proj.bias - before.blocks[0].proj.bias
    assert np.allclose(moved, 3 * before.blocks[0].proj.weight.sum(axis=1), atol=1e-5)


def test_only_queries_keep_a_bias() -> None:
    before, after = changed(norm1__bias=1, attention__query_bias=1)
    assert differing(before, after) == {"qkv.bias", "proj.bias"}
    assert after.blocks[0].qkv.bias[:24].all()
    assert not after.blocks[0].qkv.bias[24:].any()


def test_the_scale_of_a_layer_norm_is_merged_into_the_layer_after_it() -> None:
    assert differing(*changed(norm2__weight=1)) == {"mlp_in.weight"}
    assert differing(*changed(norm2__bias=1)) == {"mlp_in.bias"}


def test_the_branch_that_is_never_run_is_dropped() -> None:
    weights = extract_weights(random_network(SMALL), {})
    unused = [name for name in weights.tensors if name.startswith("inception.4.large.")]
    assert len(unused) == 14
    without = replace(weights, tensors=weights.tensors | {name: weights.tensors[name] * 0 + 9 for name in unused})
    image, magnitude = galaxies(SMALL, 3)
    with torch.inference_mode():
        found = [FoldedAstroMAE(fold(each), torch.float32)(image, magnitude) for each in (weights, without)]
    assert torch.equal(*found)


# Other precisions.


@every_config
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_less_precision_is_close_and_gives_float32(
    config: AstroMAEConfig, dtype: torch.dtype, tolerance: float
) -> None:
    network = random_network(config)
    image, magnitude = galaxies(config, 5)
    with torch.inference_mode():
        found, expected = folded_network(network, dtype)(image, magnitude), network(image, magnitude)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= tolerance * max(1, float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_magnitudes_are_read_without_rounding(dtype: torch.dtype) -> None:
    network = FoldedAstroMAE(fold(load_weights("demo")), dtype)
    magnitude = torch.full((1, 5), 20.0, dtype=torch.float64)
    assert (magnitude + 0.01).to(torch.bfloat16).eq(20).all(), "bfloat16 does not know the difference"
    first: Any = network.magnitude_head[0]
    slope = (first(magnitude + 0.01) - first(magnitude)) / 0.01
    assert torch.allclose(slope[0], first.weight.sum(dim=1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("config", [SMALL, MORE["one layer a head"]], ids=["two layers a head", "one layer a head"])
def test_the_layers_that_read_magnitudes_and_return_redshifts_are_not_bfloat16(config: AstroMAEConfig) -> None:
    network = folded_network(random_network(config), torch.bfloat16)
    layers = [*network.magnitude_head, *network.redshift_head]
    assert layers[0].weight.dtype == torch.float64
    assert layers[-1].weight.dtype in (torch.float32, torch.float64)
    assert {layer.weight.dtype for layer in layers[1:-1]} <= {torch.bfloat16}


def test_bfloat16_costs_a_trained_network_a_thousandth_in_redshift() -> None:
    some = next(iter(synthetic.generate_batches(128)))
    image, magnitude = torch.tensor(some.image), torch.tensor(some.magnitude)
    weights = load_weights("demo")
    with torch.inference_mode():
        off = FoldedAstroMAE(fold(weights), torch.bfloat16)(image, magnitude) - build_network(weights)(image, magnitude)
    assert off.square().mean().sqrt() < 2e-3
