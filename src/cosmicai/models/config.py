"""The configuration of AstroMAE: everything that decides its shape and constants. Reading it needs no torch."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_sizes(value: object) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(map(_is_size, value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


@dataclass(frozen=True)
class InceptionConfig:
    """Output channels of the four branches of one Inception block, and of the 1x1 convolutions before two of them."""

    direct: int
    reduce_small: int
    small: int
    reduce_large: int
    large: int
    pooled: int
    small_kernel: int = 3
    large_kernel: int = 5
    uses_large: bool = True  # the published last block holds a 5x5 branch that it never runs

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            good = isinstance(value, bool) if name == "uses_large" else _is_size(value)
            _demand(good, f"{name} of an Inception block cannot be {value!r}")
        _demand(self.small_kernel % 2 == self.large_kernel % 2 == 1, "a kernel of an Inception block is even")

    @property
    def channels(self) -> int:
        """Channels that leave the block."""
        return self.direct + self.small + self.pooled + (self.large if self.uses_large else 0)


def _inception(width: int, uses_large: bool = True) -> InceptionConfig:
    return InceptionConfig(width, width, width, width, width, width, uses_large=uses_large)


@dataclass(frozen=True)
class AstroMAEConfig:
    """Everything that decides the network's shape and constants; the defaults are the published network."""

    bands: int = 5
    image_size: int = 32
    magnitudes: int = 5
    patch_size: int = 8
    width: int = 192
    depth: int = 12
    heads: int = 12
    attention_width: int = 192
    attention_scale: float = 0.25
    mlp_width: int = 768
    class_token: bool = True
    norm_eps: float = 1e-6
    final_norm_eps: float = 1e-6
    convolution_width: int = 768
    convolution_kernel: int = 1
    convolution_groups: tuple[int, int] = (48, 48)
    convolution_norm_eps: float = 1e-5
    projection_width: int = 192
    vit_head: tuple[int, ...] = (1096, 1096)
    stem_channels: int = 32
    stem_kernel: int = 1
    pool: int = 2
    # Every stage is an average pool followed by its blocks.
    inception_stages: tuple[tuple[InceptionConfig, ...], ...] = (
        (_inception(16), _inception(16)),
        (_inception(8), _inception(8)),
        (_inception(4, uses_large=False),),
    )
    inception_norm_eps: float = 1e-5
    inception_head: tuple[int, ...] = (1096, 1096)
    magnitude_head: tuple[int, ...] = (1024, 1024, 1024, 1024, 1024)
    redshift_head: tuple[int, ...] = (1024, 1)
    # Kinds of layer that have no bias; the kinds are the keyword of every `has_bias` call.
    without_bias: tuple[str, ...] = ("key",)

    def __post_init__(self) -> None:
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            if isinstance(default, bool):
                good = isinstance(value, bool)
            elif isinstance(default, int):
                good = _is_size(value)
            elif isinstance(default, float):
                good = _is_number(value) and (value >= 0 or not field.name.endswith("_eps"))
            elif field.name == "without_bias":
                good = isinstance(value, tuple) and all(isinstance(kind, str) for kind in value)
            elif field.name == "inception_stages":
                good = isinstance(value, tuple) and len(value) > 0 and all(value)
            else:
                good = _are_sizes(value)
            _demand(good, f"{field.name} cannot be {value!r}")
        side = self.image_size // self.pool ** len(self.inception_stages)
        _demand(self.image_size % self.patch_size == 0, "the cutout is no whole number of patches")
        _demand(self.attention_width % self.heads == 0, "the attention width is no multiple of the heads")
        _demand(self.convolution_kernel % 2 == self.stem_kernel % 2 == 1, "a convolution's kernel is even")
        _demand(len(self.convolution_groups) == 2, "convolution_groups are not two")
        whole = all(self.width % groups == self.convolution_width % groups == 0 for groups in self.convolution_groups)
        _demand(whole, "the groups of a convolution do not divide its channels")
        _demand(side > 0, "the cutout is smaller than its average pools")
        _demand(self.redshift_head[-1] == 1, "it predicts more than one number")

    @property
    def patches(self) -> int:
        """Patches of one cutout."""
        side = self.image_size // self.patch_size
        return side * side

    @property
    def tokens(self) -> int:
        """Tokens the transformer sees."""
        return self.patches + int(self.class_token)

    @property
    def inception_features(self) -> int:
        """Values that leave the last Inception block, flattened."""
        side: int = self.image_size // self.pool ** len(self.inception_stages)
        return side * side * self.inception_stages[-1][-1].channels

    def has_bias(self, kind: str) -> bool:
        """Whether layers of this kind have a bias."""
        return kind not in self.without_bias

    def to_json(self) -> str:
        """The configuration as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> AstroMAEConfig:
        """Inverse of `to_json`. Raises ValueError for unknown, missing or ill-typed fields."""
        values: dict[str, Any] = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("the configuration is not a JSON object")
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            wrong = ", ".join(sorted(set(values) ^ names))
            raise ValueError(f"its configuration differs from AstroMAE's in the fields {wrong}")
        try:
            values["inception_stages"] = tuple(
                tuple(InceptionConfig(**block) for block in stage) for stage in values["inception_stages"]
            )
        except TypeError as error:
            raise ValueError(f"its Inception blocks are not AstroMAE's ({error})") from None
        tuples: dict[str, Any] = {name: tuple(values[name]) for name in names if isinstance(values[name], list)}
        return cls(**(values | tuples))
