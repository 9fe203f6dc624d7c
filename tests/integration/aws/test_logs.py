"""What CloudWatch's logs say of a run's invocations, by the logs of moto's server."""

import json
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from cosmicai.errors import InputError
from cosmicai.launchers.aws import logs
from cosmicai.launchers.aws.clients import Account
from cosmicai.launchers.aws.logs import collect
from cosmicai.launchers.aws.stack import Stack
from cosmicai.runs.store import RunFolder
from support.s3 import bucket_fixture  # noqa: F401

BEGIN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=2)


@dataclass(frozen=True)
class Cloud:
    """A stack with log groups of its own, and a run of which the one rank's record tells when it was."""

    account: Account
    stack: Stack
    run: RunFolder

    def group(self, function: str) -> str:
        """The name of a function's log group."""
        return f"/aws/lambda/{self.stack.name}-{function}"

    def log(self, function: str, *events: tuple[int, str], stream: str = "2024/11/17/[$LATEST]1") -> None:
        """Puts events, each with its milliseconds after BEGIN, into a new stream."""
        client = self.account.client("logs")
        if not client.describe_log_groups(logGroupNamePrefix=self.group(function))["logGroups"]:
            client.create_log_group(logGroupName=self.group(function))
        client.create_log_stream(logGroupName=self.group(function), logStreamName=stream)
        start = int(BEGIN.timestamp() * 1000)
        client.put_log_events(
            logGroupName=self.group(function), logStreamName=stream,
            logEvents=[{"timestamp": start + after, "message": message} for after, message in events],
        )  # fmt: skip

    def collect(self) -> list[dict[str, Any]]:
        """What is in invocations.json after a collection."""
        count = collect(self.account, self.stack, self.run)
        rows = self.run.invocations()
        assert count == len(rows)
        return rows


@pytest.fixture
def cloud(bucket: str) -> Cloud:
    """A run on a stack that has logged nothing yet."""
    stack = Stack(name=f"test-{secrets.token_hex(4)}", outputs={})
    return Cloud(Account(region="us-east-1"), stack, new_run(f"{bucket}/runs/a"))


def new_run(uri: str) -> RunFolder:
    """A run folder with the record of one rank."""
    run = RunFolder(uri)
    record = {
        "platform": "lambda", "started_at": BEGIN.isoformat(),
        "updated_at": (BEGIN + timedelta(seconds=60)).isoformat(), "lambda": {"request_id": "i0"},
    }  # fmt: skip
    run.write_json(run.record_path(0, 1), record)
    return run


def at(after: int) -> str:
    """So many milliseconds after BEGIN."""
    return (BEGIN + timedelta(milliseconds=after)).isoformat(timespec="milliseconds")


def begun(function: str, run: RunFolder, request: str) -> str:
    """The first line that a function prints."""
    return json.dumps({"cosmicai": function, "run": run.uri, "rank": None, "request_id": request}) + "\n"


def report(request: str, billed: int = 2, more: str = "") -> str:
    """A report as Lambda writes it."""
    return (
        f"REPORT RequestId: {request}\tDuration: 1.23 ms\tBilled Duration: {billed} ms\tMemory Size: 128 MB\t"
        f"Max Memory Used: 47 MB\t{more}\n"
    )


def invocation(cloud: Cloud, request: str, start: int, stop: int, billed: int = 2) -> list[tuple[int, str]]:
    """All events of an invocation of infer that went well."""
    return [
        (start, f"START RequestId: {request} Version: $LATEST\n"),
        (start, begun("infer", cloud.run, request)),
        (start + 1, "some galaxies\n"),
        (stop, f"END RequestId: {request}\n"),
        (stop, report(request, billed)),
    ]


def row(function: str, request: str, after: int, **other: Any) -> dict[str, Any]:
    """A row of invocations.json."""
    return {
        "request_id": request, "duration_ms": 1.23, "billed_ms": 2.0, "memory_mb": 128, "max_memory_mb": 47,
        "init_ms": None, "status": "", "at": at(after), "function": function,
    } | other  # fmt: skip


def test_reports_of_all_functions_sorted_by_time(cloud: Cloud) -> None:
    name = cloud.stack.name
    cloud.log("infer", *invocation(cloud, "i0", 100, 900), stream="1")
    cloud.log("infer", *invocation(cloud, "i1", 101, 500), *invocation(cloud, "i2", 600, 700, billed=99), stream="2")
    cloud.log(
        "initialize", (0, begun("initialize", cloud.run, "a")), (50, report("a", more="Init Duration: 40.5 ms\t"))
    )
    cloud.log("summarize", (1000, begun("summarize", cloud.run, "z")), (2000, report("z")))
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
    told = json.dumps({"time": "2024-11-17T02:41:24.412Z", "type": "platform.report", "record": record})
    cloud.log("infer", (0, begun("infer", cloud.run, "i0")), (5, told))
    assert cloud.collect() == [row(f"{cloud.stack.name}-infer", "i0", 5, status="timeout")]


def test_two_runs_that_interleave_in_one_group_on_many_pages(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(cloud, run=new_run(f"{cloud.run.uri}-longer"))
    for stream in range(4):  # each is one runtime, which works for both runs in turn
        events = []
        for turn in range(4):
            whose = (cloud, other)[(stream + turn) % 2]
            events += invocation(whose, f"{stream}-{turn}", 10 * turn + stream, 10 * turn + stream + 5)
        cloud.log("infer", *events, stream=str(stream))
    asked: list[tuple[str, int]] = []
    cloud.account.client("logs").meta.events.register(
        "provide-client-params.logs.FilterLogEvents",
        lambda params, **_: asked.append((params["logGroupName"], params["limit"])),
    )
    monkeypatch.setattr(logs, "PAGE", 3)
    mine, theirs = ({one["request_id"] for one in each.collect()} for each in (cloud, other))
    assert mine == {f"{stream}-{turn}" for stream in range(4) for turn in range(4) if (stream + turn) % 2 == 0}
    assert theirs == {f"{stream}-{turn}" for stream in range(4) for turn in range(4) if (stream + turn) % 2 == 1}
    pages = [limit for group, limit in asked if group == cloud.group("infer")]
    assert pages == [3] * 27 * 2  # 80 events, for each of the runs


def test_killed_and_timed_out_invocations(cloud: Cloud) -> None:
    name = f"{cloud.stack.name}-infer"
    cloud.log(
        "infer",
        (0, "START RequestId: i0 Version: $LATEST\n"),
        (0, begun("infer", cloud.run, "i0")),
        (9, report("i0", 3000)),
        (9, f"{at(9)} i0 Task timed out after 3.00 seconds\n\n"),
        (20, begun("infer", cloud.run, "i1")),  # no END
        (21, "RequestId: i1 Error: Runtime exited with error: signal: killed\nRuntime.ExitError\n"),
        (29, report("i1", 29)),
        (30, begun("infer", cloud.run, "i2")),
        (39, report("i2", more="Status: error\tError Type: Runtime.OutOfMemory\t")),
        (40, begun("infer", cloud.run, "i3")),  # it still runs
        (41, "some galaxies\n"),
    )
    assert cloud.collect() == [
        row(name, "i0", 9, billed_ms=3000.0, status="timeout"),
        row(name, "i1", 29, billed_ms=29.0, status="error"),
        row(name, "i2", 39, status="error"),
    ]


def test_report_that_comes_before_the_line_of_the_same_millisecond(cloud: Cloud) -> None:
    cloud.log("infer", (5, report("i0")), (5, begun("infer", cloud.run, "i0")))
    assert cloud.collect() == [row(f"{cloud.stack.name}-infer", "i0", 5)]


def test_emulator_that_puts_several_lines_into_one_event(cloud: Cloud) -> None:
    cloud.log("infer", (5, f"START RequestId: i0\n{begun('infer', cloud.run, 'i0')}END RequestId: i0\n{report('i0')}"))
    assert cloud.collect() == [row(f"{cloud.stack.name}-infer", "i0", 5)]


def test_what_was_found_is_kept_when_the_logs_are_gone_and_added_to(cloud: Cloud) -> None:
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


def test_events_far_from_the_run_are_not_asked_for(cloud: Cloud) -> None:
    hour = 3_600_000
    near = [*invocation(cloud, "first", -hour, -hour + 5), *invocation(cloud, "last", 60_000, 60_000 + hour)]
    cloud.log("infer", *near, stream="1")
    far = [*invocation(cloud, "before", -hour - 6, -hour - 1), *invocation(cloud, "after", 1, 60_001 + hour)]
    cloud.log("infer", *far, stream="2")
    assert [one["request_id"] for one in cloud.collect()] == ["first", "last"]


def test_logs_without_the_run(cloud: Cloud) -> None:
    span = f"from {BEGIN - timedelta(hours=1):%F %T} to {BEGIN + timedelta(hours=1, minutes=1):%F %T} UTC"
    expected = (
        f"CloudWatch's log groups {cloud.group('initialize')}, {cloud.group('infer')}, {cloud.group('summarize')} hold "
        f"no report of {cloud.run.uri} {span} (%d of its invocations have begun there); a report comes some seconds "
        "after an invocation's end, try again then, with the stack and the region that the run had"
    )
    with pytest.raises(InputError) as told:
        cloud.collect()
    assert str(told.value) == expected % 0
    other = RunFolder(f"{cloud.run.uri}-longer")
    cloud.log("infer", (0, begun("infer", other, "o")), (1, report("o")), (2, begun("infer", cloud.run, "i0")))
    with pytest.raises(InputError) as told:
        cloud.collect()
    assert str(told.value) == expected % 1
    assert cloud.run.invocations() == []


def test_run_that_was_never_on_lambda(bucket: str) -> None:
    run = RunFolder(f"{bucket}/runs/a")
    run.write_json(run.record_path(0, 1), {"platform": "alone", "started_at": BEGIN.isoformat(), "lambda": None})
    with pytest.raises(InputError, match=f"^{re.escape(run.uri)} has no record of a rank on AWS Lambda; expected"):
        collect(Account(region="us-east-1"), Stack(name="test", outputs={}), run)


def test_damaged_report_is_refused_and_nothing_written(cloud: Cloud) -> None:
    cloud.log("infer", *invocation(cloud, "i0", 0, 5), stream="1")
    cloud.log("infer", (6, "REPORT RequestId: i1\tDuration: 12"), stream="2")
    with pytest.raises(InputError, match=r"'.* - REPORT RequestId: i1\\tDuration: 12' is no whole report"):
        cloud.collect()
    assert cloud.run.invocations() == []


def test_first_line_that_was_cut_off_is_none(cloud: Cloud) -> None:
    cloud.log("infer", *invocation(cloud, "i0", 0, 5), (6, begun("infer", cloud.run, "i1")[:-9]), (7, report("i1")))
    assert [one["request_id"] for one in cloud.collect()] == ["i0"]


def test_page_without_events_is_not_the_end(cloud: Cloud) -> None:
    client = boto3.client("logs", region_name="us-east-1")

    class Told:
        """An account whose CloudWatch gives these pages."""

        def client(self, name: str) -> Any:
            assert name == "logs"
            return client

    def event(text: str) -> dict[str, Any]:
        return {"timestamp": int(BEGIN.timestamp() * 1000), "message": text, "eventId": "1", "logStreamName": "1"}

    empty: dict[str, Any] = {"events": []}
    pages: list[dict[str, Any]] = [
        empty,
        {"events": [], "nextToken": "a"},
        {"events": [event(begun("infer", cloud.run, "i0"))], "nextToken": "b"},
        {"events": [], "nextToken": "c"},
        {"events": [event(report("i0"))]},
        empty,
    ]
    with Stubber(client) as stub:
        for page in pages:
            stub.add_response("filter_log_events", page)
        assert collect(Told(), cloud.stack, cloud.run) == 1
        stub.assert_no_pending_responses()


def test_refusal_of_cloudwatch_is_one_sentence(cloud: Cloud) -> None:
    client = boto3.client("logs", region_name="us-east-1")

    class Refused:
        """An account that may not read logs."""

        def client(self, name: str) -> Any:
            return client

    with Stubber(client) as stub, pytest.raises(InputError, match=cloud.group("initialize")):
        stub.add_client_error("filter_log_events", "AccessDeniedException", "not authorized", 400)
        collect(Refused(), cloud.stack, cloud.run)


def test_what_is_asked_for_is_every_line_that_is_read_and_not_the_rest(cloud: Cloud) -> None:
    """moto gives all lines, whatever is asked for: this applies the pattern's terms, each of which may be there."""
    terms = re.findall(r'\?"([^"]+)"', logs.WANTED)
    assert " ".join(f'?"{term}"' for term in terms) == logs.WANTED
    read = [
        begun("infer", cloud.run, "i0"),
        report("i0"),
        "REPORT",
        '{"time":"2024-11-17T02:41:24.412Z","type":"platform.report","record":{}}',
        "2024-11-17T02:41:24.412Z i0 Task timed out after 3.00 seconds",
        "RequestId: i0 Error: Runtime exited with error: signal: killed",
        "RequestId: i0 Process exited before completing request",
    ]
    # Terms are words of their own there: it does not matter whether CloudWatch looks for words or for letters.
    assert all(any(re.search(rf"(?<!\w){re.escape(term)}(?!\w)", line) for term in terms) for line in read)
    rest = ["START RequestId: i0 Version: $LATEST", "END RequestId: i0", "some galaxies", '{"level": "INFO"}']
    assert not any(term in line for term in terms for line in rest)
