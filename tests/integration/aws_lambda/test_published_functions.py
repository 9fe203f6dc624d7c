"""Published and own functions in any mix, on moto's S3: who plans, who infers and who summarizes may differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.collect import collect
from cosmicai import storage
from cosmicai.aws_lambda import infer as function
from cosmicai.aws_lambda.infer import infer
from cosmicai.aws_lambda.initialize import initialize
from cosmicai.aws_lambda.run_location import locate_folder
from cosmicai.aws_lambda.summarize import RunIncomplete, summarize
from cosmicai.bench.published_loop import make_published_dataset
from cosmicai.errors import InputError
from cosmicai.ranks import invocation
from cosmicai.runs import summarize as summarize_module
from cosmicai.runs.published import OWN_KEY
from cosmicai.runs.record import PUBLISHED_KEYS
from cosmicai.runs.recorder import Recorder
from cosmicai.runs.store import RunFolder
from cosmicai.storage.s3 import s3_client
from support import published_functions as published
from support.helpers import random_galaxies, tiny_weights
from support.s3 import fill, server_url, use_endpoint

BUCKET, RESULT_PATH = "cosmicai-data", "result-partition-100MB/1GB/1"
PAYLOAD = {  # the published demo_input.json
    "bucket": BUCKET, "file_limit": "11", "batch_size": 512, "object_type": "folder",
    "S3_object_name": "Anomaly Detection", "script": "/tmp/Anomaly Detection/Inference/inference.py",
    "result_path": RESULT_PATH, "data_bucket": BUCKET, "data_prefix": "100MB",
}  # fmt: skip
LISTED = [1, 10, 11, 12, 13, 2, 3, 4, 5, 6, 7]  # the first 11 of 13 partitions, as S3 lists them
GALAXIES = sum(LISTED)  # partition N.pt holds N galaxies
RESULTS = {f"{RESULT_PATH}/{name}.json" for name in (*range(11), "combined_data")}
Answer = dict[str, Any]


class Context:
    """Lambda's context of an invocation that has enough time."""

    aws_request_id, function_name, memory_limit_in_mb = "request", "cosmicai-function", "2048"

    def get_remaining_time_in_millis(self) -> int:
        return 100_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return 13 small published partitions and weights, by key."""
    folder = tmp_path_factory.mktemp("files")
    found = {"weights/tiny.safetensors": Path(tiny_weights(folder / "tiny.safetensors")).read_bytes()}
    for number in range(1, 14):
        torch.save(make_published_dataset(random_galaxies(number)), folder / "partition.pt")
        found[f"100MB/{number}.pt"] = (folder / "partition.pt").read_bytes()
    return found


@pytest.fixture
def bucket(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Create the bucket of the published payload, for functions in a cold process."""
    use_endpoint(monkeypatch, server_url())
    s3_client().create_bucket(Bucket=BUCKET)
    fill(BUCKET, files)
    monkeypatch.setenv("COSMICAI_WEIGHTS", f"s3://{BUCKET}/weights/tiny.safetensors")
    monkeypatch.setattr(invocation, "_calls", count())
    monkeypatch.setattr(function, "_kept", {})
    # Drawing takes longer than everything else.
    monkeypatch.setattr(summarize_module, "draw_redshifts", lambda *_: None)
    monkeypatch.setattr(summarize_module, "save_figure", lambda _, path, __: path.write_bytes(b""))
    yield
    for key in keys(""):
        s3_client().delete_object(Bucket=BUCKET, Key=key)
    s3_client().delete_bucket(Bucket=BUCKET)
    s3_client.cache_clear()


def keys(prefix: str) -> set[str]:
    """Return the keys that begin with a prefix, as the published summarizer lists them."""
    return {item["Key"] for item in s3_client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])}


def read_json(key: str) -> Any:
    return json.loads(storage.read_bytes(f"s3://{BUCKET}/{key}"))


def read_combined() -> list[dict[str, Any]]:
    """Return the records in combined_data.json, in the order of the files of which they are."""
    records: list[dict[str, Any]] = read_json(f"{RESULT_PATH}/combined_data.json")
    return records


def read_galaxies(records: list[dict[str, Any]]) -> float:
    """Return the number of galaxies as the published notebooks do."""
    return sum(record["throughput_bps"] * record["total_cpu_time (seconds)"] / 164160 for record in records)


def own(called: Callable[[Any, Any], Answer]) -> Callable[[Any], Answer]:
    """Return one of this program's functions as it is called here: with an event alone."""
    return lambda event: called(event, Context())


INITIALIZE: dict[str, Callable[[Any], Answer]] = {"P": published.initialize, "O": own(initialize)}
INFER: dict[str, Callable[[Any], Answer]] = {"P": published.infer, "O": own(infer)}
SUMMARIZE: dict[str, Callable[[Any], Answer]] = {"P": published.summarize, "O": own(summarize)}


@pytest.mark.parametrize("mix", ["".join(mix) for mix in product("PO", repeat=3)])
def test_every_mix_of_published_and_own_functions_counts_all_galaxies_once(bucket, mix):
    planned = INITIALIZE[mix[0]](PAYLOAD)
    assert [event["DATA_PATH"] for event in planned["body"]] == [f"100MB/{number}.pt" for number in LISTED]
    assert read_json("payload.json")["body"] == planned["body"]
    for event in planned["body"]:
        INFER[mix[1]](event)
    answer = SUMMARIZE[mix[2]](planned)

    records = read_combined()
    assert len(records) == 11
    assert read_galaxies(records) == pytest.approx(GALAXIES, abs=1e-6)
    assert sorted(record["data_path"] for record in records) == [f"100MB/{number}.pt" for number in LISTED]
    assert {record["result_path"] for record in records} == {RESULT_PATH}
    assert all((OWN_KEY in record) is (mix[1] == "O") for record in records)
    assert all(tuple(record)[: len(PUBLISHED_KEYS)] == PUBLISHED_KEYS for record in records)
    for record in records:
        seconds = record["total_cpu_time (seconds)"]
        galaxies = int(record["data_path"].removeprefix("100MB/").removesuffix(".pt"))
        assert record["sample_persec"] * seconds == pytest.approx(galaxies)
        assert record["execution_time (seconds/batch)"] * galaxies == pytest.approx(seconds * record["batch_size"])
        assert record["num_batches"] == 1
    assert keys(RESULT_PATH) == RESULTS
    assert {key for key in keys("") if not key.startswith((".cosmicai/", "100MB/", "weights/"))} == {
        "payload.json", *RESULTS,
    }  # fmt: skip
    if mix[2] == "O":
        answer.get("coverage", {}).pop("flagged", None)
        assert answer == EXPECTED[mix[:2]]


NO_PLAN = {
    "statusCode": 200, "results": 11, "galaxies": GALAXIES,
    "combined": f"s3://{BUCKET}/{RESULT_PATH}/combined_data.json",
    "notices": [
        f"counted 11 published records in s3://{BUCKET}/{RESULT_PATH}/; there is no plan, so that it is not known how "
        "many there should be"
    ],
}  # fmt: skip
RUN = f"s3://{BUCKET}/.cosmicai/{RESULT_PATH}"
COVERAGE = {"asked": GALAXIES, "done": GALAXIES, "missing": 0, "duplicate": 0, "unplanned_parts": 0}
EXPECTED: dict[str, Answer] = {
    "PP": NO_PLAN,
    "PO": NO_PLAN,
    "OP": {
        "again": False, "complete": False, "run": RUN, "coverage": COVERAGE | {"done": 0, "missing": GALAXIES},
        "results": 11, "galaxies": GALAXIES, "combined": NO_PLAN["combined"],
        "notices": [
            f"11 published records of ranks that another program inferred hold {GALAXIES} galaxies, for which there "
            "are no redshifts for a catalogue"
        ],
    },
    "OO": {
        "again": False, "complete": True, "run": RUN,
        "coverage": COVERAGE | {"duplicate_objid": 0},
        "summary": f"{RUN}/summary.json", "catalogue": f"{RUN}/catalogue.parquet",
    },
}  # fmt: skip


def refusal(error: type[Exception], call: Callable[[Any], Any], event: Any) -> str:
    """Return the one line of the error that a call raises."""
    with pytest.raises(error) as caught:
        call(event)
    assert type(caught.value) is error and "\n" not in str(caught.value)
    return str(caught.value)


def planned_numbers(answer: Answer) -> list[int]:
    """Return the numbers of the partitions of the ranks, in the order of the ranks."""
    return [int(event["DATA_PATH"].removeprefix("100MB/").removesuffix(".pt")) for event in answer["body"]]


@pytest.mark.parametrize(("order", "numbers"), [(None, LISTED), ("s3", LISTED), ("natural", list(range(1, 12)))])
def test_the_order_selects_files_and_gives_them_to_ranks_and_the_plan_has_that_of_their_names(bucket, order, numbers):
    answer = own(initialize)({**PAYLOAD, "order": order})
    assert planned_numbers(answer) == numbers
    plan = locate_folder(RUN).run.plan()
    assert [shard.name for shard in plan.shards] == [f"{number}.pt" for number in sorted(numbers)]
    assert plan.order == (order or "s3")
    assert (b'"order"' in storage.read_bytes(f"{RUN}/plan.json")) is (order != "natural")
    assert planned_numbers(own(initialize)(PAYLOAD)) == numbers  # without a request the plan's order stays


def test_our_state_machine_selects_the_files_of_the_published_initializer_too(bucket):
    planned = own(initialize)({"request": PAYLOAD, "execution": {}})
    events = read_json(planned["items"]["key"])
    assert planned_numbers({"body": events}) == LISTED
    assert (planned["run"], planned["ranks"], planned["galaxies"]) == (f"s3://{BUCKET}/{RESULT_PATH}", 11, GALAXIES)


def test_another_order_than_that_of_the_plan_is_refused(bucket):
    own(initialize)({**PAYLOAD, "file_limit": None, "order": "natural"})
    assert refusal(InputError, own(initialize), {**PAYLOAD, "file_limit": None, "order": "s3"}) == (
        f"{RUN} belongs to another plan (it differs in order); choose another --out"
    )


@pytest.mark.parametrize("path", [".", "/.c", ".cosmicai", ".cosmicai/", ".cosmicai/results/1"])
def test_a_result_path_that_could_reach_the_run_folders_is_refused(bucket, path):
    event = published.initialize(PAYLOAD)["body"][0] | {"RESULT_PATH": path}
    end = (
        "cannot be used: results there would mix with the run folders in .cosmicai/; expected a folder such as "
        "results/1, name another"
    )
    shown = path.strip("/")
    for request in ({**PAYLOAD, "result_path": path}, {"request": {**PAYLOAD, "result_path": path}}):
        assert refusal(InputError, own(initialize), request) == f"the payload's result_path {shown!r} {end}"
    assert refusal(InputError, own(infer), event) == f"the event's RESULT_PATH {path!r} {end}"
    assert refusal(InputError, own(summarize), {"statusCode": 200, "body": [event]}) == (
        f"the event's RESULT_PATH {path!r} {end}"
    )
    assert refusal(InputError, own(summarize), {**PAYLOAD, "result_path": path}) == (
        f"the event's result_path {path!r} {end}"
    )
    assert keys(".cosmicai/") == set()


ANSWER = 'expected the answer of initialize, {"statusCode": 200, "body": [EVENT, ...]} with at least one event'


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        ({"statusCode": 200, "body": []}, "field body: expected `array` of length >= 1"),
        ({"statusCode": 200, "body": "[]"}, "field body: expected `array`, got `str`"),
        ({"statusCode": 200}, "object missing required field `body`"),
        ({"statusCode": 200, "body": [{}]}, "field body[0]: object missing required field `S3_BUCKET`"),
        ({"body": [{"S3_BUCKET": "b", "RESULT_PATH": ""}]}, "field body[0].RESULT_PATH: expected `str` of length >= 1"),
    ],
)
def test_an_unusable_answer_of_an_initializer_is_refused(event, problem):
    assert refusal(InputError, own(summarize), event) == f"the event cannot be used: {problem}; {ANSWER}"


def test_the_answer_of_an_initializer_that_failed_is_refused():
    for status in (500, "500", None):
        text = refusal(InputError, own(summarize), {"statusCode": status, "body": [{}]})
        assert text == f"the event's statusCode is {status!r}; {ANSWER}"
    assert refusal(InputError, own(summarize), [PAYLOAD]).startswith("the event is [{'bucket': 'cosmicai-data'")


def test_a_rank_that_both_workers_inferred_counts_once(bucket):
    planned = own(initialize)(PAYLOAD)
    for event in planned["body"]:
        own(infer)(event)
    published.infer(planned["body"][3])
    assert own(summarize)(planned)["complete"]
    records = read_combined()
    assert (len(records), read_galaxies(records)) == (11, pytest.approx(GALAXIES))
    assert all(OWN_KEY in record for record in records)
    assert keys(RESULT_PATH) == RESULTS


def test_ranks_of_both_workers_are_combined_and_those_without_redshifts_are_said(bucket):
    planned = own(initialize)(PAYLOAD)
    for event in planned["body"]:
        (own(infer) if int(event["RANK"]) < 4 else published.infer)(event)
    answer = own(summarize)(planned)
    others = sum(LISTED[4:])
    assert (answer["complete"], answer["coverage"]["missing"]) == (False, others)
    assert (answer["results"], answer["galaxies"]) == (7, others)
    assert answer["notices"] == [
        f"7 published records of ranks that another program inferred hold {others} galaxies, for which there are no "
        "redshifts for a catalogue"
    ]
    records = read_combined()
    assert [OWN_KEY in record for record in records] == [True] * 4 + [False] * 7
    assert read_galaxies(records) == pytest.approx(GALAXIES)
    assert keys(RESULT_PATH) == RESULTS


def test_what_neither_worker_did_is_missing_with_the_reason_why_there_are_no_redshifts(bucket):
    planned = own(initialize)(PAYLOAD)
    for event in planned["body"][:9]:
        published.infer(event)
    text = refusal(RunIncomplete, own(summarize), planned)
    assert text.startswith(f"{RUN}: {GALAXIES} of {GALAXIES} galaxies are missing, in the items 000000-")
    assert text.endswith(
        f"; 9 published records of ranks that another program inferred hold {sum(LISTED[:9])} galaxies, for which "
        "there are no redshifts for a catalogue"
    )
    assert len(read_combined()) == 9


def test_a_damaged_record_is_named(bucket):
    planned = published.initialize(PAYLOAD)
    fill(BUCKET, {f"{RESULT_PATH}/3.json": b"[3]"})
    assert refusal(InputError, own(summarize), planned) == (
        f"s3://{BUCKET}/{RESULT_PATH}/3.json cannot be used: field [0]: expected `object`, got `int`; expected the "
        "record of a rank; remove it, and invoke the rank again"
    )


@pytest.mark.parametrize("planner", "PO")
def test_a_rank_that_was_killed_between_its_part_and_its_record_counts_all_its_galaxies(bucket, monkeypatch, planner):
    class KilledError(BaseException):
        pass

    def die(*_: Any) -> None:
        raise KilledError

    planned = INITIALIZE[planner](PAYLOAD)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Recorder, "add", die)
        own(infer)(planned["body"][2])
    for event in planned["body"]:
        own(infer)(event)
    killed = read_json(f"{RESULT_PATH}/2.json")
    assert (killed[OWN_KEY]["galaxies"], killed[OWN_KEY]["attempts"]) == (LISTED[2], 1)
    for call in (published.summarize, own(summarize)):
        call(planned)
        records = read_combined()
        assert (len(records), read_galaxies(records)) == (11, pytest.approx(GALAXIES))
        s3_client().delete_object(Bucket=BUCKET, Key=f"{RESULT_PATH}/combined_data.json")


def test_runs_of_earlier_versions_are_found_and_no_second_run_is_begun_beside_them(bucket):
    """Their plan is at the result path, as that of our own state machine is."""
    own(initialize)({"request": PAYLOAD, "execution": {}})
    planned = own(initialize)(PAYLOAD)
    assert keys(".cosmicai/") == set()
    for event in planned["body"]:
        own(infer)(event)
    answer = own(summarize)(planned)
    assert (answer["run"], answer["complete"]) == (f"s3://{BUCKET}/{RESULT_PATH}", True)
    assert len(RunFolder(answer["run"]).records()) == 11


def test_our_state_machine_does_not_plan_a_run_again_that_was_planned_without_it(bucket):
    own(initialize)(PAYLOAD)
    assert refusal(InputError, own(initialize), {"request": PAYLOAD, "execution": {}}) == (
        f"s3://{BUCKET}/{RESULT_PATH} holds the results of {RUN}, which was planned without this program's state "
        "machine; finish that run as it was begun, or give this execution its own result_path"
    )
    assert keys(RESULT_PATH) == set()


def test_a_rank_of_a_hidden_run_folder_writes_its_published_record_where_the_others_are(bucket):
    own(initialize)(PAYLOAD)
    record = own(infer)({"run": RUN, "rank": 0, "world_size": 1})
    assert (record["galaxies"], record["result_path"]) == (GALAXIES, RESULT_PATH)
    assert keys(RESULT_PATH) == {f"{RESULT_PATH}/0.json"}
    assert own(summarize)({"run": RUN})["complete"]


def test_the_analysis_knows_our_combined_records_from_published_ones(bucket, tmp_path):
    for worker in "PO":
        planned = published.initialize(PAYLOAD)
        for event in planned["body"]:
            INFER[worker](event)
        own(summarize)(planned)
        folder = tmp_path / worker
        folder.mkdir()
        (folder / "combined_data.json").write_bytes(
            storage.read_bytes(f"s3://{BUCKET}/{RESULT_PATH}/combined_data.json")
        )
    found = collect([str(tmp_path)])
    runs = found.runs.set_index("run")
    assert runs["origin"].to_dict() == {"P": "published", "O": "ours"}
    assert runs["galaxies"].to_dict() == {"P": GALAXIES, "O": GALAXIES}
    assert runs.loc["O", ["platform", "engine", "precision", "world_size"]].tolist() == [
        "lambda", "openvino", "float32", 11,
    ]  # fmt: skip
    [machine] = {record[OWN_KEY]["machine"] for record in read_combined()}
    assert runs["machine"].to_dict() == {"P": "AWS Lambda", "O": machine}
    ranks = found.ranks[found.ranks["run"] == "O"]
    wall = [record[OWN_KEY]["galaxies_per_second"] for record in read_combined()]
    assert ranks["galaxies_per_second"].tolist() == wall
