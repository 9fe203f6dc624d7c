"""The real state machine, functions and image from end to end: each galaxy once, and what published readers read."""

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import TensorDataset

from support.built_image import Image
from support.built_image import image as image
from support.helpers import random_galaxies
from support.pipeline import Cloud, pipeline
from support.pipeline_runs import (
    assert_complete,
    compute_published_rows,
    count_deliveries,
    find_leaks,
    make_payload,
    make_sky,
    read_records,
)
from support.state_machine_definition import find_mistakes

pytestmark = pytest.mark.xdist_group("pipeline")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with pipeline(tmp_path_factory.mktemp("cloud")) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("skies")


@pytest.fixture(scope="module")
def six(cloud, folder):
    """Upload a sky of six partitions to surveys/six."""
    sky = make_sky(folder / "six", 6, 10)
    sky.upload(cloud, "surveys/six")
    return sky


def test_six_partitions(cloud, six):
    execution = cloud.run(make_payload(cloud, "surveys/six", "runs/six"))
    summary = assert_complete(cloud, execution, six)
    assert execution.output["run"] == f"s3://{cloud.bucket}/runs/six"
    assert summary["failures"] == [] and summary["totals"]["repeated"] == 0
    assert count_deliveries(cloud, "runs/six") == {(rank, None): 1 for rank in range(6)}
    found = read_records(cloud, "runs/six")
    assert sorted(found) == [str(rank) for rank in range(6)]
    assert {record["state"] for record in found.values()} == {"finished"}
    assert [found[str(rank)]["data_path"] for rank in range(6)] == [f"surveys/six/{name}" for name in six.names]
    for rank in range(6):
        published = cloud.json(f"runs/six/{rank}.json")
        assert published.pop("cosmicai")["rank"] == rank
        assert published.items() <= found[str(rank)].items() and published["sample_persec"] > 0
    assert cloud.json("runs/six/payload.json")["world_size"] == 6
    [names] = {tuple(item) for item in cloud.json("runs/six/items.json")}
    assert len(names) == 11


def test_130_partitions(cloud, folder):
    sky = make_sky(folder / "130", 130, 2)
    sky.upload(cloud, "surveys/130")
    assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/130", "runs/130")), sky)
    assert count_deliveries(cloud, "runs/130") == {(rank, None): 1 for rank in range(130)}
    assert len(cloud.json("runs/130/combined_data.json")) == len(read_records(cloud, "runs/130")) == 130


def test_1003_objects_under_the_prefix(cloud, folder):
    """S3 lists 1,000 at a time and as text: 1000.h5 to 1997.h5, 995.h5 and 996.h5, and on the next page the rest."""
    sky = make_sky(folder / "1003", 13, 2, first=995)
    sky.upload(cloud, "surveys/1003")
    other = (sky.folder / "survey/1007.h5").read_bytes()
    for number in range(1008, 1998):
        cloud.s3.put_object(Bucket=cloud.bucket, Key=f"surveys/1003/{number}.h5", Body=other)
    listed = cloud.s3.list_objects_v2(Bucket=cloud.bucket, Prefix="surveys/1003/")
    assert listed["IsTruncated"] and listed["Contents"][-1]["Key"] == "surveys/1003/996.h5"
    assert len(cloud.keys("surveys/1003/")) == 1003
    payload = make_payload(cloud, "surveys/1003", "runs/1003", file_limit="13", order="natural")
    assert_complete(cloud, cloud.run(payload), sky)
    names = [f"{number}.h5" for number in range(995, 1008)]
    assert [shard["name"] for shard in cloud.json("runs/1003/plan.json")["shards"]] == names
    paths = [event["DATA_PATH"] for event in cloud.json("runs/1003/items.json")]
    assert paths == [f"surveys/1003/{name}" for name in names]


def test_two_executions_at_once(cloud, six):
    started = [cloud.start(make_payload(cloud, "surveys/six", f"runs/at once {number}")) for number in range(2)]
    for execution in map(cloud.wait_for_result, started):
        assert_complete(cloud, execution, six)
    for number in range(2):
        assert count_deliveries(cloud, f"runs/at once {number}") == {(rank, None): 1 for rank in range(6)}


def test_two_executions_of_one_run_at_once(cloud, six):
    started = [cloud.start(make_payload(cloud, "surveys/six", "runs/one")) for _ in range(2)]
    summaries = [assert_complete(cloud, execution, six) for execution in map(cloud.wait_for_result, started)]
    assert {summary["plan_sha256"] for summary in summaries} == {summaries[0]["plan_sha256"]}
    assert sum(record["galaxies"] for record in read_records(cloud, "runs/one").values()) == six.galaxies


def test_a_complete_run_is_not_repeated(cloud, six):
    first = assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/six", "runs/done")), six)
    second = assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/six", "runs/done")), six)
    assert cloud.json("runs/done/items.json") == []
    assert count_deliveries(cloud, "runs/done") == {(rank, None): 1 for rank in range(6)}
    assert first["totals"]["galaxies"] == second["totals"]["galaxies"] == six.galaxies


def test_another_plan_in_the_same_folder_is_refused(cloud, six):
    assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/six", "runs/mine")), six)
    execution = cloud.run(make_payload(cloud, "surveys/six", "runs/mine", file_limit="5"))
    assert (execution.status, execution.error) == ("FAILED", "InputError")
    assert f"s3://{cloud.bucket}/runs/mine" in execution.message
    assert len([call for call in cloud.invocations("runs/mine") if call.function == "initialize"]) == 2


def test_every_invocation_announces_itself_and_has_a_report(cloud, six):
    assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/six", "runs/announced")), six)
    calls, printed = cloud.invocations("runs/announced"), "\n".join(cloud.logs().values())
    assert [call.function for call in calls] == ["initialize", *["infer"] * 6, "summarize"]
    announced = [json.loads(line) for line in printed.splitlines() if line.startswith('{"cosmicai": ')]
    for call in calls:
        assert printed.count(f"START RequestId: {call.request_id} ") == 1
        assert printed.count(f"REPORT RequestId: {call.request_id}\t") == 1
        [line] = [line for line in announced if line["request_id"] == call.request_id]
        rank = int(call.event["RANK"]) if call.function == "infer" else None
        run = f"s3://{cloud.bucket}/runs/announced"
        assert line == {"cosmicai": call.function, "run": run, "rank": rank, "request_id": call.request_id}
    ids = {record["lambda"]["request_id"] for record in read_records(cloud, "runs/announced").values()}
    assert ids == {call.request_id for call in calls if call.function == "infer"}


@pytest.mark.parametrize(("function", "rank"), [("initialize", None), ("infer", 3), ("summarize", None)])
def test_throttled_invocations_are_retried(cloud, six, function, rank):
    run = f"runs/throttled {function}"
    cloud.inject_fault("throttle", run, rank, function=function, times=4)
    summary = assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/six", run)), six)
    assert summary["totals"]["attempts"] == 1
    assert count_deliveries(cloud, run) == {(rank, None): 1 for rank in range(6)}


def published_partition(path: Path, galaxies: int, seed: int) -> None:
    found = random_galaxies(galaxies, seed)
    arrays = (found.image, found.magnitude, found.redshift)
    torch.save(TensorDataset(*map(torch.from_numpy, arrays)), path)


PARTITIONS, OTHERS, REAL = 13, 4, 10  # of which the one called 10.pt holds the 512 published galaxies
LISTED = [1, 10, 11, 12, 13, 2, 3, 4, 5, 6, 7]  # the first 11, as S3 lists them


def test_the_published_payload_as_it_is(cloud, shared, tmp_path):
    asked = json.loads((shared / "published/lambda/demo_input.json").read_text())
    bucket, result_path = asked["bucket"], asked["result_path"]
    cloud.s3.create_bucket(Bucket=bucket)
    code = f"{asked['S3_object_name']}/Fine_Tune_Model/Mixed_Inception_z_VITAE_Base_Img_Full_New_Full.pt"
    cloud.s3.put_object(Bucket=bucket, Key=code, Body=(shared / "upstream/checkpoint.pt").read_bytes())
    for number in range(1, PARTITIONS + 1):
        path = shared / "upstream/partition_512.pt"
        if number != REAL:
            published_partition(path := tmp_path / f"{number}.pt", OTHERS, number)
        cloud.s3.put_object(Bucket=bucket, Key=f"{asked['data_prefix']}/{number}.pt", Body=path.read_bytes())

    execution = cloud.run(asked, timeout=120)
    assert execution.status == "SUCCEEDED", (execution, cloud.logs())
    assert execution.output["complete"] is True
    asked_for = 10 * OTHERS + 512
    counts = {"asked": asked_for, "done": asked_for, "missing": 0, "duplicate": 0, "unplanned_parts": 0}
    assert execution.output["coverage"].items() >= counts.items()

    def read(name: str) -> Any:
        return cloud.json(f"{result_path}/{name}", bucket)

    body = read("payload.json")["body"]
    assert [event["DATA_PATH"] for event in body] == [f"100MB/{number}.pt" for number in LISTED]
    catalogue = pyarrow.parquet.read_table(io.BytesIO(cloud.read(f"{result_path}/catalogue.parquet", bucket)))
    found = catalogue["redshift_phot"].to_numpy()[sorted(LISTED).index(REAL) * OTHERS :][:512]
    expected = np.load(shared / "upstream/expected.npz")["z_float32"]
    assert len(catalogue) == asked_for and np.abs(found - expected).max() < 1e-5

    combined = read("combined_data.json")
    assert [entry["data_path"] for entry in combined] == [f"100MB/{number}.pt" for number in LISTED]
    assert [read(f"{rank}.json") for rank in range(11)] == combined
    rows = compute_published_rows(combined)
    assert len(rows) == 11
    for row in rows:
        assert all(value > 0 for value in row.values()), row
        assert row["min"] <= row["avg"] <= row["max"] <= row["total"]
    of_theirs: dict[str, type] = {}
    for path in (shared / "published/lambda").glob("partition-*/**/combined_data.json"):
        for entry in json.loads(path.read_text()):
            of_theirs |= {key: type(value) for key, value in entry.items()}
    for entry in combined:
        assert entry.pop("cosmicai")["galaxies"] == round(entry["sample_persec"] * entry["total_cpu_time (seconds)"])
        assert {key: type(value) for key, value in entry.items()}.items() <= of_theirs.items()


def test_the_functions_of_the_image(image: Image, folder, tmp_path):
    sky = make_sky(tmp_path / "sky", 6, 10)
    own = ("--no-privs",) if os.getuid() == 0 else ()
    # As on Lambda: nothing but /tmp to write to, no home.
    serve = ("apptainer", "run", "--contain", "--no-home", "--pwd", "/", *own, str(image.sif))
    settings = {"COSMICAI_CACHE": "/tmp/cosmicai", "PYTHONPATH": ""}
    with pipeline(tmp_path, serve=serve, extra_environment=settings) as cloud:
        sky.upload(cloud, "surveys/six")
        assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/six", "runs/six")), sky)
        found = read_records(cloud, "runs/six").values()
        assert {record["image_digest"] for record in found} == {image.digest}
        assert find_leaks(cloud) == []


def planted(definition: str, old: str, new: str) -> str:
    assert definition.count(old) == 1
    return definition.replace(old, new)


def test_what_aws_refuses_and_moto_accepts_is_found(cloud):
    text = cloud.definition
    assert find_mistakes(text) == []
    at_the_end = '"Default": "Done"'
    dangling = planted(text, at_the_end, '"Default": "Dome"')
    assert find_mistakes(dangling) == [
        "Done is never reached",
        "Redriven? has Default 'Dome', which is not a state at the same level",
    ]
    cloud.states.create_state_machine(name="dangling", definition=dangling, roleArn=cloud.role)
    caught = planted(text, '"ResultPath": "$.failure", "Next": "Summarize"', '"ResultPath": "$.failure", "Next": "X"')
    assert find_mistakes(caught) == ["Infer has Catch 'X', which is not a state at the same level"]
    inside = planted(text, '"StartAt": "Infer one rank"', '"StartAt": "Initialize"')
    assert find_mistakes(inside) == [
        "Infer's ItemProcessor starts at 'Initialize', which is not one of its states",
        "Infer one rank is never reached",
    ]
    field = planted(text, '"MaxConcurrencyPath"', '"MaximumConcurrencyPath"')
    assert find_mistakes(field) == ["Infer has a field MaximumConcurrencyPath, which AWS does not know"]
    path = planted(text, '"Payload.$": "$"', '"Payload.$": "all"')
    assert find_mistakes(path) == ["Infer one rank has Payload.$: 'all', which is not a path"]
    order = planted(text, '"ErrorEquals": ["InputError"]', '"ErrorEquals": ["States.ALL"]')
    assert find_mistakes(order) == ["Infer one rank's Retry has States.ALL, which must stand alone and last"]
    end = planted(text, '"ResultSelector": {"galaxies.$": "$.Payload.galaxies"},', '"Next": "Infer one rank",')
    assert find_mistakes(end) == ["Infer one rank has both Next and End"]


def test_no_log_and_no_file_holds_credentials(cloud, six):
    """Last, so that it includes the logs of all other tests."""
    assert_complete(cloud, cloud.run(make_payload(cloud, "surveys/six", "runs/secret")), six)
    assert find_leaks(cloud, "runs/secret") == []
    cloud.s3.put_object(Bucket=cloud.bucket, Key="planted", Body=f"x{cloud.secrets[1]}x")
    assert find_leaks(cloud, "planted") == ["planted"]
