"""The published network of which only the tensors were saved, as the tree of modules that they belong to.

Every size is read off the tensors. What no tensor shows is given (`Constants`) or as the published classes have it: the
activations, the padding, and the eps of BatchNorm, 1e-5. What the tensors leave open is refused, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..storage import natural_key
from .torch_archive import StandIn, TensorRef

ANCHOR = "patch_embed.proj.weight"  # by which the tensors of a network are found, whatever stands before the name
COUNTERS = frozenset({"n_averaged"})  # of torch's averaged models, beside the network
_BATCH_NORM_EPS = 1e-5  # torch's default, which the published network has
_NESTING = 3  # dictionaries within dictionaries that are searched
# Kinds of the modules that are known by their names; those of layers are seen from their tensors.
_KINDS = {
    "patch_embed": "PatchEmbed", "blocks": "ModuleList", "attn": "Attention", "mlp": "Mlp", "PCM": "Sequential",
    "inception_model": "Input_Mix_Model", "vis_inception": "Sequential", "branch2": "Sequential",
    "branch3": "Sequential", "branch4": "Sequential", "vit_block": "Sequential", "concat_block": "Sequential",
    "magnitude_block": "Sequential",
}  # fmt: skip
_MARKS = {"branch1": "InceptionBlock", "conv": "ConvBlock", "attn": "NormalCell"}  # those known by a module in them


@dataclass(frozen=True)
class Constants:
    """What a state dict does not hold: the number of attention heads, and the eps of all LayerNorms."""

    heads: int
    norm_eps: float


@dataclass(frozen=True)
class SavedNetwork:
    """A network in what was saved: where, its tensors by published names, and the names of those beside it."""

    where: str
    tensors: dict[str, TensorRef]
    others: tuple[str, ...]


def find_networks(saved: Mapping[Any, Any], where: str = "", depth: int = _NESTING) -> Iterator[SavedNetwork]:
    """Yield the networks in a dictionary and those in it, whatever prefix torch put before the names."""
    found = {str(key): value for key, value in saved.items() if isinstance(value, TensorRef)}
    for name in [name for name in found if name.endswith(ANCHOR)]:
        prefix = name.removesuffix(ANCHOR)
        if prefix[-1:] in ("", "."):
            tensors = {key.removeprefix(prefix): ref for key, ref in found.items() if key.startswith(prefix)}
            others = tuple(key for key in found if not key.startswith(prefix))
            yield SavedNetwork(f"{where}{prefix}".rstrip("."), tensors, others)
    for name, value in saved.items():
        if depth and isinstance(value, Mapping):
            yield from find_networks(value, f"{where}{name}.", depth - 1)


def build_model(tensors: Mapping[str, TensorRef], constants: Constants) -> StandIn:
    """Return the model with these tensors, as the pickle of a whole one would describe it.

    Raises ValueError if a module is missing, or if the tensors leave one of its sizes open.
    """
    model = _build(tensors, "", "ViT_Astro", constants)
    class_token = "cls_token" in tensors
    embed, inception = _child(model, "patch_embed"), _child(model, "inception_model")
    patch = _child(embed, "proj")
    width, size = _shape(patch)[0], _shape(patch)[-1]
    patch.state |= {"stride": (size, size), "padding": (0, 0)}
    image_size = math.isqrt(tensors["pos_embed"].shape[1] - class_token) * size
    embed.state["img_size"] = (image_size, image_size)
    embed.state["_modules"].setdefault("norm", _module("Identity"))
    blocks = _child(model, "blocks").state["_modules"]
    if list(blocks) != [str(number) for number in range(len(blocks))]:
        raise ValueError(f"its blocks have the numbers {', '.join(blocks)}")
    for block in blocks.values():
        _complete_block(block, width, constants.heads)
        block.state["class_token"] = class_token
    for parent, name in ((model, "vit_block"), (model, "concat_block"), (inception, "magnitude_block")):
        _add_activations(_child(parent, name))
    inception.state |= {"Inception_only": False, "magnitude": True, "uk_paper": False}
    _complete_inception(_child(inception, "vis_inception"), image_size)
    return model


def _module(kind: str, **state: Any) -> StandIn:
    module: StandIn = type("StandIn", (StandIn,), {"qualified_name": kind})()
    module.state = {"_parameters": {}, "_modules": {}, **state}
    return module


def _build(tensors: Mapping[str, TensorRef], name: str, kind: str, constants: Constants) -> StandIn:
    """Return the module of this name with these tensors, its own and those of the modules in it."""
    own = {key: ref for key, ref in tensors.items() if "." not in key}
    inner: dict[str, dict[str, TensorRef]] = {}
    for key, ref in tensors.items():
        head, dot, rest = key.partition(".")
        if dot:
            inner.setdefault(head, {})[rest] = ref
    if not kind:
        kind = _KINDS.get(name) or next((found for mark, found in _MARKS.items() if mark in inner), "")
    layer, attributes = _describe_layer(own, constants)
    modules = {key: _build(inner[key], key, "", constants) for key in sorted(inner, key=natural_key)}
    return _module(kind or layer, _parameters=own, _modules=modules, **attributes)


def _describe_layer(tensors: Mapping[str, TensorRef], constants: Constants) -> tuple[str, dict[str, Any]]:
    """Return the kind of a layer with these tensors, and its attributes; a convolution keeps the size of its input."""
    shape = tensors["weight"].shape if "weight" in tensors else ()
    if "running_var" in tensors:
        return "BatchNorm2d", {"eps": _BATCH_NORM_EPS}
    if len(shape) == 4:
        kernel = shape[2:]
        return "Conv2d", {
            "kernel_size": kernel, "stride": (1, 1), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros",
            "padding": tuple(size // 2 for size in kernel),
        }  # fmt: skip
    return {1: ("LayerNorm", {"eps": constants.norm_eps}), 2: ("Linear", {})}.get(len(shape), ("Module", {}))


def _child(module: StandIn, *path: str) -> StandIn:
    for name in path:
        if name not in module.state["_modules"]:
            raise ValueError(f"it has no module {'.'.join(path)} in its {module.qualified_name}")
        module = module.state["_modules"][name]
    return module


def _shape(layer: StandIn) -> tuple[int, ...]:
    if "weight" not in layer.state["_parameters"]:
        raise ValueError(f"a {layer.qualified_name} has no tensor weight")
    shape: tuple[int, ...] = layer.state["_parameters"]["weight"].shape
    return shape


def _insert(sequence: StandIn, added: Mapping[int, StandIn]) -> None:
    """Insert modules without tensors at these places of a Sequential."""
    modules = {str(place): module for place, module in added.items()} | sequence.state["_modules"]
    sequence.state["_modules"] = {name: modules[name] for name in sorted(modules, key=natural_key)}


def _places(sequence: StandIn) -> list[int]:
    return [int(name) for name in sequence.state["_modules"]]


def _add_activations(sequence: StandIn, first: int = 0) -> None:
    """Insert ReLU between Linear layers that leave one place between them."""
    places = [place for place in _places(sequence) if place >= first]
    _insert(sequence, {place + 1: _module("ReLU") for place in places[:-1] if place + 2 in places})


def _complete_block(block: StandIn, width: int, heads: int) -> None:
    """Add to a block of the transformer what has no tensors; convolutions in groups read `width` channels."""
    attention, parallel = _child(block, "attn"), _child(block, "PCM")
    head_width = _shape(_child(attention, "qkv"))[0] // 3 // heads
    if head_width < 1:
        raise ValueError(f"its attention is too narrow for {heads} heads")
    attention.state |= {"num_heads": heads, "scale": head_width**-0.5}
    _child(block, "mlp").state["_modules"]["act"] = _module("GELU", approximate="none")
    first, last = _child(parallel, "0"), _child(parallel, "3")
    for layer, channels in ((first, width), (last, _shape(first)[0])):
        layer.state["groups"] = channels // _shape(layer)[1]
    _insert(parallel, {2: _module("SiLU")})


def _complete_inception(sequence: StandIn, image_size: int) -> None:
    """Add pools, Flatten and activations to the Inception branch, and to its blocks whether they use their 5x5 branch.

    A place without tensors in front of the last block is an average pool, the one behind it Flatten.
    """
    modules = sequence.state["_modules"]
    blocks = [module for module in modules.values() if module.qualified_name == "InceptionBlock"]
    if not blocks:
        raise ValueError("it has no InceptionBlock")
    end = max(place for place in _places(sequence) if modules[str(place)] in blocks)
    pools = [place for place in range(1, end) if str(place) not in modules]
    features = _shape(_child(sequence, str(end + 2)))[1]
    inputs = [_shape(_child(block, "branch1", "conv"))[1] for block in blocks]
    for block, following in zip(blocks[:-1], inputs[1:], strict=True):
        block.state["is_custom"] = _channels(block, is_custom=True) == following
    for block in blocks:
        pool_first = _module("MaxPool2d", kernel_size=3, stride=1, padding=1, dilation=1, ceil_mode=False)
        _insert(_child(block, "branch4"), {0: pool_first})
    fits = [
        (pool, is_custom)
        for pool in range(1, image_size + 1)
        for is_custom in (False, True)
        if (image_size // pool ** len(pools)) ** 2 * _channels(blocks[-1], is_custom) == features
    ]
    if len(fits) != 1:
        found = "contradict each other" if not fits else f"fit average pools of {' or '.join(str(n) for n, _ in fits)}"
        raise ValueError(f"the sizes of its Inception branch {found}")
    pool, blocks[-1].state["is_custom"] = fits[0]
    average = {"kernel_size": pool, "stride": pool, "padding": 0, "ceil_mode": False, "divisor_override": None}
    _insert(sequence, {place: _module("AvgPool2d", **average) for place in pools} | {end + 1: _module("Flatten")})
    _add_activations(sequence, end + 2)


def _channels(block: StandIn, is_custom: bool) -> int:
    """Return the output channels of an Inception block, which uses its 5x5 branch unless it is custom."""
    names = [("branch1",), ("branch2", "1"), ("branch4", "1"), *([] if is_custom else [("branch3", "1")])]
    return sum(_shape(_child(block, *name, "conv"))[0] for name in names)
