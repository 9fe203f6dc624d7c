"""Checksums of a shard's rows: one per field and block of rows, so that every range of rows is checked as it is read.

A shard (`cosmicai-shard/2`) holds them as the dataset `checksum` (blocks, fields) uint64, whose attribute `fields`
names the fields in the order of its columns: the XXH3-64 of the bytes, as they lie in the file, of rows 0 to 63, 64 to
127 and so on of each field. The root's attribute `digest` is the XXH3-128 of everything that gives these bytes a
meaning, and of the checksums themselves; it therefore stands for the whole content of the shard.

They find damage and mix-ups, not forgery.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from ..errors import InputError

BLOCK_ROWS = 64
DATASET = "checksum"
DIGEST = "digest"
NO_DIGEST = "0" * 32  # in a file that is being written


@dataclass(frozen=True)
class RowChecksums:
    """The checksums of an open shard: `table` (blocks, fields) uint64 for `fields`, and the digest of its content."""

    fields: tuple[str, ...]
    table: NDArray[np.uint64]
    digest: str
    _passed: set[tuple[str, int]] = field(default_factory=set, init=False, repr=False, compare=False)

    def widen(self, name: str, start: int, stop: int, galaxies: int) -> tuple[int, int]:
        """Return the rows to read so that each block of rows start to stop is whole or has been checked before."""
        first, last = start // BLOCK_ROWS, (stop - 1) // BLOCK_ROWS
        end = min((last + 1) * BLOCK_ROWS, galaxies)
        return (
            start if (name, first) in self._passed else first * BLOCK_ROWS,
            stop if (name, last) in self._passed else end,
        )

    def verify(self, uri: str, name: str, start: int, stop: int, galaxies: int, data: memoryview) -> None:
        """Compare the blocks that lie within rows start to stop of a field with their checksums.

        `data` holds these rows as they are in the file. Raises InputError if one differs.
        """
        column, row_bytes = self.table[:, self.fields.index(name)], len(data) // (stop - start)
        for block in range(-(-start // BLOCK_ROWS), -(-stop // BLOCK_ROWS)):
            first, end = block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, galaxies)
            if end > stop:
                return
            if xxhash.xxh3_64_intdigest(data[(first - start) * row_bytes : (end - start) * row_bytes]) != column[block]:
                raise InputError(damaged_rows(uri, f"rows {first} to {end - 1} of {name} differ from their checksum"))
            self._passed.add((name, block))


class ChecksumWriter:
    """Computes the checksums of rows that come in pieces of any length."""

    def __init__(self, galaxies: int, fields: tuple[str, ...]) -> None:
        self.table = np.zeros((-(-galaxies // BLOCK_ROWS), len(fields)), "<u8")
        self._galaxies = galaxies
        self._hashes = [xxhash.xxh3_64() for _ in fields]
        self._row = 0

    def add(self, columns: list[NDArray[Any]]) -> None:
        """Add the next rows: the values of each field, in the dtypes in which they are stored."""
        done, rows = 0, len(columns[0])
        while done < rows:
            block = self._row // BLOCK_ROWS
            count = min(rows - done, (block + 1) * BLOCK_ROWS - self._row)
            self._row += count
            for number, (digest, values) in enumerate(zip(self._hashes, columns, strict=True)):
                digest.update(np.ascontiguousarray(values[done : done + count]).data)
                if self._row == min((block + 1) * BLOCK_ROWS, self._galaxies):
                    self.table[block, number] = digest.intdigest()
                    digest.reset()
            done += count


def damaged_rows(uri: str, problem: str) -> str:
    """Return the message on a file some of whose bytes are not those that were written."""
    folder = uri.rpartition("/")[0] or "."
    return f"{uri} is damaged: {problem}; copy it again, and check the others with `cosmicai survey verify {folder}`"


def content_digest(header: Mapping[str, Any], table: bytes = b"") -> str:
    """Return the digest of a file's content: of what its bytes mean, as JSON, and of their checksums."""
    return xxhash.xxh3_128_hexdigest(json.dumps(header, sort_keys=True, default=str).encode() + b"\n" + table)


def create_checksums(file: Any, galaxies: int, fields: tuple[str, ...]) -> None:
    """Create the dataset of the checksums in a new HDF5 file, in front of all others.

    The header and the checksums of a shard on S3 then come with the same request.
    """
    import h5py

    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    dataset = file.create_dataset(DATASET, (-(-galaxies // BLOCK_ROWS), len(fields)), "<u8", dcpl=settings)
    dataset.attrs["fields"] = ",".join(fields)
    file.attrs[DIGEST] = NO_DIGEST


def write_checksums(file: Any, fields: tuple[str, ...], table: NDArray[np.uint64]) -> str:
    """Write the checksums of all rows, and the digest of everything that the file holds by now; return the digest."""
    file[DATASET][...] = table
    digest = content_digest(_describe(file, fields), table.tobytes())
    file.attrs.modify(DIGEST, digest)
    return digest


def has_checksums(file: Any) -> bool:
    """Return whether an HDF5 file has checksums of rows, whatever format it names: one that is damaged may not."""
    return DIGEST in file.attrs and DATASET in file and "fields" in file[DATASET].attrs


def read_checksums(uri: str, file: Any, names: list[str], galaxies: int) -> RowChecksums:
    """Return the checksums of a shard of format 2 that has these fields.

    Raises InputError if they are missing, of other fields, or do not have the digest of the file.
    """
    import h5py

    dataset = file.get(DATASET)
    fields = tuple(str(dataset.attrs.get("fields", "")).split(",")) if isinstance(dataset, h5py.Dataset) else ()
    expected = (-(-galaxies // BLOCK_ROWS), len(fields))
    if sorted(fields) != sorted(names) or dataset.shape != expected or dataset.dtype != np.dtype("<u8"):
        raise InputError(damaged_rows(uri, "the checksums of its rows are missing or of another shape"))
    table = dataset[...]
    digest = content_digest(_describe(file, fields), table.tobytes())
    if str(file.attrs.get(DIGEST)) != digest:
        raise InputError(damaged_rows(uri, "its header and checksums differ from their digest"))
    return RowChecksums(fields, table, digest)


def _describe(file: Any, fields: tuple[str, ...]) -> dict[str, Any]:
    """Return what gives the bytes of the fields their meaning: dtypes, shapes and the attributes of the file."""
    attributes = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in file.attrs.items()}
    attributes.pop(DIGEST, None)
    datasets = {name: file[name] for name in fields}
    shapes = [[name, dataset.dtype.str, dataset.shape] for name, dataset in datasets.items()]
    own = {name: {key: str(value) for key, value in one.attrs.items()} for name, one in datasets.items()}
    return {"attributes": attributes, "fields": shapes} | ({"columns": own} if any(own.values()) else {})
