"""Two thousand damaged files of all formats: each gives what was written, or is refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.mutations import CASES, write_cases

MUTATIONS = 2000
PROCESSES = 2
TESTS = str(Path(__file__).parents[1])


def read_mutations(folder: Path, first: int) -> dict[int, tuple[str, str]]:
    """Return file and outcome of every other mutation, in processes of which one may end at each of them."""
    found: dict[int, tuple[str, str]] = {}
    while first < MUTATIONS:
        arguments = [str(folder), str(first), str(MUTATIONS), str(PROCESSES)]
        command = [sys.executable, "-m", "support.mutations", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": TESTS})
        for number, file, outcome in map(json.loads, done.stdout.splitlines()):
            found[number] = file, outcome
        if done.returncode == 0:
            break
        assert found, done.stderr
        ended = max(found)
        found[ended] = found[ended][0], f"ended with {done.returncode}: {done.stderr}"
        first = ended + PROCESSES
    return found


def test_damaged_files_give_what_was_written_or_one_sentence(tmp_path: Path) -> None:
    write_cases(tmp_path / "0")
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    with ThreadPoolExecutor(PROCESSES) as pool:
        halves = pool.map(lambda first: read_mutations(tmp_path / str(first), first), range(PROCESSES))
    found = {number: outcome for half in halves for number, outcome in half.items()}
    assert found.keys() == set(range(MUTATIONS))
    wrong = {number: own for number, own in found.items() if own[1] not in ("same", "other", "refused")}
    assert wrong == {}
    for case in CASES:
        outcomes = [outcome for file, outcome in found.values() if file == case.file]
        assert outcomes.count("refused") > len(outcomes) / 4, (case.file, outcomes)
