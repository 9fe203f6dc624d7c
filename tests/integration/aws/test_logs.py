"""Reports of a run's invocations, collected from the logs of moto's server."""

import json
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from msgspec import structs

from cosmicai.errors import InputError
from cosmicai.launchers.aws import logs
from cosmicai.launchers.aws.clients import Account
from cosmicai.launchers.aws.logs import collect_reports
from cosmicai.launchers.aws.stack import Stack
from cosmicai.runs.lambda_report import InvocationReport
from cosmicai.runs.store import RunFolder
from support.helpers import make_invocation, make_record
from support.s3 import bucket_fixture  # noqa: F401

BEGIN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)


@dataclass(frozen=True)
class Cloud:
    """A stack with its own log groups, and a run with the record of one rank, which has its times."""

    account: Account
    stack: Stack
    run: RunFolder

    def group(self, function: str) -> str:
        """Return the name of a function's log group."""
        return f"/aws/lambda/{self.stack.name}-{function}"

    def log(self, function: str, *events: tuple[int, str], stream: str = "2024/11/17/[$LATEST]1") -> None:
        """Write events, each with its milliseconds after BEGIN, into a new stream."""
        client = self.account.client("logs")
        if not client.describe_log_groups(logGroupNamePrefix=self.group(function))["logGroups"]:
            client.create_log_group(logGroupName=self.group(function))
        client.create_log_stream(logGroupName=self.group(function), logStreamName=stream)
        start = int(BEGIN.timestamp() * 1000)
        client.put_log_events(
            logGroupName=self.group(function), logStreamName=stream,
            logEvents=[{"timestamp": start + after, "message": message} for after, message in events],
        )  # fmt: skip

    def collect(self) -> list[InvocationReport]:
        """Collect, and return the content of invocations.json."""
        count = collect_reports(self.account, self.stack, self.run)
        rows = self.run.invocations()
        assert count == len(rows)
        return rows


@pytest.fixture
def cloud(bucket: str) -> Cloud:
    """Return a run on a stack that has logged nothing yet."""
    stack = Stack(name=f"test-{secrets.token_hex(4)}", outputs={})
    return Cloud(Account(region="us-east-1"), stack, new_run(f"{bucket}/runs/a"))


def new_run(uri: str) -> RunFolder:
    """Create a run folder with the record of one rank."""
    run = RunFolder(uri)
    record = make_record(
        platform="lambda", started_at=BEGIN.isoformat(), invocation=make_invocation("i0", 60.0),
        updated_at=(BEGIN + timedelta(seconds=60)).isoformat(),
    )  # fmt: skip
    run.write_json(run.record_path(0, 1), record)
    return run


def at(after: int) -> str:
    """Return the time of so many milliseconds after BEGIN."""
    return (BEGIN + timedelta(milliseconds=after)).isoformat(timespec="milliseconds")


def first_line(function: str, run: RunFolder, request: str) -> str:
    """Return the first line that a function prints."""
    return json.dumps({"cosmicai": function, "run": run.uri, "rank": None, "request_id": request}) + "\n"


def report(request: str, billed: int = 2, more: str = "") -> str:
    """Return a report as Lambda writes it."""
    return (
        f"REPORT RequestId: {request}\tDuration: 1.23 ms\tBilled Duration: {billed} ms\tMemory Size: 128 MB\t"
        f"Max Memory Used: 47 MB\t{more}\n"
    )


def invocation(cloud: Cloud, request: str, start: int, stop: int, billed: int = 2) -> list[tuple[int, str]]:
    """Return all events of a successful invocation of infer."""
    return [
        (start, f"START RequestId: {request} Version: $LATEST\n"),
        (start, first_line("infer", cloud.run, request)),
        (start + 1, "some galaxies\n"),
        (stop, f"END RequestId: {request}\n"),
        (stop, report(request, billed)),
    ]


def row(function: str, request: str, after: int, **changes: Any) -> InvocationReport:
    """Return a row of invocations.json."""
    report = InvocationReport(request, 1.23, 2.0, 128, 47, None, "", at(after), function)
    return structs.replace(report, **changes)


def test_reports_of_all_functions_sorted_by_time(cloud: Cloud) -> None:
    name = cloud.stack.name
    cloud.log("infer", *invocation(cloud, "i0", 100, 900), stream="1")
    cloud.log("infer", *invocation(cloud, "i1", 101, 500), *invocation(cloud, "i2", 600, 700, billed=99), stream="2")
    cloud.log(
        "initialize",
        (0, first_line("initialize", cloud.run, "a")),
        (50, report("a", more="Init Duration: 40.5 ms\t")),
    )
    cloud.log("summarize", (1000, first_line("summarize", cloud.run, "z")), (2000, report("z")))
    assert cloud.collect() == [
        row(f"{name}-initialize", "a", 50, init_ms=40.5),
        row(f"{name}-infer", "i1", 500),
        row(f"{name}-infer", "i2", 700, billed_ms=99.0),
        row(f"{name}-infer", "i0", 900),
        row(f"{name}-summarize", "z", 2000),
    ]
    assert RunFolder(cloud.run.uri + "/").invocations() == cloud.run.invocations()


def test_log_in_json(cloud: Cloud) -> None:
    metrics = {"durationMs": 1.23, "billedDurationMs": 2, "memorySizeMB": 128, "maxMemoryUsedMB": 47}
    record = {"requestId": "i0", "metrics": metrics, "status": "timeout"}
    line = json.dumps({"time": "2024-11-17T02:41:24.412Z", "type": "platform.report", "record": record})
    cloud.log("infer", (0, first_line("infer", cloud.run, "i0")), (5, line))
    assert cloud.collect() == [row(f"{cloud.stack.name}-infer", "i0", 5, status="timeout")]


def test_two_runs_that_interleave_in_one_group_on_many_pages(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(cloud, run=new_run(f"{cloud.run.uri}-longer"))
    for stream in range(4):  # each is one runtime, which serves both runs in turn
        events = []
        for turn in range(4):
            whose = (cloud, other)[(stream + turn) % 2]
            events += invocation(whose, f"{stream}-{turn}", 10 * turn + stream, 10 * turn + stream + 5)
        cloud.log("infer", *events, stream=str(stream))
    requests: list[tuple[str, int]] = []
    cloud.account.client("logs").meta.events.register(
        "provide-client-params.logs.FilterLogEvents",
        lambda params, **_: requests.append((params["logGroupName"], params["limit"])),
    )
    monkeypatch.setattr(logs, "PAGE", 3)
    mine, theirs = ({one.request_id for one in each.collect()} for each in (cloud, other))
    assert mine == {f"{stream}-{turn}" for stream in range(4) for turn in range(4) if (stream + turn) % 2 == 0}
    assert theirs == {f"{stream}-{turn}" for stream in range(4) for turn in range(4) if (stream + turn) % 2 == 1}
    pages = [limit for group, limit in requests if group == cloud.group("infer")]
    assert pages == [3] * 27 * 2  # 80 events, for each of the runs


def test_killed_and_timed_out_invocations(cloud: Cloud) -> None:
    name = f"{cloud.stack.name}-infer"
    cloud.log(
        "infer",
        (0, "START RequestId: i0 Version: $LATEST\n"),
        (0, first_line("infer", cloud.run, "i0")),
        (9, report("i0", 3000)),
        (9, f"{at(9)} i0 Task timed out after 3.00 seconds\n\n"),
        (20, first_line("infer", cloud.run, "i1")),  # no END
        (21, "RequestId: i1 Error: Runtime exited with error: signal: killed\nRuntime.ExitError\n"),
        (29, report("i1", 29)),
        (30, first_line("infer", cloud.run, "i2")),
        (39, report("i2", more="Status: error\tError Type: Runtime.OutOfMemory\t")),
        (40, first_line("infer", cloud.run, "i3")),  # it still runs
        (41, "some galaxies\n"),
    )
    assert cloud.collect() == [
        row(name, "i0", 9, billed_ms=3000.0, status="timeout"),
        row(name, "i1", 29, billed_ms=29.0, status="error"),
        row(name, "i2", 39, status="error"),
    ]


def test_report_that_comes_before_the_line_of_the_same_millisecond(cloud: Cloud) -> None:
    cloud.log("infer", (5, report("i0")), (5, first_line("infer", cloud.run, "i0")))
    assert cloud.collect() == [row(f"{cloud.stack.name}-infer", "i0", 5)]


def test_emulator_that_puts_several_lines_into_one_event(cloud: Cloud) -> None:
    cloud.log(
        "infer", (5, f"START RequestId: i0\n{first_line('infer', cloud.run, 'i0')}END RequestId: i0\n{report('i0')}")
    )
    assert cloud.collect() == [row(f"{cloud.stack.name}-infer", "i0", 5)]


def test_earlier_reports_are_kept_when_the_logs_are_gone(cloud: Cloud) -> None:
    name = f"{cloud.stack.name}-infer"
    cloud.log("infer", *invocation(cloud, "i1", 100, 200), stream="1")
    assert cloud.collect() == [row(name, "i1", 200)]
    cloud.log("infer", *invocation(cloud, "i0", 10, 20), stream="2")
    both = [row(name, "i0", 20), row(name, "i1", 200)]
    assert cloud.collect() == cloud.collect() == both
    cloud.account.client("logs").delete_log_group(logGroupName=cloud.group("infer"))
    assert cloud.collect() == both
    cloud.log("infer", *invocation(cloud, "i2", 50, 60))
    assert cloud.collect() == [row(name, "i0", 20), row(name, "i2", 60), row(name, "i1", 200)]


def test_events_far_from_the_run_are_not_requested(cloud: Cloud) -> None:
    hour = 3_600_000
    near = [*invocation(cloud, "first", -hour, -hour + 5), *invocation(cloud, "last", 60_000, 60_000 + hour)]
    cloud.log("infer", *near, stream="1")
    far = [*invocation(cloud, "before", -hour - 6, -hour - 1), *invocation(cloud, "after", 1, 60_001 + hour)]
    cloud.log("infer", *far, stream="2")
    assert [one.request_id for one in cloud.collect()] == ["first", "last"]


def test_logs_without_the_run(cloud: Cloud) -> None:
    span = f"from {BEGIN - timedelta(hours=1):%F %T} to {BEGIN + timedelta(hours=1, minutes=1):%F %T} UTC"
    expected = (
        f"CloudWatch's log groups {cloud.group('initialize')}, {cloud.group('infer')}, {cloud.group('summarize')} hold "
        f"no report of {cloud.run.uri} {span} (%d of its invocations have started there); a report appears some "
        "seconds after the end of an invocation, try again then, with the stack and the region of the run"
    )
    with pytest.raises(InputError) as caught:
        cloud.collect()
    assert str(caught.value) == expected % 0
    other = RunFolder(f"{cloud.run.uri}-longer")
    cloud.log(
        "infer", (0, first_line("infer", other, "o")), (1, report("o")), (2, first_line("infer", cloud.run, "i0"))
    )
    with pytest.raises(InputError) as caught:
        cloud.collect()
    assert str(caught.value) == expected % 1
    assert cloud.run.invocations() == []


def test_run_that_was_never_on_lambda(bucket: str) -> None:
    run = RunFolder(f"{bucket}/runs/a")
    run.write_json(run.record_path(0, 1), make_record(started_at=BEGIN.isoformat()))
    with pytest.raises(InputError, match=f"^{re.escape(run.uri)} has no record of a rank on AWS Lambda; expected"):
        collect_reports(Account(region="us-east-1"), Stack(name="test", outputs={}), run)


def test_damaged_report_is_refused_and_nothing_written(cloud: Cloud) -> None:
    cloud.log("infer", *invocation(cloud, "i0", 0, 5), stream="1")
    cloud.log("infer", (6, "REPORT RequestId: i1\tDuration: 12"), stream="2")
    with pytest.raises(InputError, match=r"'.* - REPORT RequestId: i1\\tDuration: 12' cannot be used: "):
        cloud.collect()
    assert cloud.run.invocations() == []


def test_announcement_that_was_cut_off_is_ignored(cloud: Cloud) -> None:
    cloud.log(
        "infer", *invocation(cloud, "i0", 0, 5), (6, first_line("infer", cloud.run, "i1")[:-9]), (7, report("i1"))
    )
    assert [one.request_id for one in cloud.collect()] == ["i0"]


def test_page_without_events_is_not_the_end(cloud: Cloud) -> None:
    client = boto3.client("logs", region_name="us-east-1")

    class Stubbed:
        """An account whose CloudWatch returns these pages."""

        def client(self, name: str) -> Any:
            assert name == "logs"
            return client

    def event(text: str) -> dict[str, Any]:
        return {"timestamp": int(BEGIN.timestamp() * 1000), "message": text, "eventId": "1", "logStreamName": "1"}

    empty: dict[str, Any] = {"events": []}
    pages: list[dict[str, Any]] = [
        empty,
        {"events": [], "nextToken": "a"},
        {"events": [event(first_line("infer", cloud.run, "i0"))], "nextToken": "b"},
        {"events": [], "nextToken": "c"},
        {"events": [event(report("i0"))]},
        empty,
    ]
    with Stubber(client) as stub:
        for page in pages:
            stub.add_response("filter_log_events", page)
        assert collect_reports(Stubbed(), cloud.stack, cloud.run) == 1  # type: ignore[arg-type]
        stub.assert_no_pending_responses()


def test_refusal_of_cloudwatch_is_one_sentence(cloud: Cloud) -> None:
    client = boto3.client("logs", region_name="us-east-1")

    class Refused:
        """An account that may not read logs."""

        def client(self, name: str) -> Any:
            return client

    with Stubber(client) as stub, pytest.raises(InputError, match=cloud.group("initialize")):
        stub.add_client_error("filter_log_events", "AccessDeniedException", "not authorized", 400)
        collect_reports(Refused(), cloud.stack, cloud.run)  # type: ignore[arg-type]


def test_the_filter_matches_all_relevant_lines_and_no_others(cloud: Cloud) -> None:
    """moto returns all lines regardless of the filter: this test applies the terms of the pattern itself."""
    terms = re.findall(r'\?"([^"]+)"', logs.FILTER)
    assert " ".join(f'?"{term}"' for term in terms) == logs.FILTER
    relevant = [
        first_line("infer", cloud.run, "i0"),
        report("i0"),
        "REPORT",
        '{"time":"2024-11-17T02:41:24.412Z","type":"platform.report","record":{}}',
        "2024-11-17T02:41:24.412Z i0 Task timed out after 3.00 seconds",
        "RequestId: i0 Error: Runtime exited with error: signal: killed",
        "RequestId: i0 Process exited before completing request",
    ]
    # The terms are whole words there, so that it does not matter whether CloudWatch matches words or characters.
    assert all(any(re.search(rf"(?<!\w){re.escape(term)}(?!\w)", line) for term in terms) for line in relevant)
    rest = ["START RequestId: i0 Version: $LATEST", "END RequestId: i0", "some galaxies", '{"level": "INFO"}']
    assert not any(term in line for term in terms for line in rest)
