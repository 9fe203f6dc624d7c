"""AstroMAE: the redshift network of Fathkouhi & Fox (2024, IEEE e-Science), in one file.

Three branches process one galaxy: a vision transformer and an Inception network the cutout, a multilayer perceptron
the five magnitudes. Their outputs are concatenated and mapped to one number, the photometric redshift.

Shapes in comments: B batch, T tokens (patches, and the class token where there is one), C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import AstroMAEConfig, InceptionConfig


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
    """Four parallel branches: 1x1; 1x1 then small; 1x1 then large; max pool then 1x1."""

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


def build_perceptron(config: AstroMAEConfig, kind: str, inputs: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them and none after the last."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width, bias=config.has_bias(kind)), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers[:-1])


class AstroMAE(nn.Module):
    """The network from cutout and magnitudes to redshift.

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
        self.vit_head = build_perceptron(config, "vit_head", config.projection_width, config.vit_head)

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
        self.inception_head = build_perceptron(
            config, "inception_head", config.inception_features, config.inception_head
        )
        self.magnitude_head = build_perceptron(config, "magnitude_head", config.magnitudes, config.magnitude_head)
        joined = config.vit_head[-1] + config.inception_head[-1] + config.magnitude_head[-1]
        self.redshift_head = build_perceptron(config, "redshift_head", joined, config.redshift_head)

    def encode(self, image: Tensor) -> Tensor:
        """Return the transformer's mean over patch tokens: (B, bands, H, W) -> (B, C).

        It is NaN where the squares of tokens overflow, since LayerNorm then returns 0 for them, a silent error.
        """
        x: Tensor = self.patch(image).flatten(2).transpose(1, 2)  # (B, patches, C)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        patches = x[:, int(self.config.class_token) :]
        return patches.mean(dim=1) + 0 * patches.square().sum((1, 2)).unsqueeze(1)

    def forward(self, image: Tensor, magnitude: Tensor) -> Tensor:
        vit = self.vit_head(self.projection(self.norm(self.encode(image))))
        inception = self.inception_head(self.inception(image))
        magnitudes = self.magnitude_head(magnitude.to(self.position.dtype))
        joined = torch.cat([vit, inception, magnitudes], dim=1)
        return self.redshift_head(joined).squeeze(1)  # type: ignore[no-any-return]
