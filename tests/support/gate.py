"""Sources for the gate: a few synthetic galaxies, files of them, and what ingest makes of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits

from cosmicai.errors import InputError
from cosmicai.surveys.ingest.gate import ingest_files
from cosmicai.surveys.ingest.source import IngestOptions
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.synthetic import generate_batches

ROWS = 12
GOOD = next(generate_batches(ROWS, seed=5))
ZIRGU = [4, 3, 2, 1, 0]  # the order z i r g u
COLUMNS: dict[str, Any] = {
    "image": GOOD.image, "magnitude": GOOD.magnitude, "redshift": GOOD.redshift, "objid": GOOD.objid + 7,
}  # fmt: skip


def ingest(tmp_path: Path, *sources: Path, **options: Any) -> tuple[Galaxies, tuple[str, ...]]:
    """Return the galaxies that ingest makes of sources, and its notices."""
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    report = ingest_files([str(source) for source in sources], str(out), 1000, IngestOptions(**options))
    return Galaxies.concatenate(report.survey.read_batches(1000)), report.notices


def images(tmp_path: Path, *sources: Path, **options: Any) -> np.ndarray:
    """Return the cutouts that ingest makes of sources."""
    return ingest(tmp_path, *sources, **options)[0].image


def refusal(tmp_path: Path, source: Path, **options: Any) -> str:
    """Return the one sentence with which ingest refuses a source, without its path; check that nothing is left."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        ingest_files([str(source)], str(tmp_path / "refused"), 1000, IngestOptions(**options))
    assert sorted(tmp_path.rglob("*")) == before
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(source), "SOURCE")


def write_npz(folder: Path, **columns: Any) -> Path:
    """Write an archive of the good galaxies, with or without other arrays; None leaves one out."""
    path = folder / "a.npz"
    np.savez(path, **{name: value for name, value in (COLUMNS | columns).items() if value is not None})
    return path


def write_h5(folder: Path, attributes: dict[str, dict[str, Any]] | None = None, **columns: Any) -> Path:
    """Write an HDF5 file of the good galaxies; `attributes` are those of "/" or of datasets, "__" in names is "/"."""
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        for name, value in (COLUMNS | columns).items():
            if value is not None:
                file[name.replace("__", "/")] = value
        for name, values in (attributes or {}).items():
            file[name].attrs.update(values)
    return path


def table(**columns: Any) -> fits.BinTableHDU:
    """Return a table of columns, of the good galaxies' ones where none are given."""
    codes = {"f8": "D", "f4": "E", "i8": "K", "i4": "J", "i2": "I", "u1": "B"}
    values = {name.upper(): np.asarray(value) for name, value in (columns or _TABLE).items()}
    return fits.BinTableHDU.from_columns(
        [
            fits.Column(
                name, f"{value.shape[1] if value.ndim > 1 else ''}{codes[value.dtype.str[1:]]}", array=value
            )
            for name, value in values.items()
        ]
    )  # fmt: skip


_TABLE = {name: value for name, value in COLUMNS.items() if name != "image"}


def write_fits(folder: Path, *hdus: Any, cards: dict[str, Any] | None = None, name: str = "a.fits") -> Path:
    """Write a FITS file of these HDUs, the good galaxies' cube and table where none are given."""
    hdus = hdus or (fits.PrimaryHDU(GOOD.image), table())
    hdus[0].header.update(cards or {})
    fits.HDUList(list(hdus)).writeto(folder / name, overwrite=True)
    return folder / name
