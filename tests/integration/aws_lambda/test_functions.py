"""The functions of the image in this process, on moto's S3: initialize, infer and summarize."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from cosmicai import storage
from cosmicai.aws_lambda import infer as function
from cosmicai.aws_lambda import weights_selection
from cosmicai.aws_lambda.fmi_session import RESERVE, read_secret
from cosmicai.aws_lambda.infer import ItemsFailed, infer, max_fetches
from cosmicai.aws_lambda.initialize import initialize
from cosmicai.aws_lambda.payload import make_events, read_payload
from cosmicai.aws_lambda.summarize import RunIncomplete, summarize
from cosmicai.aws_lambda.weights_selection import select_weights
from cosmicai.errors import InputError, StorageError
from cosmicai.models import checkpoint_import as published_models
from cosmicai.models.weights import load_weights
from cosmicai.ranks import invocation
from cosmicai.ranks.environment import Rank
from cosmicai.runs import summarize as summarize_module
from cosmicai.runs.cost import cost_of_run
from cosmicai.runs.plan import Plan, WorkItem
from cosmicai.runs.provenance import process_age
from cosmicai.runs.record import PUBLISHED_KEYS, PUBLISHED_S3_KEYS, Failure, Record
from cosmicai.runs.store import RunFolder
from cosmicai.storage.ranges import as_file, open_ranges
from cosmicai.storage.s3 import s3_client
from cosmicai.surveys import survey as surveys
from cosmicai.surveys.survey import ShardEntry, open_survey
from cosmicai.worker.sources import OutOfTime, TooSlow
from fmi.collectives import broadcast
from fmi.control import Endpoint
from fmi.group import connect
from support.helpers import make_run, make_survey, random_galaxies, run_worker, tiny_weights
from support.rendezvous import SECRET, rendezvous_server
from support.s3 import fill, server_url, use_endpoint

PARTITIONS, GALAXIES = 6, 10  # partitions, galaxies of each
EVENT_KEYS = [
    "S3_BUCKET", "S3_OBJECT_NAME", "SCRIPT", "S3_OBJECT_TYPE", "WORLD_SIZE", "RANK", "DATA_BUCKET", "DATA_PREFIX",
    "DATA_PATH", "RESULT_PATH", "BATCH_SIZE",
]  # fmt: skip
LAMBDA_KEYS = [
    "request_id", "function", "memory_mb", "ephemeral_mb", "region", "architecture", "cold_start", "seconds",
]  # fmt: skip
RECORD_KEYS = {
    *PUBLISHED_KEYS, *PUBLISHED_S3_KEYS, "rank", "world_size", "attempt", "state", "platform", "job", "site", "cluster",
    "restarts", "local_rank", "threads", "host", "pid", "cpu_model", "gpu_model", "cuda_visible_devices",
    "image_digest", "git_commit", "engine", "precision", "inner_batch", "precision_check", "started_at", "working_at",
    "updated_at", "seconds", "peak_rss_mb", "peak_gpu_mb", "galaxies", "items", "repeated", "checked", "unchecked",
    "s3_requests", "lambda",
}  # fmt: skip


class Context:
    """Lambda's context of an invocation; `seconds_left` returns the remaining time of each request."""

    def __init__(self, request: str = "request", seconds_left: Callable[[], float] = lambda: 100.0) -> None:
        self.aws_request_id = request
        self.function_name = "cosmicai-function"
        self.memory_limit_in_mb = "2048"  # text, as Lambda has it
        self._seconds_left = seconds_left

    def get_remaining_time_in_millis(self) -> int:
        return int(self._seconds_left() * 1000)


@dataclass(frozen=True)
class Cloud:
    """A bucket with six partitions at 100MB, 1.h5 to 6.h5, and two networks, a.safetensors and b.safetensors."""

    bucket: str
    partitions: dict[str, bytes]
    opened: list[str] = field(default_factory=list)  # the weights of every engine that was opened

    @property
    def name(self) -> str:
        """Name of the bucket."""
        return self.bucket.removeprefix("s3://")

    def payload(self, **changes: Any) -> dict[str, Any]:
        """Return a published payload with our weights; keys that are None are left out."""
        given = {
            "bucket": self.name, "batch_size": 4, "object_type": "folder", "S3_object_name": "Anomaly Detection",
            "script": "/tmp/i.py", "result_path": "results/1", "data_bucket": self.name, "data_prefix": "100MB",
            "weights": f"{self.bucket}/a.safetensors",
        }  # fmt: skip
        return {key: value for key, value in (given | changes).items() if value is not None}

    def plan(self, **changes: Any) -> dict[str, Any]:
        """Plan a payload and return the result for our state machine."""
        asked = {"request": self.payload(**changes), "execution": {"Name": "e", "RedriveCount": 0}}
        return initialize(asked, Context("initialized"))

    def events(self, **changes: Any) -> list[dict[str, Any]]:
        """Plan a payload and return the events of its ranks."""
        plan = self.plan(**changes)
        return json.loads(storage.read_bytes(f"s3://{plan['items']['bucket']}/{plan['items']['key']}"))

    def unplanned(self, *shares: list[str], **changes: Any) -> list[dict[str, Any]]:
        """Return events as another initializer makes them, without a plan."""
        return [event.to_dict() for event in make_events(read_payload(self.payload(**changes)), shares, 4)]

    def run(self, path: str = "results/1") -> RunFolder:
        """Return a run folder in the bucket."""
        return RunFolder(f"{self.bucket}/{path}")

    def json(self, path: str) -> Any:
        """Return the content of a JSON file in the bucket."""
        return json.loads(storage.read_bytes(f"{self.bucket}/{path}"))

    def keep(self, path: str, content: bytes) -> None:
        """Put an object into the bucket."""
        fill(self.bucket, {path: content})

    def summarize(self, plan: dict[str, Any], **execution: Any) -> dict[str, Any]:
        """Summarize a run and return the result."""
        asked = {"plan": plan, "execution": {"Name": "e", "RedriveCount": 0} | execution}
        return summarize(asked, Context("summarized"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of the bucket by key."""
    folder = tmp_path_factory.mktemp("files")
    make_survey(folder / "survey", random_galaxies(PARTITIONS * GALAXIES), GALAXIES)
    found = {f"100MB/{n}.h5": (folder / f"survey/{n:06d}.h5").read_bytes() for n in range(1, PARTITIONS + 1)}
    for seed, name in enumerate("ab"):
        found[f"{name}.safetensors"] = Path(tiny_weights(folder / name, seed)).read_bytes()
    return found


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], bytes]:
    """Return the redshifts of all partitions as `redshifts` does, computed without S3 and without functions."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "100MB").mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    run = make_run(open_survey(str(folder / "100MB")), str(folder / "a.safetensors"), str(folder / "run"), batch_size=4)
    run_worker(run, Rank())
    return redshifts(run)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[None]:
    """Use one client for all tests, since its creation takes longer than most of them."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_endpoint(monkeypatch, server_url())
        yield
    s3_client.cache_clear()


@pytest.fixture
def cloud(endpoint: None, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Create a new bucket for functions in a cold process."""
    bucket = f"s3://test-{secrets.token_hex(8)}"
    s3_client().create_bucket(Bucket=bucket.removeprefix("s3://"))
    for name in ("COSMICAI_WEIGHTS", "COSMICAI_MAX_CONCURRENCY", "COSMICAI_EPHEMERAL_MB", "COSMICAI_GRAPHS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(invocation, "_calls", count())
    monkeypatch.setattr(function, "_kept", {})
    fill(bucket, files)
    cloud = Cloud(bucket, {name.removeprefix("100MB/"): data for name, data in files.items() if name[0] == "1"})
    open_engine = function.open_engine  # type: ignore[attr-defined]

    def noted(choice, weights, *others):
        cloud.opened.append(weights.uri)
        return open_engine(choice, weights, *others)

    monkeypatch.setattr(function, "open_engine", noted)
    return cloud


def refusal(error: type[Exception], call, *arguments: Any) -> str:
    """Return the one line of the error that the call raises."""
    with pytest.raises(error) as caught:
        call(*arguments)
    assert type(caught.value) is error and "\n" not in str(caught.value)
    return str(caught.value)


def redshifts(run: RunFolder) -> dict[tuple[str, int], bytes]:
    """Return the bytes of all predictions by the name of their shard and their first row."""
    plan = run.plan()
    return {
        (plan.shards[item.shard].name, item.start): run.read_part(plan, item).redshift_phot.tobytes()
        for item in run.parts()
    }


def contents(run: RunFolder) -> dict[str, bytes]:
    """Return the files directly in a run folder."""
    return {entry.name: storage.read_bytes(run.path(entry.name)) for entry in storage.list_files(run.uri)}


def chain_of(*seconds: float) -> Callable[[], float]:
    """Return a function that returns these seconds left one after the other, and then the last ones."""
    told = chain(seconds, repeat(seconds[-1]))
    return lambda: next(told)


def stopped_after(run: RunFolder, parts: int) -> Callable[[], float]:
    """The seconds that are left where a rank is stopped in the middle of the item after so many.

    The thread that reads ahead is told that there is time, so that there is such an item.
    """
    main = threading.main_thread()
    return lambda: 1.0 if threading.current_thread() is main and len(run.parts()) == parts else 100.0


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the printed lines, all of which are JSON."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_published_result_and_payload_json_hold_the_events(cloud):
    payload = cloud.payload(file_limit="5", world_size=2)
    answer = initialize(payload, Context())
    assert list(answer) == ["statusCode", "body"] and answer["statusCode"] == 200
    paths = [[f"100MB/{n}.h5" for n in share] for share in ((1, 2, 3), (4, 5))]
    assert [list(event) for event in answer["body"]] == [EVENT_KEYS] * 2
    assert [event["DATA_PATH"] for event in answer["body"]] == paths
    assert [(event["RANK"], event["WORLD_SIZE"]) for event in answer["body"]] == [("0", "2"), ("1", "2")]
    assert answer["body"][0] | {"RANK": "", "DATA_PATH": ""} == {
        "S3_BUCKET": cloud.name, "S3_OBJECT_NAME": "Anomaly Detection", "SCRIPT": "/tmp/i.py",
        "S3_OBJECT_TYPE": "folder", "WORLD_SIZE": "2", "RANK": "", "DATA_BUCKET": cloud.name, "DATA_PREFIX": "100MB",
        "DATA_PATH": "", "RESULT_PATH": "results/1", "BATCH_SIZE": 4,
    }  # fmt: skip
    written = cloud.json("payload.json")
    assert written == cloud.json("results/1/payload.json")
    assert written.items() >= (payload | {"world_size": 2}).items()
    assert (written["world_size"], written["body"]) == (2, answer["body"])
    assert written["data_map"] == {"0": paths[0], "1": paths[1]}
    assert not storage.exists(cloud.run().map_items_path)
    plan = cloud.run().plan()
    assert [(shard.name, shard.galaxies) for shard in plan.shards] == [(f"{n}.h5", GALAXIES) for n in range(1, 6)]


def test_the_result_for_our_state_machine_says_where_the_events_are(cloud, capsys):
    answer = cloud.plan()
    assert answer.pop("notices")[0].startswith("engine openvino: ")
    assert answer == {
        "run": f"{cloud.bucket}/results/1",
        "items": {"bucket": cloud.name, "key": "results/1/items.json"},
        "ranks": 6,
        "galaxies": 60,
        "max_concurrency": 100,
        "stop_at_failure_percentage": pytest.approx(500 / 6),
        "tolerated_failure_percentage": 0.0,
    }
    items = cloud.json("results/1/items.json")
    assert items == cloud.json("results/1/payload.json")["body"]
    assert [list(item) for item in items] == [EVENT_KEYS] * 6
    assert [item["DATA_PATH"] for item in items] == [f"100MB/{n}.h5" for n in range(1, 7)]
    assert not storage.exists(f"{cloud.bucket}/payload.json")  # which belongs to published functions
    assert lines(capsys) == [
        {"cosmicai": "initialize", "run": answer["run"], "rank": None, "request_id": "initialized"}
    ]


@pytest.fixture
def many(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Puts so many partitions at `many`, of which each is said to hold three galaxies; gives their names in order."""
    monkeypatch.setattr(surveys, "_describe_file", lambda folder, name: (ShardEntry(name, 3, 1), {}))

    def put(number: int) -> list[str]:
        names = [f"{n}.pt" for n in range(1, number + 1)]
        fill(cloud.bucket, {f"many/{name}": b"x" for name in names} | {"many/notes.txt": b"x", "many/9/1.pt": b"x"})
        return names

    return put


def test_the_result_stays_small_with_many_partitions(cloud, many):
    many(300)
    answer = cloud.plan(data_prefix="many", result_path="result-partition-100MB/total/of a long name/1")
    assert (answer["ranks"], answer["galaxies"]) == (300, 900)
    assert len(json.dumps(answer)) < 2000
    assert answer["stop_at_failure_percentage"] == 20


def test_more_than_a_thousand_partitions_are_all_planned_in_natural_order(cloud, many):
    names = many(1003)
    answer = cloud.plan(data_prefix="many")
    items = cloud.json("results/1/items.json")
    assert [item["DATA_PATH"] for item in items] == [f"many/{name}" for name in names]
    assert [(item["RANK"], item["WORLD_SIZE"]) for item in items] == [(str(n), "1003") for n in range(1003)]
    assert [shard.name for shard in cloud.run().plan().shards] == names
    assert (answer["ranks"], answer["galaxies"]) == (1003, 3009)


def test_a_data_map_assigns_partitions(cloud):
    by_hand = {"1": "100MB/4.h5", "0": ["100MB/6.h5", "100MB/2.h5"], "2": None}
    answer = cloud.plan(data_map=by_hand)
    paths = [item["DATA_PATH"] for item in cloud.json("results/1/items.json")]
    assert paths == [["100MB/6.h5", "100MB/2.h5"], "100MB/4.h5"]
    assert (answer["ranks"], answer["galaxies"]) == (2, 30)
    assert [shard.name for shard in cloud.run().plan().shards] == ["2.h5", "4.h5", "6.h5"]


def test_a_missing_partition_of_a_data_map_is_named(cloud):
    text = refusal(StorageError, lambda: cloud.plan(data_map={"0": "100MB/7.h5"}))
    assert text == f"cannot read {cloud.bucket}/100MB/7.h5: it does not exist; check the bucket and the key"


def test_a_data_map_without_partitions_is_refused(cloud):
    assert refusal(InputError, lambda: cloud.plan(data_map={"0": None})) == (
        f"{cloud.bucket}/100MB holds no galaxies; nothing to do"
    )


@pytest.mark.parametrize(("world_size", "tolerated", "stop_at"), [(4, 0, 100), (6, 90, 90), (6, 10, 500 / 6)])
def test_the_map_goes_on_until_a_share_and_at_least_some_ranks_have_failed(cloud, world_size, tolerated, stop_at):
    answer = cloud.plan(world_size=world_size, tolerated_failure_percentage=tolerated)
    assert answer["stop_at_failure_percentage"] == pytest.approx(stop_at)
    assert answer["tolerated_failure_percentage"] == tolerated


def test_the_number_of_concurrent_ranks(cloud, monkeypatch):
    assert cloud.plan()["max_concurrency"] == 100
    monkeypatch.setenv("COSMICAI_MAX_CONCURRENCY", "30")
    assert cloud.plan()["max_concurrency"] == 30
    assert cloud.plan(max_concurrency=7)["max_concurrency"] == 7


def test_only_events_of_our_map_hold_the_memory_of_a_rank(cloud):
    cloud.plan(memory=1024)
    assert [list(item) for item in cloud.json("results/1/items.json")] == [[*EVENT_KEYS, "MEMORY"]] * 6
    assert {item["MEMORY"] for item in cloud.json("results/1/items.json")} == {1024}
    body = initialize(cloud.payload(memory=1024), Context())["body"]
    assert [list(event) for event in body] == [EVENT_KEYS] * 6


def test_planning_again_returns_only_unfinished_ranks(cloud):
    items = cloud.events(world_size=3)
    before = storage.read_bytes(cloud.run().plan_path)
    infer(items[0], Context())
    with pytest.raises(OutOfTime):
        infer(items[1], Context(seconds_left=chain_of(100, 3)))
    assert len(cloud.run().parts()) == 3
    assert cloud.events(world_size=3) == items[1:]
    assert storage.read_bytes(cloud.run().plan_path) == before
    for item in items[1:]:
        infer(item, Context())
    answer = cloud.plan(world_size=3)
    assert cloud.json("results/1/items.json") == []
    assert (answer["ranks"], answer["galaxies"]) == (3, 60)
    assert initialize(cloud.payload(world_size=3), Context())["body"] == items


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"batch_size": 5}, "batch_size"),
        ({"file_limit": 5}, "shards"),
        ({"data_prefix": "other"}, "survey"),
        ({"precision": "bfloat16"}, "precision"),
        ({"views": 8}, "views"),
        ({"quantiles": True, "calibrate_on_spectra": True}, "quantiles, calibrate_on_spectra"),
    ],
)
def test_another_plan_at_the_same_place_is_refused(cloud, changes, differs):
    cloud.plan()
    fill(cloud.bucket, {f"other/{name}": content for name, content in cloud.partitions.items()})
    before = contents(cloud.run())
    for call in (lambda: cloud.plan(**changes), lambda: initialize(cloud.payload(**changes), Context("again"))):
        assert refusal(InputError, call) == (
            f"{cloud.run().uri} belongs to another plan (it differs in {differs}); choose another --out"
        )
    assert contents(cloud.run()) == before
    assert len(cloud.run().functions()) == 1


def test_other_weights_at_the_same_place_are_refused(cloud):
    cloud.plan()
    assert refusal(InputError, lambda: cloud.plan(weights=f"{cloud.bucket}/b.safetensors")) == (
        f"{cloud.run().uri} belongs to another plan (it differs in weights, weights_sha256); choose another --out"
    )


def test_a_prefix_without_galaxies_is_refused(cloud):
    assert refusal(InputError, lambda: cloud.plan(data_prefix="none")) == (
        f"{cloud.bucket}/none does not exist; expected a survey folder, an s3:// prefix or a .h5 or .pt file"
    )


def test_hidden_files_are_no_partitions_and_a_copy_is_refused_unless_the_data_map_names_it(cloud):
    cloud.keep("100MB/._1.pt", b"written by a Mac")
    assert [event["DATA_PATH"] for event in cloud.events()] == [f"100MB/{n}.h5" for n in range(1, PARTITIONS + 1)]
    cloud.keep("100MB/2 (copy).h5", cloud.partitions["2.h5"])
    for call in (
        lambda: cloud.plan(result_path="results/2"),
        lambda: initialize(cloud.payload(result_path="results/2"), Context()),
    ):
        assert refusal(InputError, call) == (
            f"{cloud.bucket}/100MB holds 2 (copy).h5 and 2.h5, by their names the same galaxies more than once; remove "
            "all but one, or rename them if they hold different galaxies"
        )
    data_map = {"0": ["100MB/2.h5", "100MB/2 (copy).h5"]}
    assert len(cloud.events(result_path="results/2", data_map=data_map)) == 1
    assert len(cloud.events(result_path="results/3", file_limit=1)) == 1  # of which there is no copy
    assert cloud.plan()["ranks"] == PARTITIONS  # the run that was planned before goes on


def test_an_unusable_payload_is_refused_before_anything_is_written(cloud):
    asked = {"request": {"bucket": cloud.name}, "execution": {}}
    assert refusal(InputError, initialize, asked, Context()) == (
        "the payload has no result_path; expected it as in the published demo_input.json"
    )
    assert not storage.list_files(cloud.run().uri)


CODE = "Anomaly Detection"
NO_WEIGHTS = (
    "there are no weights: the payload names none (`weights`), {}/Anomaly Detection/Fine_Tune_Model holds no "
    "checkpoint, and the stack has no DefaultWeights"
)


def test_weights_are_those_named_else_a_checkpoint_else_the_stacks_else_none(cloud, monkeypatch):
    def found(named: str | None) -> str:
        return select_weights(cloud.name, CODE, named, cloud.run())

    monkeypatch.setattr(weights_selection, "_import_checkpoint", lambda checkpoint, run: f"imported {checkpoint}")
    assert found("demo") == "demo"
    assert refusal(InputError, found, None) == NO_WEIGHTS.format(cloud.bucket)
    assert refusal(InputError, found, "") == NO_WEIGHTS.format(cloud.bucket)
    monkeypatch.setenv("COSMICAI_WEIGHTS", "")  # as the stack has it without a DefaultWeights
    assert refusal(InputError, found, None) == NO_WEIGHTS.format(cloud.bucket)
    monkeypatch.setenv("COSMICAI_WEIGHTS", "s3://b/default.safetensors")
    assert found(None) == "s3://b/default.safetensors"
    fill(cloud.bucket, {f"{CODE}/Fine_Tune_Model/{name}": b"" for name in ("notes.txt", "below/2.pt")})
    assert found(None) == "s3://b/default.safetensors"
    cloud.keep(f"{CODE}/Fine_Tune_Model/1.pt", b"")
    assert found(None) == f"imported {cloud.bucket}/{CODE}/Fine_Tune_Model/1.pt"
    assert found("s3://b/named.safetensors") == "s3://b/named.safetensors"
    cloud.keep(f"{CODE}/Fine_Tune_Model/2.pt", b"")
    assert refusal(InputError, found, None) == (
        f"{cloud.bucket}/{CODE}/Fine_Tune_Model holds 2 checkpoints; expected one, or name one in `weights`"
    )
    assert found("demo") == "demo"


def test_demo_weights_are_not_used_without_a_request(cloud):
    assert refusal(InputError, lambda: cloud.plan(weights=None)) == NO_WEIGHTS.format(cloud.bucket)
    (event,) = cloud.unplanned(["1.h5"])
    assert refusal(InputError, infer, event, Context()) == NO_WEIGHTS.format(cloud.bucket)
    assert storage.list_files(cloud.run().path("functions")) == []


def test_the_published_checkpoint_is_imported_once(cloud, shared, monkeypatch):
    imported = []
    import_checkpoint = published_models.import_checkpoint
    monkeypatch.setattr(
        published_models,
        "import_checkpoint",
        lambda path: imported.append(Path(path).name) or import_checkpoint(path),  # type: ignore[func-returns-value]
    )
    monkeypatch.setenv("COSMICAI_WEIGHTS", f"{cloud.bucket}/a.safetensors")
    checkpoint = (shared / "upstream/checkpoint.pt").read_bytes()
    cloud.keep(f"{CODE}/Fine_Tune_Model/VIT_ft.pt", checkpoint)
    own = f"{cloud.run().uri}/network/{hashlib.sha256(checkpoint).hexdigest()[:16]}.safetensors"
    for _ in range(2):
        assert select_weights(cloud.name, CODE, None, cloud.run()) == own
    assert imported == ["VIT_ft.pt"]
    assert load_weights(own).parameters == 15_902_889


def test_a_run_uses_the_checkpoint_in_the_published_code(cloud, monkeypatch):
    monkeypatch.setattr(
        weights_selection, "_import_checkpoint", lambda checkpoint, run: f"{cloud.bucket}/b.safetensors"
    )
    cloud.keep("My code/Fine_Tune_Model/VIT_ft.pt", b"")
    cloud.plan(weights=None, S3_object_name="My code")
    assert cloud.run().plan().weights == f"{cloud.bucket}/b.safetensors"
    (event,) = cloud.unplanned(["1.h5"], S3_object_name="My code", result_path="results/2")
    assert infer(event, Context())["state"] == "finished"
    assert cloud.run("results/2/ranks/0").plan().weights == f"{cloud.bucket}/b.safetensors"


def test_a_rank_returns_its_record(cloud, monkeypatch, capsys):
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    monkeypatch.setenv("COSMICAI_EPHEMERAL_MB", "1024")
    items = cloud.events(world_size=4)
    monkeypatch.setattr(invocation, "_calls", count())  # infer has a process of its own
    capsys.readouterr()
    age = process_age()
    record = infer(items[1], Context("first"))
    assert record.keys() == RECORD_KEYS
    assert record == cloud.json("results/1/records/1.json")
    assert cloud.json("results/1/1.json") == {key: record[key] for key in (*PUBLISHED_KEYS, *PUBLISHED_S3_KEYS)}
    given = {
        key: record[key] for key in ("platform", "job", "rank", "world_size", "attempt", "state", "galaxies", "items")
    }
    assert given == {
        "platform": "lambda", "job": "first", "rank": 1, "world_size": 4, "attempt": 1, "state": "finished",
        "galaxies": 20, "items": 2,
    }  # fmt: skip
    assert (record["result_path"], record["data_path"]) == (cloud.run().uri, ["100MB/3.h5", "100MB/4.h5"])
    assert (record["batch_size"], record["num_batches"]) == (4, 6)
    assert list(record["lambda"]) == LAMBDA_KEYS
    assert record["lambda"] | {"seconds": 0, "architecture": ""} == {
        "request_id": "first", "function": "cosmicai-function", "memory_mb": 2048, "ephemeral_mb": 1024,
        "region": "us-west-2", "architecture": "", "cold_start": True, "seconds": 0,
    }  # fmt: skip
    assert record["lambda"]["architecture"] in ("x86_64", "arm64")
    assert age < record["seconds"]["start"] < record["lambda"]["seconds"]  # of its process, since it is cold
    assert lines(capsys) == [{"cosmicai": "infer", "run": cloud.run().uri, "rank": 1, "request_id": "first"}]
    # The plan is read and the record begun before anything is counted; a part is written, and a failure forgotten.
    assert record["s3_requests"]["HeadObject"] == 2
    assert record["s3_requests"]["DeleteObject"] == 2
    assert record["s3_requests"]["GetObject"] == record["s3_num_requests"] >= 2 * (3 + 2)


def test_a_warm_process_keeps_its_engine(cloud, monkeypatch):
    items = cloud.events()
    monkeypatch.setattr(invocation, "_calls", count())  # infer has a process of its own
    cold, warm = (infer(item, Context())["lambda"] for item in items[:2])
    assert (cold["cold_start"], warm["cold_start"]) == (True, False)
    assert warm["seconds"] < process_age() / 2
    assert cloud.opened == [f"{cloud.bucket}/a.safetensors"]
    other = cloud.events(weights=f"{cloud.bucket}/b.safetensors", result_path="results/2")
    infer(other[0], Context())
    assert cloud.opened == [f"{cloud.bucket}/{name}.safetensors" for name in "ab"]
    assert len(function._kept) == 1  # never two networks in memory
    infer(items[2], Context())
    assert cloud.opened == [f"{cloud.bucket}/{name}.safetensors" for name in "aba"]


def test_redshifts_are_those_of_a_run_without_functions(cloud, expected):
    for item in cloud.events(world_size=4):
        infer(item, Context())
    found = redshifts(cloud.run())
    assert len(found) == PARTITIONS
    assert found == expected


def test_a_rank_of_any_planned_run_does_its_share(cloud, expected):
    cloud.plan()
    asked = [{"run": f"{cloud.run().uri}/", "rank": rank, "world_size": 4} for rank in range(4)]
    records = [infer(event, Context()) for event in asked]
    assert [record["items"] for record in records] == [2, 2, 1, 1]
    assert [record["data_path"] for record in records] == [f"{cloud.bucket}/100MB"] * 4
    assert redshifts(cloud.run()) == expected
    assert infer(asked[3], Context("again")) == records[3]


@pytest.mark.parametrize(
    "changes",
    [{"rank": 4}, {"rank": -1}, {"rank": "0"}, {"rank": True}, {"world_size": 0}, {"run": 5}, {"world_size": 2.0}],
)
def test_an_unusable_event_of_a_planned_run_is_refused(cloud, changes):
    event = {"run": cloud.run().uri, "rank": 0, "world_size": 4} | changes
    text = refusal(InputError, infer, event, Context())
    assert text.startswith(f"the event {event} cannot be used: field {next(iter(changes))}: expected ")
    assert text.endswith('; expected one rank of a run, such as {"run": "s3://BUCKET/RUN", "rank": 0, "world_size": 8}')


def test_a_rank_of_a_run_without_a_plan_is_refused(cloud):
    event = {"run": cloud.run().uri, "rank": 0, "world_size": 4}
    assert refusal(InputError, infer, event, Context()) == (
        f"{cloud.run().uri} is not a run folder (it has no plan.json); start one with `cosmicai infer`"
    )


def test_a_finished_rank_returns_its_record_without_its_partitions(cloud):
    items = cloud.events(world_size=2)
    record = infer(items[0], Context())
    for name in cloud.partitions:
        storage.remove(f"{cloud.bucket}/100MB/{name}")
    assert infer(items[0], Context("again")) == record
    assert msgspec.to_builtins(cloud.run().records()) == {"0": record}


def test_the_memory_that_a_payload_allows_decides_the_fetches(cloud, monkeypatch):
    asked: list[float] = []
    monkeypatch.setattr(function, "max_fetches", lambda plan, threads, memory: asked.append(memory) or 1)  # type: ignore[func-returns-value]
    infer(cloud.events(memory=700)[0], Context())
    infer(cloud.events(memory=700)[1] | {"MEMORY": None}, Context())
    assert asked == [700, 2048]


@pytest.mark.parametrize(
    ("engine", "batch_size", "inner_batch", "threads", "memory", "fetches"),
    [
        # 512 galaxies are 10 MB; the network takes 300, and being predicted are threads + 2 times as much.
        ("openvino", 512, 128, 1, 2048, 8),
        ("openvino", 512, 128, 1, 410, 8),
        ("openvino", 512, 128, 1, 409, 7),
        ("openvino", 512, 128, 1, 370, 4),
        ("openvino", 512, 128, 2, 370, 3),
        ("openvino", 512, 128, 1, 350, 2),
        ("openvino", 512, 128, 1, 349, 1),
        ("openvino", 512, 128, 1, 128, 1),
        ("openvino", 64, 64, 2, 310, 4),  # 64 galaxies are 1.25 MB
        ("reference", 512, 512, 1, 60, 3),  # which was not measured
    ],
)
def test_as_many_fetches_are_under_way_as_fit_into_the_memory(
    engine, batch_size, inner_batch, threads, memory, fetches
):
    plan = Plan("s3://b/s", (), "w", "0", engine, "float32", "cpu", batch_size, inner_batch, None, None, ())
    assert max_fetches(plan, threads, memory) == fetches


def test_a_truncated_partition_fails_its_rank_by_name_and_the_rest_of_it_is_done(cloud, expected):
    items = cloud.events(world_size=2)
    whole = cloud.partitions["2.h5"]
    cloud.keep("100MB/2.h5", whole[: len(whole) // 2])
    text = refusal(ItemsFailed, infer, items[0], Context())
    reason = f"{cloud.bucket}/100MB/2.h5 is truncated; expected image and magnitude, copy it again"
    assert text == f"of rank 0's 3 items 1 failed, the first 000001-00000000-00000010: {reason}"
    assert cloud.run().parts() == {WorkItem(0, 0, 10), WorkItem(2, 0, 10)}
    assert cloud.run().failures() == [Failure(item="000001-00000000-00000010", reason=reason, rank=0, count=1)]
    assert refusal(ItemsFailed, infer, items[0], Context()) == text
    assert cloud.run().failures()[0].count == 2
    cloud.keep("100MB/2.h5", whole)
    record = infer(items[0], Context())
    assert (record["attempt"], record["items"]) == (3, 1)
    assert cloud.run().failures() == []
    infer(items[1], Context())
    assert redshifts(cloud.run()) == expected


def test_a_rank_that_has_not_tried_all_items_is_invoked_again(cloud):
    """By OutOfTime, after which the map calls it often enough; by ItemsFailed it would leave the rest undone."""
    (event,) = cloud.events(world_size=1)
    cloud.keep("100MB/1.h5", b"no shard")
    with pytest.raises(OutOfTime):
        infer(event, Context(seconds_left=chain_of(100, 3)))
    assert refusal(ItemsFailed, infer, event, Context()).startswith("of rank 0's 6 items 1 failed")
    assert len(cloud.run().parts()) == 5


def test_a_removed_partition_fails_its_rank_by_name(cloud):
    items = cloud.events()
    storage.remove(f"{cloud.bucket}/100MB/4.h5")
    assert refusal(ItemsFailed, infer, items[3], Context()) == (
        f"of rank 3's 1 items 1 failed, the first 000003-00000000-00000010: cannot read {cloud.bucket}/100MB/4.h5: it "
        "does not exist; check the bucket and the key"
    )


def test_a_rank_that_is_out_of_time_continues_when_invoked_again(cloud, expected):
    (event,) = cloud.events(world_size=1)
    text = refusal(OutOfTime, infer, event, Context(seconds_left=chain_of(100, 3)))
    assert text == "5 of rank 0's 6 items are left; invoke the function again"
    assert cloud.run().parts() == {WorkItem(0, 0, 10)}
    record = cloud.run().records_of(0)[-1]
    assert (record.state, record.items, record.galaxies) == ("finished", 1, 10)
    again = infer(event, Context())
    assert (again["attempt"], again["items"], again["repeated"]) == (2, 5, 0)
    assert redshifts(cloud.run()) == expected


def test_a_rank_that_is_stopped_within_an_item_leaves_no_partial_file(cloud, expected):
    (event,) = cloud.events(world_size=1)
    run = cloud.run()
    text = refusal(OutOfTime, infer, event, Context(seconds_left=stopped_after(run, 2)))
    assert text == "the time limit came before the end of an item; what was finished is kept"
    assert [entry.name for entry in storage.list_files(run.path("parts"))] == [
        "000000-00000000-00000010.h5", "000001-00000000-00000010.h5",
    ]  # fmt: skip
    assert storage.list_files(run.path("failures")) == [] and not storage.exists(run.published_path("0"))
    assert [(record.state, record.items) for record in run.records_of(0)] == [("running", 2)]
    assert infer(event, Context())["items"] == 4
    assert redshifts(run) == expected


def test_a_rank_that_finishes_nothing_is_too_slow(cloud):
    (event,) = cloud.events(world_size=1)
    text = refusal(TooSlow, infer, event, Context(seconds_left=chain_of(100, 1)))
    assert text == "not one item was done within the time limit; give the function more time or memory"
    assert cloud.run().parts() == set() and not storage.exists(cloud.run().published_path("0"))
    assert infer(event, Context())["items"] == 6


@pytest.fixture
def stack(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """Return the same cloud, with default weights of the stack."""
    monkeypatch.setenv("COSMICAI_WEIGHTS", f"{cloud.bucket}/a.safetensors")
    return cloud


def test_a_rank_without_a_plan_runs_alone(stack, expected, capsys):
    shares = [["1.h5", "2.h5", "3.h5"], ["4.h5", "5.h5"], ["6.h5"]]
    calls = stack.unplanned(*shares)
    records = [infer(call, Context(call["RANK"])) for call in calls]
    runs = [stack.run(f"results/1/ranks/{rank}") for rank in range(3)]
    assert [record["items"] for record in records] == [3, 2, 1]
    assert [record["result_path"] for record in records] == [run.uri for run in runs]
    assert [record["data_path"] for record in records] == [call["DATA_PATH"] for call in calls]
    for rank, record in enumerate(records):
        assert stack.json(f"results/1/{rank}.json") == {
            key: record[key] for key in (*PUBLISHED_KEYS, *PUBLISHED_S3_KEYS)
        }
    found: dict[tuple[str, int], bytes] = {}
    for run in runs:
        found |= redshifts(run)
    assert found == expected
    assert [line["run"] for line in lines(capsys)] == [run.uri for run in runs]
    assert infer(calls[1], Context("again")) == records[1]
    assert storage.exists(stack.run().plan_path) is False


def test_a_rank_without_a_plan_can_be_invoked_again(stack):
    (call,) = stack.unplanned(["1.h5", "2.h5", "3.h5"])
    assert refusal(OutOfTime, infer, call, Context(seconds_left=chain_of(100, 3))) == (
        "2 of rank 0's 3 items are left; invoke the function again"
    )
    assert (again := infer(call, Context()))["items"] == 2
    assert (again["attempt"], again["repeated"]) == (2, 0)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_no_result_of_a_rank_without_a_plan_is_lost_when_invoked_twice(stack, is_stopped):
    """The first call ends by itself before its time is over, or is stopped in mid item."""
    seconds_left = stopped_after(stack.run("results/1/ranks/0"), 2) if is_stopped else chain_of(100, 3)
    (call,) = stack.unplanned(["1.h5", "2.h5", "3.h5"])
    with pytest.raises(OutOfTime):
        infer(call, Context(seconds_left=seconds_left))
    infer(call, Context())
    summarize(stack.payload(), Context())
    assert sum(result["num_batches"] for result in stack.json("results/1/combined_data.json")) == 9


def test_a_rank_that_could_not_write_its_result_writes_it_when_invoked_again(stack, monkeypatch):
    def fail(run: RunFolder, record: Record) -> None:
        raise StorageError("S3 is down")

    (call,) = stack.unplanned(["1.h5"])
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_published", fail)
        assert refusal(StorageError, infer, call, Context()) == "S3 is down"
    record = infer(call, Context("again"))
    assert record["galaxies"] == 10
    assert stack.json("results/1/0.json") == {key: record[key] for key in (*PUBLISHED_KEYS, *PUBLISHED_S3_KEYS)}


@pytest.mark.parametrize("planned", [True, False])
def test_an_event_that_contradicts_its_run_is_refused(stack, planned):
    def text(**changes: Any) -> str:
        return refusal(InputError, infer, call | changes, Context())

    call = stack.events(file_limit=5)[0] if planned else stack.unplanned(["1.h5"])[0]
    run = stack.run() if planned else stack.run("results/1/ranks/0")
    for key in (
        "S3_BUCKET",
        "RESULT_PATH",
        "RANK",
        "WORLD_SIZE",
        "DATA_BUCKET",
        "DATA_PREFIX",
        "DATA_PATH",
        "BATCH_SIZE",
    ):
        for empty in (None, "", []):  # type: ignore[var-annotated]
            refused = text(**{key: empty})
            assert refused.startswith(f"the event cannot be used: field {key}: expected ")
            assert refused.endswith(
                "; expected the keys S3_BUCKET, RESULT_PATH, RANK, WORLD_SIZE, DATA_BUCKET, DATA_PREFIX, DATA_PATH, "
                "BATCH_SIZE"
            )
    for key in ("RANK", "WORLD_SIZE", "BATCH_SIZE"):
        assert text(**{key: "x"}).startswith(
            f"the event cannot be used: field {key}: expected `str` matching regex '^-?[0-9]+$'; expected the keys"
        )
    for path in ("other/1.h5", ["100MB/1.h5", "other/1.h5"]):
        assert text(DATA_PATH=path) == "the event's DATA_PATH 'other/1.h5' does not lie in its DATA_PREFIX '100MB'"
    assert storage.exists(run.plan_path) is planned
    infer(call, Context())
    if planned:
        end = "; give each execution its own result_path"
        assert text(DATA_PATH=["100MB/1.h5", "100MB/6.h5"]) == (
            f"the plan of {run.uri} does not include {stack.bucket}/100MB/6.h5{end}"
        )
        strange = {"DATA_PREFIX": "b", "DATA_PATH": "b/1.h5"}
        assert text(**strange) == f"the plan of {run.uri} does not include {stack.bucket}/b{end}"
    else:
        assert text(DATA_PATH="100MB/2.h5") == (
            f"{run.uri} belongs to another plan (it differs in shards); choose another --out"
        )


def test_the_summary_of_a_complete_run(cloud, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    plan = cloud.plan(world_size=4)
    for item in cloud.json("results/1/items.json"):
        infer(item, Context(item["RANK"]))
    run = cloud.run()
    before = run.functions()
    verdict = cloud.summarize(plan)
    found = run.summary()
    assert verdict == {
        "again": False,
        "complete": True,
        "run": run.uri,
        "coverage": {
            name: value for name, value in msgspec.to_builtins(found.coverage).items() if name != "missing_items"
        },
        "summary": run.summary_path,
        "catalogue": run.catalogue_path,
    }
    assert (verdict["coverage"]["asked"], verdict["coverage"]["done"], verdict["coverage"]["missing"]) == (60, 60, 0)
    with open_ranges(run.catalogue_path) as reader:
        table = pq.read_table(as_file(reader))
    assert table["objid"].to_pylist() == random_galaxies(60).objid.tolist()
    assert stack_of_published(cloud) == [0, 1, 2, 3]

    assert [list(msgspec.to_builtins(note)) for note in run.functions()] == [
        ["function", "started_at", "lambda", "s3_requests"]
    ] * 2
    assert [note.function for note in run.functions()] == ["initialize", "summarize"]
    assert [note.invocation.request_id for note in run.functions()] == ["initialized", "summarized"]
    assert [list(note.invocation.__struct_fields__) for note in run.functions()] == [LAMBDA_KEYS] * 2
    assert all(note.s3_requests["PutObject"] >= 3 for note in run.functions())
    assert sorted(entry.name for entry in storage.list_files(run.path("functions"))) == [
        "initialize-initialized.json", "summarize-summarized.json",
    ]  # fmt: skip
    cost = cost_of_run(run.records().values(), before, [])
    assert cost is not None and cost.usage is not None and cost.dollars is not None
    assert found.cost == cost and cost.dollars["total"] > 0
    assert (cost.region, cost.usage["invocations"], cost.billed_from_records) == ("us-east-1", 5, 5)


def stack_of_published(cloud: Cloud) -> list[int]:
    """Return the ranks in combined_data.json, each of which also has its own published file."""
    combined = cloud.json("results/1/combined_data.json")
    ranks = [rank for one in combined for rank in range(4) if cloud.json(f"results/1/{rank}.json") == one]
    assert all(list(one) == [*PUBLISHED_KEYS, *PUBLISHED_S3_KEYS] for one in combined)
    return ranks


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write an empty plot, since drawing takes longer than everything else."""
    monkeypatch.setattr(summarize_module, "draw_redshifts", lambda *_: None)
    monkeypatch.setattr(summarize_module, "save_figure", lambda _, path, __: path.write_bytes(b""))


def half_done(cloud: Cloud, **changes: Any) -> dict[str, Any]:
    """Plan a run, do three of its partitions, make one unreadable, and return the plan."""
    plan = cloud.plan(**changes)
    items = cloud.json("results/1/items.json")
    cloud.keep("100MB/5.h5", b"no shard")
    for item in items[:3]:
        infer(item, Context())
    with pytest.raises(ItemsFailed):
        infer(items[4], Context())
    return plan


def test_a_run_with_more_missing_than_tolerated_fails_with_the_reasons(cloud, no_plot):
    plan = half_done(cloud)
    missing = "000003-00000000-00000010, 000004-00000000-00000010, 000005-00000000-00000010"
    text = (
        f"{cloud.run().uri}: 30 of 60 galaxies are missing, in the items {missing}; 000004-00000000-00000010: "
        f"{cloud.bucket}/100MB/5.h5 is not an HDF5 file or is damaged; expected image and magnitude, "
        "copy it again"
    )
    assert refusal(RunIncomplete, cloud.summarize, plan) == text
    assert cloud.run().summary().complete is False  # which is there all the same
    assert storage.exists(cloud.run().catalogue_path)
    failed = plan | {"failure": {"Error": "States.ExceedToleratedFailureThreshold", "Cause": "..."}}
    assert refusal(RunIncomplete, cloud.summarize, failed) == (
        f"{text}; the map ended with States.ExceedToleratedFailureThreshold"
    )
    assert [note.function for note in cloud.run().functions()] == ["initialize", "summarize"]
    assert refusal(RunIncomplete, cloud.summarize, plan | {"tolerated_failure_percentage": 49.9}) == text
    verdict = cloud.summarize(plan | {"tolerated_failure_percentage": 50.0})
    assert (verdict["again"], verdict["complete"], verdict["coverage"]["missing"]) == (False, False, 30)


def test_each_redrive_of_an_execution_infers_again_once(cloud, no_plot):
    plan = half_done(cloud)
    failed = plan | {"failure": {"Error": "States.Timeout", "Cause": "..."}}
    for redrives in (1, 2):
        summarized = storage.exists(cloud.run().summary_path)
        # What the map failed of before says nothing of what it does now.
        assert cloud.summarize(failed, RedriveCount=redrives) == plan | {"again": True}
        assert storage.exists(cloud.run().summary_path) is summarized  # nothing is concluded yet
        with pytest.raises(RunIncomplete):  # when the state machine comes back
            cloud.summarize(plan | {"again": True}, RedriveCount=redrives)
    assert cloud.summarize(plan, RedriveCount=1, Name="another") == plan | {"again": True}
    for name, content in cloud.partitions.items():
        cloud.keep(f"100MB/{name}", content)
    for item in cloud.json("results/1/items.json"):
        infer(item, Context())
    assert cloud.summarize(plan, RedriveCount=2)["complete"]
    assert cloud.summarize(plan, RedriveCount=3)["again"] is False  # there is nothing left to do


def test_the_published_payload_summarizes_a_planned_run_too(cloud, no_plot):
    cloud.plan()
    assert "60 of 60 galaxies are missing" in refusal(RunIncomplete, summarize, cloud.payload(), Context())
    verdict = summarize(cloud.payload(tolerated_failure_percentage=100), Context())
    assert (verdict["run"], verdict["complete"], verdict["coverage"]["missing"]) == (cloud.run().uri, False, 60)


@pytest.mark.parametrize("key", ["bucket", "result_path"])
def test_a_summary_needs_the_address_of_the_run(cloud, key):
    expected = f"the event cannot be used: object missing required field `{key}`; expected bucket and result_path"
    assert refusal(InputError, summarize, cloud.payload(**{key: None}), Context()) == expected


def test_results_of_a_thousand_ranks_without_a_plan_are_combined_in_natural_order(cloud):
    results = {f"results/1/{rank}.json": json.dumps({"rank": rank}).encode() for rank in range(1003)}
    others = ("payload.json", "combined_data.json", "Results.json", "ranks/7.json")
    fill(cloud.bucket, results | {f"results/1/{name}": b"{}" for name in others})
    combined = f"{cloud.run().uri}/combined_data.json"
    answer = summarize(cloud.payload(result_path="/results/1/"), Context())
    assert answer == {"statusCode": 200, "results": 1003, "combined": combined}
    assert cloud.json("results/1/combined_data.json") == [{"rank": rank} for rank in range(1003)]
    assert [note.function for note in cloud.run().functions()] == ["summarize"]


def test_a_run_with_a_plan_continues_although_a_partition_broke_since(cloud):
    first = cloud.events()
    infer(first[0], Context())
    cloud.keep("100MB/3.h5", b"broken")
    again = cloud.plan()
    assert [
        notice
        for notice in again["notices"]
        if "continuing with the shards of the plan" in notice and "100MB/3.h5" in notice
    ]
    assert cloud.json("results/1/items.json") == first[1:]
    with pytest.raises(InputError, match=r"100MB/3.h5 is not an HDF5 file"):
        cloud.plan(result_path="results/2")


def test_another_checkpoint_is_another_run(cloud, monkeypatch):
    names = iter("ab")
    monkeypatch.setattr(
        weights_selection, "_import_checkpoint", lambda checkpoint, run: f"{cloud.bucket}/{next(names)}.safetensors"
    )
    cloud.keep("My code/Fine_Tune_Model/VIT_ft.pt", b"")
    asked = {"weights": None, "S3_object_name": "My code"}
    cloud.plan(**asked)
    with pytest.raises(InputError, match="belongs to another plan"):
        cloud.plan(**asked)


def test_a_prefix_that_is_one_file_is_refused(cloud):
    with pytest.raises(InputError, match=r"100MB/1.h5 is a file; expected a data_prefix, or name files in data_map"):
        cloud.plan(data_prefix="100MB/1.h5")


def test_the_state_machine_names_errors_that_our_functions_raise():
    """An error under another name would be retried like any other error."""
    text = (Path(__file__).parents[3] / "aws/state_machine.asl.json").read_text()
    named = {name for names in re.findall(r'"ErrorEquals": \[([^]]*)\]', text) for name in re.findall(r"[\w.]+", names)}
    ours = {error.__name__ for error in (InputError, OutOfTime, RunIncomplete)}
    assert {name for name in named if not name.startswith(("Lambda.", "States."))} == ours


# ---- Ranks that share their work by FMI (complete maps are in test_pipeline_fmi.py) ----


@pytest.fixture
def rendezvous(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a rendezvous server whose secret the functions know, and yield its address."""
    monkeypatch.setenv("FMI_SECRET", SECRET.decode())
    read_secret.cache_clear()
    with rendezvous_server() as server:
        yield str(server.endpoint)
    read_secret.cache_clear()


def test_a_rank_that_is_done_waits_for_others_only_until_its_time_limit(cloud, rendezvous):
    """The other rank has joined, but does nothing and never reports that it is done."""
    first, other = cloud.events(world_size=2, fmi_enabled=True, rendezvous_endpoint=rendezvous)
    left = threading.Event()

    def idle() -> None:
        with connect(Endpoint.parse(rendezvous), other["FMI"]["job"], 1, 2, SECRET) as group:
            broadcast(group, None)
            left.wait(60)

    thread = threading.Thread(target=idle)
    thread.start()
    record = infer(first, Context(seconds_left=lambda: RESERVE + 1))
    left.set()
    thread.join()
    assert (record["items"], record["galaxies"]) == (PARTITIONS, PARTITIONS * GALAXIES)
    assert record["fmi"]["ended"].endswith("the deadline passed before rank 1 completed its part")
    assert record == msgspec.to_builtins(cloud.run().records()["0"])
    assert record["lambda"]["seconds"] > 1  # with the waiting, which is paid for


def test_a_rank_that_no_other_joins_does_its_own_share(cloud, rendezvous):
    first, _ = cloud.events(world_size=2, fmi_enabled=True, rendezvous_endpoint=rendezvous)
    record = infer(first, Context(seconds_left=lambda: RESERVE + 1))
    assert (record["items"], record["galaxies"]) == (PARTITIONS // 2, PARTITIONS // 2 * GALAXIES)
    assert record["fmi"]["ended"].startswith(
        f"rank 0 of 2 with rendezvous server {rendezvous}: not all 2 ranks of job "
    )


def test_a_rank_that_is_too_late_for_the_session_does_its_own_share_at_once(cloud, rendezvous):
    first, other = cloud.events(world_size=2, fmi_enabled=True, rendezvous_endpoint=rendezvous)
    infer({key: value for key, value in first.items() if key != "FMI"}, Context())
    record = infer(other, Context(seconds_left=lambda: 3600.0))  # of which it would wait 60
    assert record["galaxies"] == PARTITIONS // 2 * GALAXIES
    assert record["fmi"] == {"ended": "the ranks had begun to share the work before this invocation"}


def test_a_single_rank_gets_no_session(cloud, rendezvous):
    [event] = cloud.events(world_size=1, fmi_enabled=True, rendezvous_endpoint=rendezvous)
    assert list(event) == EVENT_KEYS


def test_the_published_result_holds_sessions_too(cloud, rendezvous):
    asked = cloud.payload(world_size=2, fmi_enabled=True, rendezvous_endpoint=rendezvous)
    body = initialize(asked, Context())["body"]
    assert [event["FMI"] | {"job": ""} for event in body] == [
        {"endpoint": rendezvous, "job": "", "rank": rank, "size": 2, "parts": 0} for rank in range(2)
    ]
    assert body == cloud.json("payload.json")["body"]


def test_the_session_of_an_event_must_be_complete(cloud):
    event = cloud.events(world_size=2)[0] | {"FMI": {"endpoint": "here:1"}}
    assert refusal(InputError, infer, event, Context()).startswith(
        "the event cannot be used: field FMI: object missing required field `job`; expected the keys S3_BUCKET, "
    )


def test_sessions_need_a_rendezvous_server(cloud, monkeypatch):
    monkeypatch.delenv("COSMICAI_RENDEZVOUS", raising=False)
    told = refusal(InputError, initialize, cloud.payload(fmi_enabled=True), Context())
    assert told.startswith("fmi_enabled is true and there is no rendezvous server: name one in rendezvous_endpoint")
