"""Faults of functions and S3: in the end every galaxy once, or a failure that names what is missing."""

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from support.faulty_s3 import Faults, faulty_s3
from support.pipeline import Cloud, Execution, pipeline
from support.pipeline_runs import (
    Sky,
    assert_complete,
    assert_coverage,
    compute_published_rows,
    count_deliveries,
    find_leaks,
    make_payload,
    make_sky,
    read_records,
)

pytestmark = pytest.mark.xdist_group("pipeline-faults")
SURVEY, RANK, ITEM, PARTITION = "surveys/six", 3, "000003-00000000-00000010", "000004.h5"
ONCE = {(rank, None): 1 for rank in range(6)}
THRICE = {(rank, None): 1 for rank in range(6) if rank != RANK}  # and what failed for that one


@pytest.fixture(scope="module")
def faults() -> Iterator[Faults]:
    with faulty_s3() as faults:
        yield faults


@pytest.fixture(scope="module")
def shared_cloud(faults, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    settings = {"AWS_ENDPOINT_URL_S3": faults.url, "AWS_MAX_ATTEMPTS": "3"}
    with pipeline(
        tmp_path_factory.mktemp("cloud"), module="support.faulty_functions", extra_environment=settings
    ) as cloud:
        faults.upstream = cloud.endpoint
        yield cloud


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Sky:
    return make_sky(tmp_path_factory.mktemp("skies") / "six", 6, 10)


@pytest.fixture
def cloud(shared_cloud, faults, six) -> Cloud:
    """Return the pipeline without faults, with a complete sky of six partitions."""
    faults.clear()
    six.upload(shared_cloud, SURVEY)
    return shared_cloud


def partition(cloud: Cloud) -> str:
    return f"s3://{cloud.bucket}/{SURVEY}/{PARTITION}"


def assert_missing(cloud: Cloud, execution: Execution, run: str, reason: str) -> None:
    """Assert that the execution failed because of one partition and reports the reason."""
    assert (execution.status, execution.error) == ("FAILED", "RunIncomplete"), execution
    missing = f"s3://{cloud.bucket}/{run}: 10 of 60 galaxies are missing, in the items {ITEM}"
    assert execution.message == missing + reason
    summary = cloud.json(f"{run}/summary.json")
    assert summary["complete"] is False
    counts = {"asked": 60, "done": 50, "missing": 10, "duplicate": 0, "missing_items": [ITEM], "unplanned_parts": 0}
    assert summary["coverage"].items() >= counts.items()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(("order", "error"), [("raise", "RuntimeError"), ("kill", "Runtime.ExitError")])
def test_a_function_that_raises_or_is_killed_for_memory_is_invoked_again(cloud, six, order, error, times):
    run = f"runs/{order} {times}"
    cloud.inject_fault(order, run, RANK, times=times)
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, run)), six)
    assert count_deliveries(cloud, run) == ONCE | {(RANK, error): times}
    assert sorted(read_records(cloud, run)) == [str(rank) for rank in range(6)]


def test_a_function_that_always_raises_fails_the_run_and_its_rank_is_named(cloud):
    cloud.inject_fault("raise", "runs/raises", RANK, times=None)
    execution = cloud.run(make_payload(cloud, SURVEY, "runs/raises"))
    assert_missing(cloud, execution, "runs/raises", "")
    assert count_deliveries(cloud, "runs/raises") == THRICE | {(RANK, "RuntimeError"): 3}


def test_a_function_that_is_killed_in_the_middle_keeps_what_it_has_done(cloud, six):
    run = "runs/midway"
    cloud.inject_fault("kill midway", run, 1)
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, run, world_size=2)), six)
    assert count_deliveries(cloud, run) == {(0, None): 1, (1, None): 1, (1, "Runtime.ExitError"): 1}
    found = read_records(cloud, run)
    assert sorted(found) == ["0", "1", "1-2"]
    assert (found["1"]["state"], found["1-2"]["state"]) == ("running", "finished")
    assert (found["1-2"]["items"], found["1-2"]["repeated"]) == (2, 0)


def test_a_function_that_is_killed_when_all_is_done_does_nothing_again(cloud, six):
    run = "runs/kill after"
    cloud.inject_fault("kill after", run, RANK)
    summary = assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, run)), six)
    assert count_deliveries(cloud, run) == ONCE | {(RANK, "Runtime.ExitError"): 1}
    assert sorted(read_records(cloud, run)) == [str(rank) for rank in range(6)]
    assert (summary["totals"]["galaxies"], summary["totals"]["repeated"]) == (60, 0)


def test_a_function_that_times_out_is_invoked_again(six, tmp_path):
    # No less than 4 s, since here the limit counts the start of a runtime too, which on a busy machine may take it all.
    with pipeline(tmp_path, module="support.faulty_functions", timeout_s=4) as cloud:
        six.upload(cloud, SURVEY)
        cloud.inject_fault("sleep", "runs/slow", RANK)
        assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/slow")), six)
        assert count_deliveries(cloud, "runs/slow") >= Counter(ONCE) + Counter({(RANK, "Sandbox.Timedout"): 1})
        assert "Task timed out after 4.00 seconds" in str(cloud.invocations("runs/slow"))


@pytest.mark.parametrize(("order", "calls"), [("twice", 2), ("lose the answer", 2)])
def test_an_event_that_is_delivered_twice_counts_once(cloud, six, order, calls):
    run = f"runs/{order}"
    cloud.inject_fault(order, run, RANK)
    summary = assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, run)), six)
    assert count_deliveries(cloud, run) == ONCE | {(RANK, None): calls}
    assert summary["totals"]["galaxies"] == 60


def test_a_partition_that_two_ranks_get_counts_once(cloud, six):
    cloud.inject_fault(f"also: {SURVEY}/{PARTITION}", "runs/both", RANK - 1)
    summary = assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/both")), six)
    assert count_deliveries(cloud, "runs/both") == ONCE
    found = read_records(cloud, "runs/both")
    assert summary["totals"]["galaxies"] == 60
    assert found[str(RANK - 1)]["galaxies"] + found[str(RANK - 1)]["repeated"] == 20


def test_a_rank_that_is_out_of_time_continues_where_it_stopped(cloud, six):
    cloud.inject_fault("hurry", "runs/hurry", 0, times=2)
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/hurry", world_size=2)), six)
    assert count_deliveries(cloud, "runs/hurry") == {(0, "OutOfTime"): 2, (0, None): 1, (1, None): 1}
    found = read_records(cloud, "runs/hurry")
    assert {name: record["items"] for name, record in found.items()} == {"0": 1, "0-2": 1, "0-3": 1, "1": 3}
    [told] = {call.answer["errorMessage"] for call in cloud.invocations("runs/hurry") if call.failed and "2 of" in
              call.answer["errorMessage"]}  # fmt: skip
    assert told == "2 of rank 0's 3 items are left; invoke the function again"


def test_a_rank_that_cannot_do_one_item_in_time_is_not_invoked_forever(cloud):
    cloud.inject_fault("run late", "runs/late", RANK, times=None)
    assert_missing(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/late")), "runs/late", "")
    assert count_deliveries(cloud, "runs/late") == THRICE | {(RANK, "TooSlow"): 3}


def test_a_failed_map_is_reported_and_redriven(cloud, six):
    """moto fails a map only if its items are gone; AWS also if more than a share of the ranks failed."""
    run = "runs/forgotten"
    cloud.inject_fault("forget the items", run, function="initialize")
    failed = cloud.run(make_payload(cloud, SURVEY, run))
    assert (failed.status, failed.error) == ("FAILED", "RunIncomplete")
    told = f"s3://{cloud.bucket}/{run}: 60 of 60 galaxies are missing, in the items 000000-00000000-00000010, "
    assert failed.message.startswith(told) and failed.message.endswith("; the map ended with States.Runtime")
    items = cloud.json(f"{run}/payload.json")["body"]
    cloud.s3.put_object(Bucket=cloud.bucket, Key=f"{run}/items.json", Body=json.dumps(items))
    cloud.inject_fault("raise", run, RANK, times=3)
    again = cloud.wait_for_result(cloud.redrive(failed.arn))
    assert again.error == "RunIncomplete" and "10 of 60 galaxies are missing" in again.message
    assert_complete(cloud, cloud.wait_for_result(cloud.redrive(again.arn)), six)


def test_a_redrive_does_not_report_a_map_that_succeeded_since(cloud):
    run = "runs/stale"
    cloud.inject_fault("forget the items", run, function="initialize")
    failed = cloud.run(make_payload(cloud, SURVEY, run))
    items = cloud.json(f"{run}/payload.json")["body"]
    cloud.s3.put_object(Bucket=cloud.bucket, Key=f"{run}/items.json", Body=json.dumps(items))
    cloud.inject_fault("raise", run, RANK, times=3)
    assert_missing(cloud, cloud.wait_for_result(cloud.redrive(failed.arn)), run, "")


@pytest.mark.parametrize("function", ["initialize", "summarize"])
def test_a_redrive_repeats_a_function_that_died(cloud, six, function):
    run = f"runs/{function} died"
    cloud.inject_fault("kill", run, function=function, times=None)
    failed = cloud.run(make_payload(cloud, SURVEY, run))
    assert (failed.status, failed.error) == ("FAILED", "Runtime.ExitError")
    cloud.cancel_faults(run, function=function)
    assert_complete(cloud, cloud.wait_for_result(cloud.redrive(failed.arn)), six)
    assert sorted(read_records(cloud, run)) == [str(rank) for rank in range(6)]


def test_a_redrive_does_a_missing_partition_once_it_exists(cloud, six):
    run = "runs/deleted"
    gone = f"; {ITEM}: cannot read {partition(cloud)}: it does not exist; check the bucket and the key"
    cloud.inject_fault("delete first", run, RANK)
    failed = cloud.run(make_payload(cloud, SURVEY, run))
    assert_missing(cloud, failed, run, gone)
    assert count_deliveries(cloud, run) == THRICE | {(RANK, "ItemsFailed"): 3}

    in_vain = cloud.wait_for_result(cloud.redrive(failed.arn))
    assert_missing(cloud, in_vain, run, gone)
    six.upload(cloud, SURVEY)
    summary = assert_complete(cloud, cloud.wait_for_result(cloud.redrive(in_vain.arn)), six)
    assert (summary["failures"], summary["totals"]["galaxies"], summary["totals"]["repeated"]) == ([], 60, 0)
    assert count_deliveries(cloud, run)[RANK, "ItemsFailed"] == 6 and count_deliveries(cloud, run)[RANK, None] == 1
    redrives = [call.event["execution"].get("RedriveCount", 0) for call in cloud.invocations(run)
                if call.function == "summarize"]  # fmt: skip
    assert redrives == [0, 1, 1, 2, 2]


def test_an_object_that_is_truncated_after_the_plan_is_named(cloud, six):
    size = len((six.folder / "survey" / PARTITION).read_bytes())
    cloud.inject_fault("truncate first", "runs/truncated", RANK)
    execution = cloud.run(make_payload(cloud, SURVEY, "runs/truncated"))
    assert execution.error == "RunIncomplete"
    assert f"{ITEM}: " in execution.message and partition(cloud) in execution.message
    assert "truncated" in execution.message, (size, execution.message)
    assert cloud.json("runs/truncated/summary.json")["coverage"]["done"] == 50


def test_an_object_that_is_truncated_before_the_plan_is_named(cloud, six):
    data = (six.folder / "survey" / PARTITION).read_bytes()
    cloud.s3.put_object(Bucket=cloud.bucket, Key="surveys/half/1.h5", Body=data)
    cloud.s3.put_object(Bucket=cloud.bucket, Key="surveys/half/2.h5", Body=data[: len(data) // 2])
    execution = cloud.run(make_payload(cloud, "surveys/half", "runs/half"))
    assert (execution.status, execution.error) == ("FAILED", "InputError")
    assert f"s3://{cloud.bucket}/surveys/half/2.h5" in execution.message


@pytest.mark.parametrize(("percentage", "status"), [(17, "SUCCEEDED"), (16, "FAILED")])
def test_what_may_be_missing_is_counted_in_galaxies(cloud, percentage, status):
    run = f"runs/tolerated {percentage}"
    cloud.inject_fault("delete first", run, RANK)
    execution = cloud.run(make_payload(cloud, SURVEY, run, tolerated_failure_percentage=percentage))
    assert execution.status == status
    if status == "FAILED":
        gone = f"; {ITEM}: cannot read {partition(cloud)}: it does not exist; check the bucket and the key"
        assert_missing(cloud, execution, run, gone)
        return
    assert execution.output["complete"] is False
    summary = assert_coverage(cloud, execution, 50, 10)
    assert summary["coverage"]["missing_items"] == [ITEM]
    assert [failure["item"] for failure in summary["failures"]] == [ITEM]


TRANSIENT = {
    "slow down": [("GET", f"{SURVEY}/{PARTITION}", 2), ("HEAD", f"{SURVEY}/", 1), ("PUT", "/parts/000001", 2),
                  ("PUT", "/plan.json", 1), ("GET", "/parts/000000", 1)],
    "drop": [("GET", f"{SURVEY}/{PARTITION}", 2), ("HEAD", f"{SURVEY}/", 1), ("PUT", "/parts/000001", 2),
             ("PUT", "/records/", 1), ("GET", "/parts/000000", 1), ("PUT", "/catalogue.parquet", 1)],
    "cut": [("GET", f"{SURVEY}/{PARTITION}", 4), ("GET", "/plan.json", 1), ("GET", "/parts/000000", 1),
            ("GET", "w.safetensors", 1)],
}  # fmt: skip


LOST = ("/plan.json", "/records/2.json", "/parts/000001")


@pytest.mark.parametrize("what", TRANSIENT)
def test_faults_of_s3_lose_no_galaxy(cloud, six, faults, what):
    for method, key, times in TRANSIENT[what]:
        faults.add(what, method, key, times)
    run = f"runs/{what}"
    summary = assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, run)), six)
    assert len(faults.done) == sum(times for *_, times in TRANSIENT[what])
    assert count_deliveries(cloud, run) == ONCE
    assert (summary["totals"]["galaxies"], summary["totals"]["repeated"]) == (60, 0)


def test_writes_with_lost_responses_lose_no_galaxy(cloud, six, faults):
    for key in LOST:
        faults.add("lose", "PUT", key)
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/lost")), six)
    assert len(faults.done) == len(LOST) and count_deliveries(cloud, "runs/lost") == ONCE


def test_writes_with_lost_responses_count_once(cloud, six, faults):
    for key in LOST:
        faults.add("lose", "PUT", key)
    summary = assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/lost again")), six)
    assert sorted(read_records(cloud, "runs/lost again")) == [str(rank) for rank in range(6)]
    assert (summary["totals"]["galaxies"], summary["totals"]["repeated"]) == (60, 0)


def test_what_a_killed_attempt_leaves_breaks_no_published_reader(cloud, six):
    cloud.inject_fault("kill midway", "runs/readable", 1)
    assert_complete(cloud, cloud.run(make_payload(cloud, SURVEY, "runs/readable", world_size=2)), six)
    assert all(row["bits"] > 0 for row in compute_published_rows(cloud.json("runs/readable/combined_data.json")))


@pytest.mark.parametrize(("what", "reason"), [("slow down", "AWS gets more requests"), ("deny", "(AccessDenied)")])
def test_a_partition_that_s3_refuses_is_named(cloud, faults, what, reason):
    run = f"runs/never {what}"
    faults.add(what, "GET", f"{SURVEY}/{PARTITION}", None)
    execution = cloud.run(make_payload(cloud, SURVEY, run))
    assert (execution.status, execution.error) == ("FAILED", "RunIncomplete")
    sentence = f"10 of 60 galaxies are missing, in the items {ITEM}; {ITEM}: cannot read {partition(cloud)}: "
    assert sentence in execution.message and reason in execution.message
    assert count_deliveries(cloud, run) == THRICE | {(RANK, "ItemsFailed"): 3}


def test_a_folder_without_write_permission_is_named(cloud, faults):
    faults.add("deny", "PUT", "runs/forbidden/", None)
    execution = cloud.run(make_payload(cloud, SURVEY, "runs/forbidden"))
    assert (execution.status, execution.error) == ("FAILED", "StorageError")
    assert execution.message.startswith(f"cannot write s3://{cloud.bucket}/runs/forbidden/plan.json: ")
    assert "(AccessDenied)" in execution.message


def test_parts_without_write_permission_are_named(cloud, faults):
    faults.add("deny", "PUT", f"/parts/{ITEM}", None)
    execution = cloud.run(make_payload(cloud, SURVEY, "runs/no parts"))
    assert_missing(cloud, execution, "runs/no parts", "")
    assert count_deliveries(cloud, "runs/no parts") == THRICE | {(RANK, "StorageError"): 3}


def test_no_log_and_no_file_holds_credentials(cloud, faults):
    """Last, so that it includes the logs of all earlier failures."""
    faults.add("deny", "GET", f"{SURVEY}/{PARTITION}", None)
    cloud.inject_fault("raise", "runs/secret", 0)
    assert cloud.run(make_payload(cloud, SURVEY, "runs/secret")).error == "RunIncomplete"
    told = "".join(cloud.logs().values())
    assert "Access Denied" in told and "this fault was injected" in told
    assert find_leaks(cloud, "runs/secret") == []
