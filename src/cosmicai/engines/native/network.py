"""The transformer of a folded network, computed by the compiled library."""

from __future__ import annotations

import ctypes
import json
import weakref
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...models.config import AstroMAEConfig
from ...models.fold import FoldedWeights

SIZES = ((192, 768), (64, 256))  # width and hidden width of the networks for which encoder.cpp has code
Form = tuple[int, int, int]  # width, hidden width, number of blocks


def find_unsupported(config: AstroMAEConfig) -> str | None:
    """Return what of a network encoder.cpp has no code for, or None if it has code for all of it."""
    expected = {
        "bands": 5, "image_size": 32, "patch_size": 8, "class_token": True, "norm_eps": 1e-6, "final_norm_eps": 1e-6,
        "convolution_kernel": 1, "attention_width": config.width, "heads": config.width // 16,
        "convolution_groups": (config.width // 4,) * 2, "convolution_width": config.width * 4,
    }  # fmt: skip
    if (config.width, config.mlp_width) not in SIZES:
        return f"width {config.width} and mlp_width {config.mlp_width}"
    for name, value in expected.items():
        if getattr(config, name) != value:
            return f"{name} {getattr(config, name)}"
    return None


def list_constants(folded: FoldedWeights) -> Iterator[NDArray[np.float32]]:
    """Yield the constants of the transformer in the order in which encoder.cpp takes them."""
    yield folded.patch
    yield folded.position
    for block in folded.blocks:
        for layer in (
            block.qkv, block.proj, block.convolution_in, block.convolution_out, block.mlp_in, block.mlp_out,
        ):  # fmt: skip
            yield layer.weight
            yield layer.bias


def form_of(config: AstroMAEConfig) -> Form:
    """Return the sizes by which encoder.cpp chooses its code."""
    return config.width, config.mlp_width, config.depth


class NativeNetwork:
    """The transformer of a network of this form in a compiled `library`.

    `constants` (float32) are all of `list_constants`, one after another. Any number of threads may use it at the same
    time. Raises ValueError if the constants are not of this form.
    """

    def __init__(self, library: ctypes.CDLL, form: Form, constants: NDArray[np.float32]) -> None:
        constants = np.ascontiguousarray(constants, np.float32)
        network = library.create_network(*form, constants.ctypes.data, constants.size)
        if not network:
            raise ValueError(f"{constants.size} constants do not make a network of {json.dumps(form)}")
        self._width, self._library, self._network = form[0], library, network
        weakref.finalize(self, library.destroy_network, network)

    def encode(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return features (B, width) of cutouts (B, 5, 32, 32), each the same in whatever batch it is.

        A cutout with NaN has features that are NaN. Python's lock is released meanwhile.
        """
        image = np.ascontiguousarray(image, np.float32)
        encoded = np.empty((len(image), self._width), np.float32)
        self._library.encode(self._network, image.ctypes.data, encoded.ctypes.data, len(image))
        return encoded
