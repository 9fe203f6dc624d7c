"""Local paths and S3: atomic writes, exact ranges, and one sentence for every error."""

import hashlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cosmicai import storage
from cosmicai.errors import InputError, StorageError
from cosmicai.storage import Entry
from cosmicai.storage.ranges import as_file, open_ranges
from cosmicai.storage.s3 import s3_client
from support.s3 import bucket_fixture, fill, use_endpoint  # noqa: F401

DATA = bytes(range(256)) * 40


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty folder on either backend."""
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('bucket')}/folder"


def read(uri: str, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    with open_ranges(uri) as reader:
        reader.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def message(call, *arguments) -> str:
    """Return the one line of the StorageError that the call raises."""
    with pytest.raises(StorageError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def fail_while_writing(uri: str, error: BaseException) -> None:
    with pytest.raises(type(error)), storage.atomic_write(uri) as path:
        path.write_bytes(b"half")
        raise error


def test_written_bytes_are_read_back(folder):
    uri = storage.join(folder, "a", "b.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, DATA)
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == DATA
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b""


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(5, "broken")])
def test_a_failed_write_keeps_the_earlier_file_and_no_temporary_one(folder, error):
    uri = storage.join(folder, "a.bin")
    fail_while_writing(uri, error)
    assert storage.list_files(folder) == []
    storage.write_bytes(uri, b"before")
    fail_while_writing(uri, error)
    assert storage.read_bytes(uri) == b"before"
    assert storage.list_files(folder) == [Entry("a.bin", 6)]


def test_content_is_replaced_whole_by_shorter_content(folder):
    uri = storage.join(folder, "a.bin")
    storage.write_bytes(uri, DATA)
    with storage.atomic_write(uri) as path:
        path.write_bytes(b"new")
        assert storage.read_bytes(uri) == DATA
    assert storage.read_bytes(uri) == b"new"
    assert storage.list_files(folder) == [Entry("a.bin", 3)]


def test_a_reader_of_a_replaced_local_file_keeps_the_content_it_opened(tmp_path):
    uri = str(tmp_path / "a.bin")
    storage.write_bytes(uri, b"old")
    buffer = bytearray(3)
    with open_ranges(uri) as reader:
        storage.write_bytes(uri, b"new")
        reader.read_into(0, memoryview(buffer))
    assert buffer == b"old"


def test_only_the_first_of_several_writers_creates_a_file(folder):
    uri = storage.join(folder, "plan.json")
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda number: storage.create_bytes(uri, b"%d" % number), range(8)))
    assert sorted(first) == [False] * 7 + [True]
    assert storage.read_bytes(uri) == b"%d" % first.index(True)
    assert storage.list_files(folder) == [Entry("plan.json", 1)]


def test_only_the_first_of_several_processes_creates_a_file(tmp_path):
    code = (
        "import sys; from cosmicai.storage import create_bytes; sys.stdin.read(); "
        "print(create_bytes(sys.argv[1], sys.argv[2].encode()))"
    )
    uri = str(tmp_path / "new" / "plan.json")
    writers = [
        subprocess.Popen([sys.executable, "-c", code, uri, f"writer {number}"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for number in range(8)
    ]  # fmt: skip
    for writer in writers:  # they all wait for the end of their input
        writer.stdin.close()  # type: ignore[union-attr]
    first = [writer.stdout.read().strip() for writer in writers]  # type: ignore[union-attr]
    assert [writer.wait() for writer in writers] == [0] * 8
    assert sorted(first) == ["False"] * 7 + ["True"]
    assert Path(uri).read_text() == f"writer {first.index('True')}"
    assert names(tmp_path / "new") == ["plan.json"]


def test_create_bytes_does_not_replace_an_earlier_file(folder):
    uri = storage.join(folder, "a")
    storage.write_bytes(uri, b"earlier")
    assert storage.create_bytes(uri, b"later") is False
    assert storage.read_bytes(uri) == b"earlier"


def test_files_are_listed_in_natural_order_without_those_of_folders_below(folder):
    for name in ("10.pt", "2.pt", "1.pt", "b", "²", "x10y2", "x9y10", "below/3.pt"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    assert [entry.name for entry in storage.list_files(folder)] == ["b", "x9y10", "x10y2", "²", "1.pt", "2.pt", "10.pt"]
    assert storage.list_files(storage.join(folder, "below")) == [Entry("3.pt", 10)]
    assert storage.list_files(storage.join(folder, "nothing")) == []


def test_a_folder_is_listed_with_the_names_of_its_folders(folder):
    for name in ("run 10/a", "run 2/b", "run 2/below/c", "x.json", "run 3.json"):
        storage.write_bytes(storage.join(folder, name), b"x")
    storage.write_bytes(f"{folder}beside/d", b"x")  # which to S3 begins like the folder
    files = [Entry("run 3.json", 1), Entry("x.json", 1)]
    assert storage.list_folder(folder) == (files, ["run 2", "run 10"])
    assert storage.list_folder(folder, "run 1") == ([], ["run 10"])
    assert storage.list_folder(storage.join(folder, "run 2")) == ([Entry("b", 1)], ["below"])
    assert storage.list_folder(storage.join(folder, "none")) == ([], [])


def test_more_than_a_thousand_folders_are_listed_and_links_to_folders_are_not(bucket, tmp_path):
    fill(bucket, {f"many/{number}/a": b"x" for number in range(1003)})
    assert storage.list_folder(f"{bucket}/many") == ([], [str(number) for number in range(1003)])
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    assert storage.list_folder(str(tmp_path)) == ([], ["folder"])


def test_all_of_more_than_a_thousand_objects_are_listed(bucket):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: storage.write_bytes(f"{bucket}/many/{number}.pt", b"x"), range(1003)))
    assert storage.list_files(f"{bucket}/many") == [Entry(f"{number}.pt", 1) for number in range(1003)]
    assert storage.list_files(f"{bucket}/man") == []


def test_files_are_listed_by_prefix(folder):
    for name in ("1.json", "10.json", "1-2.json", "2.json", "0.json", "1/3.json"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    storage.write_bytes(f"{folder}1.json", b"beside")  # which to S3 begins like the folder
    assert [entry.name for entry in storage.list_files(folder, "1")] == ["1-2.json", "1.json", "10.json"]
    assert storage.list_files(folder, "10") == [Entry("10.json", 7)]
    assert storage.list_files(folder, "3") == []
    assert len(storage.list_files(folder, "")) == 5
    assert storage.list_files(storage.join(folder, "1"), "3") == [Entry("3.json", 8)]
    assert storage.list_files(storage.join(folder, "none"), "3") == []


def test_files_with_a_prefix_are_listed_over_all_pages(bucket, monkeypatch):
    fill(bucket, {f"many/{number}.pt": b"x" for number in range(25)})
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "4")
    found = [entry.name for entry in storage.list_files(f"{bucket}/many", "1")]
    assert found == [f"{number}.pt" for number in (1, *range(10, 20))]


def test_listing_goes_on_while_another_process_renames_and_removes(tmp_path):
    storage.write_bytes(str(tmp_path / "stays"), b"x")
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            storage.write_bytes(str(tmp_path / "comes and goes"), b"y")
            storage.remove(str(tmp_path / "comes and goes"))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert Entry("stays", 1) in storage.list_files(str(tmp_path))
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 1), (0, 10240), (1, 10239), (5000, 300), (10240, 0)])
def test_any_range_is_exact(folder, offset, length):
    uri = storage.join(folder, "a.bin")
    storage.write_bytes(uri, DATA)
    assert read(uri, offset, length) == DATA[offset : offset + length]


@pytest.mark.parametrize(("offset", "length"), [(0, 10241), (10239, 2), (10240, 1), (99999, 1)])
def test_a_range_past_the_end_names_the_file_and_its_end(folder, offset, length):
    uri = storage.join(folder, "a.bin")
    storage.write_bytes(uri, DATA)
    assert message(read, uri, offset, length) == (
        f"{uri} ends at byte 10240 where more was expected; it was truncated, copy it again"
    )


def test_a_range_file_is_a_file(folder):
    uri = storage.join(folder, "a.bin")
    storage.write_bytes(uri, DATA)
    with open_ranges(uri) as reader, as_file(reader) as file:
        assert file.seek(-3, os.SEEK_END) == 10237
        assert file.read(10) == DATA[-3:]
        assert file.seek(20000) == 20000
        assert file.read(1) == b""
        assert file.seek(1) == 1
        assert file.seek(1, os.SEEK_CUR) == 2
        assert file.read(2) == DATA[2:4]
        with pytest.raises(ValueError, match="negative seek position -1"):
            file.seek(-1)


def test_sha256_is_that_of_the_bytes_on_both_backends(tmp_path, bucket):
    data = os.urandom(2**22 + 12345)
    for uri in (str(tmp_path / "a"), f"{bucket}/a"):
        storage.write_bytes(uri, data)
        assert storage.sha256(uri) == hashlib.sha256(data).hexdigest()


def test_folders_and_files_are_distinguished(folder):
    storage.write_bytes(storage.join(folder, "sub", "a.bin"), b"x")
    assert storage.is_folder(folder)
    assert storage.is_folder(storage.join(folder, "sub"))
    assert storage.is_folder(storage.join(folder, "sub") + "/")
    assert not storage.is_folder(storage.join(folder, "sub", "a.bin"))
    assert not storage.is_folder(storage.join(folder, "su"))
    assert not storage.exists(storage.join(folder, "sub", "a"))


def test_only_a_bucket_with_objects_is_a_folder(bucket):
    assert not storage.is_folder(bucket)
    storage.write_bytes(f"{bucket}/a", b"x")
    assert storage.is_folder(bucket)
    assert storage.list_files(bucket) == [Entry("a", 1)]


def test_removing_works_and_works_again(folder):
    uri = storage.join(folder, "a.bin")
    storage.write_bytes(uri, b"x")
    storage.remove(uri)
    storage.remove(uri)
    assert not storage.exists(uri)


def test_a_missing_file_is_reported(tmp_path):
    uri = str(tmp_path / "none.h5")
    for call in (storage.read_bytes, storage.sha256, open_ranges):
        assert message(call, uri) == f"cannot read {uri}: it does not exist; check the path"


def test_a_folder_where_a_file_was_expected_is_named(tmp_path):
    uri, reason = str(tmp_path), "it is a folder where a file was expected"
    assert message(storage.read_bytes, uri) == f"cannot read {uri}: {reason}"
    assert message(storage.write_bytes, uri, b"x") == f"cannot write {uri}: {reason}"
    assert message(storage.create_bytes, uri, b"x") == f"cannot write {uri}: {reason}"
    assert message(storage.remove, uri) == f"cannot remove {uri}: {reason}"
    assert names(tmp_path) == []


def test_a_file_where_a_folder_was_expected_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    uri, reason = str(tmp_path / "file" / "a"), "a part of its path is a file where a folder was expected"
    assert message(storage.read_bytes, uri) == f"cannot read {uri}: {reason}"
    assert message(storage.write_bytes, uri, b"x") == f"cannot write {uri}: {reason}"
    assert message(storage.create_bytes, uri, b"x") == f"cannot write {uri}: {reason}"


@pytest.fixture
def mounted(tmp_path: Path):
    """Return a function that mounts tiny file systems; skip if that is not permitted."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a file system can only be mounted by root")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(mounted, write):
    disk = mounted("size=256k")
    storage.write_bytes(str(disk / "small"), b"x")
    uri = str(disk / "large")
    assert message(write, uri, bytes(2**20)) == (
        f"cannot write {uri}: no space left on the device; free some space or choose another place, then run again"
    )
    assert names(disk) == ["small"]
    assert (disk / "small").read_bytes() == b"x"


@pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
def test_a_read_only_file_system_is_one_sentence(mounted, write):
    uri = str(mounted("ro,size=256k") / "a")
    assert message(write, uri, b"x") == f"cannot write {uri}: the file system is read-only; choose another place"


def test_a_place_without_permission_is_one_sentence(tmp_path):
    """Root has all permissions, so that a child first becomes the user `nobody`."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "a").write_bytes(b"x")
    (closed / "a").chmod(0o000)
    closed.chmod(0o555)
    code = (
        "import os, sys; from cosmicai import errors, storage; os.geteuid() or os.setuid(65534)\n"
        "os.chdir(int(sys.argv[1])) if sys.argv[1:] else None\n"
        "for call in (lambda: storage.read_bytes('a'), lambda: storage.write_bytes('b', b'x')):\n"
        "    try: call()\n"
        "    except errors.StorageError as error: print(error)\n"
    )
    # The folder is handed over open: pytest's own folders are closed to other users.
    descriptor = os.open(closed, os.O_RDONLY)
    ran = subprocess.run(
        [sys.executable, "-c", code, str(descriptor)], pass_fds=[descriptor], capture_output=True, text=True
    )
    os.close(descriptor)
    assert ran.stdout.splitlines() == [
        "cannot read a: permission denied; ask its owner for read permission",
        "cannot write b: permission denied; choose another place or change its permissions",
    ], ran.stderr
    assert names(closed) == ["a"]


def test_a_missing_object_and_a_missing_bucket_are_one_sentence(bucket):
    assert message(storage.read_bytes, f"{bucket}/none") == (
        f"cannot read {bucket}/none: it does not exist; check the bucket and the key"
    )
    gone, reason = "s3://no-such-bucket/a", "the bucket does not exist; check its name and your region"
    assert message(storage.list_files, gone) == f"cannot list {gone}: {reason}"
    assert message(storage.is_folder, gone) == f"cannot inspect {gone}: {reason}"
    assert message(storage.exists, gone) == f"cannot inspect {gone}: {reason}"
    assert message(storage.write_bytes, gone, b"x") == f"cannot write {gone}: {reason}"
    assert message(storage.create_bytes, gone, b"x") == f"cannot write {gone}: {reason}"


def test_an_upload_to_a_missing_bucket_names_the_address(bucket):
    def upload() -> None:
        with storage.atomic_write("s3://no-such-bucket/a") as path:
            path.write_bytes(b"x")

    assert message(upload).startswith("cannot write s3://no-such-bucket/a: ")


def test_an_address_without_a_bucket_is_refused():
    assert message(storage.read_bytes, "s3:///a") == "s3:///a names no bucket; expected s3://BUCKET/PREFIX"


@pytest.mark.parametrize("uri", ["S3://data/a", "https://data.s3.amazonaws.com/a", "s3:/data/a", "gs://data/a"])
def test_addresses_of_other_kinds_are_no_paths(uri):
    assert message(storage.absolute, uri) == (
        f"{uri} is neither a path nor an address on S3; write those as s3://BUCKET/KEY"
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "is not an address; expected one such as https://HOST:PORT"),
        ("AWS_ENDPOINT_URL_S3", "http://my_minio:9000", "has the host my_minio, and names of hosts have letters, "
         "digits, - and . alone; use another name of that machine, or its number"),
        ("AWS_MAX_ATTEMPTS", "many", "is not a whole number above 0; correct or unset it"),
        ("AWS_MAX_ATTEMPTS", "0", "is not a whole number above 0; correct or unset it"),
        ("AWS_CA_BUNDLE", "/nowhere/ca.pem", "does not exist; name a file of certificates, or unset it"),
    ],
)  # fmt: skip
def test_a_variable_that_boto3_cannot_use_is_named(monkeypatch, name, value, reason):
    s3_client.cache_clear()
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        storage.read_bytes("s3://bucket/a")
    assert str(caught.value) == f"{name}={value} {reason}"
    s3_client.cache_clear()


def test_a_dead_proxy_is_named_without_its_password(monkeypatch):
    s3_client.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.example:9000")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # without which nothing is requested
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert message(storage.read_bytes, "s3://bucket/a") == (
        "cannot read s3://bucket/a: the proxy http://127.0.0.1:9 does not answer; correct HTTPS_PROXY and HTTP_PROXY, "
        "or name AWS in NO_PROXY"
    )
    s3_client.cache_clear()


def test_a_wrong_endpoint_is_one_sentence(monkeypatch):
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert message(storage.read_bytes, "s3://bucket/a") == (
        "cannot read s3://bucket/a: http://127.0.0.1:9/bucket/a does not answer; check the network, the region and "
        "AWS_ENDPOINT_URL"
    )
    s3_client.cache_clear()


def test_an_object_replaced_while_it_is_read_is_not_mixed(bucket):
    uri = f"{bucket}/a"
    storage.write_bytes(uri, b"old content")
    with open_ranges(uri) as reader:
        storage.write_bytes(uri, b"new content")
        assert message(reader.read_into, 0, memoryview(bytearray(3))) == (
            f"cannot read {uri}: it was replaced while it was being read; run again"
        )
