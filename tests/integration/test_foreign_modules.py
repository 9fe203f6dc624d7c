"""Libraries of another installation, which PYTHONPATH or PYTHONHOME put before those of this program."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmicai.foreign_modules import describe_foreign_modules
from support.processes import run

BROKEN = 'raise ImportError("numpy 1.17 of the module python/3.7:\\nNo module named numpy.core")'
OLD = "def __getattr__(name):\n    raise AttributeError(f\"module 'numpy' has no attribute {name!r}\")"


@pytest.mark.parametrize("module", ["cosmicai", "launch"])
@pytest.mark.parametrize("content", [BROKEN, OLD])
def test_the_variable_is_named(tmp_path: Path, module: str, content: str) -> None:
    foreign = tmp_path / "numpy" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text(content)
    done = run("demo", "--out", str(tmp_path / "demo"), module=module, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{module}: {foreign} comes from PYTHONPATH and not from this installation (")
    assert line.endswith("start the program with `env -u PYTHONPATH` in front of the command")
    assert not (tmp_path / "demo").exists()


def test_another_pythonhome_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/other")
    assert describe_foreign_modules(ImportError("No module named 'math'")) == (
        "PYTHONHOME=/other lets Python look for its libraries there and not in this installation (ImportError: No "
        "module named 'math'); start the program with `env -u PYTHONHOME` in front of the command"
    )
    assert describe_foreign_modules(ValueError("ours")) == ""


def test_modules_of_the_user_do_not_hide_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert describe_foreign_modules(ValueError("ours")) == ""
    assert describe_foreign_modules(ImportError("ours")) == ""
