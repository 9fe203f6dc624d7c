"""Where to run a survey: choices, their prices and command lines, and what meets a deadline and a budget."""

import json
import math
import shlex
from dataclasses import replace
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest

from analysis.audit import audit
from analysis.model import Model, Withheld
from analysis.published_figures import published_runs
from analysis.recommend import (
    Advice,
    Target,
    advice_table,
    advise,
    advise_by,
    advise_survey,
    chosen,
    error_table,
    of_network,
    pareto,
    parse_seconds,
    target_of,
    to_json,
)
from analysis.tables import Collection
from analysis.workload import ARRAY, GPU, LAMBDA, LAPTOP, NODE
from cosmicai.cli.launch import run
from cosmicai.cli.launch_options import taken_cloud, taken_request
from cosmicai.errors import InputError
from support.helpers import make_survey, random_galaxies

TOTAL = Target("SURVEY", 659_857, 659_857 * 20520, 5113)
X86, REQUEST, TRANSITION, WRITE, READ = 166667e-10, 2e-7, 25e-6, 5e-6, 4e-7


def model(place: str, terms: dict[str, float], **more: Any) -> Model:
    """A model, of published runs with an error of 10% if nothing else is said."""
    fields: dict[str, Any] = {
        "origin": "published", "device": "cuda" if place == GPU else "cpu", "machine": None, "engine": "published",
        "precision": "float32", "batch_size": 512, "memory_mb": 10240.0 if place == LAMBDA else None, "slots": (1,),
        "runs": ("a", "b"), "withheld": (Withheld("x", 10.0, 11.0),), "peaks": (),
    }  # fmt: skip
    return Model(place=place, terms=terms, **fields | more)


ON_LAMBDA = model(
    LAMBDA, {"start": 5.0, "dispatch": 2.0, "work": 0.005}, peaks=((25.0, 2000.0), (50.0, 4000.0), (100.0, 7000.0))
)
IN_ARRAY = model(ARRAY, {"tasks": 0.3, "work": 0.006}, slots=(64, 256))
ON_GPU = model(GPU, {"start": 3.0, "batches": 0.02})
ON_LAPTOP = model(LAPTOP, {"batches": 0.2}, withheld=())
EVERYTHING = (ON_LAMBDA, IN_ARRAY, ON_GPU, ON_LAPTOP)


def rows_of(advice: Advice) -> dict[str, dict[str, Any]]:
    """The rows of its table by the names of the choices."""
    return {str(row["choice"]): row for row in advice_table(advice).to_dict("records")}


def test_the_front_by_brute_force():
    rng = np.random.default_rng(1)
    for size in (0, 1, 2, 40):
        points = rng.integers(0, 4, (size, 3)).astype(float)  # with many ties
        expected = [not any((other <= one).all() and (other < one).any() for other in points) for one in points]
        assert pareto(points).tolist() == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("600", 600), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172800), (" 0.5m ", 30)]
)
def test_durations(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "10 m", "10min", "1:30", "nan", "inf", "1e3", "h", "366d"])
def test_what_is_no_duration(text):
    with pytest.raises(InputError) as refused:
        parse_seconds(text)
    assert str(refused.value) == (
        f"{text!r} is no duration; expected a number above 0 with s, m, h or d, such as 600, 10m or 1.5h, and no more "
        "than 365d"
    )


def test_seconds_of_each_platform():
    rows = rows_of(advise_by(TOTAL, EVERYTHING, None, None))
    ranks = math.ceil(659_857 / 2556)
    lambda_rows = {limit: f"Lambda, partitions of 50 MB, 10,240 MB, {limit} at once" for limit in ("100", "1,000")}
    assert rows[lambda_rows["1,000"]]["seconds"] == pytest.approx(5 + 2 * math.sqrt(ranks) + 0.005 * 2556)
    assert rows[lambda_rows["100"]]["seconds"] == pytest.approx(5 + 2 * 10 + 0.005 * 2556 * 3)  # three rounds
    half = rows["Lambda, partitions of 50 MB, 5,307 MB, 1,000 at once"]
    assert half["seconds"] == pytest.approx(5 + 2 * math.sqrt(ranks) + 0.005 * 2556 * 10240 / 5307)
    assert "10,240 MB were measured" in half["remark"]
    assert rows["rivanna, 64 tasks"]["seconds"] == pytest.approx(0.3 * 64 + 0.006 * math.ceil(659_857 / 64))
    assert rows["rivanna, 4 GPUs"]["seconds"] == pytest.approx(3 + 0.02 * math.ceil(659_857 / 4) / 512)
    assert rows["laptop, 1 process"]["seconds"] == pytest.approx(0.2 * 659_857 / 512)
    assert "64 at once were not measured" not in rows["rivanna, 64 tasks"]["remark"]
    assert "16 at once were not measured" in rows["rivanna, 16 tasks"]["remark"]


def test_runs_of_another_network_are_not_used():
    own = {"origin": "ours", "engine": "openvino", "runs": ("mine", "mine too")}
    small, large = (model(LAPTOP, {"start": 1.0}, weights=weights, **own) for weights in ("demo", "0123456789abcdef"))
    for weights, used in ((None, large), ("w.safetensors", large), ("demo", small)):
        target = replace(TOTAL, weights=weights)
        assert of_network([small, large, ON_GPU], target) == [
            one for one in (small, large, ON_GPU) if one in (used, ON_GPU)
        ]


def test_a_command_line_names_weights():
    for weights, named in ((None, "WEIGHTS"), ("demo", "demo")):
        [only] = advise_by(replace(TOTAL, weights=weights), [ON_LAPTOP], None, None).choices
        assert only.command == f"python -m launch --procs 1 SURVEY --weights {named} --out RUN"
    assert target_of("demo", weights=None).weights == "demo"


def test_low_and_high_are_by_the_error_of_the_model():
    rows = rows_of(advise_by(TOTAL, EVERYTHING, None, None))
    one = rows["rivanna, 64 tasks"]
    assert (one["low"], one["high"]) == pytest.approx((one["seconds"] / 1.1, one["seconds"] / 0.9))
    assert pd.isna(rows["laptop, 1 process"]["low"])
    assert pd.isna(rows["laptop, 1 process"]["high"])


def test_dollars_are_those_of_the_price_list():
    rows = rows_of(advise_by(TOTAL, EVERYTHING, None, None))
    ranks, seconds, batches = math.ceil(659_857 / 2556), 5 + 0.005 * 2556, math.ceil(2556 / 512)
    invocation = REQUEST + math.ceil(seconds * 1000) / 1000 * 10 * X86 + 2 * TRANSITION
    requests = (1 + 3 + 2 * batches) * WRITE + (1 + 5 + batches) * READ  # of a rank
    planners = 2 * (REQUEST + 5.0 * 3008 / 1024 * X86) + 6 * TRANSITION
    planners += (4 + 4 + 6 + 6 + ranks) * WRITE + (1 + 3 + 1 + 4 + ranks + ranks * batches) * READ
    expected = ranks * (invocation + requests) + planners
    for limit in ("100", "1,000"):
        name = f"Lambda, partitions of 50 MB, 10,240 MB, {limit} at once"
        assert rows[name]["dollars"] == pytest.approx(expected, rel=1e-9)
    assert pd.isna(rows["laptop, 1 process"]["dollars"])
    assert pd.isna(rows["rivanna, 64 tasks"]["dollars"])


def test_service_units_are_those_of_the_site():
    rows = rows_of(advise_by(TOTAL, EVERYTHING, None, None))
    array, gpus = rows["rivanna, 64 tasks"], rows["rivanna, 4 GPUs"]
    assert array["service_units"] == pytest.approx(64 * (0.464 + 1500 / 1024 * 0.0284) * array["seconds"] / 3600)
    per_hour = 4 * 50.89 + 16 * 0.403 + 24500 / 1024 * 0.043
    assert gpus["service_units"] == pytest.approx(per_hour * gpus["seconds"] / 3600)
    assert pd.isna(rows["laptop, 1 process"]["service_units"])


def test_functions_without_the_memory_are_excluded_by_name():
    advice = advise_by(TOTAL, EVERYTHING, None, None)
    reasons = {one.name: one.reason for one in advice.excluded}
    name = "Lambda, partitions of 50 MB, 3,008 MB, 1,000 at once"
    assert reasons[name] == "ranks of such partitions were measured with 4,000 MB, more than a function has"
    assert name not in rows_of(advice)
    # 50 MB in 5,307 and 10,240 MB, 25 MB in 3,008 too, the others in 10,240 MB alone; each with two limits.
    assert len([one for one in advice.choices if one.place == LAMBDA]) == 2 * (2 + 3 + 1 + 1)
    assert len(advice.excluded) == 2 * (2 + 1 + 3 + 3)
    small = advise_by(replace(TOTAL, memory_mb=3008, concurrency=50), [ON_LAMBDA], None, None)
    assert [one.name for one in small.choices] == ["Lambda, partitions of 25 MB, 3,008 MB, 50 at once"]


def test_with_less_than_a_processor_starting_takes_longer_too():
    little = replace(TOTAL, memory_mb=1000)
    advice = advise_by(replace(little, galaxies=1278), [replace(ON_LAMBDA, peaks=())], None, None)
    [one] = advice.choices  # the whole survey is one partition, also of the larger sizes
    assert one.name == "Lambda, partitions of 25 MB, 1,000 MB, 100 at once"
    assert one.seconds == pytest.approx(5 * 1.769 + 2 + 0.005 * 1278 * 10.24)


def test_functions_of_unknown_memory_are_taken_as_they_were():
    unknown = replace(ON_LAMBDA, memory_mb=None, peaks=())
    rows = rows_of(advise_by(TOTAL, [unknown], None, None))
    seconds = [row["seconds"] for name, row in rows.items() if "50 MB" in name and "1,000 at once" in name]
    assert seconds == pytest.approx([5 + 2 * math.sqrt(259) + 0.005 * 2556] * 4)
    assert all("with what memory it was measured is not told" in row["remark"] for row in rows.values())


def test_a_rank_of_more_than_15_minutes_is_excluded():
    slow = replace(ON_LAMBDA, terms={"start": 5.0, "work": 0.2}, peaks=())
    advice = advise_by(TOTAL, [slow], None, None)
    reasons = {one.name: one.reason for one in advice.excluded}
    name = "Lambda, partitions of 100 MB, 10,240 MB, 1,000 at once"
    assert reasons[name] == "a rank would take 1,028 s, and Lambda ends it after 900 s"
    assert "Lambda, partitions of 75 MB, 10,240 MB, 1,000 at once" in rows_of(advice)
    assert all("what memory it needs was not measured" in one.remark for one in advice.choices)


def test_a_job_that_the_site_refuses_is_excluded_with_its_reason():
    long = replace(IN_ARRAY, terms={"work": 4.0})
    reasons = {one.name: one.reason for one in advise_by(TOTAL, [long], None, None).excluded}
    assert "max_hours = 168" in reasons["rivanna, 4 tasks"]


def test_a_survey_that_cannot_be_cut_is_run_as_it_is():
    advice = advise_by(replace(TOTAL, survey="s3://bucket/survey", can_be_cut=False), [ON_LAMBDA], None, None)
    assert [one.name for one in advice.choices] == [
        "Lambda, partitions as they are, 10,240 MB, 1,000 at once",
        "Lambda, partitions as they are, 10,240 MB, 100 at once",
    ]
    assert all("--partition-mb" not in one.command for one in advice.choices)


def test_small_surveys_have_no_more_tasks_than_batches():
    advice = advise_by(replace(TOTAL, galaxies=9000), [IN_ARRAY, ON_LAMBDA], None, None)
    assert [name for name in sorted(rows_of(advice)) if "tasks" in name] == ["rivanna, 16 tasks", "rivanna, 4 tasks"]
    assert not any("1,000 at once" in name for name in rows_of(advice))


def test_one_published_node_gives_no_choice_but_one_of_ours_does():
    node = model(NODE, {"start": 1.0, "batches": 0.1})
    assert advise_by(TOTAL, [node], None, None).choices == ()
    terms = {"start": 2.0, "read": 0.0001, "compute": 0.002}
    machine = "AMD EPYC, 3 threads a rank, openvino float32"
    mine = model(NODE, terms, origin="ours", machine=machine, engine="openvino")
    row = rows_of(advise_by(TOTAL, [mine], None, None))["rivanna, 64 tasks"]
    assert row["seconds"] == pytest.approx(2 + 0.0021 * math.ceil(659_857 / 64))
    assert "--cores 3" in row["command"]
    assert row["remark"] == "64 at once were not measured"


def parsed(line: str) -> click.Context:
    """A printed command line as the launcher takes it."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "launch"]
    return run.make_context("launch", words[3:])


def test_every_command_line_is_one_of_the_launcher():
    mine = [
        model(
            LAPTOP, {"start": 1.0, "compute": 0.01}, origin="ours", machine="EPYC", engine="reference",
            precision="bfloat16", batch_size=64, slots=(8,),
        ),
        model(LAPTOP, {"compute": 0.01}, origin="ours", device="cuda", engine="cuda", precision="bfloat16"),
        model(GPU, {"compute": 0.001}, origin="ours", machine="NVIDIA A40, 4 threads a rank", engine="cuda"),
    ]  # fmt: skip
    target = replace(TOTAL, survey="my survey", out="RUN 1", weights="w.safetensors")
    advice = advise_by(target, [*EVERYTHING, *mine], None, None)
    assert len(advice.choices) == 14 + 5 + 2 + 1 + 2 + 2
    for one in advice.choices:
        context = parsed(one.command)
        options = dict(context.params)
        assert (options["survey"], options["out"], options["weights"]) == ("my survey", "RUN 1", "w.safetensors")
        with context:
            cloud = taken_cloud(options)
            assert (cloud is not None) == (one.place == LAMBDA)
            if cloud is None and "--gpus" not in one.command.split("--slurm")[0]:
                _, mpi, batch, _ = taken_request(options)
                assert not mpi
                assert (batch is not None) == (one.place in (ARRAY, GPU))
                if batch:
                    assert (batch.site, batch.account) == ("rivanna", "ACCOUNT")
    commands = {one.name: one.command for one in advice.choices}
    assert commands["Lambda, partitions of 50 MB, 5,307 MB, 100 at once"] == (
        "python -m launch --cloud --partition-mb 50 --memory 5307 --concurrency 100 'my survey' "
        "--weights w.safetensors --out 'RUN 1'"
    )
    assert commands["laptop, 8 processes (EPYC)"].startswith("python -m launch --procs 8 'my survey' --weights")
    assert commands["laptop, 8 processes (EPYC)"].endswith(
        "--batch-size 64 --engine reference --precision bfloat16 --out 'RUN 1'"
    )
    assert "--array 256 --cores 1" in commands["rivanna, 256 tasks"]
    assert [line for line in commands.values() if "--gpu-kind a40" in line]


def test_time_limits_leave_room():
    rows = rows_of(advise_by(TOTAL, [replace(IN_ARRAY, terms={"work": 0.1})], None, None))
    assert rows["rivanna, 16 tasks"]["seconds"] == pytest.approx(4124.2)
    assert "--time 2:18:00" in rows["rivanna, 16 tasks"]["command"]
    assert "--time 0:10:00" in rows["rivanna, 1,000 tasks"]["command"]


def test_deadline_and_budget_mark_choices():
    advice = advise_by(TOTAL, EVERYTHING, 60.0, 0.8)
    assert [one.seconds for one in advice.choices] == sorted(one.seconds for one in advice.choices)
    for one, meets in zip(advice.choices, advice.meets, strict=True):
        assert meets == (one.seconds <= 60 and (one.dollars or 0) <= 0.8)
    count = sum(advice.meets)
    assert 0 < count < len(advice.choices)
    assert advice.verdict == f"{count} of {len(advice.choices)} choices stay within 60 s and $0.8."
    assert all(advise_by(TOTAL, EVERYTHING, None, None).meets)
    free = advise_by(TOTAL, EVERYTHING, None, 0.0)
    assert {one.place for one, meets in zip(free.choices, free.meets, strict=True) if meets} == {ARRAY, GPU, LAPTOP}


def test_if_nothing_meets_them_the_nearest_is_told():
    advice = advise_by(TOTAL, [ON_LAMBDA, ON_LAPTOP], 1.0, 0.01)
    assert not any(advice.meets)
    factors = {one.name: max(one.seconds / 1.0, (one.dollars or 0) / 0.01) for one in advice.choices}
    near = advice.nearest
    assert near is not None
    assert factors[near.name] == min(factors.values())
    assert advice.verdict == (
        f"None of {len(advice.choices)} choices stays within 1 s and $0.01; the nearest is {near.name}, with "
        f"{near.seconds:,.4g} s and ${near.dollars:,.4g}."
    )
    assert advise_by(TOTAL, [ON_LAPTOP], 1.0, None).verdict.endswith("laptop, 1 process, with 257.8 s.")


def test_the_front_of_an_advice():
    advice = advise_by(TOTAL, EVERYTHING, None, None)
    table = advice_table(advice)
    points = table[["seconds", "dollars", "service_units"]].fillna(0).to_numpy()
    for on_front, point in zip(table["on_front"], points, strict=True):
        better = (points <= point).all(axis=1) & (points < point).any(axis=1)
        assert on_front == (not better.any())
    assert table.loc[table["choice"] == "laptop, 1 process", "on_front"].item()  # it costs nothing


@pytest.mark.parametrize(
    ("changes", "deadline", "budget", "sentence"),
    [
        (
            {"galaxies": 0}, None, None,
            "SURVEY holds no galaxies; expected a survey with some, or a number of 1 or more",
        ),
        ({}, None, -1.0, "a budget of -1 dollars cannot be; expected 0 or more"),
        ({}, None, math.nan, "a budget of nan dollars cannot be; expected 0 or more"),
        ({}, 0.0, None, "a deadline of 0 s cannot be met; expected more than 0"),
        ({}, math.inf, None, "a deadline of inf s cannot be met; expected more than 0"),
        ({"memory_mb": 127}, None, None, "functions of 127 MB cannot be; expected 128 to 10240"),
        ({"memory_mb": 10241}, None, None, "functions of 10241 MB cannot be; expected 128 to 10240"),
        ({"concurrency": 0}, None, None, "a concurrency of 0 cannot be; expected 1 or more"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(changes, deadline, budget, sentence):
    with pytest.raises(InputError) as refused:
        advise_by(replace(TOTAL, **changes), EVERYTHING, deadline, budget)
    assert str(refused.value) == sentence


def test_without_its_site_a_cluster_is_no_choice():
    advice = advise_by(replace(TOTAL, site="nowhere"), [IN_ARRAY, ON_LAPTOP], None, None)
    assert [one.name for one in advice.choices] == ["laptop, 1 process"]
    assert [one.name for one in advice.excluded] == [
        f"nowhere, {count} tasks" for count in ("4", "16", "64", "256", "1,000")
    ]
    assert {one.reason.partition(";")[0] for one in advice.excluded} == {"--site nowhere: there is no such site"}


def test_an_unknown_region_is_refused():
    with pytest.raises(InputError, match="there are no prices for the region mars-1; choose one of us-east-1"):
        advise_by(replace(TOTAL, region="mars-1"), [ON_LAMBDA], None, None)


def test_what_was_not_measured_is_absent_and_said():
    found = published_runs()
    of_lambda = Collection(found.runs[found.runs["platform"] == "lambda"], found.ranks)
    advice = advise(TOTAL, of_lambda, audit(of_lambda))
    assert {one.place for one in advice.choices} == {LAMBDA}
    said = [note for note in advice.notes if "nothing was measured" in note]
    assert said == [
        f"Of {what} nothing was measured, so that there is no choice for it."
        for what in ("a laptop", "a CPU array of SLURM", "a GPU of SLURM")
    ]
    nothing = Collection(found.runs[:0], found.ranks)
    empty = advise(TOTAL, nothing, audit(nothing))
    assert (empty.choices, empty.nearest, len(empty.notes)) == ((), None, 4)
    assert empty.verdict == "There is no choice at all: nothing that was measured can run this survey."
    assert advice_table(empty).empty


def test_ours_are_taken_before_published_ones():
    mine = replace(ON_LAPTOP, origin="ours", runs=("a", "b", "c", "d"))
    node = model(NODE, {"start": 1.0}, origin="ours")
    kept = chosen([ON_LAMBDA, ON_LAPTOP, IN_ARRAY, mine, node])
    assert kept == [ON_LAMBDA, mine, node]
    table = advice_table(advise_by(TOTAL, kept, None, None))
    assert set(table.loc[table["platform"] == LAPTOP, "based_on"]) == {"4 runs of yours: a, b, c and 1 more"}
    assert set(table.loc[table["platform"] == LAMBDA, "based_on"]) == {"2 runs of the published code"}
    remarks = table.set_index("platform")["remark"]
    assert remarks[LAPTOP] == ""
    assert remarks[LAMBDA].str.startswith("fitted to the published code, while the command runs this project's").all()


def test_errors_are_told_as_known_or_not():
    table = error_table(EVERYTHING).set_index("platform")
    assert table.loc[LAMBDA, "median_error"] == pytest.approx(0.1)
    assert table.loc[LAMBDA, "left_out"] == 1
    assert pd.isna(table.loc[LAPTOP, "median_error"])
    notes = advise_by(TOTAL, EVERYTHING, None, None).notes
    assert "How far the model for laptop is off is not known: too few configurations were measured." in notes


def test_an_advice_as_json():
    values = json.loads(to_json(advise_by(TOTAL, EVERYTHING, 60.0, None)))
    assert sorted(values) == [
        "budget", "choices", "deadline", "errors", "excluded", "models", "notes", "survey", "verdict",
    ]  # fmt: skip
    laptop = next(one for one in values["choices"] if one["platform"] == LAPTOP)
    assert (laptop["dollars"], laptop["low"], laptop["meets"], laptop["runs"]) == (None, None, False, ["a", "b"])
    assert values["survey"]["galaxies"] == 659_857
    assert len(values["excluded"]) == 18
    everything = advise_survey("1000", deadline=60.0, budget=1.0)
    assert len(json.loads(to_json(everything))["models"]) == 5


def test_without_runs_the_published_figures_advise():
    advice = advise_survey("659,857", deadline=600.0, budget=1.0)
    assert {one.place for one in advice.choices} == {LAPTOP, ARRAY, GPU, LAMBDA}
    assert {one.model.origin for one in advice.choices} == {"published"}
    assert (advice.target.survey, advice.target.galaxies) == ("SURVEY", 659_857)
    table = advice_table(advice).set_index("choice")
    # The published runs of 100 MB on functions of 10,240 MB took 68.6 s, and 45 s with 50 MB.
    assert table.loc["Lambda, partitions of 100 MB, 10,240 MB, 1,000 at once", "seconds"] == pytest.approx(
        68.6, rel=0.2
    )
    assert table.loc["Lambda, partitions of 50 MB, 10,240 MB, 1,000 at once", "seconds"] == pytest.approx(
        44.9, rel=0.15
    )


def test_runs_that_were_measured_advise_beside_the_published_ones(shared):
    folder = str(shared / "published" / "lambda" / "partition-25MB")
    times = str(shared / "published" / "lambda" / "total_execution_time.csv")
    advice = advise_survey("100000", [folder, times])
    fitted = {one.place: one for one in advice.models}
    assert sorted(fitted) == [LAMBDA, GPU, ARRAY, NODE, LAPTOP]
    assert len(fitted[LAMBDA].runs) > 50
    assert fitted[ARRAY].runs[0].startswith("published.csv/")


def test_surveys_by_address_and_number(tmp_path):
    survey = make_survey(tmp_path / "survey", random_galaxies(20), 12)
    target = target_of(survey.uri, account="me", concurrency=7)
    assert (target.survey, target.galaxies, target.size, target.largest_shard) == (survey.uri, 20, survey.bytes, 12)
    assert (target.can_be_cut, target.account, target.concurrency) == (True, "me", 7)
    assert target_of("659_857").size == 659_857 * 20520
    with pytest.raises(InputError, match="nowhere does not exist; expected a survey folder"):
        target_of(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds no galaxies"):
        advise_survey("0")


def test_the_demo_survey_can_be_asked_about():
    target = target_of("demo")
    assert (target.survey, target.galaxies, target.largest_shard) == ("demo", 4096, 1278)
