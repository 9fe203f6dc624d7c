"""Values of HDF5 datasets that are not there: in other files that are missing or short, or never written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import NO_READ_PERMISSION

EXAMPLES = 3  # names that a message lists
_BLANK_BYTES = 16 * 2**20
_DEEPEST = 8  # virtual datasets of virtual datasets


class RawRows:
    """The rows of a dataset in raw files beside its own file: HDF5 looks for them in the working directory."""

    def __init__(self, dataset: Any) -> None:
        folder = Path(dataset.file.filename).parent
        self._pieces = [(folder / name, offset, length) for name, offset, length in dataset.external]
        self._dtype, self._shape = dataset.dtype, dataset.shape[1:]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        row_bytes = self._dtype.itemsize * math.prod(self._shape)
        start, stop, at, data = rows.start * row_bytes, rows.stop * row_bytes, 0, b""
        for path, offset, length in self._pieces:
            first, last = max(start, at), min(stop, at + length)
            if first < last:
                with path.open("rb") as file:
                    file.seek(offset + first - at)
                    data += file.read(last - first)
            at += length
        return np.frombuffer(data, self._dtype).reshape(-1, *self._shape)


def find_external(dataset: Any, linked: str, allowed: bool) -> str | None:
    """Return what is wrong with a dataset whose data lie in other files, None if they do not, or may and are all there.

    `linked` is the name of the file that an external link led to, or empty. Data in other files could be any file of
    this machine, so that they are read only if the user allows it.
    """
    files = [linked, *files_of(dataset)] if linked else files_of(dataset)
    if files and not allowed:
        shown = ", ".join(files[:EXAMPLES]) + ", ..." * (len(files) > EXAMPLES)
        return f"lies in other files ({shown}); read them with --allow-external if you trust the file"
    return find_missing_part(dataset, 0)


def files_of(dataset: Any) -> list[str]:
    """Return the other files in which the data of a dataset lie."""
    names: list[str] = []
    if dataset.external:
        names += [str(name) for name, _, _ in dataset.external]
    if dataset.is_virtual:
        names += [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    return list(dict.fromkeys(names))


def find_missing_part(dataset: Any, depth: int) -> str | None:
    """Return which values of a virtual dataset or one in raw files are not there, None if all are, or it is neither."""
    folder = Path(dataset.file.filename).parent
    if depth and dataset.external:
        return "lies in raw files, which are not looked for beside it; write it into an HDF5 file"
    for name in files_of(dataset):
        if not (folder / name).is_file():  # an absolute name stays as it is
            return f"needs the file {name}, which does not exist beside it; restore it"
        if not os.access(folder / name, os.R_OK):
            return f"needs the file {name}; {NO_READ_PERMISSION}"
    if dataset.external:
        held = sum(_held_bytes(folder / name, offset, length) for name, offset, length in dataset.external)
        needed = int(dataset.size) * int(dataset.dtype.itemsize)
        short = f"needs {needed:,} bytes, of which its raw files hold {held:,}; copy them again"
        return short if held < needed else None
    return _find_virtual_gap(dataset, folder, depth) if dataset.is_virtual else None


def _held_bytes(path: Path, offset: int, length: int) -> int:
    return max(0, min(length, path.stat().st_size - offset))


def _find_virtual_gap(dataset: Any, folder: Path, depth: int) -> str | None:
    """Return which part of a virtual dataset has no source, None if every element has one."""
    import h5py

    if depth > _DEEPEST:
        return "is a virtual dataset of itself; write the file again"
    checked: set[tuple[str, str]] = set()
    mapped = np.zeros(dataset.shape[0], np.int64)  # elements of each row
    for source in dataset.virtual_sources():
        _count_rows(source.vspace, mapped)
        if (source.file_name, source.dset_name) in checked:
            continue
        checked.add((source.file_name, source.dset_name))
        if source.file_name == ".":
            problem = _find_source_gap(dataset.file, source, depth)
        else:
            # Without a lock: only its description is read, and not every file system has locks.
            with h5py.File(folder / source.file_name, "r", locking=False) as file:
                problem = _find_source_gap(file, source, depth)
        if problem:
            return problem
    if (mapped < dataset.size // dataset.shape[0]).any():
        return "has elements without a source; write the file again"
    return None


def _count_rows(selection: Any, mapped: Any) -> None:
    """Add the number of elements that a selection has in every row."""
    if selection.is_regular_hyperslab():
        start, stride, count, block = (int(axis[0]) for axis in selection.get_regular_hyperslab())
        rows = (start + stride * np.arange(count)[:, None] + np.arange(block)).ravel()
    else:
        first, last = selection.get_select_bounds()
        rows = np.arange(first[0], last[0] + 1)
    mapped[rows] += selection.get_select_npoints() // max(1, len(rows))


def _find_source_gap(file: Any, source: Any, depth: int) -> str | None:
    """Return what is wrong with the dataset from which a part of a virtual one comes, None if it has this part."""
    import h5py

    name = f"{source.dset_name} of {'the same file' if source.file_name == '.' else source.file_name}"
    if not isinstance(file.get(source.dset_name), h5py.Dataset):
        return f"needs {name}, which is missing; restore it"
    found = file[source.dset_name]
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        is_whole = found.size == source.vspace.get_select_npoints()
    else:
        _, last = source.src_space.get_select_bounds()
        is_whole = len(last) == found.ndim and all(stop < size for stop, size in zip(last, found.shape, strict=True))
    if not is_whole:
        return f"needs more of {name} than its {found.shape}; copy it again"
    problem = find_missing_part(found, depth + 1) or find_absence(found)
    return f"needs {name}, which {problem}" if problem else None


def find_absence(dataset: Any, *, may_be_blank: bool = False) -> str | None:
    """Return in which way values of a dataset were never written, None if all are there.

    What was never written reads as the fill value, mostly 0. Chunks that were not allocated are known to the file. In
    contiguous data and within a chunk it is not: there, rows at the end of an image that hold the fill value alone are
    taken for them, as a cutout with noise never does, unless the dataset `may_be_blank`, as a mask of good cutouts.
    """
    if not dataset.shape or not dataset.size:
        return None
    if dataset.chunks:
        expected = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        if (found := dataset.id.get_num_chunks()) < expected:
            return f"is unfinished: {expected - found:,} of {expected:,} chunks were never written; write it again"
    is_own = not (dataset.is_virtual or dataset.external)
    if is_own and dataset.id.get_offset() is None and dataset.id.get_storage_size() == 0:
        return "was never written; write it again"
    is_image = dataset.ndim > 2 and not may_be_blank
    return _find_blank_end(dataset) if is_image and not dataset.external else None


def _find_blank_end(dataset: Any) -> str | None:
    """Return which rows at the end of an image hold the fill value alone, among those of its last _BLANK_BYTES."""
    rows, fill = len(dataset), dataset.fillvalue
    if not np.all(dataset[rows - 1] == fill):
        return None
    first = max(0, rows - max(1, _BLANK_BYTES // max(1, dataset[rows - 1].nbytes)))
    written = np.flatnonzero((dataset[first:] != fill).reshape(rows - first, -1).any(axis=1))
    first += int(written[-1]) + 1 if len(written) else 0
    last = f"row {rows - 1} holds" if first == rows - 1 else f"rows {first} to {rows - 1} hold"
    return (
        f"looks unfinished: {last} nothing but {fill}, as if the program that wrote it was stopped; write it again, "
        "or leave these rows out"
    )
