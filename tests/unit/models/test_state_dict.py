"""Test that a state dict becomes the same weights as the whole model that it was taken from, or is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cosmicai.errors import InputError
from cosmicai.models.checkpoint_import import import_checkpoint
from cosmicai.models.checkpoint_modules import ALLOWED_CLASSES, Checkpoint, Module
from cosmicai.models.pickle_scan import CHECKPOINT_LIMITS
from cosmicai.models.state_dict import Constants
from cosmicai.models.torch_archive import read_archive
from cosmicai.models.weights import load_weights
from cosmicai.storage.ranges import open_ranges
from support.helpers import run
from support.upstream_network import Block, Sizes, random_network, save_checkpoint

CONSTANTS = Constants(heads=3, norm_eps=1e-6)
BIASES = ("patch", "proj", "fc1", "fc2", "pcm", "head", "vit", "stem", "inception", "magnitude", "concat")
SIZES = {
    "as published, small": Sizes(),
    "twelve blocks": Sizes(depth=12),
    "other heads and eps": Sizes(heads=8, norm_eps=1e-3, final_norm_eps=1e-3, scale=3**-0.5),
    "attention narrower than the tokens": Sizes(attention_width=12, scale=0.5),
    "patches of 4, kernel 3, other groups": Sizes(patch=4, pcm_kernel=3, pcm_groups=(24, 3)),
    "no class token": Sizes(class_token=False),
    "three bands, two magnitudes": Sizes(bands=3, magnitudes=2),
    "no bias at all": Sizes(qkv="none", without_bias=(*BIASES, "inception_head")),
    "biases of queries, keys and values": Sizes(qkv="all"),
    "other Inception channels": Sizes(stem=5, stages=((Block(1, 2, 3, 4, 5, 6),), (Block(6, 5, 4, 3, 2, 1),))),
    "other Inception kernels": Sizes(stages=((Block(2, 2, 2, 2, 2, 2, kernels=(5, 7)),),)),
    "an unused branch in front": Sizes(stages=((Block(2, 2, 2, 2, 2, 2, is_custom=True), Block(2, 2, 2, 2, 2, 2)),)),
    "four Inception stages": Sizes(stages=((Block(3, 3, 3, 3, 3, 3),),) * 4),
    "pools of 4": Sizes(pool=4),
    "deep heads": Sizes(vit_head=(9, 8, 7), inception_head=(6,) * 4, magnitude_head=(5,) * 6, concat_head=(4, 3, 2, 1)),
    "heads of one layer": Sizes(vit_head=(9,), inception_head=(8,), magnitude_head=(7,), concat_head=(1,)),
}


def save(content: object, path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    return str(path)


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_a_state_dict_gives_the_bytes_that_the_whole_model_gives(sizes: Sizes, tmp_path: Path) -> None:
    model = random_network(sizes)
    whole = import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    state = save(model.state_dict(), tmp_path / "state/a.pt")
    imported = import_checkpoint(state, Constants(sizes.heads, sizes.norm_eps))
    for weights, name in ((whole, "whole.safetensors"), (imported, "state.safetensors")):
        weights.save(str(tmp_path / name))
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "state.safetensors").read_bytes()


def test_the_state_dict_of_the_published_fixture_gives_the_bytes_of_the_whole(shared: Path, tmp_path: Path) -> None:
    whole = str(shared / "upstream/checkpoint.pt")
    state: dict[str, torch.Tensor] = {}
    with open_ranges(whole) as reader:
        root = read_archive(whole, reader, ALLOWED_CLASSES, CHECKPOINT_LIMITS).root
        for module in Module(Checkpoint(whole, reader), "", root).walk():
            for name, ref in module.tensor_refs().items():
                state[f"{module.path}.{name}".lstrip(".")] = torch.from_numpy(ref.read(reader))
    import_checkpoint(whole).save(str(tmp_path / "whole"))
    uri = save(state, tmp_path / "state/checkpoint.pt")
    import_checkpoint(uri, Constants(heads=12, norm_eps=1e-6)).save(str(tmp_path / "imported"))
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "imported").read_bytes()


def averaged(model: nn.Module) -> dict[str, Any]:
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: prefixed(model.state_dict(), "module."),
        lambda model: prefixed(model.state_dict(), "module._orig_mod."),
        lambda model: {"state_dict": prefixed(model.state_dict(), "model."), "pytorch-lightning_version": "2.0"},
        lambda model: {"epoch": 3, "model_state_dict": model.state_dict(), "optimizer": {"state": {0: torch.ones(2)}}},
        lambda model: dict(sorted(model.state_dict().items())),
        lambda model: {name: value.clone() for name, value in model.state_dict().items()},
        averaged,
    ],
    ids=["module", "compiled", "Lightning", "training", "sorted", "copied", "averaged"],
)
def test_the_forms_in_which_trainings_save_a_state_dict_are_imported(
    wrap: Callable[[nn.Module], Any], tmp_path: Path
) -> None:
    model = random_network(Sizes(depth=11))
    whole = import_checkpoint(save_checkpoint(tmp_path / "a.pt", model))
    imported = import_checkpoint(save(wrap(model), tmp_path / "b.pt"), CONSTANTS)
    assert imported.config == whole.config
    assert {name: value.tobytes() for name, value in imported.tensors.items()} == {
        name: value.tobytes() for name, value in whole.tensors.items()
    }


def without(state: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: {"model": state, "ema": state}, "several networks (model, ema), expected one; save the one"),
        (lambda state: state | prefixed(state, "ema."), "several networks (the file itself, ema), expected one"),
        (lambda state: prefixed(state, "model.") | {"loss.weight": torch.ones(5)},
         "holds tensors beside the network model: loss.weight; expected a state dict of the network alone"),
        (lambda state: {"weight": torch.ones(3)}, "expected a model: a state dict lacks"),
        (lambda state: without(state, "blocks.0."), "its blocks have the numbers 1"),
        (lambda state: without(state, "PCM"), "it has no module PCM in its NormalCell"),
        (lambda state: without(state, "blocks.1.mlp.fc2"), "blocks.1.mlp has no module fc2"),
        (lambda state: without(state, "vit_block.0"), "tensor vit_head.0.weight is (20, 20)"),
        (lambda state: without(state, "concat_block"), "it has no module concat_block in its ViT_Astro"),
        (lambda state: without(state, "pos_embed"), "'pos_embed'"),
        (lambda state: without(state, "branch3.1"), "it has no module"),
        (lambda state: state | {"extra.weight": torch.ones(4)}, "the network does not use: extra.weight"),
        (lambda state: state | {"inception_model.vis_inception.0.weight": torch.ones(8, 5, 1, 1)},
         "the network does not use: inception_model.conv2d_init"),
        (lambda state: state | {"patch_embed.proj.weight": torch.ones(24)}, "is of another architecture"),
    ],
)  # fmt: skip
def test_a_state_dict_that_leaves_something_open_is_refused(
    change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path
) -> None:
    state = change(dict(random_network(Sizes()).state_dict()))
    with pytest.raises(InputError) as refused:
        import_checkpoint(save(state, tmp_path / "a.pt"), CONSTANTS)
    assert says in str(refused.value)


def test_sizes_that_fit_several_networks_are_refused(tmp_path: Path) -> None:
    sizes = Sizes(pool=9, stages=((Block(3, 3, 3, 3, 3, 3),),))  # pools of 10 give the same size
    with pytest.raises(InputError, match="the sizes of its Inception branch fit average pools of 9 or 10"):
        import_checkpoint(save(random_network(sizes).state_dict(), tmp_path / "a.pt"), CONSTANTS)


@pytest.mark.parametrize("heads", [5, 25, 2**16])
def test_heads_that_do_not_divide_the_attention_are_refused(heads: int, tmp_path: Path) -> None:
    uri = save(random_network(Sizes()).state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"too narrow for|not a multiple of the heads"):
        import_checkpoint(uri, replace(CONSTANTS, heads=heads))


def test_the_command_asks_for_the_constants_of_a_state_dict_and_of_nothing_else(tmp_path: Path) -> None:
    state = save(random_network(Sizes()).state_dict(), tmp_path / "state.pt")
    whole = save_checkpoint(tmp_path / "whole.pt", random_network(Sizes()))
    out, given = str(tmp_path / "w.safetensors"), ("--heads", "3", "--norm-eps", "1e-6")
    for arguments, says in (
        ((state, out), "give those of the published network with --heads 12 --norm-eps 1e-6"),
        ((state, out, *given[:2]), "--heads and --norm-eps belong together"),
        ((whole, out, *given), "holds a whole model, which has its own number of heads and eps; leave out --heads"),
        ((state, out, *given[:3], "nan"), "nan is not a number"),
        ((state, out, "--heads", "0", *given[2:]), "is not in the range"),
    ):
        done = run("weights", "import", *arguments)
        assert (done.returncode, done.stdout) == (2, "") and says in done.stderr, done.stderr
    assert not Path(out).exists()
    assert run("weights", "import", state, out, *given).returncode == 0
    assert load_weights(out).config.heads == 3


def test_a_checkpoint_of_a_training_with_other_classes_says_how_to_save_the_network_alone(tmp_path: Path) -> None:
    saved = {"state_dict": random_network(Sizes()).state_dict(), "hyper_parameters": argparse.Namespace(width=24)}
    with pytest.raises(InputError, match=r"names argparse.Namespace, which .* save its state dict alone"):
        import_checkpoint(save(saved, tmp_path / "a.ckpt"), CONSTANTS)
