"""A second implementation of the published network, from its description alone, as the reference for the importer.

Attributes and children have the names of the published classes, so that a pickle of it looks like a published
checkpoint. Shares no code with `cosmicai.models`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Block:
    """Channels of one Inception block, named as in the published configuration."""

    out_11: int
    in_33: int
    out_33: int
    in_55: int
    out_55: int
    out_mxpl: int
    is_custom: bool = False
    kernels: tuple[int, int] = (3, 5)

    @property
    def channels(self) -> int:
        return self.out_11 + self.out_33 + self.out_mxpl + (0 if self.is_custom else self.out_55)


@dataclass(frozen=True)
class Sizes:
    """Every size and constant; the defaults are a small network of the published kind."""

    bands: int = 5
    image: int = 32
    magnitudes: int = 5
    patch: int = 8
    width: int = 24
    depth: int = 2
    heads: int = 3
    attention_width: int = 24
    scale: float = 8**-0.5
    mlp: int = 48
    class_token: bool = True
    norm_eps: float = 1e-6
    final_norm_eps: float = 1e-6
    pcm_width: int = 48
    pcm_kernel: int = 1
    pcm_groups: tuple[int, int] = (6, 6)
    pcm_eps: float = 1e-5
    head: int = 24
    vit_head: tuple[int, ...] = (20, 20)
    stem: int = 8
    pool: int = 2
    stages: tuple[tuple[Block, ...], ...] = (
        (Block(4, 3, 5, 2, 6, 3), Block(4, 4, 4, 4, 4, 4)),
        (Block(2, 2, 2, 2, 2, 2, is_custom=True),),
    )
    inception_eps: float = 1e-5
    inception_head: tuple[int, ...] = (20, 20)
    magnitude_head: tuple[int, ...] = (16, 16, 16)
    concat_head: tuple[int, ...] = (16, 1)
    qkv: str = "q and v"  # which of them have a bias: "q and v", "all" (one bias of the layer qkv), "none"
    without_bias: tuple[str, ...] = ()  # of patch, proj, fc1, fc2, pcm, head, vit, stem, inception, magnitude, concat
    drop_path: float = 0.0

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2


PUBLISHED = Sizes(
    width=192, depth=12, heads=12, attention_width=192, scale=0.25, mlp=768, pcm_width=768, pcm_groups=(48, 48),
    head=192, vit_head=(1096, 1096), stem=32,
    stages=(
        (Block(16, 16, 16, 16, 16, 16), Block(16, 16, 16, 16, 16, 16)),
        (Block(8, 8, 8, 8, 8, 8), Block(8, 8, 8, 8, 8, 8)),
        (Block(4, 4, 4, 4, 4, 4, is_custom=True),),
    ),
    inception_head=(1096, 1096), magnitude_head=(1024,) * 5, concat_head=(1024, 1),
)  # fmt: skip


def dense(inputs: int, widths: tuple[int, ...], bias: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for position, outputs in enumerate(widths):
        layers += [nn.ReLU()] if position else []
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        inputs = outputs
    return layers


class Attention(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.num_heads, self.scale = s.heads, s.scale
        self.qkv = nn.Linear(s.width, 3 * s.attention_width, bias=s.qkv == "all")
        own = s.qkv == "q and v"
        self.q_bias = nn.Parameter(torch.zeros(s.attention_width)) if own else None
        self.v_bias = nn.Parameter(torch.zeros(s.attention_width)) if own else None
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(s.attention_width, s.width, bias="proj" not in s.without_bias)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        mixed = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        weights = torch.einsum("bhqc,bhkc->bhqk", q, k).mul(self.scale).softmax(-1)
        return self.proj_drop(self.proj(torch.einsum("bhqk,bhkc->bqhc", self.attn_drop(weights), v).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.hidden_features = s.mlp
        self.fc1 = nn.Linear(s.width, s.mlp, bias="fc1" not in s.without_bias)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(s.mlp, s.width, bias="fc2" not in s.without_bias)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Drops whole branches in training; it does nothing in evaluation, the only mode in which it is used here."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        return x


class NormalCell(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.class_token = s.class_token
        self.norm1 = nn.LayerNorm(s.width, eps=s.norm_eps)
        self.attn = Attention(s)
        self.drop_path = DropPath(s.drop_path) if s.drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(s.width, eps=s.norm_eps)
        self.mlp = Mlp(s)
        shape: dict[str, Any] = {"kernel_size": s.pcm_kernel, "padding": s.pcm_kernel // 2}
        bias = "pcm" not in s.without_bias
        self.PCM = nn.Sequential(
            nn.Conv2d(s.width, s.pcm_width, groups=s.pcm_groups[0], bias=bias, **shape),
            nn.BatchNorm2d(s.pcm_width, eps=s.pcm_eps),
            nn.SiLU(inplace=True),
            nn.Conv2d(s.pcm_width, s.width, groups=s.pcm_groups[1], bias=bias, **shape),
        )

    def forward(self, x: Tensor) -> Tensor:
        front = 1 if self.class_token else 0
        patches = x[:, front:]
        side = round(patches.shape[1] ** 0.5)
        local = self.PCM(patches.unflatten(1, (side, side)).movedim(-1, 1)).movedim(1, -1).flatten(1, 2)
        x = x + self.drop_path(self.attn(self.norm1(x))) + F.pad(self.drop_path(local), (0, 0, front, 0))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Format(StrEnum):
    """The enumeration that an attribute of PatchEmbed is of since timm 0.9."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class PatchEmbed(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.img_size, self.patch_size = (s.image, s.image), (s.patch, s.patch)
        self.num_patches, self.flatten = s.patches, True
        self.proj = nn.Conv2d(s.bands, s.width, s.patch, s.patch, bias="patch" not in s.without_bias)
        self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).flatten(2).mT)


class ConvBlock(nn.Module):
    def __init__(self, s: Sizes, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__()
        bias = "inception" not in s.without_bias
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=(kernel - 1) // 2, bias=bias)
        self.bn = nn.BatchNorm2d(outputs, eps=s.inception_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).clamp(min=0)


class InceptionBlock(nn.Module):
    def __init__(self, s: Sizes, inputs: int, block: Block) -> None:
        super().__init__()
        self.is_custom = block.is_custom
        small, large = block.kernels
        self.branch1 = ConvBlock(s, inputs, block.out_11)
        self.branch2 = nn.Sequential(ConvBlock(s, inputs, block.in_33), ConvBlock(s, block.in_33, block.out_33, small))
        self.branch3 = nn.Sequential(ConvBlock(s, inputs, block.in_55), ConvBlock(s, block.in_55, block.out_55, large))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvBlock(s, inputs, block.out_mxpl))

    def forward(self, x: Tensor) -> Tensor:
        found = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)]
        if self.is_custom:
            del found[2]
        return torch.cat(found, 1)


class Input_Mix_Model(nn.Module):  # noqa: N801
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.Inception_only, self.magnitude, self.uk_paper = False, True, False
        self.embed_dim, self.device = s.width, "cpu"
        self.conv2d_init = nn.Conv2d(s.bands, s.stem, 1, bias="stem" not in s.without_bias)
        self.avgpool = nn.AvgPool2d(s.pool)
        self.magnitude_block = nn.Sequential(*dense(s.magnitudes, s.magnitude_head, "magnitude" not in s.without_bias))
        layers: list[nn.Module] = [self.conv2d_init]
        channels, side = s.stem, s.image
        for stage in s.stages:
            layers.append(self.avgpool)
            side //= s.pool
            for block in stage:
                layers.append(InceptionBlock(s, channels, block))
                channels = block.channels
        last = dense(channels * side * side, s.inception_head, "inception_head" not in s.without_bias)
        self.vis_inception = nn.Sequential(*layers, nn.Flatten(), *last)


class ViT_Astro(nn.Module):  # noqa: N801
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.embed_dim = s.width
        if s.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, s.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, s.patches + s.class_token, s.width))
        self.fc_norm = nn.LayerNorm(s.width, eps=s.final_norm_eps)
        self.head = nn.Linear(s.width, s.head, bias="head" not in s.without_bias)
        self.inception_model = Input_Mix_Model(s)
        self.blocks = nn.ModuleList([NormalCell(s) for _ in range(s.depth)])
        self.patch_embed = PatchEmbed(s)
        self.vit_block = nn.Sequential(*dense(s.head, s.vit_head, "vit" not in s.without_bias))
        joined = s.vit_head[-1] + s.inception_head[-1] + s.magnitude_head[-1]
        self.concat_block = nn.Sequential(*dense(joined, s.concat_head, "concat" not in s.without_bias))

    def forward(self, inputs: list[Tensor]) -> Tensor:
        image, magnitude = inputs
        tokens = self.patch_embed(image)
        patches = tokens.shape[1]
        if hasattr(self, "cls_token"):
            tokens = torch.cat([self.cls_token.repeat(len(image), 1, 1), tokens], 1)
        tokens = tokens + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        vit = self.vit_block(self.head(self.fc_norm(tokens[:, -patches:].mean(1))))
        mixed = self.inception_model
        branches = [vit, mixed.vis_inception(image), mixed.magnitude_block(magnitude.to(image.dtype))]
        return self.concat_block(torch.cat(branches, 1))[:, 0]


def random_network(sizes: Sizes, seed: int = 0) -> ViT_Astro:
    """Return a network in evaluation mode with all tensors random, including norms and running statistics."""
    torch.manual_seed(seed)
    model = ViT_Astro(sizes)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif tensor.ndim == 1 and name.endswith("weight"):  # of a norm
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 or name in ("cls_token", "pos_embed"):
                tensor.normal_(0, 0.3)
            else:
                tensor.mul_(2)  # so that no branch dies away
    return model.eval()


_HOMES = {
    "blocks.model_vit_inception": (ViT_Astro,),
    "blocks.photoz": (Input_Mix_Model, InceptionBlock, ConvBlock),
    "NormalCell": (NormalCell, Attention, Mlp),
    "timm.models.layers.patch_embed": (PatchEmbed,),
    "timm.models.layers.drop": (DropPath,),
    "timm.layers.format": (Format,),
}


@contextmanager
def published_modules() -> Iterator[None]:
    """Place the classes in modules with the published names, for pickle, while the context lasts."""
    names = {name.rsplit(".", level)[0] for name in _HOMES for level in range(name.count(".") + 1)}
    assert not names & sys.modules.keys()
    try:
        sys.modules |= {name: ModuleType(name) for name in names}
        for name, classes in _HOMES.items():
            for kind in classes:
                kind.__module__ = name
                setattr(sys.modules[name], kind.__name__, kind)
        yield
    finally:
        for name in names:
            del sys.modules[name]
        for classes in _HOMES.values():
            for kind in classes:
                kind.__module__ = __name__


def save_checkpoint(path: Path, model: nn.Module, wrapped: bool = True) -> str:
    """Save the model as the published checkpoint is saved: pickled as a whole, in a DataParallel."""
    with published_modules():
        torch.save(nn.DataParallel(model) if wrapped else model, path)
    return str(path)
