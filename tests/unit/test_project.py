"""The project's own files hold together."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from cosmicai.console.command_line import GROUPS
from support.locks import read_lock

ROOT = Path(__file__).parents[2]


LOCKS = ("requirements.lock", "requirements-dev.lock", "containers/requirements.lock")


def test_the_conda_environment_has_the_locked_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pins = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    versions = {name: version for name, _, version in (pin.partition("==") for pin in pins if "==" in pin)}
    assert sorted(versions) == sorted({name for names in groups().values() for name in names})
    for name in ("torch", "torchvision"):
        assert f'"{name}=={versions.pop(name)}"' in (ROOT / "pyproject.toml").read_text()
    locked = read_lock(ROOT / "requirements.lock")
    assert versions == {name: locked[canonicalize_name(name)] for name in versions}


def groups() -> dict[str, list[str]]:
    """Return the packages of every group that `all` installs, and of `base`, which has no group."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    match = re.fullmatch(r"cosmicai\[(.*)\]", optional["all"][0])
    assert match is not None
    names = match[1].split(",")
    found = {"base": project["dependencies"]} | {name: optional[name] for name in names}
    return {
        name: [re.split("[<>=]", package)[0] for package in packages if not package.startswith("cosmicai[")]
        for name, packages in found.items()
    }


def test_a_missing_package_is_named_with_the_group_that_brings_it():
    found = {package: name for name, packages in groups().items() if name != "base" for package in packages}
    brought = {"botocore": "aws", "nncf": "int8"}  # with boto3; and outside of `all`
    assert found | brought == GROUPS


@pytest.mark.parametrize("lock", (*LOCKS, "requirements-interop.lock"))
def test_a_lock_pins_every_package_by_hashes_and_names_no_index(lock):
    text = (ROOT / lock).read_text()
    entries = re.split(r"\n(?=\S)", text.rstrip("\n"))
    pinned = re.compile(r"[a-z0-9-]+==\S+( ; [^\\]+)? \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n|$))+")
    assert [entry for entry in entries if not pinned.fullmatch(entry)] == []
    assert not re.search("https?:|--index|--find-links", text)


def test_the_locks_have_no_package_twice_and_leave_torch_to_pip():
    """The builds of torch and torchvision for CPUs and for CUDA have one version, but other hashes and requirements."""
    base, dev, image = (read_lock(ROOT / lock, everywhere=True) for lock in LOCKS)
    assert [name for name in base | dev if re.match("torch$|torchvision$|triton$|cuda-|nvidia-(?!ml)", name)] == []
    assert not base.keys() & (dev.keys() | image.keys())
    assert image.items() <= dev.items()


def test_fmi_knows_nothing_of_galaxies():
    package = ROOT / "src/fmi"
    found = {
        name
        for path in package.rglob("*.py")
        for name in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
    }
    assert found >= {"msgpack", "numpy", "socket"}  # it does find imports
    assert not found & {"cosmicai", "launch", "torch"}


@pytest.mark.parametrize("word", ["../sha" + "red", "shared/" + "upstream", "/ro" + "ot/", "/wo" + "rk/"])
def test_the_project_speaks_of_itself_alone(word):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so nothing says which files are the project's")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    found = [
        name for name in tracked
        if not name.startswith(("tests/", ".ci/")) and (ROOT / name).suffix != ".safetensors"
        and word in (ROOT / name).read_text(errors="replace")
    ]  # fmt: skip
    assert found == []
