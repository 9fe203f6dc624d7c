"""`cosmicai bench ingest`: how fast an ingest reads files, compared with plain reading of the same files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from ..measurement.machine import describe_machine
from ..measurement.subprocesses import run_module_with_peak
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..ranks.cores import available_cores
from ..surveys.ingest.processes import count_processes
from ..surveys.ingest.reading import MAX_BATCH
from ..surveys.shard import IMAGE_SHAPE, Galaxies
from ..surveys.synthetic import SKY_NOISE, generate_batches
from .galaxies import SEED
from .timing import measure_interleaved, summarize_spread

Images = NDArray[np.float32]  # (N, 5, 64, 64)
Table = NDArray[np.void]  # of ids, magnitudes and redshifts
SIDE = 64  # pixels of the cutouts; an ingest keeps the central 32
COLUMNS = (
    MeasurementColumn("name", "sources"),
    MeasurementColumn("processes", "processes", "d"),
    MeasurementColumn("galaxies_per_second", "ingest, galaxies/s", ",.0f"),
    MeasurementColumn("galaxies_per_second_min", "min", ",.0f"),
    MeasurementColumn("galaxies_per_second_max", "max", ",.0f"),
    MeasurementColumn("mb_per_second", "MB/s", ",.1f"),
    MeasurementColumn("plain_galaxies_per_second", "plain, galaxies/s", ",.0f"),
    MeasurementColumn("plain_galaxies_per_second_min", "min", ",.0f"),
    MeasurementColumn("plain_galaxies_per_second_max", "max", ",.0f"),
    MeasurementColumn("plain_mb_per_second", "MB/s", ",.1f"),
    MeasurementColumn("ratio", "ingest / plain", ".2f"),
    MeasurementColumn("peak_rss_mb", "peak MB", ",.0f"),
)


@dataclass(frozen=True)
class _Sources:
    """Files of one format: arguments and processes of their ingest, how they are read plainly, and their size."""

    name: str
    arguments: tuple[str, ...]
    read: Callable[[], None]
    bytes: int
    processes: int = 1


def bench_ingest(galaxies: int, repeats: int, notify: Callable[[str], None]) -> MeasurementTable:
    """Ingest synthetic galaxies from files of several formats, in turns with plain reading of the same files.

    An ingest is a process of its own, from its start to its end: imports, checks and writing count. The fact
    `start_seconds` is what an ingest of a single galaxy takes. Plain reading is astropy, numpy or h5py in this process,
    one file after the other, which copies all images (in native byte order) and columns into memory and does nothing
    with them. The files are in the file system's cache, so that no disk is measured. `ratio` is the median over the
    turns; MB are 2^20 bytes of the files, compressed if they are. `peak_rss_mb` is the peak resident memory of the
    largest process of an ingest. The files are in the temporary folder (TMPDIR), about 450 kB per galaxy, and the
    galaxies in memory while the files are written. Raises InputError if an ingest fails.
    """
    here = describe_machine()
    with TemporaryDirectory(prefix="cosmicai-bench-") as name:
        folder = Path(name)
        notify(f"writing {galaxies:,} galaxies in each format")
        (one, *sources), out = _write_all(folder, *_generate(galaxies)), folder / "survey"
        trials: list[Callable[[], Any]] = [partial(_ingest, one, out)]
        for each in sources:
            trials += [partial(_ingest, each, out), partial(_read, each)]
        start, *measured = measure_interleaved(trials, repeats, notify)
    rows = [
        _make_row(each, galaxies, ingests, plain)
        for each, ingests, plain in zip(sources, measured[::2], measured[1::2], strict=True)
    ]
    start_seconds = median(seconds for seconds, _ in start)
    facts = {"galaxies": galaxies, "repeats": repeats, "start_seconds": start_seconds}
    notes = {"galaxies": f"{galaxies:,} synthetic ones", "start": f"{start_seconds:.2f} s of every ingest"}
    return MeasurementTable("Ingest", COLUMNS, rows, here, facts, notes)


def _generate(count: int) -> tuple[Images, Table]:
    """Return larger cutouts (N, 5, 64, 64) of synthetic galaxies with noise of the sky around, and their catalogue."""
    drawn = Galaxies.concatenate(generate_batches(count, SEED))
    rng, margin = np.random.default_rng(SEED), (SIDE - IMAGE_SHAPE[-1]) // 2
    image = rng.standard_normal((count, 5, SIDE, SIDE), np.float32) * SKY_NOISE.astype(np.float32)[:, None, None]
    image[:, :, margin:-margin, margin:-margin] = drawn.image
    catalogue = np.empty(count, [("objid", "S9"), ("magnitude", np.float64, 5), ("redshift", np.float64)])
    catalogue["objid"] = [f"J{number:08d}" for number in drawn.objid]
    catalogue["magnitude"], catalogue["redshift"] = drawn.magnitude, drawn.redshift
    return image, catalogue


def _write_all(folder: Path, image: Images, catalogue: Table) -> list[_Sources]:
    """Write a file of one galaxy, then files of all galaxies in each format."""
    return [
        _write_npz(folder / "one.npz", image[:1], catalogue[:1]),
        _write_single(folder / "plain", "FITS file per galaxy", ".fits", image, catalogue),
        _write_single(folder / "gzip", "gzip FITS file per galaxy", ".fits.gz", image, catalogue),
        _write_cube(folder / "cube.fits", image, catalogue),
        _write_npz(folder / "galaxies.npz", image, catalogue),
        _write_hdf5(folder / "galaxies.h5", image, catalogue),
    ]


def _write_single(folder: Path, name: str, ending: str, image: Images, catalogue: Table) -> _Sources:
    folder.mkdir()
    table, files = folder.with_suffix(".fits"), [folder / f"{objid.decode()}{ending}" for objid in catalogue["objid"]]
    fits.BinTableHDU(catalogue).writeto(table)
    for path, own in zip(files, image, strict=True):
        fits.PrimaryHDU(own).writeto(path)  # which compresses files of this name
    processes = count_processes(available_cores(), len(files))
    arguments = (str(folder), "--catalogue", str(table))
    return _Sources(name, arguments, partial(_read_fits, table, files), _size([table, *files]), processes)


def _write_cube(path: Path, image: Images, catalogue: Table) -> _Sources:
    fits.HDUList([fits.PrimaryHDU(image), fits.BinTableHDU(catalogue)]).writeto(path)
    return _Sources("FITS cube with a table", (str(path),), partial(_read_fits, path, [path]), _size([path]))


def _write_npz(path: Path, image: Images, catalogue: Table) -> _Sources:
    np.savez(path, image=image, **_columns(catalogue))
    return _Sources("npz", (str(path),), partial(_read_npz, path), _size([path]))


def _write_hdf5(path: Path, image: Images, catalogue: Table) -> _Sources:
    with h5py.File(path, "w") as file:
        for name, values in {"image": np.moveaxis(image, 1, -1), **_columns(catalogue)}.items():
            file[name] = values
    return _Sources("HDF5, bands last", (str(path),), partial(_read_hdf5, path), _size([path]))


def _columns(catalogue: Table) -> dict[str, Any]:
    return {name: catalogue[name] for name in catalogue.dtype.names or ()}


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _read_fits(table: Path, files: Sequence[Path]) -> None:
    np.array(fits.getdata(table, 1))
    for path in files:
        np.array(fits.getdata(path), np.float32)


def _read_npz(path: Path) -> None:
    with np.load(path) as arrays:
        for name in arrays.files:
            arrays[name]


def _read_hdf5(path: Path) -> None:
    with h5py.File(path) as file:
        for name in file:
            for start in range(0, len(file[name]), MAX_BATCH):
                file[name][start : start + MAX_BATCH]


def _ingest(sources: _Sources, out: Path) -> tuple[float, float]:
    """Return seconds and peak memory in MB of an ingest, whose survey is removed."""
    begin = time.perf_counter()
    _, peak = run_module_with_peak("cosmicai", "ingest", *sources.arguments, "--out", str(out))
    seconds = time.perf_counter() - begin
    shutil.rmtree(out)
    return seconds, peak


def _read(sources: _Sources) -> float:
    """Return seconds of plain reading."""
    begin = time.perf_counter()
    sources.read()
    return time.perf_counter() - begin


def _make_row(
    sources: _Sources, galaxies: int, ingests: Sequence[tuple[float, float]], plain: Sequence[float]
) -> dict[str, Any]:
    own, read = [galaxies / seconds for seconds, _ in ingests], [galaxies / seconds for seconds in plain]
    mb = sources.bytes / 2**20 / galaxies
    return {
        "name": sources.name,
        "processes": sources.processes,
        **summarize_spread("galaxies_per_second", own),
        "mb_per_second": median(own) * mb,
        **summarize_spread("plain_galaxies_per_second", read),
        "plain_mb_per_second": median(read) * mb,
        **summarize_spread("ratio", [ingest / other for ingest, other in zip(own, read, strict=True)]),
        "peak_rss_mb": max(peak for _, peak in ingests),
    }
