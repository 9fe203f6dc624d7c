"""What killed writers left is removed: no file of a writer that may be alive, and nothing of the user's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmicai import storage
from cosmicai.processes import has_ended, process_name
from cosmicai.runs.store import RunFolder
from cosmicai.storage.temporary import LEFT_AFTER, remove_leftovers, temporary_path
from support.processes import is_gone, wait_until

DEAD = process_name().rpartition("-")[0] + "-1"  # this process's number, of one that started at another time
ELSEWHERE = "0" * 8 + "-1-1"
WRITER = """
import sys
from pathlib import Path
from cosmicai import storage
with storage.atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print(temporary.name, flush=True)
    sys.stdin.read()
"""


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_name_of_a_process_says_whether_it_is_alive() -> None:
    assert has_ended(process_name()) is False
    assert has_ended(DEAD) is True
    for unknown in (ELSEWHERE, "", "0badcafe", process_name().rpartition("-")[0] + "-0"):
        assert has_ended(unknown) is None


def test_a_child_that_is_forked_has_a_name_of_its_own() -> None:
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, process_name().encode())
        os._exit(0)
    assert os.read(read, 100).decode() != process_name()
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("name", "seconds", "stays"),
    [
        (f".a.h5.partial-{DEAD}-01234567", 0.0, False),
        (f".a\nb.partial-{DEAD}-01234567", 0.0, False),
        (f".a.h5.partial-{process_name()}-01234567", 2 * LEFT_AFTER, True),
        (f".a.h5.partial-{ELSEWHERE}-01234567", LEFT_AFTER - 600, True),
        (f".a.h5.partial-{ELSEWHERE}-01234567", LEFT_AFTER + 600, False),
        (".a.h5.partial-01234567", LEFT_AFTER - 600, True),
        (".a.h5.partial-01234567", LEFT_AFTER + 600, False),
        (f"a.h5.partial-{DEAD}-01234567", 2 * LEFT_AFTER, True),
        (f".a.h5.partial-{DEAD}", 2 * LEFT_AFTER, True),
        (".a.h5.partial-mine", 2 * LEFT_AFTER, True),
        (".partial-01234567", 2 * LEFT_AFTER, True),
    ],
    ids=[f"{number}" for number in range(11)],  # the names differ from process to process
)
def test_only_temporary_files_of_writers_that_have_ended_are_removed(
    tmp_path: Path, name: str, seconds: float, stays: bool
) -> None:
    (tmp_path / name).write_bytes(b"half")
    age(tmp_path / name, seconds)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [name] * stays


def test_links_and_folders_stay(tmp_path: Path) -> None:
    (tmp_path / f".a.partial-{DEAD}-00000000").mkdir()
    (tmp_path / f".b.partial-{DEAD}-00000000").symlink_to(tmp_path)
    before = names(tmp_path)
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "none")
    assert names(tmp_path) == before


@pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
def test_the_first_write_of_a_process_into_a_folder_removes_what_a_killed_one_left(tmp_path: Path, write) -> None:
    folder = tmp_path / write.__name__
    folder.mkdir()
    uri = folder / "a.json"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(uri)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        left = writer.stdout.readline().strip()  # type: ignore[union-attr]
        remove_leftovers(folder)
        assert names(folder) == [left], "its writer is alive"
        writer.kill()
        wait_until(lambda: is_gone(writer.pid))
        write(str(uri), b"whole")
    assert names(folder) == ["a.json"] and uri.read_bytes() == b"whole"


def test_a_temporary_name_fits_however_long_the_name_is(tmp_path: Path) -> None:
    assert len(os.fsencode(temporary_path(tmp_path / ("ζ" * 127)).name)) <= 255


def test_all_folders_of_a_run_are_cleared(tmp_path: Path) -> None:
    folders = ("", "parts", "records", "failures", "claims", "claims/70", "network", "logs", "submissions", "functions")
    for folder in folders:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / f".x.partial-{DEAD}-01234567").touch()
    RunFolder(str(tmp_path)).remove_leftovers()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
