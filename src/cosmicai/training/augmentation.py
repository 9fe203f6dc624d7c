"""Augmentation of training cutouts: what may change in a cutout while the redshift stays the same.

Each galaxy is mirrored and turned by right angles, shifted by up to MAX_SHIFT pixels, and made noisier, independently
of the others. All that is random is drawn from one generator, for the whole batch and in one order, so that ranks that
take a part of a batch each see the galaxies that a single process sees.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .recipe import TrainingOptions

MAX_SHIFT = 2  # pixels along each axis
OUTER_ROWS = 4  # at the top, and as many at the bottom
_REMEDY = "install builds that fit, see docs/training.md, or train without augmentation: --augment none"
# Of normally distributed values: standard deviation / median of the absolute values; of differences of two, / sqrt(2).
_MEDIAN_TO_DEVIATION = 1.4826 / 2**0.5


@dataclass(frozen=True)
class Draws:
    """What is random about the augmentation of the N cutouts of a batch."""

    symmetry: NDArray[np.int64]  # (N,) 0 to 7: bit 0 transposes, bit 1 mirrors left to right, bit 2 upside down
    shift: NDArray[np.int64]  # (N, 2) 0 to 2 MAX_SHIFT: first row and column of the cutout in its padded self
    depth: NDArray[np.float32]  # (N,) standard deviation of the noise to add, relative to the cutout's own
    noise: NDArray[np.float32]  # (N, 5, side, side) normal deviates, or (N, 0) where none is to be added

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def check_augmentation(options: TrainingOptions) -> None:
    """Raise InputError if the options ask for augmentation and torchvision, which does it, cannot be imported."""
    if options.augment == "full":
        _import_transforms()


def draw_augmentation(rng: np.random.Generator, shape: tuple[int, ...], options: TrainingOptions) -> Draws | None:
    """Draw the augmentation of a batch of cutouts of this shape (N, 5, side, side); None if there is to be none."""
    if options.augment == "none":
        return None
    count = shape[0]
    symmetry, shift = rng.integers(8, size=count), rng.integers(2 * MAX_SHIFT + 1, size=(count, 2))
    depth = rng.random(count, np.float32) * np.float32(options.noise)
    noise = rng.standard_normal(shape if options.noise else (count, 0), np.float32)
    return Draws(symmetry, shift, depth, noise)


def augment(image: Tensor, draws: Draws) -> Tensor:
    """Return the augmented cutouts (N, 5, side, side) float32, on the device of `image`."""
    transforms = _import_transforms()
    side = image.shape[-1]
    if draws.noise.shape[1:] == image.shape[1:]:
        depth = torch.from_numpy(draws.depth).to(image.device)[:, None, None, None]
        image = image + estimate_noise(image) * depth * torch.from_numpy(draws.noise).to(image.device)
    # A padding by reflection, unlike one of zeros, leaves no edge that would tell the shift.
    padded = transforms.pad(image, [MAX_SHIFT] * 4, padding_mode="reflect")
    augmented = torch.empty_like(image)
    # Cutouts that share a shift are cropped at once.
    code = draws.shift[:, 0] * (2 * MAX_SHIFT + 1) + draws.shift[:, 1]
    for one in np.unique(code):
        rows = torch.from_numpy(np.flatnonzero(code == one)).to(image.device)
        top, left = divmod(int(one), 2 * MAX_SHIFT + 1)
        augmented[rows] = transforms.crop(padded[rows], top, left, side, side)
    # Transposition and both mirror images make all eight symmetries of a square, the turns by right angles included.
    mirror_images = (lambda part: part.mT, transforms.horizontal_flip, transforms.vertical_flip)
    for bit, mirror in enumerate(mirror_images):
        rows = torch.from_numpy(np.flatnonzero(draws.symmetry >> bit & 1)).to(image.device)
        augmented[rows] = mirror(augmented[rows])
    return augmented


def estimate_noise(image: Tensor) -> Tensor:
    """Return the noise per pixel (N, 5, 1, 1) of cutouts, from the differences of neighbours in their outer rows.

    There is little light of the galaxy, which is in the centre and smooth.
    """
    outer = torch.cat([image[:, :, :OUTER_ROWS], image[:, :, -OUTER_ROWS:]], dim=2)
    differences = outer.diff(dim=3).abs().flatten(2)
    return _MEDIAN_TO_DEVIATION * differences.median(dim=2).values[:, :, None, None]


def _import_transforms() -> Any:
    """Return torchvision's functional transforms (v2). Raises InputError if they cannot be imported."""
    try:
        from torchvision.transforms.v2 import functional
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise InputError(_describe(error)) from None
        raise InputError(
            "augmentation needs the package torchvision, which is not installed; install it with "
            "pip install 'cosmicai[train]', or train without augmentation: --augment none"
        ) from None
    # A build for another torch fails where it defines its operators, with one of these.
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        raise InputError(_describe(error)) from None
    return functional


def _describe(error: Exception) -> str:
    reason = re.split(r"\n|\. ", str(error).strip())[0]
    return f"the installed torchvision does not fit torch {torch.__version__} ({reason}); {_REMEDY}"
