"""Imports the published AstroMAE checkpoint: a pickled DataParallel(ViT_Astro) whose classes nobody has installed.

Nothing of the pickle is executed (see `torch_archive`). Every size and constant is read off the tensors and the
modules' attributes; what this network could not reproduce exactly is refused, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..storage import basename
from ..storage.ranges import open_ranges
from .checkpoint_modules import ALLOWED_CLASSES, Checkpoint, Module
from .config import AstroMAEConfig, InceptionConfig
from .torch_archive import StandIn, read_archive
from .weights import Weights, check


class _Importer:
    """Collects our tensors and the constants found on the way."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tensors: dict[str, NDArray[Any]] = {}
        self.constants: dict[str, Any] = {}
        self.bias: dict[str, bool] = {}

    def constant(self, name: str, value: Any, where: Module) -> None:
        """Notes a constant; the network knows one value of it for all layers."""
        if self.constants.setdefault(name, value) != value:
            raise self.checkpoint.refuse(f"{name} is {self.constants[name]} in one layer and {value} in {where.path}")

    def has_bias(self, kind: str, present: bool, where: Module) -> None:
        if self.bias.setdefault(kind, present) != present:
            raise self.checkpoint.refuse(f"some layers of the kind {kind} have a bias and {where.path} differs")

    def layer(self, name: str, module: Module, kind: str) -> None:
        """A Linear or Conv2d layer."""
        self.tensors[f"{name}.weight"] = module.tensor("weight")
        self.has_bias(kind, module.has("bias"), module)
        if module.has("bias"):
            self.tensors[f"{name}.bias"] = module.tensor("bias")

    def convolution(self, name: str, module: Module, kind: str) -> int:
        """A convolution that keeps the grid's size; returns its kernel size."""
        kernel = module.shape("weight")[-1]
        module.demand(
            kernel_size=(kernel, kernel), stride=(1, 1), dilation=(1, 1), padding_mode="zeros",
            padding=(kernel // 2, kernel // 2),
        )  # fmt: skip
        self.layer(name, module, kind)
        return kernel

    def norm(self, name: str, module: Module, constant: str) -> None:
        """A LayerNorm or BatchNorm with learned scale and shift."""
        self.constant(constant, float(module.attribute("eps")), module)
        names = ["weight", "bias"]
        if module.kind == "BatchNorm2d":
            names += ["running_mean", "running_var", "num_batches_tracked"]
        for part in names:
            self.tensors[f"{name}.{part}"] = module.tensor(part)

    def perceptron(self, name: str, modules: list[Module]) -> tuple[int, ...]:
        """Linear layers with ReLU between them; returns their widths."""
        expected = [("Linear", "ReLU")[index % 2] for index in range(len(modules))]
        if [module.kind for module in modules] != expected or len(modules) % 2 == 0:
            found = ", ".join(module.kind for module in modules)
            raise self.checkpoint.refuse(f"{name} is {found or 'empty'}, not Linear layers with ReLU between them")
        for index in range(0, len(modules), 2):
            self.layer(f"{name}.{index}", modules[index], name)
        return tuple(module.shape("weight")[0] for module in modules[::2])

    def attention(self, name: str, module: Module) -> None:
        qkv = module.child("qkv", "Linear")
        weight = qkv.tensor("weight")
        self.tensors[f"{name}.qkv.weight"] = weight
        width = len(weight) // 3
        self.constant("attention_width", width, module)
        self.constant("heads", int(module.attribute("num_heads")), module)
        self.constant("attention_scale", float(module.attribute("scale")), module)
        if qkv.has("bias") and any(module.has(own) for own in ("q_bias", "k_bias", "v_bias")):
            raise self.checkpoint.refuse(f"{qkv.path} has a bias beside those of {module.path}")
        joint = np.split(qkv.tensor("bias"), 3) if qkv.has("bias") else [None, None, None]
        for kind, own, part in zip(("query", "key", "value"), ("q_bias", "k_bias", "v_bias"), joint, strict=True):
            bias = module.tensor(own) if module.has(own) else part
            self.has_bias(kind, bias is not None, module)
            if bias is not None:
                self.tensors[f"{name}.{kind}_bias"] = bias
        self.layer(f"{name}.proj", module.child("proj", "Linear"), "attention")

    def block(self, name: str, module: Module, class_token: bool) -> None:
        module.demand(class_token=class_token)
        self.norm(f"{name}.norm1", module.child("norm1", "LayerNorm"), "norm_eps")
        self.norm(f"{name}.norm2", module.child("norm2", "LayerNorm"), "norm_eps")
        self.attention(f"{name}.attention", module.child("attn"))
        mlp = module.child("mlp")
        mlp.child("act", "GELU").demand(approximate="none")
        self.layer(f"{name}.mlp.0", mlp.child("fc1", "Linear"), "mlp_in")
        self.layer(f"{name}.mlp.2", mlp.child("fc2", "Linear"), "mlp_out")
        self.constant("mlp_width", mlp.child("fc1").shape("weight")[0], mlp)
        parallel = module.child("PCM", "Sequential").layers()
        if [layer.kind for layer in parallel] != ["Conv2d", "BatchNorm2d", "SiLU", "Conv2d"]:
            raise self.checkpoint.refuse(f"{name}.PCM is not convolution, BatchNorm, SiLU, convolution")
        first, norm, _, last = parallel
        self.constant("convolution_kernel", self.convolution(f"{name}.convolution.0", first, "convolution_in"), first)
        self.norm(f"{name}.convolution.1", norm, "convolution_norm_eps")
        self.constant("convolution_kernel", self.convolution(f"{name}.convolution.3", last, "convolution_out"), last)
        self.constant("convolution_width", first.shape("weight")[0], first)
        self.constant("convolution_groups", (int(first.attribute("groups")), int(last.attribute("groups"))), first)

    def conv_block(self, name: str, module: Module) -> tuple[int, int]:
        """Convolution, BatchNorm, ReLU of the Inception branch; returns output channels and kernel size."""
        convolution = module.child("conv", "Conv2d")
        convolution.demand(groups=1)
        kernel = self.convolution(f"{name}.0", convolution, "inception")
        self.norm(f"{name}.1", module.child("bn", "BatchNorm2d"), "inception_norm_eps")
        return convolution.shape("weight")[0], kernel

    def inception_block(self, name: str, module: Module) -> InceptionConfig:
        direct, _ = self.conv_block(f"{name}.direct", module.child("branch1", "ConvBlock"))
        small, large = module.child("branch2", "Sequential"), module.child("branch3", "Sequential")
        reduce_small, _ = self.conv_block(f"{name}.small.0", small.child("0", "ConvBlock"))
        small_out, small_kernel = self.conv_block(f"{name}.small.1", small.child("1", "ConvBlock"))
        reduce_large, _ = self.conv_block(f"{name}.large.0", large.child("0", "ConvBlock"))
        large_out, large_kernel = self.conv_block(f"{name}.large.1", large.child("1", "ConvBlock"))
        pooled = module.child("branch4", "Sequential")
        pooled.child("0", "MaxPool2d").demand(kernel_size=3, stride=1, padding=1, dilation=1, ceil_mode=False)
        pooled_out, _ = self.conv_block(f"{name}.pooled.1", pooled.child("1", "ConvBlock"))
        uses_large = not module.attribute("is_custom")
        return InceptionConfig(
            direct, reduce_small, small_out, reduce_large, large_out, pooled_out, small_kernel, large_kernel, uses_large
        )

    def inception(self, module: Module) -> None:
        layers = module.layers()
        flatten = next((index for index, layer in enumerate(layers) if layer.kind == "Flatten"), len(layers))
        if not layers or layers[0].kind != "Conv2d":
            raise self.checkpoint.refuse(f"{module.path} does not begin with a convolution")
        stem, *body = layers[:flatten]
        stem.demand(groups=1)
        self.constants["stem_kernel"] = self.convolution("inception.0", stem, "stem")
        self.constants["stem_channels"] = stem.shape("weight")[0]
        stages: list[list[InceptionConfig]] = []
        for index, layer in enumerate(body, start=1):
            if layer.kind == "AvgPool2d":
                size = layer.attribute("kernel_size")
                layer.demand(stride=size, padding=0, ceil_mode=False, divisor_override=None)
                self.constant("pool", int(size), layer)
                stages.append([])
            elif layer.kind == "InceptionBlock" and stages:
                stages[-1].append(self.inception_block(f"inception.{index}", layer))
            else:
                raise self.checkpoint.refuse(
                    f"{layer.path} is {layer.kind}; expected average pools and InceptionBlocks"
                )
        if not stages or not all(stages):
            raise self.checkpoint.refuse(f"{module.path} has an average pool without InceptionBlocks after it")
        self.constants["inception_stages"] = tuple(map(tuple, stages))
        self.constants["inception_head"] = self.perceptron("inception_head", layers[flatten + 1 :])

    def network(self, model: Module) -> None:
        embed = model.child("patch_embed", "PatchEmbed")
        patch = embed.child("proj", "Conv2d")
        size = patch.shape("weight")[-1]
        patch.demand(kernel_size=(size, size), stride=(size, size), padding=(0, 0), dilation=(1, 1), groups=1)
        self.layer("patch", patch, "patch")
        class_token = model.has("cls_token")
        if class_token:
            self.tensors["class_token"] = model.tensor("cls_token")
        position = self.tensors["position"] = model.tensor("pos_embed")
        patches = position.shape[1] - int(class_token)
        image_size = math.isqrt(patches) * size
        embed.demand(img_size=(image_size, image_size))
        embed.child("norm", "Identity")
        blocks = list(model.child("blocks").children().values())
        for index, block in enumerate(blocks):
            self.block(f"blocks.{index}", block, class_token)
        self.norm("norm", model.child("fc_norm", "LayerNorm"), "final_norm_eps")
        self.layer("projection", model.child("head", "Linear"), "projection")

        mixed = model.child("inception_model")
        mixed.demand(Inception_only=False, magnitude=True, uk_paper=False)
        self.inception(mixed.child("vis_inception", "Sequential"))
        stem, alias = mixed.child("vis_inception").child("0"), mixed.children().get("conv2d_init")
        if alias is not None and alias.refs() == stem.refs():
            self.checkpoint.used |= {f"{alias.path}.{name}" for name in alias.refs()}
        magnitude = mixed.child("magnitude_block", "Sequential").layers()
        magnitude_head = self.perceptron("magnitude_head", magnitude)
        self.constants |= {
            "bands": patch.shape("weight")[1],
            "image_size": image_size,
            "patch_size": size,
            "width": patch.shape("weight")[0],
            "depth": len(blocks),
            "class_token": class_token,
            "projection_width": model.child("head").shape("weight")[0],
            "vit_head": self.perceptron("vit_head", model.child("vit_block", "Sequential").layers()),
            "magnitudes": magnitude[0].shape("weight")[1],
            "magnitude_head": magnitude_head,
            "redshift_head": self.perceptron("redshift_head", model.child("concat_block", "Sequential").layers()),
        }
        self.constants["without_bias"] = tuple(sorted(kind for kind, present in self.bias.items() if not present))

    def model(self, root: Module) -> AstroMAEConfig:
        """Collects the whole model, alone or in a DataParallel, and returns its configuration."""
        model = root
        if root.kind == "DataParallel":
            model = Module(self.checkpoint, "", root.child("module").stand_in)
        if model.kind != "ViT_Astro":
            raise self.checkpoint.refuse(f"it holds a {model.kind}")
        self.network(model)
        _refuse_leftovers(self.checkpoint, model.walk())
        return AstroMAEConfig(**self.constants)


def import_checkpoint(uri: str) -> Weights:
    """The weights of a published checkpoint.

    Raises UnsafePickleError if its pickle names a global outside the allow-list, InputError if the file is damaged or
    holds another architecture.
    """
    with open_ranges(uri) as reader:
        archive = read_archive(uri, reader, ALLOWED_CLASSES)
        checkpoint = Checkpoint(uri, reader)
        if not isinstance(archive.root, StandIn):
            raise checkpoint.refuse(f"it holds a {type(archive.root).__name__}, not a model")
        importer = _Importer(checkpoint)
        try:
            config = importer.model(Module(checkpoint, "", archive.root))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # What should be a size, a name or a dictionary can be anything in a pickle.
            raise checkpoint.refuse(str(error).partition("\n")[0]) from error
    weights = Weights(config.to_json(), importer.tensors, {"imported_from": basename(uri)}, uri)
    check(weights)  # names and shapes agree, or it is refused here
    return weights


def _refuse_leftovers(checkpoint: Checkpoint, modules: Iterable[Module]) -> None:
    found = {f"{module.path}.{name}".lstrip(".") for module in modules for name in module.refs()}
    if left := sorted(found - checkpoint.used):
        raise checkpoint.refuse(f"it holds tensors that the network has no place for: {', '.join(left[:5])}")
