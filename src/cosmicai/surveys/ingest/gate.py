"""The gate between files of other formats and a survey, where every batch of galaxies is checked and written.

Every source is read once, front to back, a few hundred galaxies at a time. Cutouts may have the bands first
(N, 5, H, W) or last (N, H, W, 5), any float or integer dtype, and H = W of 32 or more (even): the centre is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..shard import BANDS, IMAGE_SHAPE, Galaxies
from ..survey import Survey, write_survey
from .fits_files import open_fits
from .hdf5_files import open_hdf5
from .numpy_files import open_npy, open_npz
from .pt_files import open_partition
from .source import READ_ERRORS, SourceFields, check_dtype

BATCH = 256  # galaxies in memory at once
OPENERS: dict[str, Callable[[str, Mapping[str, str]], AbstractContextManager[SourceFields]]] = {
    ".npz": open_npz, ".npy": open_npy, ".h5": open_hdf5, ".hdf5": open_hdf5, ".pt": open_partition,
    ".fits": open_fits, ".fit": open_fits, ".fz": open_fits,
}  # fmt: skip


def ingest_files(sources: list[str], out: str, galaxies_per_shard: int, names: Mapping[str, str]) -> Survey:
    """Write the galaxies of all sources, in order, as a survey; whole or not at all.

    `names` gives a source's own name of a field, where that is not one of `ALIASES`. The survey has redshifts if any
    source has; objid is the source's own, else the galaxy's number in the survey.
    Raises InputError naming the file and the field if a source cannot be used.
    """
    counts, has_redshift = [], False
    for source in sources:  # everything is checked before anything is written
        with _open_source(source, names) as fields:
            counts.append(fields["image"].shape[0])
            has_redshift |= "redshift" in fields

    def batches() -> Iterator[Galaxies]:
        row = 0
        for source in sources:
            with _open_source(source, names) as fields:
                for batch in _read_batches(source, fields, row):
                    row += len(batch)
                    yield batch

    columns = ("image", "magnitude", *["redshift"] * has_redshift, "objid")
    return write_survey(out, batches(), sum(counts), galaxies_per_shard, columns)


@contextmanager
def _open_source(source: str, names: Mapping[str, str]) -> Iterator[SourceFields]:
    """Open a source of any format and check its fields. Raises InputError if it cannot be used."""
    path = Path(source)
    if path.suffix not in OPENERS:
        raise InputError(f"{source} is of an unknown kind; expected a file ending in {', '.join(OPENERS)}")
    if not path.is_file():
        raise InputError(f"{source} does not exist; check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{source} is empty; expected galaxies, copy it again")
    with OPENERS[path.suffix](source, names) as fields:
        _check_fields(source, fields)
        yield fields


def _check_fields(source: str, fields: SourceFields) -> None:
    shape = fields["image"].shape
    if len(shape) != 4 or len(BANDS) not in (shape[1], shape[-1]):
        raise InputError(
            f"{source}: image has the shape {shape}; expected (N, 5, H, W) or (N, H, W, 5), bands u g r i z"
        )
    height, width = shape[2:] if shape[1] == len(BANDS) else shape[1:3]
    if height != width or height < IMAGE_SHAPE[-1] or height % 2:
        raise InputError(f"{source}: cutouts are of {height}x{width} pixels; expected squares of an even 32 or more")
    for name, array in fields.items():
        check_dtype(source, name, array.dtype)
        expected = (shape[0], 5) if name == "magnitude" else (shape[0],)
        if name != "image" and array.shape != expected:
            raise InputError(
                f"{source}: {name} has the shape {array.shape}, image is of {shape[0]} galaxies; expected {expected}"
            )


def _read_batches(source: str, fields: SourceFields, first_row: int) -> Iterator[Galaxies]:
    """Read a source's galaxies in order; galaxies without objid are numbered from `first_row`."""

    def read(name: str, count: int) -> NDArray[Any]:
        try:
            values = fields[name].read_next(count)
        except READ_ERRORS as error:
            raise InputError(f"{source}: {name} is damaged ({error}); write the file again") from None
        if len(values) != count:
            raise InputError(f"{source}: {name} ends early; write the file again")
        return values

    galaxies = fields["image"].shape[0]
    for start in range(0, galaxies, BATCH):
        count = min(BATCH, galaxies - start)
        rows = np.arange(first_row + start, first_row + start + count)
        yield Galaxies(
            _crop(read("image", count)),
            read("magnitude", count).astype(np.float64, copy=False),
            read("redshift", count).astype(np.float64) if "redshift" in fields else np.full(count, np.nan),
            read("objid", count).astype(np.int64) if "objid" in fields else rows,
        )


def _crop(image: NDArray[Any]) -> NDArray[np.float32]:
    """Return the central 32 x 32 pixels of cutouts, bands first, as float32 (N, 5, 32, 32)."""
    if image.shape[1] != len(BANDS):
        image = np.moveaxis(image, -1, 1)
    margin = (image.shape[-1] - IMAGE_SHAPE[-1]) // 2
    centre = slice(margin, margin + IMAGE_SHAPE[-1])
    return np.ascontiguousarray(image[..., centre, centre], dtype=np.float32)
