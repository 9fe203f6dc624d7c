"""The README's `bash` blocks, run in their order in one empty folder; `sh` blocks need a network, a GPU or a clone."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_readmes_commands_work(tmp_path):
    blocks = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail"], input="\n".join(blocks), cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", sorted(set(re.findall(r"cosmicai ([a-z]+)", README))))
def test_every_command_the_readme_names_exists(command):
    from cosmicai.cli.main import cli

    assert command in cli.commands
