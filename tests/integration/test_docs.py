"""The `bash` and `python` blocks of README and docs/, run page by page, in their order, in one empty folder.

All `bash` blocks of a page run in one shell, and each `python` block in a process of its own. `sh` blocks need what is
not here, such as a cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.documentation import PAGES, Block, name_of, read_blocks
from support.torchvision_operators import environment

RUN = ("bash", "python")
PAGES_THAT_RUN = [page for page in PAGES if any(block.language in RUN for block in read_blocks(page))]


@pytest.mark.parametrize("page", PAGES_THAT_RUN, ids=name_of)
def test_the_blocks_of_a_page_work(page: Path, tmp_path: Path) -> None:
    code, failed, errors = run_blocks([block for block in read_blocks(page) if block.language in RUN], tmp_path)
    assert code == 0, f"{name_of(page)}:{failed.line}: this block failed:\n{failed.text}\n{errors}"
    assert "Traceback" not in errors, f"{name_of(page)}:\n{errors}"


def test_the_failing_block_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n```bash\nx=1 # kept\n```\n\n```python\nopen('a', 'w')\n```\n\n"
        "```bash\ntest -e a; test $x = 2\n```\n"
    )
    code, failed, _ = run_blocks(read_blocks(page), tmp_path)
    assert (code, failed.line) == (1, 11)


def test_readme_and_quickstart_run() -> None:
    assert {"README.md", "docs/quickstart.md"} <= set(map(name_of, PAGES_THAT_RUN))


def run_blocks(blocks: list[Block], tmp_path: Path) -> tuple[int, Block, str]:
    """Run blocks; return the exit code, the last block that was started, and what was written to standard error."""
    folder, script, started, errors = (tmp_path / name for name in ("folder", "script", "started", "errors"))
    folder.mkdir()
    lines = []
    for number, block in enumerate(blocks):
        lines.append(f"echo {number} >{started}\n")
        lines.append(
            block.text if block.language == "bash" else f"python - <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n"
        )
    script.write_text("".join(lines))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = environment(os.environ | {"PATH": path})
    with errors.open("wb") as stream, subprocess.Popen(
        ["bash", "-euo", "pipefail", script], cwd=folder, env=variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=stream, start_new_session=True,
    ) as shell:  # fmt: skip
        try:
            code = shell.wait()
        finally:
            kill_group(shell.pid)
    return code, blocks[int(started.read_text())], errors.read_text()


def kill_group(group: int) -> None:
    """Kill what a page has left running in the background."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
