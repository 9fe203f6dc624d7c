"""Test what is said of files that may not be read, in every format: by `ingest`, and by what reads them in place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from support.gate import COLUMNS, GOOD, write_fits, write_h5, write_npz

# Root may read everything, so that the program first becomes the user `nobody`.
PROGRAM = """
import os, sys
import astropy.io.fits, h5py
from cosmicai.errors import InputError
from cosmicai.runs.demo import open_named_survey
from cosmicai.surveys.ingest.gate import ingest_files
from cosmicai.surveys.ingest.source import IngestOptions
os.geteuid() or os.setuid(65534)
read, source = sys.argv[1:]
try:
    if read == "ingest":
        ingest_files([source], "out", 1000, IngestOptions(allow_external=True))
    else:
        open_named_survey(source, "out")
    print("read")
except InputError as error:
    print(error)
"""
DENIED = "permission denied; ask its owner for read permission"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike those of pytest."""
    path = Path(tempfile.mkdtemp(prefix="cosmicai-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def said_of(read: str, source: Path) -> str:
    command = [sys.executable, "-c", PROGRAM, read, source.name]
    ran = subprocess.run(command, cwd=source.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    return line


def write_pt(folder: Path) -> Path:
    torch.save(TensorDataset(*map(torch.from_numpy, (GOOD.image, GOOD.magnitude))), folder / "a.pt")
    return folder / "a.pt"


def write_npy(folder: Path) -> Path:
    for name, values in COLUMNS.items():
        np.save(folder / f"{name}.npy", values)
    return folder / "image.npy"


@pytest.mark.parametrize("write", [write_h5, write_npz, write_fits, write_pt, write_npy])
def test_a_file_without_read_permission_is_named_with_what_to_do(folder, write):
    source = write(folder)
    source.chmod(0)
    assert said_of("ingest", source) == f"cannot read {source.name}: {DENIED}"
    in_place = source if source.suffix in (".h5", ".pt") else source.name
    assert said_of("infer", source) == f"cannot read {in_place}: {DENIED}"


def test_the_magnitudes_beside_an_array_of_images_are_named(folder):
    source = write_npy(folder)
    source.with_name("magnitude.npy").chmod(0)
    assert said_of("ingest", source) == f"image.npy: magnitude (magnitude.npy) cannot be read: {DENIED}"


def test_a_closed_folder_is_named(folder):
    (folder / "closed").mkdir()
    write_h5(folder / "closed")
    (folder / "closed").chmod(0)
    assert said_of("infer", folder / "closed") == f"cannot list {folder}/closed: {DENIED}"


@pytest.mark.parametrize("kind", ["link", "virtual"])
def test_the_file_that_holds_the_data_is_named(folder, kind):
    write_h5(folder).rename(folder / "data.h5")
    source = write_h5(folder, image=None)
    with h5py.File(source, "a") as file:
        if kind == "link":
            file["image"] = h5py.ExternalLink("data.h5", "image")
        else:
            layout = h5py.VirtualLayout(GOOD.image.shape, "f4")
            layout[:] = h5py.VirtualSource("data.h5", "image", GOOD.image.shape, "f4")
            file.create_virtual_dataset("image", layout)
    (folder / "data.h5").chmod(0)
    expected = {
        "link": f"a.h5: image (image) is a link to data.h5:image, which cannot be read: {DENIED}",
        "virtual": f"a.h5: image (image) needs the file data.h5; {DENIED}",
    }
    assert said_of("ingest", source) == expected[kind]
