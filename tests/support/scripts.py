"""Shell scripts of the project in an environment of the test's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[2]


NO_SHELLCHECK = "shellcheck is not installed"


NO_APPTAINER = "apptainer is not installed"


SYSTEM = ("bin", "etc", "lib", "lib64", "sbin", "usr")  # folders that a container borrows from this machine


def run_script(command: list[object], folder: Path, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder; of this process's environment it gets only PATH."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=folder, env=environment_of(environment), capture_output=True, text=True, timeout=60
    )


def environment_of(environment: dict[str, object]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/"} | {name: str(value) for name, value in environment.items()}


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


class Box:
    """A container with this machine's own programs, which sees only the folders that are mounted."""

    def __init__(self, folder: Path) -> None:
        self.image, self.data = folder / "image", folder / "dàta x"
        self.data.mkdir()
        for name in ("proc", "sys", "dev", "tmp", "root", "home", "var/tmp"):
            (self.image / name).mkdir(parents=True)
        shown = []
        for host in (Path("/", name) for name in SYSTEM):
            if host.is_symlink():
                (self.image / host.name).symlink_to(host.readlink())
            elif host.is_dir():
                (self.image / host.name).mkdir()
                shown.append(str(host))
        # Without APPTAINER_CONTAIN /tmp, in which these tests lie, and the home folder would be there anyway.
        self.environment = {"COSMICAI_IMAGE": self.image, "COSMICAI_BIND": ":".join(shown), "APPTAINER_CONTAIN": "1"}

    def command(self, *words: object) -> list[object]:
        return [PROJECT / "slurm/container.sh", *words]

    def run(self, *words: object, **variables: object) -> subprocess.CompletedProcess[str]:
        bind = f"{self.environment['COSMICAI_BIND']}:{variables.pop('COSMICAI_BIND', '')}".rstrip(":")
        return run_script(self.command(*words), self.data, **self.environment | variables | {"COSMICAI_BIND": bind})
