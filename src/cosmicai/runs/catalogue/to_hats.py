"""The catalogue as a HATS folder (Hierarchical Adaptive Tiling Scheme 1.0), one Parquet file per tile of the sky.

The rows of each row group are sorted by position, cut into tiles, and put into a temporary file, from which the rows of
one tile after the other are merged. So no more than the rows of a tile are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...console import printable_line
from ...errors import InputError
from ...version import VERSION
from .columns import STANDARD, Column, free_name
from .metadata import parquet_metadata
from .source import CatalogueSource, column_values
from .tiles import INDEX_ORDER, MAX_ROWS, Tile, choose_tiles, count_cells, covered_fraction, empty_counts
from .writing import ROW_GROUP

INDEX_NAME = f"_healpix_{INDEX_ORDER}"
INDEX = Column(INDEX_NAME, pa.int64(), f"HEALPix cell of order {INDEX_ORDER}, nested", "", "pos.healpix")
_RESERVED = (INDEX_NAME, "Norder", "Dir", "Npix")  # the latter are parts of paths, which readers take for columns
_POSITION = ["ra", "dec"]


def write_hats(source: CatalogueSource, folder: Path, max_rows: int = MAX_ROWS) -> int:
    """Write the catalogue into an empty folder, at most `max_rows` to a file; return the number of galaxies in it.

    Galaxies without a position are left out. Raises InputError if none has one, or if too many share one.
    """
    if not set(_POSITION) <= set(source.schema.names):
        raise InputError(
            "the catalogue has no columns ra and dec, by which HATS sorts galaxies into files; make the survey with "
            "positions (`cosmicai ingest --ra RA --dec DEC`), or write another format"
        )
    counts = empty_counts()
    for table in source.tables(_POSITION):
        cells = _find_cells(table)
        count_cells(counts, cells[cells >= 0])
    tiles = choose_tiles(counts, max_rows)
    del counts
    if not tiles:
        raise InputError(
            f"none of the {source.rows} galaxies of the catalogue has a position (ra, dec), by which HATS sorts them "
            "into files; write another format"
        )
    columns = (INDEX, *_rename_columns(source.columns))
    schema = pa.schema([column.to_field() for column in columns], parquet_metadata(columns, source.provenance))
    dataset, path = folder / "dataset", folder / "rows.arrow"
    batches = _sort_groups(source, schema, tiles, path)
    with pa.OSFile(str(path)) as file:
        reader = pa.ipc.open_file(file)
        footers = [
            _write_tile(dataset, tile, pa.Table.from_batches(map(reader.get_batch, numbers)))
            for tile, numbers in zip(tiles, batches, strict=True)
        ]
    path.unlink()
    pq.write_metadata(schema, dataset / "_metadata", footers)
    pq.write_metadata(schema, dataset / "_common_metadata")
    lines = ["Norder,Npix", *(f"{tile.order},{tile.cell}" for tile in tiles)]
    (folder / "partition_info.csv").write_text("".join(f"{line}\n" for line in lines))
    _write_properties(folder, source.provenance, tiles)
    return sum(tile.rows for tile in tiles)


def _rename_columns(columns: Sequence[Column]) -> list[Column]:
    """Return the columns with other names for those that have one of HATS's own."""
    reserved, taken = {name.lower() for name in _RESERVED}, {column.name.lower() for column in columns}
    return [
        replace(column, name=free_name(column.name, reserved | taken)) if column.name.lower() in reserved else column
        for column in columns
    ]


def _find_cells(table: pa.Table) -> NDArray[np.int64]:
    """Return the cells (N,) of INDEX_ORDER in which galaxies lie, -1 for those without a position."""
    import cdshealpix  # it needs astropy, and its group brings it
    from astropy.coordinates import Latitude, Longitude

    ra, dec = (column_values(table, STANDARD[name]) for name in _POSITION)
    known = np.isfinite(ra) & (np.abs(dec) <= 90)
    cells = np.full(len(ra), -1, np.int64)
    position = Longitude(ra[known], "deg"), Latitude(dec[known], "deg")
    cells[known] = cdshealpix.lonlat_to_healpix(*position, INDEX_ORDER, num_threads=1)
    return cells


def _sort_groups(source: CatalogueSource, schema: pa.Schema, tiles: Sequence[Tile], path: Path) -> list[list[int]]:
    """Write the rows that have a position to a file of Arrow, each row group sorted and cut into tiles.

    Return the numbers of the record batches of each tile.
    """
    edges = [*(tile.begin for tile in tiles), tiles[-1].end]
    batches: list[list[int]] = [[] for _ in tiles]
    count = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for table in source.tables():
            cells = _find_cells(table)
            order = np.argsort(cells, kind="stable")[np.count_nonzero(cells < 0) :]
            columns = [column.combine_chunks() for column in table.take(_to_array(order)).columns]
            rows = pa.RecordBatch.from_arrays([_to_array(cells[order]), *columns], schema=schema)
            for number, (start, stop) in enumerate(pairwise(np.searchsorted(cells[order], edges))):
                if start < stop:
                    writer.write_batch(rows.slice(start, stop - start))
                    batches[number].append(count)
                    count += 1
    return batches


def _write_tile(dataset: Path, tile: Tile, table: pa.Table) -> pq.FileMetaData:
    """Write the file of a tile, with these rows in any order, and return its footer."""
    path = dataset / tile.path
    footers: list[pq.FileMetaData] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    order = np.argsort(table[INDEX_NAME].to_numpy(), kind="stable")
    with pq.ParquetWriter(path, table.schema, compression="zstd", metadata_collector=footers) as writer:
        for start in range(0, len(order), ROW_GROUP):
            writer.write_table(table.take(_to_array(order[start : start + ROW_GROUP])).combine_chunks())
    footers[0].set_file_path(tile.path)
    return footers[0]


def _to_array(numbers: NDArray[np.int64]) -> pa.Array:
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])


def _write_properties(folder: Path, provenance: dict[str, str], tiles: Sequence[Tile]) -> None:
    """Write what readers of HATS look at first; older ones look for it in `properties`."""
    survey = provenance.get("survey") or "catalogue"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    stated = {
        "obs_collection": survey,
        "obs_title": f"Photometric redshifts of {survey} by {provenance.get('weights') or 'unknown weights'}",
        "dataproduct_type": "object",
        "hats_nrows": sum(tile.rows for tile in tiles),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": INDEX_NAME,
        "hats_col_healpix_order": INDEX_ORDER,
        "hats_order": max(tile.order for tile in tiles),
        "hats_max_rows": max(tile.rows for tile in tiles),
        "hats_npix_suffix": ".parquet",
        "hats_builder": f"cosmicai {VERSION}",
        "hats_creation_date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M%Z"),
        "hats_estsize": -(-size // 1024),
        "hats_release_date": "2025-08-22",  # of this version of HATS
        "hats_version": "v1.0",
        "moc_sky_fraction": f"{covered_fraction(tiles):.7f}",
    }
    lines = [f"{key}={printable_line(str(value)).replace(chr(92), chr(92) * 2)}" for key, value in stated.items()]
    for name in ("hats.properties", "properties"):
        (folder / name).write_text("".join(f"{line}\n" for line in ["#HATS catalog", *lines]), "utf-8")
