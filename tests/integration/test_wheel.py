"""A wheel built from the tree and installed elsewhere: everything with all groups, and sentences where one is missing.

The environments are real ones, without an index: a new virtual environment gets the wheel by pip, and of the packages
that it needs those that this environment has, by links.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.rank_launchers import clean_environment
from support.scripts import PROJECT


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel."""

    folder: Path

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run `python ARGUMENTS` of the environment, outside of the checkout."""
        command = [str(self.folder / "bin/python"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd or self.folder, env=clean_environment(), timeout=240
        )

    def succeed(self, *arguments: str, cwd: Path | None = None) -> str:
        """Run `python ARGUMENTS`, which must end well, and return what it printed."""
        done = self.run(*arguments, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fail(self, *arguments: str) -> str:
        """Run `python ARGUMENTS`, which must end with exit code 2 and one sentence, and return that."""
        done = self.run(*arguments)
        assert done.returncode == 2, done.stderr
        [*notices, sentence] = done.stderr.splitlines()
        assert not any("Traceback" in line for line in notices)
        return sentence


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy, since setuptools leaves files in the tree that it builds.
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "src", "analysis", "pyproject.toml", "setup.py", "README.md",
         "LICENSE"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in tracked:
        if (PROJECT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((PROJECT / name).read_bytes())
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    [built] = folder.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def install(folder: Path, wheel: Path, groups: Iterable[str]) -> Installed:
    """Return a new environment with the wheel, what it needs, and what these groups of it need."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    pip("--python", str(folder / "bin/python"), "install", "--no-deps", "--no-index", str(wheel))
    [packages] = folder.glob("lib/python*/site-packages")
    for name in needed(packages, groups):
        for top in tops(name):
            link = packages / top.name
            if not link.exists():
                link.symlink_to(top)
    return Installed(folder)


def needed(packages: Path, groups: Iterable[str]) -> set[str]:
    """Return the names of all packages that the installed wheel needs with these groups."""
    [own] = importlib.metadata.distributions(name="cosmicai", path=[str(packages)])
    found: set[str] = set()
    left = [(own, frozenset(groups))]
    while left:
        distribution, extras = left.pop()
        for text in distribution.requires or []:
            requirement = Requirement(text)
            chosen = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if requirement.marker and not any(requirement.marker.evaluate(one) for one in chosen):
                continue
            name = canonicalize_name(requirement.name)
            if name == "cosmicai":
                left.append((own, frozenset(requirement.extras)))
            elif name not in found:
                found.add(name)
                left.append((importlib.metadata.distribution(name), frozenset(requirement.extras)))
    return found


def tops(name: str) -> set[Path]:
    """Return the files and folders of a package in the folder of all packages."""
    distribution = importlib.metadata.distribution(name)
    root = Path(str(distribution.locate_file("")))
    parts = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
    return {root / part for part in parts}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    """An environment with all groups."""
    return install(tmp_path_factory.mktemp("all"), wheel, ["all"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    """An environment without any group."""
    return install(tmp_path_factory.mktemp("base"), wheel, [])


def test_demo_launch_and_analysis_run_from_the_wheel(everything: Installed, tmp_path: Path) -> None:
    where = everything.succeed("-c", "import analysis, cosmicai; print(analysis.__file__, cosmicai.__file__)").split()
    assert all(path.startswith(str(everything.folder)) for path in where)
    everything.succeed("-m", "cosmicai", "demo", "--out", str(tmp_path / "demo"), "--galaxies", "300")
    everything.succeed(
        "-m",
        "launch",
        str(tmp_path / "demo/survey"),
        "--weights",
        "demo",
        "--procs",
        "2",
        "--out",
        str(tmp_path / "launched"),
    )
    catalogues = [(tmp_path / name / "catalogue.parquet").read_bytes() for name in ("demo/run", "launched")]
    assert catalogues[0] == catalogues[1]
    everything.succeed("-m", "launch", "status", str(tmp_path / "launched"))
    everything.succeed("-m", "analysis", "collect", str(tmp_path / "launched"), "--out", str(tmp_path / "tables"))
    assert sorted(path.name for path in (tmp_path / "tables").iterdir())


def test_a_cpu_infers_from_local_files_without_any_group(base: Installed, tmp_path: Path) -> None:
    absent = "import importlib.util as u; print([m for m in {} if u.find_spec(m)])"
    names = ["torch", "mpi4py", "boto3", "submitit", "astropy", "pandas", "jinja2", "msgpack"]
    assert base.succeed("-c", absent.format(names)) == "[]\n"
    base.succeed("-m", "cosmicai", "demo", "--out", str(tmp_path / "demo"), "--galaxies", "300")
    summary = json.loads((tmp_path / "demo/run/summary.json").read_text())
    assert summary["complete"]
    assert summary["coverage"]["done"] == 300
    base.succeed(
        "-m",
        "launch",
        str(tmp_path / "demo/survey"),
        "--weights",
        "demo",
        "--procs",
        "2",
        "--out",
        str(tmp_path / "launched"),
    )
    base.succeed("-m", "cosmicai", "catalogue", str(tmp_path / "launched"), "--to", "csv")


@pytest.mark.parametrize(
    ("group", "arguments"),
    [
        ("torch", "cosmicai infer demo --engine reference --out RUN"),
        ("torch", "cosmicai train demo --out weights.safetensors"),
        ("aws", "cosmicai infer s3://bucket/survey --weights demo --out RUN"),
        ("aws", "launch --cloud demo --out RUN"),
        ("slurm", f"launch --slurm demo --site {PROJECT}/slurm/local.toml --account a --out RUN"),
        ("fits", "cosmicai ingest FILE.fits --out SURVEY"),
        ("analysis", "analysis collect . --out tables"),
    ],
)
def test_a_missing_group_is_named_in_one_sentence(base: Installed, group: str, arguments: str) -> None:
    (base.folder / "FILE.fits").write_bytes(b"SIMPLE  =                    T".ljust(2880))
    module, *rest = arguments.split()
    sentence = base.fail("-m", module, *rest)
    assert f"pip install 'cosmicai[{group}]'" in sentence
