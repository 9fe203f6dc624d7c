"""A small synthetic sky in every shape that ingest reads: the same galaxies as files, tables, archives, columns."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray

from cosmicai.surveys.synthetic import generate_batches

SIDE = 64
BANDS = "ugriz"
ORDER = "zirgu"  # in which the files hold the bands


@dataclass(frozen=True)
class Sky:
    """Galaxies of a table: cutouts (N, 5, 64, 64) in nanomaggies, ugriz, and one array per column."""

    image: NDArray[np.float32]
    columns: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, rows: Any) -> Sky:
        return Sky(self.image[rows], {name: column[rows].copy() for name, column in self.columns.items()})


def make_sky(galaxies: int, seed: int = 5) -> Sky:
    """Return synthetic galaxies with text ids and positions, magnitudes of which 3% are sentinels, and two columns."""
    rng = np.random.default_rng(seed)
    good = list(generate_batches(galaxies, seed))
    image = rng.normal(0, 0.02, (galaxies, 5, SIDE, SIDE)).astype(np.float32)
    image[..., 16:48, 16:48] = np.concatenate([batch.image for batch in good])
    magnitude = np.concatenate([batch.magnitude for batch in good])
    redshift = np.concatenate([batch.redshift for batch in good])
    bad = rng.permutation(galaxies)[: max(2, galaxies * 3 // 100)]
    magnitude[bad, rng.integers(0, 5, len(bad))] = rng.choice([-9999.0, 99.0], len(bad))
    redshift[bad[: len(bad) // 2]] = -1
    columns = {
        "name": np.array([f"J{number:04d}+{number % 7}" for number in rng.permutation(galaxies)]),
        "raj": rng.uniform(0, 360, galaxies), "decj": rng.uniform(-10, 70, galaxies),
        "z_sdss": redshift, "run": rng.integers(94, 8162, galaxies).astype(np.int32),
        "survey": np.array(["boss", "sdss", "eboss"])[rng.integers(0, 3, galaxies)],
        **{f"modelMag_{band}": magnitude[:, i] for i, band in enumerate(BANDS)},
    }  # fmt: skip
    return Sky(image, columns)


OPTIONS = (
    "--id", "name", "--magnitudes", "modelMag_{band}", "--redshift", "z_sdss", "--ra", "raj", "--dec", "decj",
    "--keep", "run,survey",
)  # fmt: skip


def write_table(sky: Sky, path: Path) -> Path:
    """Write the columns as a table in the format of the ending."""
    Table(sky.columns).write(path)
    return path


def _primary(cube: NDArray[np.float32]) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU(cube)
    hdu.header["BANDS"], hdu.header["BUNIT"] = ORDER, "nanomaggy"
    return hdu


def write_cutouts(sky: Sky, folder: Path) -> list[Path]:
    """Write a FITS file per galaxy, named by its id, into two folders, every third of them compressed with gzip."""
    paths = [folder / f"plate{number % 2}" for number in range(2)]
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(sky.columns["name"]):
        path = paths[number % 2] / f"{name}.fits"
        _primary(sky.image[number, ::-1]).writeto(path)
        if number % 3 == 0:
            (path.parent / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1, mtime=0))
            path.unlink()
    return paths


def write_bands(sky: Sky, folder: Path) -> Path:
    """Write a FITS file per galaxy and band."""
    folder.mkdir()
    for number, name in enumerate(sky.columns["name"]):
        for band, pixels in zip(BANDS, sky.image[number], strict=True):
            header = fits.Header({"FILTER": band, "BUNIT": "nanomaggy"})
            fits.PrimaryHDU(pixels, header).writeto(folder / f"{name}_{band}.fits")
    return folder


def write_extensions(sky: Sky, folder: Path) -> Path:
    """Write a FITS file per galaxy with an extension per band."""
    folder.mkdir()
    for number, name in enumerate(sky.columns["name"]):
        hdus = [fits.ImageHDU(sky.image[number, BANDS.index(band)], name=f"SDSS_{band.upper()}") for band in ORDER]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(folder / f"{name}.fits")
    return folder


def write_hdf5(sky: Sky, path: Path) -> Path:
    """Write HDF5 with bands last and a dataset per column."""
    with h5py.File(path, "w") as file:
        file["image"] = np.moveaxis(sky.image, 1, -1)
        for name, column in sky.columns.items():
            text = column.dtype.kind == "U"
            file[name] = column.astype(h5py.string_dtype()) if text else column
    return path


def write_npz(sky: Sky, path: Path) -> Path:
    """Write an archive as that of Pasquet et al. 2019: `cube` with bands last, `labels` with all columns."""
    columns = {name: np.char.encode(c, "utf-8") if c.dtype.kind == "U" else c for name, c in sky.columns.items()}
    labels = np.empty(len(sky), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        labels[name] = column
    np.savez(path, cube=np.moveaxis(sky.image, 1, -1), labels=labels)
    return path


def write_parquet(sky: Sky, path: Path) -> Path:
    """Write Parquet with a nested column of images, as MultimodalUniverse does."""
    images = [
        {"band": [f"sdss-{band}" for band in BANDS], "flux": [list(map(list, plane)) for plane in galaxy]}
        for galaxy in sky.image
    ]
    kind = pa.struct({"band": pa.list_(pa.string()), "flux": pa.list_(pa.list_(pa.list_(pa.float32())))})
    columns = {
        name: pa.array(column.tolist() if column.dtype.kind == "U" else column) for name, column in sky.columns.items()
    }
    pq.write_table(pa.table({"image": pa.array(images, kind), **columns}), path)
    return path


def write_bintable(sky: Sky, path: Path) -> Path:
    """Write a binary table with a column of images."""
    hdu = fits.BinTableHDU(Table({"image": sky.image, **sky.columns}))
    hdu.header["BANDS"] = BANDS
    hdu.writeto(path)
    return path
