"""The container image of this commit, as an archive and as a SIF, for tests."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cosmicai.runs.provenance import git_commit
from support.scripts import NO_APPTAINER
from support.slurm_cluster import surroundings

ROOT = Path(__file__).parents[2]


ARCHIVE, SIF = ROOT / "cosmicai-cpu.oci.tar", ROOT / "cosmicai.sif"


NO_IMAGE = "there is no image of this commit (`make image sif`)"


def read_labels(sif: Path) -> dict[str, str]:
    inspected = subprocess.run(["apptainer", "inspect", "--json", sif], capture_output=True, text=True, check=True)
    return json.loads(inspected.stdout)["data"]["attributes"]["labels"]


@dataclass(frozen=True)
class Image:
    """The SIF and the digest of the archive."""

    sif: Path
    digest: str

    def command(self, *words: object, options: tuple[object, ...] = ()) -> list[str]:
        own = ("--no-privs",) if os.getuid() == 0 else ()
        return [str(word) for word in ("apptainer", "exec", *own, *options, self.sif, *words)]

    def run(
        self, *words: object, options: tuple[object, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the image."""
        return subprocess.run(
            self.command(*words, options=options), capture_output=True, text=True, env=surroundings() | environment
        )

    def python(self, code: str) -> Any:
        """Run code in the image's Python and return the JSON that it prints."""
        done = self.run("python", "-c", code, options=("--contain", "--no-home"))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@functools.cache
def read_manifest() -> tuple[str, bytes]:
    """Return digest and bytes of the archive's manifest."""
    with tarfile.open(ARCHIVE) as archive:
        [entry] = json.load(archive.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
        return entry["digest"], archive.extractfile(f"blobs/{entry['digest'].replace(':', '/')}").read()  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def image() -> Image:
    if not shutil.which("apptainer"):
        pytest.skip(NO_APPTAINER)
    if not (ARCHIVE.exists() and SIF.exists()) or read_labels(SIF)["org.opencontainers.image.revision"] != git_commit():
        pytest.skip(NO_IMAGE)
    return Image(SIF, read_manifest()[0])
