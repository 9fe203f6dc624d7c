"""Downloads from a real HTTP server that breaks connections, refuses requests and sends wrong content."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tenacity import wait_none

from cosmicai.errors import InputError
from cosmicai.models import download
from cosmicai.models.download import PUBLISHED_FILES, PublishedFile, fetch_published, git_blob_id

CONTENT = bytes(range(256)) * 3000  # three chunks
PATH = "code/Some Folder/a file.pt"


def expected_blob_id(content: bytes) -> str:
    """Return the blob id that git computes, or the same by its definition where git is not installed."""
    if shutil.which("git"):
        command = ["git", "hash-object", "--no-filters", "--stdin"]
        return subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode().strip()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


FILE = PublishedFile(PATH, expected_blob_id(CONTENT))


@dataclass
class Server:
    """What the server has, how it misbehaves, and the requests it received."""

    files: dict[str, bytes]
    url: str = ""
    failures: list[int] = field(default_factory=list)  # statuses to send first
    cuts: list[int] = field(default_factory=list)  # bytes after which the next connections end
    knows_ranges: bool = True
    chunked: bool = False
    states_length: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range


class Handler(BaseHTTPRequestHandler):
    state: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state, requested = self.state, self.headers.get("Range")
        state.requests.append((self.path, requested))
        content = state.files.get(self.path)
        if state.failures:
            self.send_error(state.failures.pop(0))
        elif content is None:
            self.send_error(404)
        elif requested and state.knows_ranges:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
            else:
                self.send_content(206, content[start:])
        else:
            self.send_content(200, content)

    def send_content(self, status: int, content: bytes) -> None:
        cut = self.state.cuts.pop(0) if self.state.cuts else len(content)
        self.close_connection = True
        self.protocol_version = "HTTP/1.1"
        self.send_response(status)
        if self.state.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % len(content) + content[:cut])
            self.wfile.write(b"\r\n0\r\n\r\n" if cut == len(content) else b"")
            return
        if self.state.states_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download._download.retry, "wait", wait_none())
    state = Server({"/code/Some%20Folder/a%20file.pt": CONTENT})
    with ThreadingHTTPServer(("127.0.0.1", 0), type("OneHandler", (Handler,), {"state": state})) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def ranges(server: Server) -> list[str | None]:
    return [requested for _, requested in server.requests]


def get(server: Server, out: Path) -> Path:
    """Fetch the file, and check that the folder holds it and nothing else."""
    assert fetch_published(str(out), server.url, (FILE,)) == [str(out / "a file.pt")]
    assert [path.name for path in out.iterdir()] == ["a file.pt"]
    assert (out / "a file.pt").read_bytes() == CONTENT
    return out / "a file.pt"


def refused(server: Server, out: Path, base_url: str | None = None) -> str:
    with pytest.raises(InputError) as refusal:
        fetch_published(str(out), base_url or server.url, (FILE,))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def leave_partial(out: Path, content: bytes) -> Path:
    partial = out / "a file.pt.partial"
    partial.write_bytes(content)
    return partial


@pytest.mark.parametrize("content", [b"", b"hello\n", b"a\r\nb\r\n", CONTENT], ids=["empty", "line", "crlf", "large"])
def test_the_blob_id_equals_that_of_git(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    assert git_blob_id(tmp_path / "a") == expected_blob_id(content)


def test_the_blob_id_of_an_empty_file_is_the_well_known_one(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert git_blob_id(tmp_path / "a") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"


def test_the_two_published_files_are_those_of_the_repository() -> None:
    assert [file.name for file in PUBLISHED_FILES] == [
        "Mixed_Inception_z_VITAE_Base_Img_Full_New_Full.pt",
        "resized_inference.pt",
    ]
    assert all(len(file.blob_id) == 40 and int(file.blob_id, 16) for file in PUBLISHED_FILES)


def test_a_file_is_downloaded_whole_into_a_new_folder(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path / "new" / "folder")
    assert server.requests == [("/code/Some%20Folder/a%20file.pt", None)]


def test_several_files_are_downloaded_in_order(server: Server, tmp_path: Path) -> None:
    server.files["/b"] = b""
    files = (FILE, PublishedFile("b", expected_blob_id(b"")))
    assert fetch_published(str(tmp_path), f"{server.url}/", files) == [str(tmp_path / "a file.pt"), str(tmp_path / "b")]
    assert (tmp_path / "b").read_bytes() == b""


@pytest.mark.parametrize("cut", [0, 1, 1000, 2**18, len(CONTENT) - 1])
def test_a_cut_connection_is_resumed_where_it_ended(server: Server, cut: int, tmp_path: Path) -> None:
    server.cuts = [cut]
    get(server, tmp_path)
    assert ranges(server) == [None, f"bytes={cut}-" if cut else None]


def test_a_connection_that_is_cut_repeatedly_makes_progress(server: Server, tmp_path: Path) -> None:
    server.cuts = [100_000] * 4
    get(server, tmp_path)
    assert ranges(server) == [None, *(f"bytes={n}00000-" for n in (1, 2, 3, 4))]


def test_a_cut_chunked_response_is_fetched_by_a_retry(server: Server, tmp_path: Path) -> None:
    server.chunked, server.cuts = True, [1000]
    get(server, tmp_path)
    assert len(server.requests) == 2


def test_a_resumed_chunked_response_is_complete(server: Server, tmp_path: Path) -> None:
    server.chunked = True
    leave_partial(tmp_path, CONTENT[:500])
    get(server, tmp_path)
    assert ranges(server) == ["bytes=500-"]


def test_a_response_without_its_length_is_verified_by_its_content(server: Server, tmp_path: Path) -> None:
    server.states_length = False
    get(server, tmp_path)


def test_a_server_that_always_cuts_is_reported_and_the_next_run_continues(server: Server, tmp_path: Path) -> None:
    server.cuts = [10] * 5
    message = refused(server, tmp_path)
    assert message.startswith(f"{server.url}/code/Some%20Folder/a%20file.pt cannot be fetched: the connection ended")
    assert message.endswith(f"after 50 of {len(CONTENT)} bytes; run again to continue, or download it by hand")
    assert [path.name for path in tmp_path.iterdir()] == ["a file.pt.partial"]
    get(server, tmp_path)
    assert ranges(server)[-1] == "bytes=50-"


def test_the_partial_file_of_an_earlier_run_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    leave_partial(tmp_path, CONTENT[:12345])
    get(server, tmp_path)
    assert ranges(server) == ["bytes=12345-"]


def test_a_server_without_ranges_sends_the_whole_file_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    leave_partial(tmp_path, CONTENT[:12345])
    get(server, tmp_path)
    assert ranges(server) == ["bytes=12345-"]


def test_a_cut_connection_to_a_server_without_ranges_is_restarted(server: Server, tmp_path: Path) -> None:
    server.knows_ranges, server.cuts = False, [1000]
    get(server, tmp_path)
    assert ranges(server) == [None, "bytes=1000-"]


def test_a_complete_partial_file_is_accepted(server: Server, tmp_path: Path) -> None:
    leave_partial(tmp_path, CONTENT)
    get(server, tmp_path)
    assert ranges(server) == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("left", [b"wrong", b"x" * len(CONTENT), CONTENT + b"x"], ids=["begun", "complete", "longer"])
def test_a_partial_file_with_other_content_is_removed(server: Server, left: bytes, tmp_path: Path) -> None:
    leave_partial(tmp_path, left)
    assert "it was not kept" in refused(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    get(server, tmp_path)


def test_other_content_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    other = CONTENT[:-1] + b"!"
    server.files["/code/Some%20Folder/a%20file.pt"] = other
    message = refused(server, tmp_path)
    assert f"the git blob id {expected_blob_id(other)}, expected {FILE.blob_id}; it was not kept" in message
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_an_empty_response_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    server.files["/code/Some%20Folder/a%20file.pt"] = b""
    assert "it was not kept" in refused(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_published_file_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a file.pt").write_bytes(CONTENT)
    get(server, tmp_path)
    assert server.requests == []


def test_another_file_of_that_name_stays_until_the_published_one_is_downloaded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a file.pt").write_bytes(b"precious")
    server.failures = [404]
    refused(server, tmp_path)
    assert (tmp_path / "a file.pt").read_bytes() == b"precious"
    get(server, tmp_path)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_reported_at_once(server: Server, code: int, tmp_path: Path) -> None:
    server.failures = [code]
    assert f"a%20file.pt returned {code} " in refused(server, tmp_path)
    assert len(server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_path_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    assert "returned 404 Not Found; check the address" in refused(server, tmp_path, f"{server.url}/elsewhere")
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_request_to_a_busy_server_is_repeated(server: Server, code: int, tmp_path: Path) -> None:
    server.failures = [code] * 4
    get(server, tmp_path)
    assert len(server.requests) == 5


def test_a_broken_server_is_reported_in_one_sentence(server: Server, tmp_path: Path) -> None:
    server.failures = [500] * 9
    assert "cannot be fetched: it returned 500 Internal Server Error; run again to continue" in refused(
        server, tmp_path
    )
    assert len(server.requests) == 5
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_server_is_reported(server: Server, tmp_path: Path) -> None:
    assert "cannot be fetched: " in refused(server, tmp_path, "http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["nonsense", "", "htp://example.org", "http://[::1", "http://a b"])
def test_an_invalid_address_is_refused(server: Server, url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch_published(str(tmp_path), url, (FILE,))


def test_a_file_in_place_of_the_folder_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    assert "cannot write" in refused(server, tmp_path / "out")
    assert "a part of its path is a file" in refused(server, tmp_path / "out" / "below")
    assert server.requests == []


def test_a_folder_in_place_of_the_file_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a file.pt").mkdir()
    assert "it is a folder where a file was expected" in refused(server, tmp_path)


def test_a_folder_in_place_of_the_partial_file_is_refused(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a file.pt.partial").mkdir()
    assert "it is a folder where a file was expected" in refused(server, tmp_path)


def test_a_place_without_permission_is_refused(server: Server) -> None:
    message = refused(server, Path("/sys/cosmicai"))  # not writable, not even for root
    assert "cannot write /sys/cosmicai: " in message
    assert "permission denied" in message or "read-only" in message
    assert server.requests == []
    assert "cannot write /sys/a file.pt.partial" in refused(server, Path("/sys"))


def test_a_full_disk_is_reported_at_once(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a file.pt.partial").symlink_to("/dev/full")
    assert "no space left on the device" in refused(server, tmp_path)
    assert len(server.requests) == 1


def test_a_pipe_in_the_place_of_a_partial_file_is_refused_and_not_waited_for(server: Server, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a file.pt.partial")
    assert "a file.pt.partial: " in refused(server, tmp_path)
