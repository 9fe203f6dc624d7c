"""A published checkpoint as a tree of modules, with their tensors and attributes, and a record of the used tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage.ranges import RangeReader
from .torch_archive import StandIn, TensorRef, describe

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
    | {f"timm.{module}.format.Format" for module in ("models.layers", "layers")}  # an enumeration, of timm 0.9 or newer
    | {
        "__builtin__.set",
        "builtins.set",
        "blocks.model_vit_inception.ViT_Astro",
        "torch.device",  # an attribute of a DataParallel that was created on a machine with GPUs
        "torch.nn.parallel.data_parallel.DataParallel",
    }
)
_PLAIN = bool | int | float | str | None  # values that can be compared and shown whatever they are
_INACTIVE = ("Dropout", "DropPath", "Identity")  # layers that do nothing in evaluation mode


@dataclass
class Checkpoint:
    """The open file, and the names of the tensors that were used."""

    uri: str
    reader: RangeReader
    used: set[str] = field(default_factory=set)

    def mismatch(self, what: str) -> InputError:
        """Return the error for a checkpoint of another architecture."""
        return InputError(f"{self.uri} is of another architecture: {what}; expected a published AstroMAE (ViT_Astro)")


@dataclass(frozen=True)
class Module:
    """A module of the checkpoint: its dotted path and the stand-in that holds its state."""

    checkpoint: Checkpoint
    path: str
    stand_in: StandIn

    @property
    def kind(self) -> str:
        """Name of its class without the package."""
        return self.stand_in.qualified_name.rsplit(".", 1)[-1]

    def _members(self, group: str) -> dict[str, Any]:
        members = self.stand_in.state.get(group)
        return members if isinstance(members, dict) else {}

    def children(self) -> dict[str, Module]:
        """Return its modules by name."""
        found = self._members("_modules")
        return {
            name: Module(self.checkpoint, f"{self.path}.{name}".lstrip("."), child)
            for name, child in found.items()
            if isinstance(child, StandIn)
        }

    def child(self, name: str, kind: str | None = None) -> Module:
        """Return a module by name. Raises InputError if it is absent or of another kind."""
        children = self.children()
        if name not in children:
            raise self.checkpoint.mismatch(f"{self.path or 'the model'} has no module {name}")
        if kind is not None and children[name].kind != kind:
            raise self.checkpoint.mismatch(f"{children[name].path} is {children[name].kind}, not {kind}")
        return children[name]

    def layers(self) -> list[Module]:
        """Return the members of a Sequential that compute something in evaluation mode."""
        return [child for child in self.children().values() if child.kind not in _INACTIVE]

    def attribute(self, name: str) -> Any:
        """Return an attribute: a plain value or a tuple of such. Raises InputError if it is absent or anything else."""
        if name not in self.stand_in.state:
            raise self.checkpoint.mismatch(f"{self.path or 'the model'} has no attribute {name}")
        value = self.stand_in.state[name]
        if isinstance(value, StandIn) and value.qualified_name.endswith(".Format") and len(value.arguments) == 1:
            value = value.arguments[0]  # the value of an enumeration, which is text
        if not all(isinstance(part, _PLAIN) for part in (value if isinstance(value, tuple) else (value,))):
            raise self.checkpoint.mismatch(f"{self.path}.{name} is {describe(value)}, not a plain value")
        return value

    def require(self, **expected: Any) -> None:
        """Raise InputError unless these attributes have these values."""
        for name, value in expected.items():
            if (found := self.attribute(name)) != value:
                raise self.checkpoint.mismatch(f"{self.path}.{name} is {repr(found)[:80]}, not {value!r}")

    def require_if_present(self, **expected: Any) -> None:
        """Do as `require` for those attributes that it has; older versions of its class lacked them."""
        self.require(**{name: value for name, value in expected.items() if name in self.stand_in.state})

    def tensor_refs(self) -> dict[str, TensorRef]:
        """Return its own parameters and buffers by name."""
        both = self._members("_parameters") | self._members("_buffers")
        return {name: ref for name, ref in both.items() if isinstance(ref, TensorRef)}

    def walk(self) -> Iterator[Module]:
        """Return this module and all below it, each once, even if several modules contain it."""
        seen, pending = set(), [self]
        while pending:
            module = pending.pop()
            if id(module.stand_in) not in seen:
                seen.add(id(module.stand_in))
                yield module
                pending += module.children().values()

    def equals(self, other: Module) -> bool:
        """Return whether the tensors of both have the same names, shapes and values."""
        mine, others, reader = self.tensor_refs(), other.tensor_refs(), self.checkpoint.reader
        return mine.keys() == others.keys() and all(
            ref == others[name] or np.array_equal(ref.read(reader), others[name].read(reader))
            for name, ref in mine.items()
        )

    def has_tensor(self, name: str) -> bool:
        """Return whether it has this tensor."""
        return name in self.tensor_refs()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape. Raises InputError if it is absent."""
        if not self.has_tensor(name):
            raise self.checkpoint.mismatch(f"{self.path or 'the model'} has no tensor {name}")
        return self.tensor_refs()[name].shape

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor's values, any float dtype as float32, and mark it as used."""
        self.shape(name)
        self.checkpoint.used.add(f"{self.path}.{name}".lstrip("."))
        values = self.tensor_refs()[name].read(self.checkpoint.reader)
        return values.astype(np.float32) if values.dtype.kind == "f" else values
