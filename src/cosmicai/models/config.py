"""The configuration of AstroMAE: everything that decides its shape and constants. Reading it needs no torch.

Every size has a limit far above that of any network, so that nothing is computed from absurd ones.
"""

from __future__ import annotations

import json
from typing import Annotated

import msgspec
from msgspec import Meta

from ..errors import InputError
from ..records import decode_json

Size = Annotated[int, Meta(ge=1, le=2**16)]
Widths = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=64)]  # outputs of the layers of a perceptron
Epsilon = Annotated[float, Meta(ge=0, le=1e6)]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


class InceptionConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Output channels of the four branches of one Inception block, and of the 1x1 convolutions before two of them."""

    direct: Size
    reduce_small: Size
    small: Size
    reduce_large: Size
    large: Size
    pooled: Size
    small_kernel: Size = 3
    large_kernel: Size = 5
    uses_large: bool = True  # the published last block holds a 5x5 branch that it never runs

    def __post_init__(self) -> None:
        _require(self.small_kernel % 2 == self.large_kernel % 2 == 1, "a kernel of an Inception block is even")

    @property
    def channels(self) -> int:
        """Output channels of the block."""
        return self.direct + self.small + self.pooled + (self.large if self.uses_large else 0)


def _inception(width: int, uses_large: bool = True) -> InceptionConfig:
    return InceptionConfig(width, width, width, width, width, width, uses_large=uses_large)


Stage = Annotated[tuple[InceptionConfig, ...], Meta(min_length=1, max_length=64)]


class AstroMAEConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that decides the network's shape and constants; the defaults are the published network.

    Sizes of images and kernels are in pixels; widths and channels are numbers of values.
    """

    bands: Size = 5
    image_size: Size = 32
    magnitudes: Size = 5
    patch_size: Size = 8
    width: Size = 192
    depth: Size = 12
    heads: Size = 12
    attention_width: Size = 192
    attention_scale: Annotated[float, Meta(ge=-1e6, le=1e6)] = 0.25
    mlp_width: Size = 768
    class_token: bool = True
    norm_eps: Epsilon = 1e-6
    final_norm_eps: Epsilon = 1e-6
    convolution_width: Size = 768
    convolution_kernel: Size = 1
    convolution_groups: tuple[Size, Size] = (48, 48)
    convolution_norm_eps: Epsilon = 1e-5
    projection_width: Size = 192
    vit_head: Widths = (1096, 1096)
    stem_channels: Size = 32
    stem_kernel: Size = 1
    pool: Size = 2
    # Every stage is an average pool followed by its blocks.
    inception_stages: Annotated[tuple[Stage, ...], Meta(min_length=1, max_length=64)] = (
        (_inception(16), _inception(16)),
        (_inception(8), _inception(8)),
        (_inception(4, uses_large=False),),
    )
    inception_norm_eps: Epsilon = 1e-5
    inception_head: Widths = (1096, 1096)
    magnitude_head: Widths = (1024, 1024, 1024, 1024, 1024)
    redshift_head: Widths = (1024, 1)
    # Kinds of layer that have no bias; the kinds are the keyword of every `has_bias` call.
    without_bias: Annotated[tuple[str, ...], Meta(max_length=64)] = ("key",)

    def __post_init__(self) -> None:
        side = self.image_size // self.pool ** len(self.inception_stages)
        groups = all(self.width % count == self.convolution_width % count == 0 for count in self.convolution_groups)
        _require(self.image_size % self.patch_size == 0, "the cutout is not divisible into patches")
        _require(self.attention_width % self.heads == 0, "the attention width is not a multiple of the heads")
        _require(self.convolution_kernel % 2 == self.stem_kernel % 2 == 1, "a convolution's kernel is even")
        _require(groups, "the groups of a convolution do not divide its channels")
        _require(side > 0, "the cutout is smaller than its average pools")
        _require(self.redshift_head[-1] == 1, "it predicts more than one number")

    @property
    def patches(self) -> int:
        """Number of patches in one cutout."""
        side = self.image_size // self.patch_size
        return side * side

    @property
    def tokens(self) -> int:
        """Number of tokens of the transformer."""
        return self.patches + int(self.class_token)

    @property
    def inception_features(self) -> int:
        """Number of output values of the last Inception block, flattened."""
        side: int = self.image_size // self.pool ** len(self.inception_stages)
        return side * side * self.inception_stages[-1][-1].channels

    def has_bias(self, kind: str) -> bool:
        """Return whether layers of this kind have a bias."""
        return kind not in self.without_bias

    def to_json(self) -> str:
        """Return the configuration as one line of JSON with sorted keys."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> AstroMAEConfig:
        """Return the configuration that `to_json` wrote.

        Raises InputError naming `where` and the field if a field is unknown, missing, mistyped or out of range.
        """
        remedy = "import the checkpoint again or choose other weights"
        given = decode_json(text, dict[str, msgspec.Raw], where=where, remedy=remedy)
        if missing := [name for name in cls.__struct_fields__ if name not in given]:  # no default takes its place
            raise InputError(f"{where} cannot be used: field {missing[0]} is missing; {remedy}")
        return decode_json(text, cls, where=where, remedy=remedy)
