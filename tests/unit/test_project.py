"""The project's own files hold together."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().split()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


def test_the_conda_environment_has_the_locked_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pins = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    versions = {name: version for name, _, version in (pin.partition("==") for pin in pins if "==" in pin)}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert sorted(versions) == sorted(re.split("[<>=]", requirement)[0] for requirement in wanted)
    assert versions == {name: locked()[name] for name in versions}


def test_torch_is_pinned_once():
    assert locked()["torch"] == "2.13.0"
    assert '"torch==2.13.0"' in (ROOT / "pyproject.toml").read_text()


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
        and word in (ROOT / name).read_text()
    ]  # fmt: skip
    assert found == []
