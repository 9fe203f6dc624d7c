"""Catalogues of galaxies that no network has seen, as a run would have written them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cosmicai.runs.catalogue.columns import STANDARD, Column
from cosmicai.runs.catalogue.metadata import parquet_metadata
from cosmicai.runs.catalogue.to_qp import LOWER, UPPER

PROVENANCE = {"survey": "sky", "weights": "tiny.safetensors"}


def make_columns(rows: int, *, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return columns of a catalogue with positions all over the sky and intervals of the redshifts."""
    random = np.random.default_rng(seed)
    redshift = random.uniform(0.1, 0.6, rows).astype(np.float32)
    half = random.uniform(0.01, 0.05, rows).astype(np.float32)
    return {
        "objid": np.arange(rows) + 10**18,
        "ra": random.uniform(0, 360, rows),
        "dec": np.degrees(np.arcsin(random.uniform(-1, 1, rows))),
        "redshift_phot": redshift,
        LOWER: redshift - half,
        UPPER: redshift + half,
        "redshift_spec": redshift + random.normal(0, 0.03, rows),
        "flag": np.zeros(rows, np.uint8),
        "shard": np.full(rows, "000001.h5"),
        "row": np.arange(rows),
    }


def write_catalogue(folder: Path, columns: dict[str, NDArray[Any]], *, row_group: int = 1000) -> str:
    """Write a run folder that has a catalogue with these columns and nothing else; return its address."""
    folder.mkdir(exist_ok=True)
    described = [_describe(name, values) for name, values in columns.items()]
    schema = pa.schema([column.to_field() for column in described], parquet_metadata(described, PROVENANCE))
    table = pa.Table.from_arrays([pa.array(values.tolist(), column.type) for values, column in zip(
        columns.values(), described, strict=True)], schema=schema)  # fmt: skip
    pq.write_table(table, folder / "catalogue.parquet", row_group_size=row_group)
    return str(folder)


def _describe(name: str, values: NDArray[Any]) -> Column:
    if values.dtype.kind == "U":
        return Column(name, pa.string(), width=max(len(text.encode()) for text in values.tolist()))
    return STANDARD.get(name, Column(name, pa.from_numpy_dtype(values.dtype)))
