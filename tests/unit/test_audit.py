"""`make audit`, with a program in the place of pip-audit."""

import shutil
import subprocess
from pathlib import Path

import pytest

from support.scripts import PROJECT, executable

NO_ANSWER = "make audit: nothing was checked, since the index did not answer for all packages (see above)"
FOUND = "Name Version ID\nnumpy 2.4.6 PYSEC-1"
OUTCOMES = {
    "nothing found": ('echo "No known vulnerabilities found" >&2', 0, "", ""),
    "found": (f'echo "{FOUND}"; exit 1', 2, FOUND, ""),
    "no answer": ('echo "numpy: Dependency not found on PyPI" >&2; exit 1', 2, "", NO_ANSWER),
    "no connection": ('echo "ConnectionError" >&2; exit 1', 2, "", NO_ANSWER),
}


@pytest.mark.parametrize(("outcome", "code", "printed", "message"), OUTCOMES.values(), ids=OUTCOMES)
def test_an_index_without_an_answer_is_told_from_packages_without_vulnerabilities(
    tmp_path: Path, outcome: str, code: int, printed: str, message: str
) -> None:
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(PROJECT / name, tmp_path)
    executable(tmp_path / "pip", "exit 0")
    executable(tmp_path / "pip-audit", f'echo "$*" >calls\n{outcome}')
    executable(tmp_path / "python", 'mkdir -p "$3/bin" && cp pip pip-audit "$3/bin"')
    done = subprocess.run(
        ["make", "--silent", "audit", f"PYTHON={tmp_path / 'python'}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.rstrip("\n")) == (code, printed), done.stderr
    assert (message in done.stderr) if message else ("make audit:" not in done.stderr)
    listed = ("requirements.lock", "containers/requirements.lock", "build/audit/torch.txt")
    asked = (tmp_path / "calls").read_text()
    assert all(f"--requirement {name}" in asked for name in listed)
    assert (tmp_path / "build/audit/torch.txt").read_text() == "torch==2.13.0\ntorchvision==0.28.0\n"
