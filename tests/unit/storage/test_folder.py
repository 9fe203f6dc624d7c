"""Test folders that are written whole or not at all: several writers at once, and those that were killed."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cosmicai.errors import InputError, StorageError
from cosmicai.storage import folder
from cosmicai.storage.folder import atomic_folder

WRITER = """
import sys, time
from pathlib import Path
from cosmicai.storage.folder import atomic_folder
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "half").write_text("written")
    print("writing", flush=True)
    sys.stdin.read()
"""


def start_writer(target: Path) -> subprocess.Popen[str]:
    """Start a process that writes a folder until its input ends, and return it when it has begun."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_appears_whole_when_the_block_ends(tmp_path, exists):
    target = tmp_path / "deep" / "out"
    if exists:
        target.mkdir(parents=True)
    with atomic_folder(target) as temporary:
        (temporary / "a").write_text("a")
        assert target.exists() == exists and temporary.parent == target.parent
    assert names(tmp_path / "deep") == ["out"] and names(target) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error)), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("a")
        raise error
    assert names(tmp_path) == []


def test_of_two_writers_the_first_to_end_wins_whole_and_the_other_is_refused(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(InputError) as caught, atomic_folder(target) as slow:
        (slow / "slow").write_text("slow")
        with atomic_folder(target) as fast:
            (fast / "fast").write_text("fast")
    assert str(caught.value) == (
        f"{target} was written by another process meanwhile, which was left as it is; choose another --out"
    )
    assert names(tmp_path) == ["out"] and names(target) == ["fast"]


def test_the_folder_of_a_killed_writer_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    target = tmp_path / "out"
    killed, alive = start_writer(target), start_writer(target)
    other = start_writer(tmp_path / "out2")  # which has abandoned nothing of `out`
    for process in (killed, other):
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(names(tmp_path)) == 3
    with pytest.raises(RuntimeError), atomic_folder(target):
        assert len(names(tmp_path)) == 3  # of this process, of the living one, of out2
        raise RuntimeError
    assert len(names(tmp_path)) == 2
    alive.communicate("")
    assert alive.returncode == 0 and names(target) == ["half"]


def test_a_folder_of_another_machine_is_never_removed(tmp_path, monkeypatch):
    left = tmp_path / f".out.partial-{'0' * 8}-{'1' * 8}"
    left.mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [left.name, "out"]
    monkeypatch.setattr(folder, "_host", lambda: "0" * 8)
    with atomic_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


def test_where_the_file_system_has_no_locks_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    begin = f".out.partial-{folder._host()}-"
    (tmp_path / f"{begin}left").mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("a")
    assert names(tmp_path) == [f"{begin}left", "out"]


def test_where_every_lock_is_said_to_be_taken_the_folder_is_written_without(tmp_path, monkeypatch):
    """As Lustre and NFS do in some set-ups: nobody can have locked a folder that was made a moment ago."""

    def refuse(descriptor: int, operation: int) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    begin = f".out.partial-{folder._host()}-"
    (tmp_path / f"{begin}left").mkdir()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("a")
    assert names(tmp_path) == [f"{begin}left", "out"]
    assert names(tmp_path / "out") == ["a"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of its path is a file"), atomic_folder(tmp_path / "file" / "out"):
        pass
    with pytest.raises(StorageError, match="cannot write"), atomic_folder(tmp_path / "file"):
        pass
    assert names(tmp_path) == ["file"]
