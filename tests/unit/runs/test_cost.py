"""What runs, executions and storage cost on AWS."""

import json
import tomllib
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cosmicai.cli.cost import cost
from cosmicai.console.command_line import run_command
from cosmicai.errors import InputError
from cosmicai.ranks.invocation import ARCHITECTURES
from cosmicai.runs.cost import InvocationNote, cost_of_run, published_table
from cosmicai.runs.lambda_report import InvocationReport
from cosmicai.runs.prices import (
    PRICES,
    Prices,
    Usage,
    billed_seconds,
    dollars,
    invocation_gb_seconds,
    invocation_usage,
    load_prices,
)
from cosmicai.runs.record import FunctionNote
from cosmicai.runs.store import RunFolder
from cosmicai.surveys.survey import open_survey
from support.helpers import make_invocation, make_record, make_run, make_survey, random_galaxies, tiny_weights

X86, ARM, EPHEMERAL, REQUEST, TRANSITION, WRITE, READ = 166667e-10, 133334e-10, 309e-10, 2e-7, 25e-6, 5e-6, 4e-7


def note(
    request: str, seconds: float, function: str = "infer", s3_requests: dict[str, int] | None = None, **place: Any
) -> InvocationNote:
    """Return what the record of a rank or the note of a function says of its invocation."""
    invocation = make_invocation(request, seconds, function=f"cosmicai-{function}", **place)
    return InvocationNote(function, invocation, s3_requests or {})


def report(request: str, billed_ms: float, function: str | None = "cosmicai-infer") -> InvocationReport:
    """Return what CloudWatch reports of an invocation."""
    return InvocationReport(request, billed_ms - 0.4, billed_ms, 2048, 300, None, "", None, function)


def cost_of(*arguments: Any, **place: Any) -> dict[str, Any]:
    found = cost_of_run(*arguments, **place)
    assert found is not None
    return dict(msgspec.to_builtins(found))


def test_a_run_without_reports_is_billed_by_what_its_functions_note():
    records = [
        make_record(s3_requests={"GetObject": 9}),  # of a rank that was not on Lambda
        note("a", 10.0001, s3_requests={"GetObject": 12, "HeadObject": 2, "PutObject": 4, "ListObjectsV2": 1}),
        note("b", 4.0, s3_requests={"UploadPart": 3, "DeleteObject": 5, "AbortMultipartUpload": 1}),
    ]
    functions = [note("i", 0.5, "initialize", memory_mb=3008), note("s", 2.0, "summarize", memory_mb=3008)]
    gb_seconds = 10.001 * 2 + 4 * 2 + 0.5 * 3008 / 1024 + 2 * 3008 / 1024
    parts = {
        "invocations": 4 * REQUEST, "gb_seconds": gb_seconds * X86, "ephemeral_gb_seconds": 0.0,
        "transitions": (6 + 2 * 2) * TRANSITION, "s3_writes": 8 * WRITE, "s3_reads": 14 * READ,
        "s3_gb_months": 0.0, "ecr_gb_months": 0.0, "fargate_vcpu_hours": 0.0, "fargate_gb_hours": 0.0,
    }  # fmt: skip
    assert cost_of(records, functions, []) == {
        "region": "us-east-1",
        "architecture": "x86_64",
        "prices_as_of": "2026-10-04",
        "dollars": pytest.approx(parts | {"total": sum(parts.values())}, rel=1e-12),
        "unpriced": None,
        "usage": pytest.approx(
            asdict(Usage(invocations=4, gb_seconds=gb_seconds, transitions=10, s3_writes=8, s3_reads=14)), rel=1e-12
        ),
        "billed_from_reports": 0,
        "billed_from_records": 4,
    }


def test_requests_to_s3_have_the_price_of_their_kind():
    writes = ["PutObject", "CopyObject", "PostObject", "ListObjectsV2", "CreateMultipartUpload", "UploadPart"]
    writes += ["CompleteMultipartUpload"]
    for name, expected in [*((name, (3, 0)) for name in writes), ("HeadObject", (0, 3)), ("DeleteObjects", (0, 0))]:
        usage = cost_of([note("a", 1.0, s3_requests={name: 3})], [], [])["usage"]
        assert (name, usage["s3_writes"], usage["s3_reads"]) == (name, *expected)


def test_reports_are_billed_also_for_functions_that_noted_nothing():
    records = [note("a", 9.0, ephemeral_mb=1536), note("b", 4.0, ephemeral_mb=1536)]
    functions = [note("i", 0.5, "initialize")]
    reports = [report("a", 9500), report("dead", 900_000), report("s", 100, "cosmicai-summarize")]
    found = cost_of(records, functions, reports)
    assert (found["billed_from_reports"], found["billed_from_records"]) == (3, 2)
    seconds = 9.5 + 4 + 900  # of infer
    assert found["usage"] == pytest.approx(
        asdict(Usage(5, 2 * (seconds + 0.5 + 0.1), seconds + 0.1, transitions=6 + 3 * 2)), rel=1e-12
    )  # the dead one has the storage of infer; of summarize nothing is known, and it is taken for one
    assert found["dollars"]["ephemeral_gb_seconds"] == pytest.approx((seconds + 0.1) * EPHEMERAL, rel=1e-12)


def test_a_report_takes_the_storage_of_its_own_function():
    functions = [note("i", 0.5, "initialize", ephemeral_mb=512)]
    found = cost_of([note("a", 1.0, ephemeral_mb=1536)], functions, [report("j", 2000, "cosmicai-initialize")])
    assert found["usage"]["ephemeral_gb_seconds"] == 1.0
    assert found["usage"]["transitions"] == 2 * 6 + 2


def test_a_report_that_does_not_name_its_function_is_taken_for_infer():
    assert cost_of([note("a", 1.0)], [], [report("b", 1000, None)])["usage"]["transitions"] == 6 + 2 * 2


def test_arm_is_priced_as_arm_and_a_mixed_run_as_both():
    arm, x86 = note("a", 10.0, architecture="arm64"), note("b", 10.0, region="us-west-2")
    fixed = REQUEST + 2 * TRANSITION
    found = cost_of([arm], [], [])
    assert found["architecture"] == "arm64"
    assert found["dollars"]["total"] == pytest.approx(20 * ARM + fixed + 6 * TRANSITION, rel=1e-12)
    found = cost_of([arm, x86], [], [])
    assert (found["region"], found["architecture"]) == ("us-east-1, us-west-2", "arm64, x86_64")
    assert found["dollars"]["total"] == pytest.approx(20 * (ARM + X86) + 2 * fixed + 6 * TRANSITION, rel=1e-12)
    assert cost_of([x86], [], [], architecture="arm64")["dollars"]["gb_seconds"] == pytest.approx(20 * ARM, rel=1e-12)


def test_a_run_where_there_are_no_prices_keeps_its_usage():
    found = cost_of([note("a", 10.0, region="mars-north-1")], [], [])
    assert found["dollars"] is None
    assert found["unpriced"].startswith("there are no prices for the region mars-north-1; choose one of us-east-1, ")
    assert found["usage"]["gb_seconds"] == 20.0
    assert cost_of([], [], [report("a", 1000)])["region"] == "unknown"
    assert cost_of([], [], [report("a", 1000)], region="us-east-1", architecture="arm64")["dollars"]["total"] > 0


def test_a_run_elsewhere_has_no_cost():
    assert cost_of_run([make_record(s3_requests={"GetObject": 3})], [], []) is None


@pytest.mark.parametrize(
    ("seconds", "billed"), [(2.007, 2.007), (2.0070001, 2.008), (0.0, 0.0), (1.001, 1.001), (899.9991, 900.0)]
)
def test_milliseconds_are_rounded_up(seconds, billed):
    assert billed_seconds(seconds) == billed


def test_memory_counts_in_gb_of_1024_mb():
    assert invocation_gb_seconds(5.1, 128) == pytest.approx(5.1 / 8, rel=1e-15)
    assert invocation_usage(2.0, 1024, 10240) == Usage(1, 2.0, 2 * 9.5)


def test_every_price_is_known_and_has_a_dated_source():
    table = tomllib.loads(PRICES.read_text())
    as_of = table.pop("as_of")
    assert list(table) == ["us-east-1", "us-east-2", "us-west-2"]
    for region in table:
        for architecture in ARCHITECTURES:
            each = load_prices(region, architecture).each
            assert sorted(each) == sorted(part.name for part in fields(Usage))
            assert min(each.values()) > 0
    services = [service for region in table.values() for service in region.values()]
    assert all(service["sources"] for service in services)
    assert all(source.startswith("https://") for service in services for source in service["sources"])
    assert max(service["read"] for service in services if "read" in service) == as_of


def test_usage_without_a_price_is_not_free():
    prices = Prices("us-east-1", "x86_64", "2026-10-04", {"invocations": 2e-7})
    assert dollars(Usage(invocations=5), prices)["total"] == 5 * 2e-7
    with pytest.raises(InputError, match="there is no price for s3_reads in us-east-1; add it, with its source, to "):
        dollars(Usage(invocations=5, s3_reads=1), prices)


def test_an_unknown_place_is_refused():
    with pytest.raises(InputError) as refused:
        load_prices("eu-west-9")
    said = "there are no prices for the region eu-west-9; choose one of us-east-1, us-east-2, us-west-2 with --region"
    assert str(refused.value) == said
    with pytest.raises(InputError, match="there are no prices for riscv; choose one of x86_64, arm64"):
        load_prices("us-east-1", "riscv")


def run_cost(*arguments: str) -> Result:
    done = CliRunner().invoke(cost, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def values_of(*arguments: str) -> dict[str, Any]:
    return dict(json.loads(run_cost(*arguments, "--json").stdout))


def test_the_published_table_comes_out():
    lines = run_cost("published").stdout.splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows == [
        ["25", "517", "6.55", "2.8", "0.16", "0.16"],
        ["50", "259", "11.80", "4.0", "0.20", "0.20"],
        ["75", "173", "17.60", "5.9", "0.30", "0.30"],
        ["100", "130", "25.00", "7.0", "0.38", "0.38"],
    ]
    assert lines[-1].startswith("us-east-1, x86_64, list prices of 2026-10-04 in US dollars")
    found = values_of("published", "--region", "us-west-2", "--architecture", "arm64")
    assert found["rows"] == published_table("us-west-2", "arm64")
    assert found["rows"][0]["dollars"] == pytest.approx(517 * (6.55 * 2.8 * ARM + REQUEST), rel=1e-12)


def test_the_price_of_one_execution():
    found = values_of("--seconds", "5.1", "--memory", "128")
    expected = 5.1 * 0.125 * X86 + REQUEST
    assert found["dollars"]["total"] == pytest.approx(expected, rel=1e-12)
    assert round(expected, 8) == 1.083e-5
    assert (found["region"], found["architecture"], found["prices_as_of"]) == ("us-east-1", "x86_64", "2026-10-04")
    text = run_cost("--seconds", "5.1", "--memory", "128").stdout
    assert "│ total                      │        │ 0.00001083 │" in text
    assert "us-east-1, x86_64, list prices of 2026-10-04" in text


def test_amounts_of_all_kinds_add_up():
    found = values_of(
        *("--seconds", "2.0004", "--memory", "2048", "--invocations", "100", "--ephemeral-mb", "1024"),
        *("--stored-gb-months", "12.5", "--image-gb-months", "0.8"),
        *("--fargate-vcpu", "4", "--fargate-gb", "16", "--fargate-hours", "0.5"),
        *("--region", "us-east-2", "--architecture", "arm64"),
    )
    parts = {
        "invocations": 100 * REQUEST, "gb_seconds": 100 * 2.001 * 2 * ARM,
        "ephemeral_gb_seconds": 100 * 2.001 * 0.5 * EPHEMERAL, "transitions": 0.0, "s3_writes": 0.0, "s3_reads": 0.0,
        "s3_gb_months": 12.5 * 0.023, "ecr_gb_months": 0.08, "fargate_vcpu_hours": 2 * 0.03238,
        "fargate_gb_hours": 8 * 0.00356,
    }  # fmt: skip
    assert found["dollars"] == pytest.approx(parts | {"total": sum(parts.values())}, rel=1e-12)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seconds", "0"), ("--seconds", "-1"), ("--seconds", "nan"), ("--seconds", "900.001"), ("--memory", "0"),
        ("--memory", "10241"), ("--invocations", "0"), ("--ephemeral-mb", "511"), ("--stored-gb-months", "inf"),
        ("--image-gb-months", "-2"), ("--fargate-vcpu", "0"), ("--fargate-gb", "-1"), ("--fargate-hours", "nan"),
        ("--architecture", "riscv"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_are_refused(option, value):
    done = CliRunner().invoke(cost, ["--seconds", "1", "--memory", "128", option, value])
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to price was given; expected a run folder, `published`, or --seconds and --memory"),
        (["--seconds", "1"], "an invocation on Lambda is priced by --seconds and --memory together; give both"),
        (["--ephemeral-mb", "600"], "an invocation on Lambda is priced by --seconds and --memory together; give both"),
        (
            ["--fargate-gb", "2"],
            "a task on Fargate is priced by --fargate-vcpu, --fargate-gb and --fargate-hours; give all",
        ),
        (
            ["published", "--memory", "128"],
            "amounts such as --seconds cannot be combined with published; leave one of them out",
        ),
        (
            ["published", "--region", "x"],
            "there are no prices for the region x; choose one of us-east-1, us-east-2, us-west-2 with --region",
        ),
    ],
)
def test_incomplete_amounts_are_one_sentence_and_code_2(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cosmicai cost", *arguments])
    with pytest.raises(SystemExit) as left:
        run_command(cost, "cosmicai cost")
    assert left.value.code == 2
    assert capsys.readouterr().err == f"cosmicai cost: {sentence}\n"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Plan a run of which nothing is done."""
    folder = tmp_path_factory.mktemp("job")
    survey = make_survey(folder / "survey", random_galaxies(20), 20)
    return make_run(open_survey(survey.uri), tiny_weights(folder / "w.safetensors"), str(folder / "run"), batch_size=10)


def test_a_run_folder_is_priced(planned, tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    run.write_json(run.plan_path, json.loads(Path(planned.plan_path).read_text()))
    run.write_json(run.record_path(0, 1), make_record(invocation=make_invocation("a", 10.0), s3_requests={}))
    second = make_record(attempt=2, invocation=make_invocation("b", 5.0), s3_requests={"PutObject": 2})
    run.write_json(run.record_path(0, 2), second)
    planner = make_invocation("i", 1.0, function="cosmicai-initialize")
    begun = datetime.now(UTC).isoformat()
    run.write_function(FunctionNote(function="initialize", started_at=begun, invocation=planner, s3_requests={}))
    run.write_json(run.invocations_path, [report("a", 12_000)])
    found = values_of(run.uri)
    assert found.pop("run") == run.uri
    assert found == cost_of(run.records().values(), run.functions(), run.invocations())
    assert found["usage"] == asdict(Usage(3, 2.0 * (12 + 5 + 1), transitions=10, s3_writes=2))
    text = run_cost(run.uri, "--architecture", "arm64").stdout
    assert "us-east-1, arm64, list prices of 2026-10-04" in text
    assert "1 of 3 durations as billed, 2 as noted by the functions themselves" in text
    assert f"{36 * ARM:.8f}" in text


def test_a_run_that_was_not_on_lambda_is_refused(planned, tmp_path):
    with pytest.raises(InputError, match="cost nothing on Lambda, since nothing of it ran there; expected a run that"):
        CliRunner().invoke(cost, [planned.uri], catch_exceptions=False)
    with pytest.raises(InputError, match="is not a run folder"):
        CliRunner().invoke(cost, [str(tmp_path)], catch_exceptions=False)
    run = RunFolder(str(tmp_path))
    run.write_json(run.plan_path, json.loads(Path(planned.plan_path).read_text()))
    invocation = make_invocation("a", 10.0, region="mars-north-1")
    run.write_json(run.record_path(0, 1), make_record(invocation=invocation))
    with pytest.raises(InputError, match="there are no prices for the region mars-north-1; choose one of"):
        CliRunner().invoke(cost, [run.uri], catch_exceptions=False)
    assert values_of(run.uri, "--region", "us-east-1")["usage"]["gb_seconds"] == 20.0
