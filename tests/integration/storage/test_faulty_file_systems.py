"""File systems of clusters: no locks, no hard links, no flushing of folders, stale handles, and their error numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from support.helpers import make_survey, random_galaxies, tiny_weights
from support.interposed import build_library, faults
from support.processes import run

CALLS = """
import json, sys
from pathlib import Path
from cosmicai import storage
from cosmicai.errors import StorageError
def attempt(call, *arguments):
    try: return call(*arguments)
    except StorageError as error: return str(error)
uri = sys.argv[1]
print(json.dumps([str(value) for value in eval(sys.argv[2])]))
"""


@pytest.fixture(name="library", scope="module")
def library_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


def call_storage(uri: Path, expression: str, variables: dict[str, str]) -> list[str]:
    """Return the results of calls of `storage` in a process of its own, as text."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, str(uri), expression], capture_output=True, text=True, env=os.environ | variables
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", ["EPERM", "ENOTSUP", "EMLINK", "ENOSYS"])
def test_where_there_are_no_hard_links_a_file_is_still_created_once(library: Path, tmp_path: Path, error: str) -> None:
    calls = "[storage.create_bytes(uri, b'one'), storage.create_bytes(uri, b'two')]"
    assert call_storage(tmp_path / "a", calls, faults(library, "link", error, "")) == ["True", "False"]
    assert (tmp_path / "a").read_bytes() == b"one" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("error", ["EINVAL", "EBADF", "ENOTSUP"])
def test_a_folder_that_cannot_be_flushed_is_no_error(library: Path, tmp_path: Path, error: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    calls = "[storage.create_bytes(uri, b'one'), storage.write_bytes(uri, b'two'), attempt(storage.read_bytes, uri)]"
    found = call_storage(folder / "a", calls, faults(library, "fsync", error, str(folder)))
    assert found == ["True", "None", "b'two'"]
    assert names(folder) == ["a"]


def test_a_file_that_cannot_be_flushed_is_an_error_and_leaves_nothing(library: Path, tmp_path: Path) -> None:
    calls = "[attempt(storage.write_bytes, uri, b'x'), attempt(storage.create_bytes, uri, b'x')]"
    uri = tmp_path / "a"
    found = call_storage(uri, calls, faults(library, "fsync", "EIO", ".partial-"))
    reason = "the disk or file server reports an error (input/output error); check it, then run again"
    assert found == [f"cannot write {uri}: {reason}"] * 2
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("call", "part"), [("open", "a.json"), ("read", "a.json"), ("opendir", "folder"), ("preadv", "a.json")]
)
def test_a_stale_handle_is_tried_again(library: Path, tmp_path: Path, call: str, part: str) -> None:
    uri = tmp_path / "folder" / "a.json"
    uri.parent.mkdir()
    uri.write_bytes(b"content")
    calls = "[storage.read_bytes(uri), storage.list_files(str(Path(uri).parent))[0].name, storage.sha256(uri)[:8]]"
    assert call_storage(uri, calls, faults(library, call, "ESTALE", part, 2)) == ["b'content'", "a.json", "ed7002b4"]


def test_a_handle_that_stays_stale_is_one_sentence(library: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    found = call_storage(
        tmp_path / "a", "[attempt(storage.sha256, uri)]", faults(library, "preadv", "ESTALE", str(tmp_path / "a"))
    )
    assert found == [
        f"cannot read {tmp_path}/a: the file server says again and again that it was replaced (stale file handle); "
        "run again"
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("ENOSPC", "no space left on the device; free some space or choose another place, then run again"),
        ("EDQUOT", "your disk quota is used up; free some space or choose another place, then run again"),
        ("EROFS", "the file system is read-only; choose another place"),
        ("EACCES", "permission denied; choose another place or change its permissions"),
        ("ENAMETOOLONG", "its name is longer than the file system allows; choose a shorter one"),
        ("EMFILE", "too many files are open in this process; raise the limit (ulimit -n), then run again"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(library: Path, tmp_path: Path, error: str, reason: str) -> None:
    calls = "[attempt(storage.write_bytes, uri, b'x'), attempt(storage.create_bytes, uri, b'x')]"
    found = call_storage(tmp_path / "a", calls, faults(library, "create", error, ".partial-"))
    assert found == [f"cannot write {tmp_path}/a: {reason}"] * 2
    assert names(tmp_path) == []


def test_a_name_that_is_too_long_is_one_sentence(tmp_path: Path) -> None:
    uri = tmp_path / ("n" * 300)
    [found] = call_storage(uri, "[attempt(storage.write_bytes, uri, b'x')]", {})
    assert found == f"cannot write {uri}: its name is longer than the file system allows; choose a shorter one"
    [found] = call_storage(tmp_path / ("ζ" * 127), "[attempt(storage.write_bytes, uri, b'x')]", {})
    assert found == "None" and names(tmp_path) == ["ζ" * 127]


@pytest.mark.parametrize(
    ("call", "error", "part", "times"),
    [
        ("link", "EPERM", "", 10**6),
        ("flock", "ENOLCK", "", 10**6),
        ("open", "ESTALE", "records/", 3),
        ("open", "ESTALE", ".h5", 2),
        ("open", "ESTALE", "plan.json", 1),
        ("open", "ESTALE", "survey.json", 1),
    ],
)
def test_a_run_on_such_a_file_system_is_complete(
    library: Path, job: tuple[str, str], tmp_path: Path, call: str, error: str, part: str, times: int
) -> None:
    survey, weights = job
    out = tmp_path / "run"
    done = run("infer", survey, "--weights", weights, "--out", str(out), **faults(library, call, error, part, times))
    assert done.returncode == 0, done.stderr
    assert not [path for path in out.rglob("*") if "partial" in path.name]


@pytest.fixture(name="job", scope="module")
def job_fixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the paths of a survey and weights."""
    folder = tmp_path_factory.mktemp("job")
    return make_survey(folder / "survey", random_galaxies(64), 32).uri, tiny_weights(folder / "w.safetensors")


@pytest.mark.parametrize("part", ["plan.json", "survey.json", "w.safetensors", "000001.h5"])
def test_a_file_without_permission_is_named_and_not_called_damaged(
    library: Path, job: tuple[str, str], tmp_path: Path, part: str
) -> None:
    survey, weights = job
    arguments = ("infer", survey, "--weights", weights, "--out", str(tmp_path / "run"))
    assert run(*arguments).returncode == 0
    for path in (tmp_path / "run" / "parts").iterdir():
        path.unlink()
    done = run(*arguments, "--resume", **faults(library, "open", "EACCES", part))
    assert part in done.stderr and "permission denied; ask its owner for read permission" in done.stderr
    assert "damaged" not in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == (3 if part.endswith(".h5") else 2)


@pytest.mark.parametrize(
    ("part", "arguments"),
    [
        ("catalogue.parquet", ("catalogue", "RUN", "--to", "csv")),
        ("plan.json", ("catalogue", "RUN", "--to", "csv")),
        ("records/0.json", ("summarize", "RUN")),
        ("parts/", ("summarize", "RUN")),
    ],
)
def test_a_file_of_a_run_without_permission_is_named_and_stays(
    library: Path, job: tuple[str, str], tmp_path: Path, part: str, arguments: tuple[str, ...]
) -> None:
    survey, weights = job
    out = tmp_path / "run"
    assert run("infer", survey, "--weights", weights, "--out", str(out)).returncode == 0
    before = names(out / "parts")
    done = run(*(str(out) if word == "RUN" else word for word in arguments), **faults(library, "open", "EACCES", part))
    assert done.returncode == 2
    assert done.stderr.startswith(f"cosmicai: cannot read {out}/{part}")
    assert done.stderr.endswith(": permission denied; ask its owner for read permission\n")
    assert names(out / "parts") == before


@pytest.mark.parametrize(("error", "code", "reason"), [
    ("EAGAIN", 2, "is locked: another program has it open for writing, or the file system has no locks"),
    ("ENOLCK", 0, ""),
])  # fmt: skip
def test_an_hdf5_file_that_is_locked_is_named_and_one_on_a_file_system_without_locks_is_read(
    library: Path, tmp_path: Path, error: str, code: int, reason: str
) -> None:
    source = tmp_path / "source.h5"
    with h5py.File(source, "w") as file:
        file["image"] = np.ones((8, 5, 32, 32), np.float32)
        file["magnitude"] = np.full((8, 5), 20.0)
    arguments = ("ingest", str(source), "--out", str(tmp_path / "survey"))
    done = run(*arguments, **faults(library, "flock", error, "source.h5"))
    assert done.returncode == code, done.stderr
    assert reason in done.stderr and "damaged" not in done.stderr and "Traceback" not in done.stderr
