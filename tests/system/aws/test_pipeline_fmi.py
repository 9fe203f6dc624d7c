"""Runs whose ranks share their work by FMI through a real rendezvous server."""

from __future__ import annotations

import re
import secrets
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.pipeline import Cloud, pipeline
from support.pipeline_runs import Sky, assert_complete, count_deliveries, make_payload, make_sky, read_records
from support.rendezvous import Server, rendezvous_server

pytestmark = pytest.mark.xdist_group("pipeline-fmi")
SURVEY, NAME = "surveys/six", "rendezvous"
RANKS, ITEMS = 3, 6  # one of each partition
LATE = {"ended": "the ranks had begun to share the work before this invocation"}


def read_counter(server: Server, name: str) -> float:
    """Return the sum of a metric of a server over all its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.health_port}/metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return sum(sample.value for one in families for sample in one.samples if sample.name == name)


@pytest.fixture(scope="module")
def secret() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def server(secret) -> Iterator[Server]:
    with rendezvous_server(secret=secret.encode()) as server:
        yield server


@pytest.fixture(scope="module")
def cloud(server, secret, six, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Run three concurrent functions with the stack's own server and a secret in Secrets Manager."""
    settings = {"COSMICAI_RENDEZVOUS": str(server.endpoint), "FMI_SECRET_ARN": NAME}
    folder = tmp_path_factory.mktemp("cloud")
    with pipeline(folder, infer=RANKS, module="support.faulty_functions", extra_environment=settings) as cloud:
        cloud.client("secretsmanager").create_secret(Name=NAME, SecretString=secret)
        six.upload(cloud, SURVEY)
        yield cloud


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Sky:
    return make_sky(tmp_path_factory.mktemp("skies") / "six", 6, 10)


def test_ranks_share_items_by_the_counter_and_sum_by_allreduce(cloud, server, six):
    before = read_counter(server, "fmi_items_total")
    summary = assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/talk", fmi_enabled=True)), six)
    assert summary["catalogue_sha256"] == six.digest
    found = read_records(cloud, "runs/talk")
    assert sorted(found) == ["0", "1", "2"]
    for rank, record in enumerate(found.values()):
        assert record["fmi"] == {
            "endpoint": str(server.endpoint), "rank": rank, "size": RANKS, "routes": record["fmi"]["routes"],
            "galaxies_of_all": six.galaxies,
        }  # fmt: skip
        assert set(record["fmi"]["routes"]) == {"private"}
    assert sum(record["galaxies"] for record in found.values()) == six.galaxies
    assert sum(record["items"] for record in found.values()) == ITEMS
    assert [record["repeated"] for record in found.values()] == [0] * RANKS
    # Each rank also takes the number that tells it that there is no more.
    assert read_counter(server, "fmi_items_total") - before == ITEMS + RANKS
    assert read_counter(server, "fmi_lost_total") == 0


def test_without_fmi_the_server_is_not_used(cloud, server, six):
    before = read_counter(server, "fmi_joins_total")
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/silent")), six)
    assert read_counter(server, "fmi_joins_total") == before
    assert "fmi" not in read_records(cloud, "runs/silent")["0"]


def test_the_payload_may_name_another_server(cloud, six, secret):
    with rendezvous_server(secret=secret.encode()) as other:
        asked = make_payload(cloud, SURVEY, "runs/other", fmi_enabled=True, rendezvous_endpoint=str(other.endpoint))
        assert_complete(cloud, cloud.run(asked), six)
        assert read_counter(other, "fmi_items_total") == ITEMS + RANKS
    assert {record["fmi"]["endpoint"] for record in read_records(cloud, "runs/other").values()} == {str(other.endpoint)}


def test_items_of_a_rank_that_dies_are_done_by_others(cloud, six):
    cloud.inject_fault("kill midway", "runs/death", 1)
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/death", fmi_enabled=True)), six)
    found = read_records(cloud, "runs/death")
    for rank in ("0", "2"):  # whoever tells first, the server or its connection
        assert re.search("rank 1 is (lost|gone)", found[rank]["fmi"]["ended"])
    # When rank 1 is called again the others may have done its share.
    assert found.get("1-2", {"fmi": LATE})["fmi"] == LATE
    assert set(count_deliveries(cloud, "runs/death")) == {(0, None), (1, None), (2, None), (1, "Runtime.ExitError")}


def test_an_event_that_is_delivered_twice_only_costs_time(cloud, six):
    cloud.inject_fault("twice", "runs/twice", 2)
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/twice", fmi_enabled=True)), six)


def test_a_run_continues_with_missing_items(cloud, server, six):
    cloud.inject_fault("raise", "runs/again", 0, times=3)
    first = cloud.run(make_payload(cloud, SURVEY, "runs/again", fmi_enabled=True))
    assert first.error == "RunIncomplete"
    before = read_counter(server, "fmi_items_total")
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/again", fmi_enabled=True)), six)
    assert read_counter(server, "fmi_items_total") - before == 0  # one rank was left, which has nobody to talk to


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rendezvous_endpoint": "127.0.0.1:9"}, "no rendezvous server answers at 127.0.0.1:9"),
        ({"rendezvous_endpoint": "here:"}, "'here:' is not the address of a rendezvous server; expected HOST:PORT"),
        ({"world_size": 4}, "all 4 ranks must run at the same time, and max_concurrency is 3"),
        ({"max_concurrency": 2, "world_size": 3}, "all 3 ranks must run at the same time, and max_concurrency is 2"),
    ],
)
def test_unusable_requests_are_refused_before_any_rank_is_invoked(cloud, changes, said):
    asked = make_payload(cloud, SURVEY, "runs/never", fmi_enabled=True, **changes)
    execution = cloud.run(asked)
    assert said in execution.message
    assert count_deliveries(cloud, "runs/never") == {}


def test_a_server_with_another_secret_is_named(cloud):
    with rendezvous_server(secret=b"another") as other:
        asked = make_payload(cloud, SURVEY, "runs/never", fmi_enabled=True, rendezvous_endpoint=str(other.endpoint))
        execution = cloud.run(asked)
    assert "rank 0 does not know the secret of job check-" in execution.message
    assert "give all ranks and the server the same one in FMI_SECRET" in execution.message


def test_no_log_and_no_file_holds_the_secret(cloud, secret):
    assert [name for name, text in cloud.logs().items() if secret in text] == []
    assert [key for key in cloud.keys("") if secret.encode() in cloud.read(key)] == []
