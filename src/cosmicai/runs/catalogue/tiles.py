"""How HATS cuts the sky into files: by HEALPix cells in nested order, smaller ones where galaxies crowd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError

INDEX_ORDER = 29  # of the cells by which rows are sorted, 0.4 milliarcseconds wide
COUNT_ORDER = 10  # of the smallest tiles, 3.4 arcminutes wide
MAX_ROWS = 1_000_000  # in a tile
_BASE = 12  # cells of order 0
_DIRECTORY = 10_000  # tiles


@dataclass(frozen=True)
class Tile:
    """A HEALPix cell, the galaxies of which are in one file."""

    order: int
    cell: int
    rows: int

    @property
    def path(self) -> str:
        """The path of the file in the folder `dataset`."""
        return f"Norder={self.order}/Dir={self.cell // _DIRECTORY * _DIRECTORY}/Npix={self.cell}.parquet"

    @property
    def begin(self) -> int:
        """The first cell of INDEX_ORDER within the tile; all of them follow each other."""
        return self.cell << 2 * (INDEX_ORDER - self.order)

    @property
    def end(self) -> int:
        """The first cell of INDEX_ORDER after the tile."""
        return self.cell + 1 << 2 * (INDEX_ORDER - self.order)


def empty_counts() -> NDArray[np.int64]:
    """Return a number of galaxies, 0, for every cell of COUNT_ORDER."""
    return np.zeros(_BASE * 4**COUNT_ORDER, np.int64)


def count_cells(counts: NDArray[np.int64], cells: NDArray[np.int64]) -> None:
    """Add galaxies, by their cells (N,) of INDEX_ORDER, to the numbers of `counts`."""
    found, number = np.unique(cells >> 2 * (INDEX_ORDER - COUNT_ORDER), return_counts=True)
    counts[found] += number


def choose_tiles(counts: NDArray[np.int64], max_rows: int) -> list[Tile]:
    """Return the largest tiles with at most `max_rows` galaxies that hold all of them, in the order of the sky.

    `counts` are the galaxies of each cell of the deepest order. Raises InputError if one of them has more than that.
    """
    levels = [counts]
    while len(levels[-1]) > _BASE:
        levels.append(levels[-1].reshape(-1, 4).sum(axis=1))
    tiles, cells = [], np.arange(_BASE)
    for order, level in enumerate(reversed(levels)):
        cells = cells[level[cells] > 0]
        fits = level[cells] <= max_rows
        tiles += [Tile(order, int(cell), int(level[cell])) for cell in cells[fits]]
        cells = (4 * cells[~fits, None] + np.arange(4)).ravel()
    if len(cells):
        raise InputError(
            f"{counts.max():,} galaxies of the catalogue lie in one HEALPix cell of order {len(levels) - 1}, and a "
            f"file of HATS holds at most {max_rows:,}; check the positions (ra, dec) of the survey"
        )
    return sorted(tiles, key=lambda tile: tile.begin)


def covered_fraction(tiles: Sequence[Tile]) -> float:
    """Return the fraction of the sky that tiles cover."""
    return sum(4.0**-tile.order for tile in tiles) / _BASE
