"""A published checkpoint as a tree of modules: what an importer may ask of it, and which tensors it has used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage.ranges import RangeReader
from .torch_archive import StandIn, TensorRef

_NN = {
    "activation": ("GELU", "ReLU", "SiLU"),
    "batchnorm": ("BatchNorm2d",),
    "container": ("ModuleList", "Sequential"),
    "conv": ("Conv2d",),
    "dropout": ("Dropout",),
    "flatten": ("Flatten",),
    "linear": ("Identity", "Linear"),
    "normalization": ("LayerNorm",),
    "pooling": ("AvgPool2d", "MaxPool2d"),
}
ALLOWED_CLASSES = frozenset(
    {f"torch.nn.modules.{module}.{name}" for module, names in _NN.items() for name in names}
    | {f"{prefix}NormalCell.{name}" for prefix in ("", "blocks.") for name in ("Attention", "Mlp", "NormalCell")}
    | {f"blocks.photoz.{name}" for name in ("ConvBlock", "InceptionBlock", "Input_Mix_Model")}
    | {f"timm.{module}.patch_embed.PatchEmbed" for module in ("models.layers", "layers")}
    | {f"timm.{module}.drop.DropPath" for module in ("models.layers", "layers")}
    | {
        "__builtin__.set",
        "builtins.set",
        "blocks.model_vit_inception.ViT_Astro",
        "torch.device",  # an attribute of a DataParallel that was made where there are GPUs
        "torch.nn.parallel.data_parallel.DataParallel",
    }
)
_NOTHING = ("Dropout", "DropPath", "Identity")  # layers that do nothing in evaluation mode


@dataclass
class Checkpoint:
    """The open file, and which of its tensors have been used."""

    uri: str
    reader: RangeReader
    used: set[str] = field(default_factory=set)

    def refuse(self, what: str) -> InputError:
        """The error that says what cannot be imported."""
        return InputError(f"{self.uri} is of another architecture: {what}; expected a published AstroMAE (ViT_Astro)")


@dataclass(frozen=True)
class Module:
    """A module of the checkpoint: its dotted path and the stand-in that holds its state."""

    checkpoint: Checkpoint
    path: str
    stand_in: StandIn

    @property
    def kind(self) -> str:
        """Its class without the package."""
        return self.stand_in.qualified_name.rsplit(".", 1)[-1]

    def _members(self, group: str) -> dict[str, Any]:
        members = self.stand_in.state.get(group)
        return members if isinstance(members, dict) else {}

    def children(self) -> dict[str, Module]:
        """Its modules by name."""
        found = self._members("_modules")
        return {
            name: Module(self.checkpoint, f"{self.path}.{name}".lstrip("."), child)
            for name, child in found.items()
            if isinstance(child, StandIn)
        }

    def child(self, name: str, kind: str | None = None) -> Module:
        """A module by name. Refuses the checkpoint if there is none, or none of this kind."""
        children = self.children()
        if name not in children:
            raise self.checkpoint.refuse(f"{self.path or 'the model'} has no module {name}")
        if kind is not None and children[name].kind != kind:
            raise self.checkpoint.refuse(f"{children[name].path} is {children[name].kind}, not {kind}")
        return children[name]

    def layers(self) -> list[Module]:
        """The members of a Sequential that do something."""
        return [child for child in self.children().values() if child.kind not in _NOTHING]

    def attribute(self, name: str) -> Any:
        """An attribute. Refuses the checkpoint if there is none."""
        if name not in self.stand_in.state:
            raise self.checkpoint.refuse(f"{self.path or 'the model'} has no attribute {name}")
        return self.stand_in.state[name]

    def demand(self, **wanted: Any) -> None:
        """Refuses the checkpoint unless these attributes have these values."""
        for name, value in wanted.items():
            if (found := self.attribute(name)) != value:
                raise self.checkpoint.refuse(f"{self.path}.{name} is {found!r}, not {value!r}")

    def refs(self) -> dict[str, TensorRef]:
        """Its own parameters and buffers by name."""
        both = self._members("_parameters") | self._members("_buffers")
        return {name: ref for name, ref in both.items() if isinstance(ref, TensorRef)}

    def walk(self) -> Iterator[Module]:
        """This module and all below it, each once, however often it is held."""
        seen, waiting = set(), [self]
        while waiting:
            module = waiting.pop()
            if id(module.stand_in) not in seen:
                seen.add(id(module.stand_in))
                yield module
                waiting += module.children().values()

    def has(self, name: str) -> bool:
        """Whether it has this tensor."""
        return name in self.refs()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape. Refuses the checkpoint if there is no such tensor."""
        if not self.has(name):
            raise self.checkpoint.refuse(f"{self.path or 'the model'} has no tensor {name}")
        return self.refs()[name].shape

    def tensor(self, name: str) -> NDArray[Any]:
        """A tensor's values, float32 where they are of any float dtype, and marks it as used."""
        self.shape(name)
        self.checkpoint.used.add(f"{self.path}.{name}".lstrip("."))
        values = self.refs()[name].read(self.checkpoint.reader)
        return values.astype(np.float32) if values.dtype.kind == "f" else values
