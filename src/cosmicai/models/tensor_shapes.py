"""Names and shapes of AstroMAE's tensors, derived from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator

from .config import AstroMAEConfig

Shape = tuple[int, ...]


def tensor_shapes(config: AstroMAEConfig) -> dict[str, Shape]:
    """Return the shape of every tensor of the network with this configuration, by its name in the weights file."""
    return dict(_network(config))


def _layer(config: AstroMAEConfig, kind: str, name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    if config.has_bias(kind):
        yield f"{name}.bias", shape[:1]


def _layer_norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _batch_norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _layer_norm(name, width)
    yield f"{name}.running_mean", (width,)
    yield f"{name}.running_var", (width,)
    yield f"{name}.num_batches_tracked", ()


def _perceptron(config: AstroMAEConfig, name: str, inputs: int, widths: Shape) -> Iterator[tuple[str, Shape]]:
    for index, width in enumerate(widths):
        yield from _layer(config, name, f"{name}.{2 * index}", width, inputs)
        inputs = width


def _block(config: AstroMAEConfig, name: str) -> Iterator[tuple[str, Shape]]:
    width, attention, hidden = config.width, config.attention_width, config.convolution_width
    kernel, (groups_in, groups_out) = config.convolution_kernel, config.convolution_groups
    yield from _layer_norm(f"{name}.norm1", width)
    yield f"{name}.attention.qkv.weight", (3 * attention, width)
    for kind in ("query", "key", "value"):
        if config.has_bias(kind):
            yield f"{name}.attention.{kind}_bias", (attention,)
    yield from _layer(config, "attention", f"{name}.attention.proj", width, attention)
    yield from _layer(config, "convolution_in", f"{name}.convolution.0", hidden, width // groups_in, kernel, kernel)
    yield from _batch_norm(f"{name}.convolution.1", hidden)
    yield from _layer(config, "convolution_out", f"{name}.convolution.3", width, hidden // groups_out, kernel, kernel)
    yield from _layer_norm(f"{name}.norm2", width)
    yield from _layer(config, "mlp_in", f"{name}.mlp.0", config.mlp_width, width)
    yield from _layer(config, "mlp_out", f"{name}.mlp.2", width, config.mlp_width)


def _inception(config: AstroMAEConfig) -> Iterator[tuple[str, Shape]]:
    def conv_block(name: str, inputs: int, outputs: int, kernel: int) -> Iterator[tuple[str, Shape]]:
        yield from _layer(config, "inception", f"{name}.0", outputs, inputs, kernel, kernel)
        yield from _batch_norm(f"{name}.1", outputs)

    channels, index = config.stem_channels, 1
    yield from _layer(config, "stem", "inception.0", channels, config.bands, config.stem_kernel, config.stem_kernel)
    for stage in config.inception_stages:
        index += 1  # the average pool
        for block in stage:
            name = f"inception.{index}"
            yield from conv_block(f"{name}.direct", channels, block.direct, 1)
            yield from conv_block(f"{name}.small.0", channels, block.reduce_small, 1)
            yield from conv_block(f"{name}.small.1", block.reduce_small, block.small, block.small_kernel)
            yield from conv_block(f"{name}.large.0", channels, block.reduce_large, 1)
            yield from conv_block(f"{name}.large.1", block.reduce_large, block.large, block.large_kernel)
            yield from conv_block(f"{name}.pooled.1", channels, block.pooled, 1)
            channels, index = block.channels, index + 1


def _network(config: AstroMAEConfig) -> Iterator[tuple[str, Shape]]:
    yield from _layer(config, "patch", "patch", config.width, config.bands, config.patch_size, config.patch_size)
    if config.class_token:
        yield "class_token", (1, 1, config.width)
    yield "position", (1, config.tokens, config.width)
    for index in range(config.depth):
        yield from _block(config, f"blocks.{index}")
    yield from _layer_norm("norm", config.width)
    yield from _layer(config, "projection", "projection", config.projection_width, config.width)
    yield from _perceptron(config, "vit_head", config.projection_width, config.vit_head)
    yield from _inception(config)
    yield from _perceptron(config, "inception_head", config.inception_features, config.inception_head)
    yield from _perceptron(config, "magnitude_head", config.magnitudes, config.magnitude_head)
    joined = config.vit_head[-1] + config.inception_head[-1] + config.magnitude_head[-1]
    yield from _perceptron(config, "redshift_head", joined, config.redshift_head)
