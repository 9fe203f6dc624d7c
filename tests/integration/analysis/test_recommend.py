"""Test recommendations: choices, their costs and command lines, and which meet a deadline and a budget."""

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
from analysis.candidates import Target
from analysis.formatting import format_statistic
from analysis.published_values import build_published_runs
from analysis.recommend import (
    Recommendation,
    find_pareto_front,
    parse_seconds,
    prefer_own_models,
    recommend,
    recommend_for_survey,
    recommend_from_models,
    resolve_target,
    select_network,
)
from analysis.recommendation_output import print_recommendation, tabulate_candidates, tabulate_errors, to_json
from analysis.tables import ONE_MACHINE, Collection
from analysis.time_model import TimeModel, Withheld
from analysis.workload import ARRAY, GPU, LAMBDA, NODE
from cosmicai.cli.launch import run
from cosmicai.cli.launch_options import parse_cloud_options, parse_rank_options
from cosmicai.errors import InputError
from support.helpers import make_survey, random_galaxies

TOTAL = Target("SURVEY", 659_857, 659_857 * 20520, 5113)
X86, REQUEST, TRANSITION, WRITE, READ = 166667e-10, 2e-7, 25e-6, 5e-6, 4e-7


def model(place: str, terms: dict[str, float], **more: Any) -> TimeModel:
    """Return a model, by default of published runs with an error of 10%."""
    fields: dict[str, Any] = {
        "origin": "published", "device": "cuda" if place == GPU else "cpu", "machine": None, "engine": "published",
        "precision": "float32", "batch_size": 512, "memory_mb": 10240.0 if place == LAMBDA else None, "slots": (1,),
        "runs": ("a", "b"), "withheld": (Withheld("x", 10.0, 11.0),), "peaks": (),
    }  # fmt: skip
    return TimeModel(place=place, terms=terms, **fields | more)


ON_LAMBDA = model(
    LAMBDA, {"start": 5.0, "dispatch": 2.0, "work": 0.005}, peaks=((25.0, 2000.0), (50.0, 4000.0), (100.0, 7000.0))
)
IN_ARRAY = model(ARRAY, {"tasks": 0.3, "work": 0.006}, slots=(64, 256))
ON_GPU = model(GPU, {"start": 3.0, "batches": 0.02})
ON_ONE_MACHINE = model(ONE_MACHINE, {"batches": 0.2}, withheld=())
EVERYTHING = (ON_LAMBDA, IN_ARRAY, ON_GPU, ON_ONE_MACHINE)


def rows_of(recommendation: Recommendation) -> dict[str, dict[str, Any]]:
    """Return the rows of its table by the names of the choices."""
    return {str(row["choice"]): row for row in tabulate_candidates(recommendation).to_dict("records")}


def test_the_front_by_brute_force():
    rng = np.random.default_rng(1)
    for size in (0, 1, 2, 40):
        points = rng.integers(0, 4, (size, 3)).astype(float)  # with many ties
        expected = [not any((other <= one).all() and (other < one).any() for other in points) for one in points]
        assert find_pareto_front(points).tolist() == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("600", 600), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172800), (" 0.5m ", 30)]
)
def test_durations(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-5", "10 m", "10min", "1:30", "nan", "inf", "1e3", "h", "366d"])
def test_other_texts_are_not_durations(text):
    with pytest.raises(InputError) as refused:
        parse_seconds(text)
    assert str(refused.value) == (
        f"{text!r} is not a duration; expected a number above 0 with s, m, h or d, such as 600, 10m or 1.5h, at most "
        "365d"
    )


def test_seconds_of_each_platform():
    rows = rows_of(recommend_from_models(TOTAL, EVERYTHING, None, None))
    ranks = math.ceil(659_857 / 2556)
    lambda_rows = {limit: f"Lambda, partitions of 50 MB, 10,240 MB, {limit} at once" for limit in ("100", "1,000")}
    assert rows[lambda_rows["1,000"]]["seconds"] == pytest.approx(5 + 2 * math.sqrt(ranks) + 0.005 * 2556)
    assert rows[lambda_rows["100"]]["seconds"] == pytest.approx(5 + 2 * 10 + 0.005 * 2556 * 3)  # three rounds
    half = rows["Lambda, partitions of 50 MB, 5,307 MB, 1,000 at once"]
    assert half["seconds"] == pytest.approx(5 + 2 * math.sqrt(ranks) + 0.005 * 2556 * 10240 / 5307)
    assert "10,240 MB were measured" in half["remark"]
    assert rows["rivanna, 64 tasks"]["seconds"] == pytest.approx(0.3 * 64 + 0.006 * math.ceil(659_857 / 64))
    assert rows["rivanna, 4 GPUs"]["seconds"] == pytest.approx(3 + 0.02 * math.ceil(659_857 / 4) / 512)
    assert rows["one machine, 1 process"]["seconds"] == pytest.approx(0.2 * 659_857 / 512)
    assert "64 at once were not measured" not in rows["rivanna, 64 tasks"]["remark"]
    assert "16 at once were not measured" in rows["rivanna, 16 tasks"]["remark"]


def test_runs_of_another_network_are_not_used():
    own = {"origin": "ours", "engine": "openvino", "runs": ("mine", "mine too")}
    names = ("demo", "0123456789abcdef")
    small, large = (model(ONE_MACHINE, {"start": 1.0}, weights=weights, **own) for weights in names)
    for weights, used in ((None, large), ("w.safetensors", large), ("demo", small)):
        target = replace(TOTAL, weights=weights)
        assert select_network([small, large, ON_GPU], target) == [
            one for one in (small, large, ON_GPU) if one in (used, ON_GPU)
        ]


def test_a_command_line_names_weights():
    for weights, named in ((None, "WEIGHTS"), ("demo", "demo")):
        [only] = recommend_from_models(replace(TOTAL, weights=weights), [ON_ONE_MACHINE], None, None).choices
        assert only.command == f"python -m launch --procs 1 SURVEY --weights {named} --out RUN"
    assert resolve_target("demo", weights=None).weights == "demo"


def test_low_and_high_follow_from_the_error_of_the_model():
    rows = rows_of(recommend_from_models(TOTAL, EVERYTHING, None, None))
    one = rows["rivanna, 64 tasks"]
    assert (one["low"], one["high"]) == pytest.approx((one["seconds"] / 1.1, one["seconds"] / 0.9))
    assert pd.isna(rows["one machine, 1 process"]["low"])
    assert pd.isna(rows["one machine, 1 process"]["high"])


def test_dollars_are_those_of_the_price_list():
    rows = rows_of(recommend_from_models(TOTAL, EVERYTHING, None, None))
    ranks, seconds, batches = math.ceil(659_857 / 2556), 5 + 0.005 * 2556, math.ceil(2556 / 512)
    invocation = REQUEST + math.ceil(seconds * 1000) / 1000 * 10 * X86 + 2 * TRANSITION
    requests = (3 + 4 + 2 * batches) * WRITE + (1 + 5 + batches) * READ  # of a rank
    planners = 2 * (REQUEST + 5.0 * 3008 / 1024 * X86) + 6 * TRANSITION
    planners += (6 + 4 + 6 + 7 + ranks) * WRITE + (1 + 3 + 1 + 3 + 5 * ranks + ranks * batches) * READ
    expected = ranks * (invocation + requests) + planners
    for limit in ("100", "1,000"):
        name = f"Lambda, partitions of 50 MB, 10,240 MB, {limit} at once"
        assert rows[name]["dollars"] == pytest.approx(expected, rel=1e-9)
    assert pd.isna(rows["one machine, 1 process"]["dollars"])
    assert pd.isna(rows["rivanna, 64 tasks"]["dollars"])


def test_service_units_are_those_of_the_site():
    rows = rows_of(recommend_from_models(TOTAL, EVERYTHING, None, None))
    array, gpus = rows["rivanna, 64 tasks"], rows["rivanna, 4 GPUs"]
    assert array["service_units"] == pytest.approx(64 * (0.464 + 1500 / 1024 * 0.0284) * array["seconds"] / 3600)
    per_hour = 4 * 50.89 + 16 * 0.403 + 24500 / 1024 * 0.043
    assert gpus["service_units"] == pytest.approx(per_hour * gpus["seconds"] / 3600)
    assert pd.isna(rows["one machine, 1 process"]["service_units"])


def test_functions_without_the_memory_are_excluded_by_name():
    found = recommend_from_models(TOTAL, EVERYTHING, None, None)
    reasons = {one.name: one.reason for one in found.excluded}
    name = "Lambda, partitions of 50 MB, 3,008 MB, 1,000 at once"
    assert reasons[name] == "ranks of such partitions were measured with 4,000 MB, more than the function has"
    assert name not in rows_of(found)
    # 50 MB in 5,307 and 10,240 MB, 25 MB in 3,008 too, the others in 10,240 MB alone; each with two limits.
    assert len([one for one in found.choices if one.place == LAMBDA]) == 2 * (2 + 3 + 1 + 1)
    assert len(found.excluded) == 2 * (2 + 1 + 3 + 3)
    small = recommend_from_models(replace(TOTAL, memory_mb=3008, concurrency=50), [ON_LAMBDA], None, None)
    assert [one.name for one in small.choices] == ["Lambda, partitions of 25 MB, 3,008 MB, 50 at once"]


def test_starting_takes_longer_with_less_than_a_processor():
    little = replace(TOTAL, memory_mb=1000)
    found = recommend_from_models(replace(little, galaxies=1278), [replace(ON_LAMBDA, peaks=())], None, None)
    [one] = found.choices  # the whole survey is one partition, also of the larger sizes
    assert one.name == "Lambda, partitions of 25 MB, 1,000 MB, 100 at once"
    assert one.seconds == pytest.approx(5 * 1.769 + 2 + 0.005 * 1278 * 10.24)


def test_functions_of_unknown_memory_are_used_as_measured():
    unknown = replace(ON_LAMBDA, memory_mb=None, peaks=())
    rows = rows_of(recommend_from_models(TOTAL, [unknown], None, None))
    seconds = [row["seconds"] for name, row in rows.items() if "50 MB" in name and "1,000 at once" in name]
    assert seconds == pytest.approx([5 + 2 * math.sqrt(259) + 0.005 * 2556] * 4)
    assert all("the memory of the measurement is not known" in row["remark"] for row in rows.values())


def test_a_rank_of_more_than_15_minutes_is_excluded():
    slow = replace(ON_LAMBDA, terms={"start": 5.0, "work": 0.2}, peaks=())
    found = recommend_from_models(TOTAL, [slow], None, None)
    reasons = {one.name: one.reason for one in found.excluded}
    name = "Lambda, partitions of 100 MB, 10,240 MB, 1,000 at once"
    assert reasons[name] == "a rank would take 1,028 s, and Lambda ends it after 900 s"
    assert "Lambda, partitions of 75 MB, 10,240 MB, 1,000 at once" in rows_of(found)
    assert all("the memory that a rank needs was not measured" in one.remark for one in found.choices)


def test_a_job_that_the_site_refuses_is_excluded_with_its_reason():
    long = replace(IN_ARRAY, terms={"work": 4.0})
    reasons = {one.name: one.reason for one in recommend_from_models(TOTAL, [long], None, None).excluded}
    assert "max_hours = 168" in reasons["rivanna, 4 tasks"]


def test_a_survey_that_cannot_be_cut_is_run_as_it_is():
    found = recommend_from_models(
        replace(TOTAL, survey="s3://bucket/survey", can_be_cut=False), [ON_LAMBDA], None, None
    )
    assert [one.name for one in found.choices] == [
        "Lambda, partitions as they are, 10,240 MB, 1,000 at once",
        "Lambda, partitions as they are, 10,240 MB, 100 at once",
    ]
    assert all("--partition-mb" not in one.command for one in found.choices)


def test_small_surveys_have_no_more_tasks_than_batches():
    found = recommend_from_models(replace(TOTAL, galaxies=9000), [IN_ARRAY, ON_LAMBDA], None, None)
    assert [name for name in sorted(rows_of(found)) if "tasks" in name] == ["rivanna, 16 tasks", "rivanna, 4 tasks"]
    assert not any("1,000 at once" in name for name in rows_of(found))


def test_one_published_node_gives_no_choice_but_one_of_ours_does():
    node = model(NODE, {"start": 1.0, "batches": 0.1})
    assert recommend_from_models(TOTAL, [node], None, None).choices == ()
    terms = {"start": 2.0, "read": 0.0001, "compute": 0.002}
    mine = model(NODE, terms, origin="ours", machine="AMD EPYC", threads=3, engine="openvino")
    row = rows_of(recommend_from_models(TOTAL, [mine], None, None))["rivanna, 64 tasks"]
    assert row["seconds"] == pytest.approx(2 + 0.0021 * math.ceil(659_857 / 64))
    assert "--cores 3" in row["command"]
    assert row["remark"] == "64 at once were not measured"


def parsed(line: str) -> click.Context:
    """Return a printed command line as the launcher parses it."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "launch"]
    return run.make_context("launch", words[3:])


def test_the_launcher_accepts_every_command_line():
    mine = [
        model(
            ONE_MACHINE, {"start": 1.0, "compute": 0.01}, origin="ours", machine="EPYC", engine="reference",
            precision="bfloat16", batch_size=64, slots=(8,),
        ),
        model(ONE_MACHINE, {"compute": 0.01}, origin="ours", device="cuda", engine="cuda", precision="bfloat16"),
        model(GPU, {"compute": 0.001}, origin="ours", machine="EPYC, NVIDIA A40", threads=4, engine="cuda"),
    ]  # fmt: skip
    target = replace(TOTAL, survey="my survey", out="RUN 1", weights="w.safetensors")
    found = recommend_from_models(target, [*EVERYTHING, *mine], None, None)
    assert len(found.choices) == 14 + 5 + 2 + 1 + 2 + 2
    for one in found.choices:
        context = parsed(one.command)
        options = dict(context.params)
        assert (options["survey"], options["out"], options["weights"]) == ("my survey", "RUN 1", "w.safetensors")
        with context:
            cloud = parse_cloud_options(options)
            assert (cloud is not None) == (one.place == LAMBDA)
            if cloud is None and "--gpus" not in one.command.split("--slurm")[0]:
                launcher, _, job = parse_rank_options(options)
                assert launcher != "mpi"
                assert (job is not None) == (one.place in (ARRAY, GPU))
                if job:
                    assert (job.site, job.account) == ("rivanna", "ACCOUNT")
    commands = {one.name: one.command for one in found.choices}
    assert commands["Lambda, partitions of 50 MB, 5,307 MB, 100 at once"] == (
        "python -m launch --cloud --partition-mb 50 --memory 5307 --concurrency 100 'my survey' "
        "--weights w.safetensors --out 'RUN 1'"
    )
    assert commands["one machine, 8 processes (EPYC)"].startswith("python -m launch --procs 8 'my survey' --weights")
    assert commands["one machine, 8 processes (EPYC)"].endswith(
        "--batch-size 64 --engine reference --precision bfloat16 --out 'RUN 1'"
    )
    assert "--array 256 --cores 1" in commands["rivanna, 256 tasks"]
    assert [line for line in commands.values() if "--gpu-kind a40" in line]


def test_time_limits_exceed_the_predicted_time():
    rows = rows_of(recommend_from_models(TOTAL, [replace(IN_ARRAY, terms={"work": 0.1})], None, None))
    assert rows["rivanna, 16 tasks"]["seconds"] == pytest.approx(4124.2)
    assert "--time 2:18:00" in rows["rivanna, 16 tasks"]["command"]
    assert "--time 0:10:00" in rows["rivanna, 1,000 tasks"]["command"]


def test_deadline_and_budget_mark_choices():
    found = recommend_from_models(TOTAL, EVERYTHING, 60.0, 0.8)
    assert [one.seconds for one in found.choices] == sorted(one.seconds for one in found.choices)
    for one, meets in zip(found.choices, found.meets, strict=True):
        assert meets == (one.seconds <= 60 and (one.dollars or 0) <= 0.8)
    count = sum(found.meets)
    assert 0 < count < len(found.choices)
    assert found.verdict == f"{count} of {len(found.choices)} choices stay within 60 s and $0.8."
    assert all(recommend_from_models(TOTAL, EVERYTHING, None, None).meets)
    free = recommend_from_models(TOTAL, EVERYTHING, None, 0.0)
    within = {one.place for one, meets in zip(free.choices, free.meets, strict=True) if meets}
    assert within == {ARRAY, GPU, ONE_MACHINE}


def test_if_no_choice_meets_the_limits_the_nearest_is_named():
    found = recommend_from_models(TOTAL, [ON_LAMBDA, ON_ONE_MACHINE], 1.0, 0.01)
    assert not any(found.meets)
    factors = {one.name: max(one.seconds / 1.0, (one.dollars or 0) / 0.01) for one in found.choices}
    near = found.nearest
    assert near is not None and near.dollars is not None
    assert factors[near.name] == min(factors.values())
    assert found.verdict == (
        f"None of {len(found.choices)} choices stays within 1 s and $0.01; the nearest is {near.name}, with "
        f"{format_statistic(near.seconds)} s and ${format_statistic(near.dollars)}."
    )
    late = recommend_from_models(TOTAL, [ON_ONE_MACHINE], 1.0, None)
    assert late.verdict.endswith("one machine, 1 process, with 258 s.")


def test_the_front_of_a_recommendation():
    found = recommend_from_models(TOTAL, EVERYTHING, None, None)
    table = tabulate_candidates(found)
    points = table[["seconds", "dollars", "service_units"]].fillna(0).to_numpy()
    for on_front, point in zip(table["on_front"], points, strict=True):
        better = (points <= point).all(axis=1) & (points < point).any(axis=1)
        assert on_front == (not better.any())
    assert table.loc[table["choice"] == "one machine, 1 process", "on_front"].item()  # which has no cost


@pytest.mark.parametrize(
    ("changes", "deadline", "budget", "sentence"),
    [
        (
            {"galaxies": 0}, None, None,
            "SURVEY holds no galaxies; expected a survey with galaxies, or a number above 0",
        ),
        ({}, None, -1.0, "a budget of -1 dollars is not possible; expected 0 or more"),
        ({}, None, math.nan, "a budget of nan dollars is not possible; expected 0 or more"),
        ({}, 0.0, None, "a deadline of 0 s is not possible; expected more than 0"),
        ({}, math.inf, None, "a deadline of inf s is not possible; expected more than 0"),
        ({"memory_mb": 127}, None, None, "functions of 127 MB are not possible; expected 128 to 10240"),
        ({"memory_mb": 10241}, None, None, "functions of 10241 MB are not possible; expected 128 to 10240"),
        ({"concurrency": 0}, None, None, "a concurrency of 0 is not possible; expected 1 or more"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused_in_one_sentence(changes, deadline, budget, sentence):
    with pytest.raises(InputError) as refused:
        recommend_from_models(replace(TOTAL, **changes), EVERYTHING, deadline, budget)
    assert str(refused.value) == sentence


def test_a_cluster_without_its_site_is_excluded():
    found = recommend_from_models(replace(TOTAL, site="nowhere"), [IN_ARRAY, ON_ONE_MACHINE], None, None)
    assert [one.name for one in found.choices] == ["one machine, 1 process"]
    assert [one.name for one in found.excluded] == [
        f"nowhere, {count} tasks" for count in ("4", "16", "64", "256", "1,000")
    ]
    assert {one.reason.partition(";")[0] for one in found.excluded} == {"--site nowhere: there is no such site"}


def test_an_unknown_region_is_refused():
    with pytest.raises(InputError, match="there are no prices for the region mars-1; choose one of us-east-1"):
        recommend_from_models(replace(TOTAL, region="mars-1"), [ON_LAMBDA], None, None)


def test_platforms_without_measurements_are_named():
    values = build_published_runs()
    of_lambda = Collection(values.runs[values.runs["platform"] == "lambda"], values.ranks)
    found = recommend(TOTAL, of_lambda, audit(of_lambda))
    assert {one.place for one in found.choices} == {LAMBDA}
    notes = [note for note in found.notes if "no runs on it were measured" in note]
    assert notes == [
        f"There are no choices for {what}, since no runs on it were measured."
        for what in ("one machine", "a SLURM array on CPUs", "a GPU with SLURM")
    ]
    nothing = Collection(values.runs[:0], values.ranks)
    empty = recommend(TOTAL, nothing, audit(nothing))
    assert (empty.choices, empty.nearest, len(empty.notes)) == ((), None, 4)
    assert empty.verdict == "There are no choices: nothing that was measured can run this survey."
    assert tabulate_candidates(empty).empty


def test_own_runs_are_preferred_to_published_ones():
    mine = replace(ON_ONE_MACHINE, origin="ours", runs=("a", "b", "c", "d"))
    node = model(NODE, {"start": 1.0}, origin="ours")
    kept = prefer_own_models([ON_LAMBDA, ON_ONE_MACHINE, IN_ARRAY, mine, node])
    assert kept == [ON_LAMBDA, mine, node]
    table = tabulate_candidates(recommend_from_models(TOTAL, kept, None, None))
    assert set(table.loc[table["platform"] == ONE_MACHINE, "based_on"]) == {"4 runs of yours: a, b, c and 1 more"}
    assert set(table.loc[table["platform"] == LAMBDA, "based_on"]) == {"2 runs of the published code"}
    remarks = table.set_index("platform")["remark"]
    assert remarks[ONE_MACHINE] == ""
    assert (
        remarks[LAMBDA]
        .str.startswith("fitted to runs of the published code, while the command runs this project's")
        .all()
    )


def test_unknown_errors_are_noted():
    table = tabulate_errors(EVERYTHING).set_index("platform")
    assert table.loc[LAMBDA, "median_error"] == pytest.approx(0.1)
    assert table.loc[LAMBDA, "left_out"] == 1
    assert pd.isna(table.loc[ONE_MACHINE, "median_error"])
    notes = recommend_from_models(TOTAL, EVERYTHING, None, None).notes
    assert "The error of the model for one machine is not known: too few configurations were measured." in notes


@pytest.mark.parametrize(
    ("deadline", "budget", "name", "reason"),
    [
        (None, None, "rivanna, 4 GPUs", "the fastest"),
        (3600.0, None, "one machine, 1 process", "not charged, within the limits"),
        (100.0, None, "rivanna, 1 GPU", "the cheapest on SLURM GPU, the fastest platform, within the limits"),
        (1.0, None, "rivanna, 4 GPUs", "nearest to the limits, which no choice meets"),
    ],
)
def test_the_recommended_choice_and_its_reason(deadline, budget, name, reason):
    best, why = recommend_from_models(TOTAL, EVERYTHING, deadline, budget).recommended
    assert best is not None and (best.name, why) == (name, reason)


def test_what_is_hardly_slower_and_costs_less_is_recommended():
    few = replace(TOTAL, galaxies=4096, size=4096 * 20520)
    best, why = recommend_from_models(few, EVERYTHING, None, None).recommended
    assert best is not None and best.name == "one machine, 1 process"
    assert why == "not charged, at most 1.5 times as slow"
    best, why = recommend_from_models(few, [ON_GPU], None, None).recommended
    assert best is not None and best.name == "rivanna, 1 GPU"
    assert why == "the cheapest on SLURM GPU, the fastest platform, at most 1.5 times as slow"


def test_free_gpus_and_the_recommendation_come_first_and_nothing_is_wider_than_a_hundred_columns(capsys):
    found = recommend_for_survey("659857", deadline=600.0, budget=1.0)
    print_recommendation(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:9] == [
        "Try first: GPUs of kind mig on rivanna, which it does not charge for.",
        "How fast they are was not measured, so that they are not among the choices below.",
        "  python -m launch --slurm --site rivanna --account ACCOUNT --array 14 --gpus 1 --gpu-kind mig \\",
        "    SURVEY --weights WEIGHTS --out RUN",
        "",
        "Recommended: rivanna, 1 GPU",
        "Why: the cheapest on SLURM GPU, the fastest platform, within the limits: 32 s, 0.46 service units.",
        "Based on 3 runs of the published code; error of the time: <1% in the median.",
        "",
    ]
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "20 of 23 choices stay within 600 s and $1."
    text = "\n".join(lines)
    printed = text[text.index("rivanna, 4 GPUs:\n") :].partition(":\n")[2].partition("\nrivanna, 1 GPU:")[0]
    assert shlex.split(printed.replace(" \\\n", " ")) == shlex.split(found.choices[0].command)
    assert "e-05" not in text and "<1%" in text


def test_a_recommendation_as_json():
    values = json.loads(to_json(recommend_from_models(TOTAL, EVERYTHING, 60.0, None)))
    assert sorted(values) == [
        "budget", "choices", "deadline", "errors", "excluded", "models", "notes", "recommended", "survey",
        "verdict",
    ]  # fmt: skip
    machine = next(one for one in values["choices"] if one["platform"] == ONE_MACHINE)
    assert (machine["dollars"], machine["low"], machine["meets"], machine["runs"]) == (None, None, False, ["a", "b"])
    assert values["survey"]["galaxies"] == 659_857
    assert len(values["excluded"]) == 18
    everything = recommend_for_survey("1000", deadline=60.0, budget=1.0)
    assert len(json.loads(to_json(everything))["models"]) == 6


def test_without_runs_the_published_values_are_used():
    found = recommend_for_survey("659,857", deadline=600.0, budget=1.0)
    assert {one.place for one in found.choices} == {ONE_MACHINE, ARRAY, GPU, LAMBDA}
    assert {one.model.origin for one in found.choices} == {"published"}
    assert [one.name for one in found.choices if one.place == ONE_MACHINE] == [
        f"one machine, 1 process (published: {machine})"
        for machine in ("AMD Ryzen laptop with 8 cores", "Personal Laptop")
    ]
    assert (found.target.survey, found.target.galaxies) == ("SURVEY", 659_857)
    table = tabulate_candidates(found).set_index("choice")
    # The published runs of 100 MB on functions of 10,240 MB took 68.6 s, and 45 s with 50 MB.
    assert table.loc["Lambda, partitions of 100 MB, 10,240 MB, 1,000 at once", "seconds"] == pytest.approx(
        68.6, rel=0.2
    )
    assert table.loc["Lambda, partitions of 50 MB, 10,240 MB, 1,000 at once", "seconds"] == pytest.approx(
        44.9, rel=0.15
    )


def test_measured_runs_are_used_together_with_the_published_values(shared):
    folder = str(shared / "published" / "lambda" / "partition-25MB")
    times = str(shared / "published" / "lambda" / "total_execution_time.csv")
    found = recommend_for_survey("100000", [folder, times])
    fitted = {one.place: one for one in found.models}
    assert sorted(fitted) == [LAMBDA, GPU, ARRAY, NODE, ONE_MACHINE]
    assert len(fitted[LAMBDA].runs) > 50
    assert fitted[ARRAY].runs[0].startswith("published.csv/")


def test_surveys_by_address_and_number(tmp_path):
    survey = make_survey(tmp_path / "survey", random_galaxies(20), 12)
    target = resolve_target(survey.uri, account="me", concurrency=7)
    assert (target.survey, target.galaxies, target.size, target.largest_shard) == (survey.uri, 20, survey.bytes, 12)
    assert (target.can_be_cut, target.account, target.concurrency) == (True, "me", 7)
    assert resolve_target("659_857").size == 659_857 * 20520
    with pytest.raises(InputError, match="nowhere does not exist; expected a survey folder"):
        resolve_target(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="holds no galaxies"):
        recommend_for_survey("0")


def test_the_demo_survey_is_a_target():
    target = resolve_target("demo")
    assert (target.survey, target.galaxies, target.largest_shard) == ("demo", 4096, 1278)
