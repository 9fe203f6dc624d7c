"""Test that published checkpoints become the same network, to the last digits, or are refused in one sentence."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from safetensors.numpy import save as save_safetensors
from torch import nn

from cosmicai.errors import InputError
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.fold import fold
from cosmicai.models.weights import Weights, WeightsFile, build_network, find_weights, load_weights
from cosmicai.surveys.shard import open_shard
from support.helpers import run
from support.upstream_network import PUBLISHED, Block, Format, Mlp, Sizes, ViT_Astro, random_network, save_checkpoint

ALL_BIASES = ("patch", "proj", "fc1", "fc2", "pcm", "head", "vit", "stem", "inception", "magnitude", "concat")

VARIANTS: dict[str, Sizes] = {
    "as published, small": Sizes(),
    "one block": Sizes(depth=1),
    "five blocks": Sizes(depth=5),
    "wide": Sizes(width=48, attention_width=48),
    "attention narrower than the tokens": Sizes(attention_width=12, scale=0.5),
    "one head": Sizes(heads=1),
    "eight heads": Sizes(heads=8),
    "patches of 4": Sizes(patch=4),
    "patches of 16": Sizes(patch=16),
    "cutouts of 16": Sizes(image=16, patch=4),
    "three bands, two magnitudes": Sizes(bands=3, magnitudes=2),
    "parallel convolutions of kernel 3": Sizes(pcm_kernel=3),
    "parallel convolutions of kernel 3, patches of 4": Sizes(pcm_kernel=3, patch=4, pcm_groups=(1, 1)),
    "other groups": Sizes(pcm_groups=(24, 3)),
    "no groups, narrow": Sizes(pcm_groups=(1, 1), pcm_width=12),
    "narrow MLP": Sizes(mlp=5),
    "no biases but those of queries and values": Sizes(without_bias=ALL_BIASES),
    "no bias in proj, MLP, convolutions and patches": Sizes(without_bias=("proj", "fc1", "fc2", "pcm", "patch")),
    "no bias in fc2 alone": Sizes(without_bias=("fc2",)),
    "biases of queries, keys and values": Sizes(qkv="all"),
    "no bias in attention": Sizes(qkv="none", without_bias=("proj",)),
    "no bias at all": Sizes(qkv="none", without_bias=ALL_BIASES),
    "LayerNorm eps": Sizes(norm_eps=1e-2),
    "last LayerNorm's eps": Sizes(final_norm_eps=0.3),
    "BatchNorm eps of the parallel convolutions": Sizes(pcm_eps=0.1),
    "BatchNorm eps of Inception": Sizes(inception_eps=0.05),
    "attention scale": Sizes(scale=1.3),
    "no class token": Sizes(class_token=False),
    "no class token, patches of 4, kernel 3": Sizes(class_token=False, patch=4, pcm_kernel=3),
    "other Inception channels": Sizes(stem=5, stages=((Block(1, 2, 3, 4, 5, 6),), (Block(6, 5, 4, 3, 2, 1),))),
    "other Inception kernels": Sizes(stages=((Block(2, 2, 2, 2, 2, 2, kernels=(5, 7)),),)),
    "one Inception stage": Sizes(stages=((Block(3, 3, 3, 3, 3, 3),),)),
    "four Inception stages": Sizes(stages=((Block(3, 3, 3, 3, 3, 3),),) * 4),
    "three Inception blocks in a stage": Sizes(stages=((Block(3, 3, 3, 3, 3, 3),) * 3,)),
    "an unused branch in front": Sizes(stages=((Block(2, 2, 2, 2, 2, 2, is_custom=True), Block(2, 2, 2, 2, 2, 2)),)),
    "pools of 4": Sizes(pool=4),
    "heads of one layer": Sizes(vit_head=(9,), inception_head=(8,), magnitude_head=(7,), concat_head=(1,)),
    "deep heads": Sizes(vit_head=(9, 8, 7), inception_head=(6,) * 4, magnitude_head=(5,) * 6, concat_head=(4, 3, 2, 1)),
    "another width behind the transformer": Sizes(head=10),
    "DropPath": Sizes(drop_path=0.1),
}  # fmt: skip


def inputs(sizes: Sizes, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    image = torch.randn(count, sizes.bands, sizes.image, sizes.image, generator=random, dtype=torch.float64)
    return image, torch.randn(count, sizes.magnitudes, generator=random, dtype=torch.float64)


def assert_same_network(model: ViT_Astro, weights: Weights, sizes: Sizes) -> None:
    """Compare both networks, in double and in single precision, on the same galaxies."""
    image, magnitude = inputs(sizes)
    with torch.no_grad():
        for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
            expected = model.to(dtype)([image.to(dtype), magnitude])
            found = build_network(weights).to(dtype)(image.to(dtype), magnitude)
            assert found.shape == expected.shape == (len(image),)
            assert expected.std() > 0.01, "a network that hardly looks at its input proves nothing"
            assert (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda state: state, "holds a dictionary (cls_token, pos_embed, "),
        (lambda state: {f"module.{name}": value for name, value in state.items()},
         "a state dict from DataParallel, which put module. before all names, expected a model"),
        (lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
         "a state dict from torch.compile, which put _orig_mod. before all names, expected a model"),
        (lambda state: {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.0"},
         "a checkpoint of Lightning (state_dict, epoch, pytorch-lightning_version), whose network is the dictionary "
         "state_dict, expected a model"),
        (lambda state: {"model": state, "ema": state, "optimizer": {"state": {}}},
         "a training's checkpoint (model, ema, optimizer), whose network is the dictionary model or ema, expected"),
        (lambda state: {1: state}, "holds a dictionary (1), expected a model"),
    ],
)  # fmt: skip
def test_what_is_saved_in_place_of_a_model_is_named(wrap: Callable[[Any], Any], says: str, tmp_path: Path) -> None:
    torch.save(wrap(random_network(Sizes(depth=1)).state_dict()), tmp_path / "a.pt")
    with pytest.raises(InputError) as refused:
        import_checkpoint(str(tmp_path / "a.pt"))
    assert says in str(refused.value) and "torch.save(model, FILE), and import FILE with" in str(refused.value)


def test_the_attributes_of_newer_timm_and_older_torch_keep_the_network(tmp_path: Path) -> None:
    sizes = Sizes(depth=1)
    model: Any = random_network(sizes)
    model.patch_embed.output_fmt = Format.NCHW
    model.patch_embed.strict_img_size, model.patch_embed.dynamic_img_pad = True, False
    del model.blocks[0].mlp.act.approximate  # as in torch before 1.12
    imported = import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    model.blocks[0].mlp.act.approximate = "none"
    assert_same_network(model, imported, sizes)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("output_fmt", "NHWC", "patch_embed.output_fmt is 'NHWC', not 'NCHW'"),
        ("flatten", False, "patch_embed.flatten is False, not True"),
        ("dynamic_img_pad", True, "patch_embed.dynamic_img_pad is True, not False"),
    ],
)
def test_attributes_of_newer_timm_that_change_the_network_are_refused(
    name: str, value: Any, says: str, tmp_path: Path
) -> None:
    model: Any = random_network(Sizes(depth=1))
    setattr(model.patch_embed, name, Format(value) if name == "output_fmt" else value)
    with pytest.raises(InputError) as refused:
        import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    assert says in str(refused.value)


@pytest.mark.parametrize("sizes", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_variant_is_imported_as_the_same_network(sizes: Sizes, tmp_path: Path) -> None:
    model = random_network(sizes)
    weights = import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    assert weights.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert_same_network(model, weights, sizes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_imported_as_single(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_network(Sizes()).to(dtype)
    weights = import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    assert {str(tensor.dtype) for tensor in weights.tensors.values()} == {"float32", "int64"}
    assert_same_network(model.float(), weights, Sizes())


def test_a_model_without_dataparallel_is_imported(tmp_path: Path) -> None:
    model = random_network(Sizes())
    assert_same_network(model, import_checkpoint(save_checkpoint(tmp_path / "a.pt", model, wrapped=False)), Sizes())


def test_a_dataparallel_of_a_gpu_node_is_imported(tmp_path: Path) -> None:
    model = random_network(Sizes())
    wrapped = nn.DataParallel(model)
    wrapped.device_ids, wrapped.output_device, wrapped.dim = [0, 1], 0, 0
    wrapped.src_device_obj = torch.device("cuda", 0)  # what torch sets where it finds a GPU
    assert_same_network(model, import_checkpoint(save_checkpoint(tmp_path / "a.pt", wrapped, wrapped=False)), Sizes())


def test_other_magnitudes_image_and_position_change_the_prediction_of_the_imported_network(tmp_path: Path) -> None:
    network = build_network(import_checkpoint(save_checkpoint(tmp_path / "a.pt", random_network(Sizes())))).double()
    image, magnitude = inputs(Sizes())
    before = network(image, magnitude)
    assert (network(image, magnitude + 1) - before).abs().min() > 1e-4
    assert (network(image + 1, magnitude) - before).abs().min() > 1e-4
    assert (network(image.flip(-1), magnitude) - before).abs().min() > 1e-6


def test_the_published_sizes_hold_exactly_15902889_parameters(tmp_path: Path) -> None:
    weights = import_checkpoint(save_checkpoint(tmp_path / "a.pt", random_network(PUBLISHED)))
    assert weights.parameters == 15_902_889
    assert sum(parameter.numel() for parameter in build_network(weights).parameters()) == 15_902_889


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Weights:
    return import_checkpoint(str(shared / "upstream" / "checkpoint.pt"))


@pytest.mark.parametrize(
    ("dtype", "key", "tolerance"), [(torch.float32, "z_float32", 1e-5), (torch.float64, "z_float64", 1e-12)]
)
def test_the_published_fixture_predicts_what_the_published_code_predicts(
    fixture: Weights, shared: Path, dtype: torch.dtype, key: str, tolerance: float
) -> None:
    assert fixture.parameters == 15_902_889
    network = build_network(fixture).to(dtype)
    expected = np.load(shared / "upstream" / "expected.npz")[key]
    with open_shard(str(shared / "upstream" / "partition_512.pt")) as shard, torch.no_grad():
        batches = [shard.read(start, start + 128) for start in range(0, shard.galaxies, 128)]
        found = np.concatenate(
            [network(torch.tensor(each.image, dtype=dtype), torch.tensor(each.magnitude)).numpy() for each in batches]
        )
    assert found.shape == expected.shape == (512,)
    assert np.abs(found - expected).max() <= tolerance


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    return import_checkpoint(save_checkpoint(tmp_path / "small.pt", random_network(Sizes())))


def test_saved_weights_are_loaded_unchanged(weights: Weights, tmp_path: Path) -> None:
    uri = str(tmp_path / "a.safetensors")
    weights.save(uri)
    loaded = load_weights(uri)
    assert loaded.config == weights.config
    assert loaded.notes == weights.notes == {"imported_from": "small.pt"}
    assert loaded.sha256 == hashlib.sha256(Path(uri).read_bytes()).hexdigest()
    assert loaded.tensors.keys() == weights.tensors.keys()
    for name, tensor in weights.tensors.items():
        assert (loaded.tensors[name].dtype, loaded.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert loaded.tensors[name].tobytes() == tensor.tobytes()


def test_importing_the_same_checkpoint_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path / "a.pt", random_network(Sizes()))
    digests = set()
    for name in ("one.safetensors", "two.safetensors"):
        import_checkpoint(checkpoint).save(str(tmp_path / name))
        digests.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    load_weights(str(tmp_path / "one.safetensors")).save(str(tmp_path / "three.safetensors"))
    digests.add(hashlib.sha256((tmp_path / "three.safetensors").read_bytes()).hexdigest())
    assert len(digests) == 1


# Checkpoints of something else.


class Swish(nn.Module):
    """A module that no published checkpoint contains."""


def change(path: str, make: Callable[[ViT_Astro], Any]) -> Callable[[ViT_Astro], None]:
    """Return a function that replaces the module or attribute at a dotted path."""

    def apply(model: ViT_Astro) -> None:
        owner, _, name = path.rpartition(".")
        target: Any = model.get_submodule(owner)
        value = make(model)
        if name.isdigit():
            target[int(name)] = value
        else:
            setattr(target, name, value)

    return apply


def constant(value: Any) -> Callable[[ViT_Astro], Any]:
    return lambda _: value


def without(path: str) -> Callable[[ViT_Astro], None]:
    def apply(model: ViT_Astro) -> None:
        owner, _, name = path.rpartition(".")
        delattr(model.get_submodule(owner), name)

    return apply


REFUSED: dict[str, tuple[Callable[[ViT_Astro], Any], str]] = {
    "an unknown module": (change("blocks.0.mlp.act", constant(Swish())), "test_weights.Swish, which is not among"),
    "an installed but unknown module": (change("blocks.0.drop_path", constant(nn.Tanh())), "Tanh, which is not among"),
    "a tensor too many": (change("extra", constant(nn.Parameter(torch.ones(2)))), "does not use: extra"),
    "a module too many": (change("blocks.1.gate", constant(nn.Linear(2, 2))), "does not use: blocks.1.gate.bias"),
    "a buffer too many": (lambda m: m.register_buffer("mask", torch.ones(2)), "does not use: mask"),
    "a norm of the patches": (change("patch_embed.norm", constant(nn.LayerNorm(24))), "patch_embed.norm is LayerNorm"),
    "another convolution of conv2d_init": (
        change("inception_model.conv2d_init", constant(nn.Conv2d(5, 8, 1))),
        "does not use: inception_model.conv2d_init",
    ),
    "Inception alone": (change("inception_model.Inception_only", constant(True)), "Inception_only is True, not False"),
    "no magnitudes": (change("inception_model.magnitude", constant(False)), "magnitude is False, not True"),
    "the network of the UK paper": (change("inception_model.uk_paper", constant(True)), "uk_paper is True, not False"),
    "GELU by tanh": (change("blocks.0.mlp.act", constant(nn.GELU("tanh"))), "approximate is 'tanh', not 'none'"),
    "SiLU in the MLP": (change("blocks.1.mlp.act", constant(nn.SiLU())), "blocks.1.mlp.act is SiLU, not GELU"),
    "GELU in a head": (change("vit_block.1", constant(nn.GELU())), "vit_head is Linear, GELU, Linear"),
    "ReLU after the last layer": (
        change("concat_block", lambda m: nn.Sequential(*m.concat_block, nn.ReLU())), "Linear, ReLU, Linear, ReLU, not",
    ),
    "an empty head": (change("concat_block", constant(nn.Sequential())), "redshift_head is empty"),
    "no magnitude layers": (change("inception_model.magnitude_block", constant(nn.Sequential())), "head is empty"),
    "no Inception layers": (change("inception_model.vis_inception", constant(nn.Sequential())), "does not begin with"),
    "no pool before the first block": (
        change("inception_model.vis_inception.1", constant(nn.Identity())), "is InceptionBlock; expected average pools",
    ),
    "two pools at once": (
        change("inception_model.vis_inception.2", constant(nn.AvgPool2d(2))), "without InceptionBlocks after it",
    ),
    "a pool with another divisor": (
        change("inception_model.vis_inception.1", constant(nn.AvgPool2d(2, divisor_override=3))), "override is 3",
    ),
    "overlapping pools": (
        change("inception_model.vis_inception.1", constant(nn.AvgPool2d(2, stride=1))), "stride is 1, not 2",
    ),
    "pools of two sizes": (
        change("inception_model.vis_inception.1", constant(nn.AvgPool2d(4))), "pool is 4 in one layer and 2 in",
    ),
    "a flat pool": (change("inception_model.vis_inception.1", constant(nn.AvgPool2d((2, 1)))), "another architecture"),
    "a larger max pool": (
        change("inception_model.vis_inception.2.branch4.0", constant(nn.MaxPool2d(5, 1, 2))), "size is 5, not 3",
    ),
    "ReLU in the parallel convolutions": (change("blocks.0.PCM.2", constant(nn.ReLU())), "0.PCM is not convolution"),
    "strided parallel convolutions": (change("blocks.0.PCM.0.stride", constant((2, 2))), "stride is (2, 2)"),
    "dilated parallel convolutions": (change("blocks.0.PCM.0.dilation", constant((2, 2))), "dilation is (2, 2)"),
    "reflected borders": (change("blocks.0.PCM.0.padding_mode", constant("reflect")), "padding_mode is 'reflect'"),
    "grouped Inception convolutions": (
        change("inception_model.vis_inception.2.branch1.conv.groups", constant(2)), "groups is 2, not 1",
    ),
    "overlapping patches": (change("patch_embed.proj.stride", constant((4, 4))), "patch_embed.proj.stride is (4, 4)"),
    "cutouts that are not square": (change("patch_embed.img_size", constant((16, 64))), "img_size is (16, 64)"),
    "two scales of attention": (change("blocks.1.attn.scale", constant(0.1)), "attention_scale is"),
    "two numbers of heads": (change("blocks.1.attn.num_heads", constant(4)), "heads is 3 in one layer and 4 in"),
    "two LayerNorm eps": (change("blocks.1.norm2.eps", constant(1e-5)), "norm_eps is 1e-06 in one layer and 1e-05 in"),
    "two BatchNorm eps": (change("blocks.1.PCM.1.eps", constant(1e-3)), "convolution_norm_eps is 1e-05 in one layer"),
    "biases in one block": (change("blocks.1.attn.proj.bias", constant(None)), "some layers of the kind attention"),
    "biases of qkv twice": (
        change("blocks.0.attn.qkv.bias", constant(nn.Parameter(torch.ones(72)))),
        "blocks.0.attn.qkv has a bias in addition to",
    ),
    "a class token in the blocks alone": (without("cls_token"), "class_token is True, not False"),
    "no attention scale": (without("blocks.0.attn.scale"), "blocks.0.attn has no attribute scale"),
    "no number of heads": (without("blocks.0.attn.num_heads"), "blocks.0.attn has no attribute num_heads"),
    "no class_token": (without("blocks.0.class_token"), "blocks.0 has no attribute class_token"),
    "no is_custom": (without("inception_model.vis_inception.2.is_custom"), "has no attribute is_custom"),
    "no uk_paper": (without("inception_model.uk_paper"), "inception_model has no attribute uk_paper"),
    "no eps": (without("fc_norm.eps"), "fc_norm has no attribute eps"),
    "no positions": (without("pos_embed"), "the model has no tensor pos_embed"),
    "no patches": (without("patch_embed"), "the model has no module patch_embed"),
    "no blocks": (change("blocks", constant(nn.ModuleList())), "field depth: expected `int` >= 1"),
    "no BatchNorm scale": (change("blocks.0.PCM.1", constant(nn.BatchNorm2d(48, affine=False))), "no tensor weight"),
    "no running statistics": (
        change("blocks.0.PCM.1", constant(nn.BatchNorm2d(48, track_running_stats=False))), "has no tensor running_mean",
    ),
    "no LayerNorm scale": (change("fc_norm", constant(nn.LayerNorm(24, elementwise_affine=False))), "no tensor weight"),
    "five heads of width 24": (
        lambda m: [setattr(block.attn, "num_heads", 5) for block in m.blocks], "width is not a multiple of the heads",  # type: ignore[func-returns-value]
    ),
    "no heads at all": (
        lambda m: [setattr(block.attn, "num_heads", 0) for block in m.blocks], "field heads: expected `int` >= 1",  # type: ignore[func-returns-value]
    ),
    "a word for a number of heads": (change("blocks.0.attn.num_heads", constant("many")), "invalid literal for int"),
    "an infinite scale": (
        lambda m: [setattr(block.attn, "scale", float("inf")) for block in m.blocks],  # type: ignore[func-returns-value]
        "field attention_scale: expected `float` <= ",
    ),
    "an eps that is a list": (change("fc_norm.eps", constant([1])), "another architecture: fc_norm.eps is list"),
    "two predictions": (change("concat_block.2", constant(nn.Linear(16, 2))), "it predicts more than one number"),
    "another shape": (change("head.weight", constant(nn.Parameter(torch.ones(24, 23)))), "weight is (24, 23)"),
    "a flat weight": (change("head.weight", constant(nn.Parameter(torch.ones(24)))), "projection.weight is (24,)"),
    "a flat weight of magnitudes": (
        change("inception_model.magnitude_block.0.weight", constant(nn.Parameter(torch.ones(16)))), "tuple index",
    ),
    "a whole number where a real one belongs": (
        change("fc_norm.weight", constant(nn.Parameter(torch.ones(24, dtype=torch.int64), requires_grad=False))),
        "tensor norm.weight is int64",
    ),
    "a position too many": (change("pos_embed", constant(nn.Parameter(torch.ones(1, 18, 24)))), "is (1, 18, 24)"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_what_the_network_cannot_reproduce_is_refused(
    spoil: Callable[[ViT_Astro], object], says: str, tmp_path: Path
) -> None:
    model = random_network(Sizes()).requires_grad_(False)
    spoil(model)
    uri = save_checkpoint(tmp_path / "a.pt", model)
    with pytest.raises(InputError) as refusal:
        import_checkpoint(uri)
    assert says in str(refusal.value)
    assert_one_sentence(refusal.value, uri)


def assert_one_sentence(error: InputError, uri: str) -> None:
    assert str(error).startswith(uri)
    assert "\n" not in str(error)
    assert not str(error).endswith(".")
    assert any(word in str(error) for word in ("expected", "again", "first:", "must not be trusted"))


def save_object(tmp_path: Path, what: object) -> str:
    torch.save(what, tmp_path / "a.pt")
    return str(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({}, "holds a dictionary (empty), expected a model"),
        (torch.ones(3), "it holds a TensorRef, not a model"),
        (None, "it holds a NoneType, not a model"),
        (nn.Linear(2, 2), "it holds a Linear"),
        (nn.DataParallel(nn.Linear(2, 2)), "it holds a Linear"),
        (
            random_network(Sizes(depth=1)).state_dict(),
            "holds a dictionary (cls_token, pos_embed, fc_norm.weight), expected a model",
        ),
        (Mlp(Sizes()), "upstream_network.Mlp, which is not among"),
    ],
    ids=["a dict", "a tensor", "nothing", "a layer", "a wrapped layer", "a state_dict", "a module of another home"],
)
def test_a_file_of_something_else_is_refused(what: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refusal:
        import_checkpoint(save_object(tmp_path, what))
    assert says in str(refusal.value)
    assert_one_sentence(refusal.value, str(tmp_path / "a.pt"))


# Weights files of something else.


def write(tmp_path: Path, tensors: dict[str, np.ndarray], **metadata: str) -> str:
    path = tmp_path / "a.safetensors"
    path.write_bytes(save_safetensors(tensors, metadata or None))
    return str(path)


def refusal_of(uri: str) -> str:
    with pytest.raises(InputError) as refusal:
        build_network(load_weights(uri))
    assert_one_sentence(refusal.value, uri)
    return str(refusal.value)


def renamed(tensors: dict[str, np.ndarray], old: str, new: str) -> dict[str, np.ndarray]:
    return {new if name == old else name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t | {"norm.weight": np.ones(25, np.float32)}, "weight is (25,), its configuration requires (24,)"),
        (lambda t: t | {"norm.more": np.ones(1, np.float32)}, "norm.more is (1,), its configuration requires none"),
        (lambda t: {k: v for k, v in t.items() if k != "class_token"}, "tensor class_token is absent"),
        (lambda t: renamed(t, "norm.bias", "norm.shift"), "tensor norm.bias is absent"),
        (lambda t: t | {"norm.weight": np.ones(24, np.float64)}, "tensor norm.weight is float64; expected float32"),
        (lambda t: t | {"norm.weight": np.ones(24, np.int64)}, "tensor norm.weight is int64; expected float32"),
        (lambda t: {}, "2 blocks cannot be made of 0 tensors"),
    ],
    ids=["another shape", "one too many", "one missing", "another name", "double", "whole numbers", "none"],
)  # fmt: skip
def test_tensors_that_differ_from_the_configuration_are_refused(
    weights: Weights, spoil: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], says: str, tmp_path: Path
) -> None:
    uri = write(tmp_path, spoil(weights.tensors), format="cosmicai-weights/1", config=weights.config_json)
    assert says in refusal_of(uri)


def test_weights_of_another_configuration_are_refused(weights: Weights, tmp_path: Path) -> None:
    other = structs.replace(weights.config, mlp_width=47).to_json()
    uri = write(tmp_path, weights.tensors, format="cosmicai-weights/1", config=other)
    assert "tensor blocks.0.mlp.0.bias is (48,), its configuration requires (47,)" in refusal_of(uri)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"depth": None}, "field depth: expected `int`, got `null`"),
        ({"depth": "2"}, "field depth: expected `int`, got `str`"),
        ({"depth": 2.0}, "field depth: expected `int`, got `float`"),
        ({"depth": True}, "field depth: expected `int`, got `bool`"),
        ({"depth": -1}, "field depth: expected `int` >= 1"),
        ({"depth": 10**9}, "field depth: expected `int` <= 65536"),
        ({"depth": 10**4}, "10000 blocks cannot be made of"),
        ({"width": 10**30}, "field width: expected `int` <= 65536"),
        ({"width": 0}, "field width: expected `int` >= 1"),
        ({"heads": 5}, "width is not a multiple of the heads"),
        ({"patch_size": 7}, "is not divisible into patches"),
        ({"patch_size": 64}, "is not divisible into patches"),
        ({"pool": 40}, "the cutout is smaller than its average pools"),
        ({"class_token": 1}, "field class_token: expected `bool`, got `int`"),
        ({"attention_scale": "large"}, "field attention_scale: expected `float`, got `str`"),
        ({"attention_scale": float("nan")}, "JSON is malformed"),
        ({"attention_scale": 10**400}, "field attention_scale: number out of range"),
        ({"norm_eps": -1e-6}, "field norm_eps: expected `float` >= 0.0"),
        ({"convolution_kernel": 2}, "kernel is even"),
        ({"convolution_groups": [6]}, "field convolution_groups: expected `array` of length 2"),
        ({"convolution_groups": [6, 6, 6]}, "field convolution_groups: expected `array` of length 2"),
        ({"convolution_groups": [7, 7]}, "groups of a convolution do not divide"),
        ({"vit_head": []}, "field vit_head: expected `array` of length >= 1"),
        ({"vit_head": 20}, "field vit_head: expected `array`, got `int`"),
        ({"vit_head": [20, "20"]}, "field vit_head[1]: expected `int`, got `str`"),
        ({"redshift_head": [16, 2]}, "more than one number"),
        ({"without_bias": "key"}, "field without_bias: expected `array`, got `str`"),
        ({"without_bias": [1]}, "field without_bias[0]: expected `str`, got `int`"),
        ({"inception_stages": []}, "field inception_stages: expected `array` of length >= 1"),
        ({"inception_stages": [[]]}, "field inception_stages[0]: expected `array` of length >= 1"),
        ({"inception_stages": 3}, "field inception_stages: expected `array`, got `int`"),
        ({"inception_stages": [[{"direct": 4}]]}, "object missing required field `reduce_small`"),
        ({"inception_stages": [[[4, 4, 4, 4, 4, 4]]]}, "field inception_stages[0][0]: expected `object`, got `array`"),
        ({"colour": "red"}, "object contains unknown field `colour`"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_invalid_configuration_is_refused(
    weights: Weights, values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = json.dumps(json.loads(weights.config_json) | values)
    assert says in refusal_of(write(tmp_path, weights.tensors, format="cosmicai-weights/1", config=config))


@pytest.mark.parametrize(
    "block", [{"direct": 0}, {"small": "4"}, {"large_kernel": 4}, {"uses_large": 1}, {"colour": "red"}], ids=json.dumps
)
def test_an_invalid_inception_block_is_refused(weights: Weights, block: dict[str, Any], tmp_path: Path) -> None:
    values = json.loads(weights.config_json)
    values["inception_stages"][0][0] |= block
    uri = write(tmp_path, weights.tensors, format="cosmicai-weights/1", config=json.dumps(values))
    assert "its configuration cannot be used: " in refusal_of(uri)


@pytest.mark.parametrize("config", ["", "{", "[]", "null", "{}", '"width"', "[" * 100_000])
def test_other_text_in_place_of_the_configuration_is_refused(weights: Weights, config: str, tmp_path: Path) -> None:
    uri = write(tmp_path, weights.tensors, format="cosmicai-weights/1", config=config)
    assert "its configuration cannot be used: " in refusal_of(uri)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"pool": 10**4000, "inception_stages": 30_000}, "inception_stages"),
        ({"pool": 10**4000}, "pool"),
        ({"inception_stages": 65}, "inception_stages"),
        ({"magnitude_head": [16] * 65}, "magnitude_head"),
        ({"heads": 10**100}, "heads"),
    ],
    ids=["stages", "pool", "one stage too many", "layers", "heads"],
)
def test_absurd_sizes_are_refused_before_anything_is_computed_from_them(
    weights: Weights, values: dict[str, Any], field: str, tmp_path: Path
) -> None:
    changed = json.loads(weights.config_json) | values
    if isinstance(stages := changed["inception_stages"], int):
        changed["inception_stages"] = json.loads(weights.config_json)["inception_stages"][:1] * stages
    uri = write(tmp_path, weights.tensors, format="cosmicai-weights/1", config=json.dumps(changed))
    started = time.perf_counter()
    assert f"its configuration cannot be used: field {field}: expected `" in refusal_of(uri)
    assert time.perf_counter() - started < 5
    done = run("weights", "info", uri)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_a_configuration_with_a_field_missing_is_refused(weights: Weights, tmp_path: Path) -> None:
    values = {name: value for name, value in json.loads(weights.config_json).items() if name != "heads"}
    uri = write(tmp_path, weights.tensors, format="cosmicai-weights/1", config=json.dumps(values))
    assert "field heads is missing" in refusal_of(uri)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"config": "{}"}], ids=["none", "another", "half"])
def test_safetensors_of_others_are_refused(weights: Weights, metadata: dict[str, str], tmp_path: Path) -> None:
    assert 'is a safetensors file without the metadata `format` = "cosmicai-weights/1"' in refusal_of(
        write(tmp_path, weights.tensors, **metadata)
    )


def test_a_configuration_of_our_format_that_is_absent_is_refused(weights: Weights, tmp_path: Path) -> None:
    uri = write(tmp_path, weights.tensors, format="cosmicai-weights/1")
    assert "its configuration cannot be used: " in refusal_of(uri)


def test_weights_in_another_precision_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "holds 'BF16' tensors; expected float32" in refusal_of(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("length", range(32))
def test_a_header_of_any_length_is_read(weights: Weights, length: int, tmp_path: Path) -> None:
    noted = replace(weights, notes={"note": "x" * (8 * length)})  # one of 32 lengths begins with the byte of a pickle
    noted.save(str(tmp_path / "a.safetensors"))
    assert load_weights(str(tmp_path / "a.safetensors")).notes == noted.notes


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 5000, -4, -1])
def test_truncated_weights_are_refused(weights: Weights, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights.save(str(path))
    path.write_bytes(path.read_bytes()[:kept])
    assert ("is empty" if kept == 0 else "is not a whole safetensors file") in refusal_of(str(path))


@pytest.mark.parametrize("content", [b"hello, world", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}" + b"more"])
def test_a_file_of_another_kind_is_refused_as_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    assert "is not a whole safetensors file" in refusal_of(str(tmp_path / "a.safetensors"))


def test_a_checkpoint_in_place_of_weights_is_refused_with_the_command_to_convert_it(tmp_path: Path) -> None:
    uri = save_checkpoint(tmp_path / "a.pt", random_network(Sizes(depth=1)))
    assert f"cosmicai weights import {uri} WEIGHTS.safetensors" in refusal_of(uri)
    import_checkpoint(uri)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "epoch": 3}], ids=["state dict", "trainer"])
def test_weights_and_import_refuse_a_pickle_without_a_model_in_the_same_words(
    wrap: Callable[[dict[str, Any]], Any], zipped: bool, tmp_path: Path
) -> None:
    uri = str(tmp_path / "a.pt")
    torch.save(wrap(random_network(Sizes(depth=1)).state_dict()), uri, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError) as refusal:
        import_checkpoint(uri)
    assert refusal_of(uri) == str(refusal.value)
    assert ("a state dict lacks the sizes and constants" if zipped else "save it again with torch.save") in refusal_of(
        uri
    )


def test_safetensors_are_not_imported(weights: Weights, tmp_path: Path) -> None:
    uri = str(tmp_path / "w.safetensors")
    weights.save(uri)
    with pytest.raises(InputError, match="is a safetensors file, which needs no import; pass it as --weights"):
        import_checkpoint(uri)


def kinds_of_tensors(weights: Weights) -> list[str]:
    """Return one tensor of each kind: of each name without numbers."""
    return list({"".join(filter(lambda letter: not letter.isdigit(), name)): name for name in weights.tensors}.values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -2e9])
def test_weights_that_no_network_can_use_are_refused_with_the_name_of_the_tensor(
    weights: Weights, value: float, tmp_path: Path
) -> None:
    for name in kinds_of_tensors(weights):
        if weights.tensors[name].dtype != np.float32 or (name.endswith("running_var") and value == 3e38):
            continue
        tensor = weights.tensors[name].copy()
        tensor.flat[-1] = value
        uri = write(tmp_path, weights.tensors | {name: tensor}, format="cosmicai-weights/1", config=weights.config_json)
        said = refusal_of(uri)
        assert f"tensor {name} holds " in said
        assert (f"NaN or infinite values (1 of {tensor.size})" in said) == (not np.isfinite(value))


def test_products_of_weights_that_overflow_are_refused(weights: Weights) -> None:
    tensors = {name: tensor.copy() for name, tensor in weights.tensors.items()}
    eps = weights.config.inception_norm_eps
    [norm] = [name for name in tensors if name.endswith("2.direct.1.running_var")]
    tensors[norm][:] = 0  # with an eps of 0 BatchNorm would divide by 0
    config = weights.config_json.replace(f'"inception_norm_eps": {eps}', '"inception_norm_eps": 0.0')
    with pytest.raises(InputError, match="products of its weights are infinite or NaN"):
        fold(replace(weights, tensors=tensors, config_json=config))


def test_weights_are_called_by_their_file_name_and_those_of_the_demo_synthetic(tmp_path: Path) -> None:
    assert WeightsFile("s3://b/some/where/w.safetensors", "0" * 64).label == "w.safetensors"
    assert WeightsFile("/here/w.safetensors", "0" * 64).label == "w.safetensors"
    demo = find_weights("demo")
    assert demo.is_demo and demo.label == "demo weights, trained on synthetic galaxies"
    copy = WeightsFile(str(tmp_path / "mine.safetensors"), demo.sha256)
    assert copy.is_demo and copy.label == "mine.safetensors (demo weights, trained on synthetic galaxies)"


def test_absent_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it does not exist; check the path"):
        load_weights(str(tmp_path / "absent.safetensors"))


def test_a_folder_given_as_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is a folder where a file was expected"):
        load_weights(str(tmp_path))
