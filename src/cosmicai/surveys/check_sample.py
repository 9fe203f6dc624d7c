"""The sample of a survey that its check looks at: which rows, and what is measured of each cutout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..storage.parallel import map_in_order
from ..storage.s3 import reader_threads
from .quality import has_constant_edge, has_unusable_pixel, is_usable_redshift
from .shard import IMAGE_SHAPE
from .survey import ShardEntry, Survey

Array = NDArray[np.float64]

PIXELS = IMAGE_SHAPE[1] * IMAGE_SHAPE[2]
SAMPLE, RANGES = 2048, 32  # galaxies, and the consecutive rows in which they are read, from at most as many shards


class Sample(msgspec.Struct, frozen=True):
    """What is needed of N galaxies: a thousandth of their pixels."""

    total: Array  # (N, 5) sums of pixels
    peak: Array  # (N, 5) largest pixels
    lowest: Array  # (N, 5) smallest pixels
    background: Array  # (N, 5) medians of the pixels along the edges
    noise: Array  # (N, 5) scatter of the pixels along the edges
    spread: Array  # (N, 5) standard deviations of all pixels
    whole: NDArray[np.bool_]  # (N, 5) whether all pixels along the edges are integers
    finite: NDArray[np.bool_]  # (N,)
    complete: NDArray[np.bool_]  # (N,)
    magnitude: Array  # (N, 5) as they are
    known: NDArray[np.bool_]  # (N,) whether the spectroscopic redshift is

    def __len__(self) -> int:
        return len(self.total)

    @staticmethod
    def measure(image: NDArray[np.float32], magnitude: Array, redshift: Array) -> Sample:
        """Return the sample of cutouts (N, 5, 32, 32), magnitudes (N, 5) and redshifts (N,)."""
        finite = ~has_unusable_pixel(image)
        complete = finite & ~has_constant_edge(image)
        if not finite.all():
            image = np.where(finite[:, None, None, None], image, np.float32(0))
        edge = np.concatenate([image[:, :, 0], image[:, :, -1], image[..., 0], image[..., -1]], axis=2)
        background = np.median(edge, axis=2)
        noise = 1.4826 * np.median(np.abs(edge - background[..., None]), axis=2)
        whole = (edge == np.rint(edge)).all(axis=2)
        total = image.sum(axis=(2, 3), dtype=np.float64)
        squares = np.einsum("nbij,nbij->nb", image, image).astype(np.float64)
        spread = np.sqrt(np.maximum(squares / PIXELS - (total / PIXELS) ** 2, 0))
        return Sample(
            total, image.max(axis=(2, 3)), image.min(axis=(2, 3)), background, noise, spread, whole, finite, complete,
            magnitude, is_usable_redshift(redshift),
        )  # fmt: skip

    @staticmethod
    def concatenate(parts: Sequence[Sample]) -> Sample:
        """Return all galaxies of these samples as one."""
        return Sample(*(np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].__struct_fields__))

    def rows(self, selected: NDArray[np.bool_] | slice) -> Sample:
        """Return the selected galaxies."""
        return Sample(*(getattr(self, name)[selected] for name in self.__struct_fields__))


def read_sample(survey: Survey) -> tuple[Sample | None, int]:
    """Return up to SAMPLE galaxies spread over a survey, read in RANGES ranges from at most as many shards.

    Also return the number of shards that cannot be read, which are left out; without any other the sample is None.
    """
    by_shard = [(entry, [rows for _, rows in group]) for entry, group in groupby(select_rows(survey.shards), _shard)]
    read = map_in_order(partial(_read_ranges, survey), by_shard, reader_threads(survey.uri))
    parts = [part for part in read if part is not None]
    return Sample.concatenate(parts) if parts else None, len(by_shard) - len(parts)


def _shard(selected: tuple[ShardEntry, tuple[int, int]]) -> ShardEntry:
    return selected[0]


def select_rows(shards: Sequence[ShardEntry]) -> Iterator[tuple[ShardEntry, tuple[int, int]]]:
    """Yield shards, each with the first row and the end of a range of the sample, in survey order."""
    shards = [shard for shard in shards if shard.galaxies]
    total, size = sum(shard.galaxies for shard in shards), SAMPLE // RANGES
    if total <= SAMPLE and len(shards) <= RANGES:
        yield from ((shard, (0, shard.galaxies)) for shard in shards)
        return
    index = begin = last = 0  # the shard that holds the row, the number of its first galaxy, the end of the last range
    for number in range(RANGES):
        row = total * number // RANGES
        while row >= begin + shards[index].galaxies:
            begin += shards[index].galaxies
            index += 1
        end = begin + shards[index].galaxies
        start = max(begin, last, min(row, end - size))  # a range that would reach beyond the shard begins earlier
        if start < end:
            last = min(start + size, end)
            yield shards[index], (start - begin, last - begin)


def _read_ranges(survey: Survey, selected: tuple[ShardEntry, list[tuple[int, int]]]) -> Sample | None:
    """Return the sample of these ranges of a shard; None if it cannot be read."""
    entry, ranges = selected
    names = ("image", "magnitude", "redshift")
    try:
        with survey.open(entry) as shard:
            parts = [Sample.measure(*(shard.read_field(name, *rows) for name in names)) for rows in ranges]
            return Sample.concatenate(parts)
    except InputError:
        return None
