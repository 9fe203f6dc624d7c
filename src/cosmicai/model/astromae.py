"""AstroMAE: the redshift network of Fathkouhi & Fox (2024, IEEE e-Science), in one file.

Three branches look at one galaxy: a vision transformer and an Inception network at the cutout, a multilayer
perceptron at the five magnitudes. Their outputs are concatenated and mapped to one number, the photometric redshift.

Shapes in comments: B batch, T tokens (patches, and the class token where there is one), C width.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn


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
    # Kinds of layer that have no bias; the kinds are the keyword of every `has_bias` call below.
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


class Attention(nn.Module):
    """Multi-head self-attention; the published network has a bias on queries and values, none on keys."""

    def __init__(self, config: AstroMAEConfig) -> None:
        super().__init__()
        self.heads, self.scale = config.heads, config.attention_scale
        self.query_bias: nn.Parameter | None
        self.key_bias: nn.Parameter | None
        self.value_bias: nn.Parameter | None
        self.qkv = nn.Linear(config.width, 3 * config.attention_width, bias=False)
        for kind in ("query", "key", "value"):
            bias = nn.Parameter(torch.zeros(config.attention_width)) if config.has_bias(kind) else None
            self.register_parameter(f"{kind}_bias", bias)
        self.proj = nn.Linear(config.attention_width, config.width, bias=config.has_bias("attention"))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        batch, tokens, _ = x.shape
        query, key, value = self.qkv(x).chunk(3, dim=-1)  # each (B, T, attention_width)

        def split(part: Tensor, bias: Tensor | None) -> Tensor:  # -> (B, heads, T, head width)
            part = part if bias is None else part + bias
            return part.view(batch, tokens, self.heads, part.shape[-1] // self.heads).transpose(1, 2)

        query = split(query, self.query_bias) * self.scale
        key, value = split(key, self.key_bias), split(value, self.value_bias)
        attended = (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value  # (B, heads, T, head width)
        return self.proj(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block with a convolution module in parallel to attention (ViTAE, Xu et al. 2021)."""

    def __init__(self, config: AstroMAEConfig) -> None:
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.skip = int(config.class_token)  # tokens in front of the patches
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        kernel, (groups_in, groups_out) = config.convolution_kernel, config.convolution_groups
        self.convolution = nn.Sequential(
            nn.Conv2d(config.width, config.convolution_width, kernel, padding=kernel // 2, groups=groups_in,
                      bias=config.has_bias("convolution_in")),
            nn.BatchNorm2d(config.convolution_width, eps=config.convolution_norm_eps),
            nn.SiLU(),
            nn.Conv2d(config.convolution_width, config.width, kernel, padding=kernel // 2, groups=groups_out,
                      bias=config.has_bias("convolution_out")),
        )  # fmt: skip
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, config.mlp_width, bias=config.has_bias("mlp_in")),
            nn.GELU(),
            nn.Linear(config.mlp_width, config.width, bias=config.has_bias("mlp_out")),
        )

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        grid = x[:, self.skip :].transpose(1, 2).reshape(len(x), x.shape[2], self.side, self.side)  # (B, C, side, side)
        local = self.convolution(grid).flatten(2).transpose(1, 2)  # (B, patches, C)
        x = x + self.attention(self.norm1(x))
        x = torch.cat([x[:, : self.skip], x[:, self.skip :] + local], dim=1)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, config: AstroMAEConfig, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=config.has_bias("inception")),
            nn.BatchNorm2d(outputs, eps=config.inception_norm_eps),
            nn.ReLU(),
        )


class InceptionBlock(nn.Module):
    """Four branches side by side: 1x1; 1x1 then small; 1x1 then large; max pool then 1x1."""

    def __init__(self, config: AstroMAEConfig, inputs: int, block: InceptionConfig) -> None:
        super().__init__()
        self.uses_large = block.uses_large
        self.direct = ConvBlock(config, inputs, block.direct, 1)
        self.small = nn.Sequential(
            ConvBlock(config, inputs, block.reduce_small, 1),
            ConvBlock(config, block.reduce_small, block.small, block.small_kernel),
        )
        self.large = nn.Sequential(
            ConvBlock(config, inputs, block.reduce_large, 1),
            ConvBlock(config, block.reduce_large, block.large, block.large_kernel),
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvBlock(config, inputs, block.pooled, 1))

    def forward(self, x: Tensor) -> Tensor:  # (B, inputs, H, W) -> (B, channels, H, W)
        large = [self.large(x)] if self.uses_large else []
        return torch.cat([self.direct(x), self.small(x), *large, self.pooled(x)], dim=1)


def perceptron(config: AstroMAEConfig, kind: str, inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these widths with ReLU between them and none after the last."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width, bias=config.has_bias(kind)), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers[:-1])


class AstroMAE(nn.Module):
    """Cutout and magnitudes to redshift.

    `forward(image, magnitude)` takes image (B, bands, H, W) in the parameters' dtype and magnitude (B, magnitudes)
    in any float dtype (cast to the parameters' dtype, as published), and returns redshift (B,).
    """

    def __init__(self, config: AstroMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Conv2d(
            config.bands, config.width, config.patch_size, stride=config.patch_size, bias=config.has_bias("patch")
        )
        self.class_token: nn.Parameter | None
        token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.register_parameter("class_token", token)
        self.position = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.final_norm_eps)
        self.projection = nn.Linear(config.width, config.projection_width, bias=config.has_bias("projection"))
        self.vit_head = perceptron(config, "vit_head", config.projection_width, config.vit_head)

        kernel = config.stem_kernel
        inception: list[nn.Module] = [
            nn.Conv2d(config.bands, config.stem_channels, kernel, padding=kernel // 2, bias=config.has_bias("stem"))
        ]
        channels = config.stem_channels
        for stage in config.inception_stages:
            inception.append(nn.AvgPool2d(config.pool))
            for block in stage:
                inception.append(InceptionBlock(config, channels, block))
                channels = block.channels
        self.inception = nn.Sequential(*inception, nn.Flatten())
        self.inception_head = perceptron(config, "inception_head", config.inception_features, config.inception_head)
        self.magnitude_head = perceptron(config, "magnitude_head", config.magnitudes, config.magnitude_head)
        joined = config.vit_head[-1] + config.inception_head[-1] + config.magnitude_head[-1]
        self.redshift_head = perceptron(config, "redshift_head", joined, config.redshift_head)

    def encode(self, image: Tensor) -> Tensor:
        """The transformer alone: (B, bands, H, W) -> (B, C), the mean over patch tokens."""
        x: Tensor = self.patch(image).flatten(2).transpose(1, 2)  # (B, patches, C)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return x[:, int(self.config.class_token) :].mean(dim=1)

    def forward(self, image: Tensor, magnitude: Tensor) -> Tensor:
        vit = self.vit_head(self.projection(self.norm(self.encode(image))))
        inception = self.inception_head(self.inception(image))
        magnitudes = self.magnitude_head(magnitude.to(self.position.dtype))
        joined = torch.cat([vit, inception, magnitudes], dim=1)
        return self.redshift_head(joined).squeeze(1)  # type: ignore[no-any-return]
