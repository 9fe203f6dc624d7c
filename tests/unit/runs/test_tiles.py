"""How HATS's files are chosen: as large as they may be, all galaxies in one each."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cosmicai.errors import InputError
from cosmicai.runs.catalogue.tiles import INDEX_ORDER, Tile, choose_tiles, count_cells, covered_fraction, empty_counts


def test_tiles_are_smaller_where_galaxies_crowd():
    counts = np.zeros(12 * 16, np.int64)  # cells of order 2
    counts[[0, 1, 4, 17, 191]] = [3, 2, 5, 9, 1]
    tiles = choose_tiles(counts, 9)
    assert tiles == [Tile(1, 0, 5), Tile(1, 1, 5), Tile(0, 1, 9), Tile(0, 11, 1)]
    assert choose_tiles(counts, 10**6) == [Tile(0, 0, 10), Tile(0, 1, 9), Tile(0, 11, 1)]
    assert covered_fraction(tiles) == 2.5 / 12


def test_every_galaxy_is_in_exactly_one_tile():
    random = np.random.default_rng(0)
    cells = random.integers(0, 12 << 2 * INDEX_ORDER, 3000) >> random.choice([0, 8, 12], 3000)
    counts = empty_counts()
    for part in np.array_split(cells, 7):
        count_cells(counts, part)
    tiles = choose_tiles(counts, 1000)
    found = [np.count_nonzero((cells >= tile.begin) & (cells < tile.end)) for tile in tiles]
    assert found == [tile.rows for tile in tiles] and sum(found) == 3000 and max(found) <= 1000
    assert all(first.end <= second.begin for first, second in pairwise(tiles))
    assert {tile.order for tile in tiles} > {0}


def test_no_galaxies_no_tiles():
    assert choose_tiles(empty_counts(), 5) == []


def test_more_galaxies_in_the_smallest_tile_than_a_file_holds_are_refused():
    counts = np.zeros(12 * 4, np.int64)
    counts[5] = 1001
    with pytest.raises(InputError) as error:
        choose_tiles(counts, 1000)
    assert str(error.value) == (
        "1,001 galaxies of the catalogue lie in one HEALPix cell of order 1, and a file of HATS holds at most 1,000; "
        "check the positions (ra, dec) of the survey"
    )


def test_paths_are_those_of_hats():
    assert Tile(6, 34567, 1).path == "Norder=6/Dir=30000/Npix=34567.parquet"
