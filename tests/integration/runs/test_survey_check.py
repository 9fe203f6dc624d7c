"""Runs on surveys that do not look right: what is said, what is kept, and what --strict refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from analysis.collect import collect
from cosmicai.aws_lambda.initialize import initialize
from cosmicai.errors import InputError
from cosmicai.ranks.environment import Rank
from cosmicai.runs import create
from cosmicai.runs.plan import Plan
from cosmicai.runs.request import RunRequest
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.check_record import SurveyCheck
from cosmicai.surveys.check_sample import RANGES
from cosmicai.surveys.shard import Galaxies, Shard
from cosmicai.surveys.survey import ShardEntry, Survey
from cosmicai.surveys.synthetic import generate_batches
from support.helpers import complete_demo, make_run, make_survey, run, run_worker, tiny_weights
from support.s3 import bucket_fixture, fill

bucket = bucket_fixture

SAID = "the pixels look as if their bands were in the order zirgu"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """A survey of 120 galaxies whose pixels have the bands zirgu."""
    return make_survey(tmp_path_factory.mktemp("wrong") / "survey", with_bands("zirgu", 120), 50)


def with_bands(order: str, count: int) -> Galaxies:
    """Return synthetic galaxies with the bands of their pixels in this order."""
    galaxies = Galaxies.concatenate(generate_batches(count, seed=5))
    return replace(galaxies, image=np.ascontiguousarray(galaxies.image[:, ["ugriz".index(band) for band in order]]))


def test_infer_warns_and_plan_summary_and_report_hold_the_check(tmp_path, wrong, weights):
    done = run("infer", wrong.uri, "--weights", weights, "--out", str(tmp_path / "run"))
    assert done.returncode == 0
    assert f"WARNING: {wrong.uri}: {SAID}" in done.stderr and f"WARNING      {SAID}" in done.stdout
    folder = RunFolder(str(tmp_path / "run"))
    check = folder.plan().survey_check
    assert check and check.galaxies == 120 and check.contradictions[0].startswith(SAID)
    summary = json.loads(Path(folder.summary_path).read_text())
    assert msgspec.convert(summary["survey_check"], SurveyCheck) == check
    assert list(collect([folder.uri]).runs["survey_check"]) == [check.contradictions[0]]


@pytest.mark.parametrize(
    ("module", "command"),
    [("cosmicai", ("infer",)), ("cosmicai", ("plan",)), ("launch", ()), ("launch", ("--dry-run",))],
)
def test_strict_exits_with_2_before_anything_is_written(tmp_path, wrong, weights, module, command):
    options = ("--weights", weights, "--out", str(tmp_path / "run"), "--strict")
    done = run(*command, wrong.uri, *options, module=module)
    assert done.returncode == 2 and SAID in done.stderr and "leave --strict out" in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_submission_is_refused_before_its_jobs_start(tmp_path, wrong, weights):
    request, notices = RunRequest(wrong.uri, str(tmp_path / "run"), weights), list[str]()
    create.validate_request(request, wrong, notices.append)
    assert SAID in notices[0]
    with pytest.raises(InputError, match=SAID):
        create.validate_request(replace(request, strict=True), wrong)
    assert not any(tmp_path.iterdir())


def test_a_right_survey_is_strict_without_a_word(tmp_path, weights):
    survey = make_survey(tmp_path / "survey", with_bands("ugriz", 120), 50)
    notices: list[str] = []
    plan = make_run(
        survey, weights, str(tmp_path / "run"), engine="reference", strict=True, notify=notices.append
    ).plan()
    [notice] = notices
    assert notice.startswith("no intervals: the weights have no calibration")  # nothing about the survey
    assert plan.survey_check and plan.survey_check.contradictions == ()
    done = run("survey", "check", survey.uri, "--strict", "--weights", weights)
    assert (done.returncode, done.stderr) == (0, "") and "result      looks right" in done.stdout


def test_the_demo_looks_right(tmp_path):
    plan = complete_demo(tmp_path, 300).plan()
    assert plan.survey_check and plan.survey_check.contradictions == () and plan.survey_check.could_be_checked


def test_only_the_shards_of_the_run_are_checked(tmp_path, wrong, weights):
    check = make_run(wrong, weights, str(tmp_path / "run"), limit_files=1).plan().survey_check
    assert check and check.galaxies == 50


def test_a_run_is_resumed_without_another_check(tmp_path, wrong, weights, monkeypatch):
    first = make_run(wrong, weights, str(tmp_path / "run"))

    def refuse(*_):
        raise AssertionError("checked again")

    monkeypatch.setattr(create, "check_survey", refuse)
    again = make_run(wrong, weights, str(tmp_path / "run"), resume=True, strict=True)
    assert again.plan() == first.plan()


def test_a_plan_without_the_check_is_resumed_and_has_the_digest_that_it_had(tmp_path, wrong, weights):
    folder = make_run(wrong, weights, str(tmp_path / "run"))
    content = json.loads(Path(folder.plan_path).read_text())
    del content["survey_check"]
    text = json.dumps(content)
    Path(folder.plan_path).write_text(text)
    plan = Plan.from_json(text, "plan.json")
    assert plan.survey_check is None and plan.to_json().decode() == text
    resumed = make_run(wrong, weights, folder.uri, resume=True)
    run_worker(resumed, Rank())
    assert summarize(resumed).complete
    assert "survey_check" not in json.loads(Path(folder.summary_path).read_text())


def test_survey_check_prints_and_returns_json(wrong):
    done = run("survey", "check", wrong.uri)
    assert done.returncode == 0 and SAID in done.stdout and f"WARNING: {wrong.uri}: {SAID}" in done.stderr
    done = run("survey", "check", wrong.uri, "--json", "--strict")
    assert done.returncode == 2
    assert msgspec.json.decode(done.stdout, type=SurveyCheck).pixel_order == "zirgu"
    assert "agree best" in done.stderr


def test_weights_that_cannot_be_used_are_refused(wrong):
    done = run("survey", "check", wrong.uri, "--weights", f"{wrong.uri}/survey.json")
    assert done.returncode == 2 and "survey.json" in done.stderr and done.stdout == ""


def test_initialize_touches_few_partitions_and_reports_the_check(bucket, tmp_path, weights, monkeypatch):
    make_survey(tmp_path / "survey", with_bands("zirgu", 400), 5)
    files = {f"sky/{path.name}": path.read_bytes() for path in (tmp_path / "survey").iterdir()}
    fill(bucket, files | {"w.safetensors": Path(weights).read_bytes()})
    opened: list[str] = []
    open_shard = Survey.open

    def note(own: Survey, entry: ShardEntry) -> Shard:
        opened.append(entry.name)
        return open_shard(own, entry)

    monkeypatch.setattr(Survey, "open", note)
    name = bucket.removeprefix("s3://")
    context = SimpleNamespace(aws_request_id="request", function_name="initialize", memory_limit_in_mb="2048")
    payload = {
        "bucket": name, "result_path": "run", "data_bucket": name, "data_prefix": "sky",
        "weights": f"{bucket}/w.safetensors",
    }  # fmt: skip
    with pytest.raises(InputError, match=SAID):
        initialize({"request": payload | {"strict": True}}, context)
    assert 0 < len(opened) == len(set(opened)) <= RANGES
    assert not RunFolder(f"{bucket}/run").has_plan()
    answer = initialize({"request": payload}, context)
    assert any(SAID in notice for notice in answer["notices"])
    check = RunFolder(f"{bucket}/run").plan().survey_check
    assert check and check.galaxies == 5 * RANGES
