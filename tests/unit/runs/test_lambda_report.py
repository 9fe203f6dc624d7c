"""Reports of AWS Lambda on its invocations: a real log, and every form of a report."""

import json
import re
from pathlib import Path

import pytest

from cosmicai.errors import InputError
from cosmicai.runs.lambda_report import InvocationReport, parse_reports

ID = "6f747a41-6ee0-4f3a-9d5a-8d1d9a3c3b1e"
OTHER = "0c90003a-8970-474c-b696-fca5336ef4f5"
PLAIN = (
    f"REPORT RequestId: {ID}\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\t"
    "Max Memory Used: 47 MB\tInit Duration: 123.4 ms\t\n"
)
WARM = (
    f"REPORT RequestId: {ID}\tDuration: 1.23 ms\tBilled Duration: 2 ms\tMemory Size: 128 MB\tMax Memory Used: 47 MB\t"
)
JSON_METRICS = {
    "durationMs": 1.23, "billedDurationMs": 2, "memorySizeMB": 128, "maxMemoryUsedMB": 47, "initDurationMs": 123.4
}  # fmt: skip


def report(init_ms: float | None = None, status: str = "", at: str | None = None) -> InvocationReport:
    """Return the report of PLAIN and WARM."""
    return InvocationReport(ID, 1.23, 2.0, 128, 47, init_ms, status, at, None)


def in_json(status: str = "success", **metrics: object) -> str:
    """Return a report of a log in JSON."""
    record = {"requestId": ID, "metrics": JSON_METRICS | metrics, "status": status}
    return json.dumps({"time": "2024-11-17T02:41:24.412Z", "type": "platform.report", "record": record})


def test_real_log(shared: Path) -> None:
    text = (shared / "published" / "lambda" / "cloudwatch_log_example.txt").read_text()
    reports = parse_reports(text.splitlines())
    assert len(reports) == 9
    assert reports[0] == InvocationReport(
        "adbca9aa-fe3a-4fd6-b4e7-5e7b46ae71f1", 40243.33, 40908.0, 10240, 5948, 663.81, "",
        "2024-11-17T02:41:24.412+00:00", None,
    )  # fmt: skip
    assert reports[-1] == InvocationReport(
        "4d8864b8-14ae-4099-858d-3eba2aa8759c", 33379.71, 33380.0, 10240, 5998, None, "",
        "2024-11-17T02:59:14.173+00:00", None,
    )  # fmt: skip
    billed = [int(number) for number in re.findall(r"Billed Duration: (\d+) ms", text)]
    assert sum(one.billed_ms for one in reports) == sum(billed) == 309874
    assert [one.request_id for one in reports] == re.findall(r"END RequestId: (\S+)", text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (PLAIN, report(123.4)),
        (WARM, report()),
        (WARM + "Status: timeout", report(status="timeout")),
        (WARM + "Status: error\tError Type: Runtime.OutOfMemory", report(status="error")),
        (PLAIN.rstrip() + "\tStatus: error\tError Type: Runtime.ExitError\n", report(123.4, "error")),
        (WARM + "Restore Duration: 398.97 ms\tBilled Restore Duration: 182 ms\t\n", report()),
        (
            WARM + "\nXRAY TraceId: 1-5e34a614-10bdxmplf1fb44f07bc535a1\tSegmentId: 07f5xmpl2d1f6f85\tSampled: true\t",
            report(),
        ),
        (
            f"REPORT RequestId: {ID}\tInit Duration: 0.12 ms\tDuration: 1.23 ms\tBilled Duration: 2 ms\t"
            "Memory Size: 128 MB\tMax Memory Used: 128 MB\t",
            InvocationReport(ID, 1.23, 2.0, 128, 128, 0.12, "", None, None),
        ),
        (PLAIN.replace("\t", " "), report(123.4)),
        (PLAIN.replace("\t", "       "), report(123.4)),
        (
            f"2024-11-17T02:41:24.412000+00:00 2024/11/17/[$LATEST]88ab219a63d343d294d0a9947e8ab36a {WARM}",
            report(at="2024-11-17T02:41:24.412+00:00"),
        ),
        (f"2024-11-17T02:41:24 {WARM}", report(at="2024-11-17T02:41:24.000+00:00")),
        (f"2024-11-17 03:41:24.412000+01:00 - {WARM}", report(at="2024-11-17T02:41:24.412+00:00")),
        (in_json(), report(123.4, at="2024-11-17T02:41:24.412+00:00")),
        (in_json("timeout"), report(123.4, "timeout", "2024-11-17T02:41:24.412+00:00")),
        (in_json("error"), report(123.4, "error", "2024-11-17T02:41:24.412+00:00")),
        (f"2024-11-17 02:41:25+00:00 - {in_json()}", report(123.4, at="2024-11-17T02:41:25.000+00:00")),
    ],
)
def test_every_form(line: str, expected: InvocationReport) -> None:
    assert parse_reports([line]) == [expected]


def test_warm_runtime_in_json_has_no_start() -> None:
    line = in_json().replace(', "initDurationMs": 123.4', "")
    assert parse_reports([line]) == [report(at="2024-11-17T02:41:24.412+00:00")]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"2024-11-17T02:41:24.412Z {ID} Task timed out after 3.00 seconds\n\n", "timeout"),
        (f"RequestId: {ID} Error: Task timed out after 3.00 seconds", "timeout"),
        (f"RequestId: {ID} Error: Runtime exited with error: signal: killed\nRuntime.ExitError\n", "error"),
        (f"RequestId: {ID} Process exited before completing request", "error"),
    ],
)
def test_fault_in_a_line_before_or_after_the_report(line: str, status: str) -> None:
    healthy = WARM.replace(ID, OTHER)
    reports = parse_reports([line, healthy, WARM])
    assert [(one.request_id, one.status) for one in reports] == [(OTHER, ""), (ID, status)]
    assert parse_reports([healthy, WARM, f"2024-11-17 02:41:24.412000+00:00 - {line}"]) == reports


def test_timeout_precedes_the_death_that_follows_and_the_report_precedes_both() -> None:
    died = f"RequestId: {ID} Error: Runtime exited with error: signal: killed"
    late = f"2024-11-17T02:41:24.412Z {ID} Task timed out after 3.00 seconds"
    assert [one.status for one in parse_reports([died, late, WARM])] == ["timeout"]
    assert [one.status for one in parse_reports([late, died, WARM])] == ["timeout"]
    assert [one.status for one in parse_reports([died, WARM + "Status: timeout"])] == ["timeout"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        f"START RequestId: {ID} Version: $LATEST",
        f"END RequestId: {ID}",
        "INIT_REPORT Init Duration: 137.69 ms\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError",
        "REPORTS are written at the end",
        f'received "REPORT RequestId: {ID}"',
        "2024-11-17 02:40:44.170000+00:00 - parsing args",
        "XRAY TraceId: 1-5e34a614-10bdxmplf1fb44f07bc535a1\tSegmentId: 07f5xmpl2d1f6f85\tSampled: true\t",
        '{"cosmicai": "infer", "run": "s3://b/runs/a", "rank": 3, "request_id": "1"}',
        '{"time": "2024-11-17T02:41:24.412Z", "type": "platform.runtimeDone", "record": {"status": "success"}}',
        '{"note": "a \\"platform.report\\" in words", "about": "platform.report"}',
        "{'S3_BUCKET': 'cosmicai-data'",
    ],
)
def test_other_lines_are_ignored(line: str) -> None:
    assert parse_reports([line]) == []


def test_report_that_was_cut_off_is_refused_wherever_it_was_cut() -> None:
    whole = PLAIN.rstrip()
    for length in range(len("REPORT"), len(whole)):
        cut = whole[:length].rstrip()
        if cut != WARM.rstrip():  # what is left is a whole report of a runtime that ran already
            with pytest.raises(InputError, match=re.escape(repr(cut))):
                parse_reports([WARM, cut])


@pytest.mark.parametrize(
    "line",
    [
        WARM.replace("1.23", "1.2.3"),
        WARM.replace("1.23", "-1.23"),
        WARM.replace("1.23", "nan"),
        WARM.replace("2 ms", "two ms"),
        WARM.replace("2 ms", "2 s"),
        WARM.replace("47 MB", "47 GB"),
        WARM.replace("128", "128.5"),
        WARM.replace("Billed Duration: 2 ms\t", ""),
        WARM + "and more",
        f"2024-13-17 02:41:24 - {WARM}",
        in_json()[:-1],
        in_json()[:-60],
        in_json(durationMs=None),
        in_json(billedDurationMs="2 ms"),
        in_json(maxMemoryUsedMB=float("nan")),
        in_json(initDurationMs=None),
        in_json().replace('"billedDurationMs": 2, ', ""),
        '{"time": "2024-11-17T02:41:24.412Z", "type": "platform.report", "record": "none"}',
        in_json().replace('"2024-11-17T02:41:24.412Z"', "5"),
    ],
)
def test_report_with_a_broken_number_is_refused(line: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_reports([WARM, line])
    text = str(refused.value)
    assert text.startswith(f"the log's line {line.strip()!r} cannot be used: ") and "\n" not in text
    assert text.endswith(
        "; expected a complete report of AWS Lambda with RequestId, Duration, Billed Duration, Memory Size and Max "
        "Memory Used, get the log again"
    )
