"""Import the published AstroMAE checkpoint: a pickled DataParallel(ViT_Astro) whose classes are not installed.

Nothing of the pickle is executed (see `torch_archive`). Every size and constant comes from the tensors and the
modules' attributes; a checkpoint that this network cannot reproduce exactly is refused, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import convert
from ..storage import basename
from ..storage.ranges import open_ranges
from .checkpoint_modules import Checkpoint, Module
from .config import AstroMAEConfig
from .saved_model import read_model
from .state_dict import Constants
from .weights import Weights, check_architecture


class _Importer:
    """Collects our tensors, the constants of the configuration, and the kinds of layer that have a bias."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tensors: dict[str, NDArray[Any]] = {}
        self.constants: dict[str, Any] = {}
        self.bias: dict[str, bool] = {}

    def record_constant(self, name: str, value: Any, where: Module) -> None:
        """Record a constant, which must have the same value in all layers."""
        if self.constants.setdefault(name, value) != value:
            raise self.checkpoint.mismatch(f"{name} is {self.constants[name]} in one layer and {value} in {where.path}")

    def record_bias(self, kind: str, present: bool, where: Module) -> None:
        if self.bias.setdefault(kind, present) != present:
            raise self.checkpoint.mismatch(f"some layers of the kind {kind} have a bias and {where.path} differs")

    def import_layer(self, name: str, module: Module, kind: str) -> None:
        """Import a Linear or Conv2d layer."""
        self.tensors[f"{name}.weight"] = module.tensor("weight")
        self.record_bias(kind, module.has_tensor("bias"), module)
        if module.has_tensor("bias"):
            self.tensors[f"{name}.bias"] = module.tensor("bias")

    def import_convolution(self, name: str, module: Module, kind: str) -> int:
        """Import a convolution that keeps the grid's size, and return its kernel size."""
        kernel = module.shape("weight")[-1]
        module.require(
            kernel_size=(kernel, kernel), stride=(1, 1), dilation=(1, 1), padding_mode="zeros",
            padding=(kernel // 2, kernel // 2),
        )  # fmt: skip
        self.import_layer(name, module, kind)
        return kernel

    def import_norm(self, name: str, module: Module, constant: str) -> None:
        """Import a LayerNorm or BatchNorm with learned scale and shift."""
        self.record_constant(constant, float(module.attribute("eps")), module)
        names = ["weight", "bias"]
        if module.kind == "BatchNorm2d":
            names += ["running_mean", "running_var", "num_batches_tracked"]
        for part in names:
            self.tensors[f"{name}.{part}"] = module.tensor(part)

    def import_perceptron(self, name: str, modules: list[Module]) -> tuple[int, ...]:
        """Import Linear layers with ReLU between them, and return their widths."""
        expected = [("Linear", "ReLU")[index % 2] for index in range(len(modules))]
        if [module.kind for module in modules] != expected or len(modules) % 2 == 0:
            found = ", ".join(module.kind for module in modules)
            raise self.checkpoint.mismatch(f"{name} is {found or 'empty'}, not Linear layers with ReLU between them")
        for index in range(0, len(modules), 2):
            self.import_layer(f"{name}.{index}", modules[index], name)
        return tuple(module.shape("weight")[0] for module in modules[::2])

    def import_attention(self, name: str, module: Module) -> None:
        qkv = module.child("qkv", "Linear")
        weight = qkv.tensor("weight")
        self.tensors[f"{name}.qkv.weight"] = weight
        width = len(weight) // 3
        self.record_constant("attention_width", width, module)
        self.record_constant("heads", int(module.attribute("num_heads")), module)
        self.record_constant("attention_scale", float(module.attribute("scale")), module)
        if qkv.has_tensor("bias") and any(module.has_tensor(own) for own in ("q_bias", "k_bias", "v_bias")):
            raise self.checkpoint.mismatch(f"{qkv.path} has a bias in addition to those of {module.path}")
        joint = np.split(qkv.tensor("bias"), 3) if qkv.has_tensor("bias") else [None, None, None]
        for kind, own, part in zip(("query", "key", "value"), ("q_bias", "k_bias", "v_bias"), joint, strict=True):
            bias = module.tensor(own) if module.has_tensor(own) else part
            self.record_bias(kind, bias is not None, module)
            if bias is not None:
                self.tensors[f"{name}.{kind}_bias"] = bias
        self.import_layer(f"{name}.proj", module.child("proj", "Linear"), "attention")

    def import_block(self, name: str, module: Module, class_token: bool) -> None:
        module.require(class_token=class_token)
        self.import_norm(f"{name}.norm1", module.child("norm1", "LayerNorm"), "norm_eps")
        self.import_norm(f"{name}.norm2", module.child("norm2", "LayerNorm"), "norm_eps")
        self.import_attention(f"{name}.attention", module.child("attn"))
        mlp = module.child("mlp")
        mlp.child("act", "GELU").require_if_present(approximate="none")  # which torch before 1.12 does not have
        self.import_layer(f"{name}.mlp.0", mlp.child("fc1", "Linear"), "mlp_in")
        self.import_layer(f"{name}.mlp.2", mlp.child("fc2", "Linear"), "mlp_out")
        self.record_constant("mlp_width", mlp.child("fc1").shape("weight")[0], mlp)
        parallel = module.child("PCM", "Sequential").layers()
        if [layer.kind for layer in parallel] != ["Conv2d", "BatchNorm2d", "SiLU", "Conv2d"]:
            raise self.checkpoint.mismatch(f"{name}.PCM is not convolution, BatchNorm, SiLU, convolution")
        first, norm, _, last = parallel
        self.record_constant(
            "convolution_kernel", self.import_convolution(f"{name}.convolution.0", first, "convolution_in"), first
        )
        self.import_norm(f"{name}.convolution.1", norm, "convolution_norm_eps")
        self.record_constant(
            "convolution_kernel", self.import_convolution(f"{name}.convolution.3", last, "convolution_out"), last
        )
        self.record_constant("convolution_width", first.shape("weight")[0], first)
        self.record_constant(
            "convolution_groups", (int(first.attribute("groups")), int(last.attribute("groups"))), first
        )

    def import_conv_block(self, name: str, module: Module) -> tuple[int, int]:
        """Import convolution, BatchNorm, ReLU of the Inception branch; return output channels and kernel size."""
        convolution = module.child("conv", "Conv2d")
        convolution.require(groups=1)
        kernel = self.import_convolution(f"{name}.0", convolution, "inception")
        self.import_norm(f"{name}.1", module.child("bn", "BatchNorm2d"), "inception_norm_eps")
        return convolution.shape("weight")[0], kernel

    def import_inception_block(self, name: str, module: Module) -> dict[str, Any]:
        """Import an Inception block, and return the fields of its `InceptionConfig`."""
        direct, _ = self.import_conv_block(f"{name}.direct", module.child("branch1", "ConvBlock"))
        small, large = module.child("branch2", "Sequential"), module.child("branch3", "Sequential")
        reduce_small, _ = self.import_conv_block(f"{name}.small.0", small.child("0", "ConvBlock"))
        small_out, small_kernel = self.import_conv_block(f"{name}.small.1", small.child("1", "ConvBlock"))
        reduce_large, _ = self.import_conv_block(f"{name}.large.0", large.child("0", "ConvBlock"))
        large_out, large_kernel = self.import_conv_block(f"{name}.large.1", large.child("1", "ConvBlock"))
        pooled = module.child("branch4", "Sequential")
        pooled.child("0", "MaxPool2d").require(kernel_size=3, stride=1, padding=1, dilation=1, ceil_mode=False)
        pooled_out, _ = self.import_conv_block(f"{name}.pooled.1", pooled.child("1", "ConvBlock"))
        uses_large = not module.attribute("is_custom")
        return {
            "direct": direct, "reduce_small": reduce_small, "small": small_out, "reduce_large": reduce_large,
            "large": large_out, "pooled": pooled_out, "small_kernel": small_kernel, "large_kernel": large_kernel,
            "uses_large": uses_large,
        }  # fmt: skip

    def import_inception(self, module: Module) -> None:
        layers = module.layers()
        flatten = next((index for index, layer in enumerate(layers) if layer.kind == "Flatten"), len(layers))
        if not layers or layers[0].kind != "Conv2d":
            raise self.checkpoint.mismatch(f"{module.path} does not begin with a convolution")
        stem, *body = layers[:flatten]
        stem.require(groups=1)
        self.constants["stem_kernel"] = self.import_convolution("inception.0", stem, "stem")
        self.constants["stem_channels"] = stem.shape("weight")[0]
        stages: list[list[dict[str, Any]]] = []
        for index, layer in enumerate(body, start=1):
            if layer.kind == "AvgPool2d":
                size = layer.attribute("kernel_size")
                layer.require(stride=size, padding=0, ceil_mode=False, divisor_override=None)
                self.record_constant("pool", int(size), layer)
                stages.append([])
            elif layer.kind == "InceptionBlock" and stages:
                stages[-1].append(self.import_inception_block(f"inception.{index}", layer))
            else:
                raise self.checkpoint.mismatch(
                    f"{layer.path} is {layer.kind}; expected average pools and InceptionBlocks"
                )
        if not stages or not all(stages):
            raise self.checkpoint.mismatch(f"{module.path} has an average pool without InceptionBlocks after it")
        self.constants["inception_stages"] = tuple(map(tuple, stages))
        self.constants["inception_head"] = self.import_perceptron("inception_head", layers[flatten + 1 :])

    def import_network(self, model: Module) -> None:
        embed = model.child("patch_embed", "PatchEmbed")
        patch = embed.child("proj", "Conv2d")
        size = patch.shape("weight")[-1]
        patch.require(kernel_size=(size, size), stride=(size, size), padding=(0, 0), dilation=(1, 1), groups=1)
        self.import_layer("patch", patch, "patch")
        class_token = model.has_tensor("cls_token")
        if class_token:
            self.tensors["class_token"] = model.tensor("cls_token")
        position = self.tensors["position"] = model.tensor("pos_embed")
        patches = position.shape[1] - int(class_token)
        image_size = math.isqrt(patches) * size
        embed.require(img_size=(image_size, image_size))
        embed.child("norm", "Identity")
        # In timm 0.9 or newer. All of these keep the order of the patches, and refuse cutouts of another size.
        embed.require_if_present(flatten=True, output_fmt="NCHW", dynamic_img_pad=False)
        blocks = list(model.child("blocks").children().values())
        for index, block in enumerate(blocks):
            self.import_block(f"blocks.{index}", block, class_token)
        self.import_norm("norm", model.child("fc_norm", "LayerNorm"), "final_norm_eps")
        self.import_layer("projection", model.child("head", "Linear"), "projection")

        mixed = model.child("inception_model")
        mixed.require(Inception_only=False, magnitude=True, uk_paper=False)
        self.import_inception(mixed.child("vis_inception", "Sequential"))
        stem, alias = mixed.child("vis_inception").child("0"), mixed.children().get("conv2d_init")
        if alias is not None and alias.equals(stem):
            self.checkpoint.used |= {f"{alias.path}.{name}" for name in alias.tensor_refs()}
        magnitude = mixed.child("magnitude_block", "Sequential").layers()
        magnitude_head = self.import_perceptron("magnitude_head", magnitude)
        self.constants |= {
            "bands": patch.shape("weight")[1],
            "image_size": image_size,
            "patch_size": size,
            "width": patch.shape("weight")[0],
            "depth": len(blocks),
            "class_token": class_token,
            "projection_width": model.child("head").shape("weight")[0],
            "vit_head": self.import_perceptron("vit_head", model.child("vit_block", "Sequential").layers()),
            "magnitudes": magnitude[0].shape("weight")[1],
            "magnitude_head": magnitude_head,
            "redshift_head": self.import_perceptron(
                "redshift_head", model.child("concat_block", "Sequential").layers()
            ),
        }
        self.constants["without_bias"] = tuple(sorted(kind for kind, present in self.bias.items() if not present))

    def import_model(self, root: Module) -> AstroMAEConfig:
        """Import the whole model, alone or in a DataParallel, and return its configuration."""
        model = root
        if root.kind == "DataParallel":
            model = Module(self.checkpoint, "", root.child("module").stand_in)
        if model.kind != "ViT_Astro":
            raise self.checkpoint.mismatch(f"it holds a {model.kind}")
        self.import_network(model)
        _require_all_used(self.checkpoint, model.walk())
        remedy = "expected a published AstroMAE"
        return convert(self.constants, AstroMAEConfig, where=self.checkpoint.uri, remedy=remedy)


def import_checkpoint(uri: str, constants: Constants | None = None) -> Weights:
    """Return the weights of a published checkpoint, a whole model, or a state dict to which `constants` belong.

    Raises UnsafePickleError if its pickle names a global outside the allow-list, InputError if the file is damaged or
    holds another architecture.
    """
    with open_ranges(uri) as reader:
        checkpoint = Checkpoint(uri, reader)
        importer = _Importer(checkpoint)
        try:
            root = read_model(uri, reader, constants)
            config = importer.import_model(Module(checkpoint, "", root))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # A pickle can hold any object in place of a size, a name or a dictionary.
            raise checkpoint.mismatch(str(error).partition("\n")[0]) from error
    weights = Weights(config.to_json(), importer.tensors, {"imported_from": basename(uri)}, uri)
    check_architecture(weights)  # raises unless names and shapes agree
    return weights


def _require_all_used(checkpoint: Checkpoint, modules: Iterable[Module]) -> None:
    found = {f"{module.path}.{name}".lstrip(".") for module in modules for name in module.tensor_refs()}
    if unused := sorted(found - checkpoint.used):
        raise checkpoint.mismatch(f"it has tensors that the network does not use: {', '.join(unused[:5])}")
