"""The plan: its text, byte for byte, and what is refused when it is read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from cosmicai.errors import InputError
from cosmicai.runs import plan as plans
from cosmicai.runs.plan import Plan, PrecisionCheck, WorkItem
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summary import count_coverage
from cosmicai.surveys.survey import ShardEntry, open_survey
from support.helpers import make_run, make_survey, random_galaxies, run, tiny_weights

SHARDS = (ShardEntry("000001.h5", 10, 100, "a" * 64), ShardEntry("000002.h5", 0, 1), ShardEntry("000003.h5", 5, 50))
ITEMS = (WorkItem(0, 0, 8), WorkItem(0, 8, 10), WorkItem(2, 0, 5))
PLAN = Plan("/data/survey", SHARDS, "demo", "0" * 64, "openvino", "float32", "cpu", 8, 4, None, None, ITEMS)


def write_by_hand(plan: Plan) -> str:
    """Return the text of a plan as `json.dumps` writes it, which is what the format was defined by."""
    check = plan.precision_check
    return json.dumps(
        {
            "format": "cosmicai-plan/2",
            "survey": plan.survey,
            "shards": [
                {"name": own.name, "galaxies": own.galaxies, "bytes": own.bytes, "sha256": own.sha256}
                for own in plan.shards
            ],
            "weights": plan.weights,
            "weights_sha256": plan.weights_sha256,
            "engine": plan.engine,
            "precision": plan.precision,
            "device": plan.device,
            "batch_size": plan.batch_size,
            "inner_batch": plan.inner_batch,
            "precision_check": check
            and {
                "asked": check.requested,
                "used": check.used,
                "reason": check.reason,
                "galaxies": check.galaxies,
                "largest": check.largest_shift,
                "nmad": check.nmad,
                "nmad_float32": check.nmad_float32,
            },
            "quantized": plan.quantized,
            "items": [[own.shard, own.start, own.stop] for own in plan.items],
        }
    )


def refusal(text: bytes | str) -> str:
    """Return the message with which a text is refused."""
    with pytest.raises(InputError) as refused:
        Plan.from_json(text, "plan.json")
    return str(refused.value)


def changed(**values: Any) -> str:
    """Return the text of PLAN with some JSON values replaced."""
    return json.dumps(json.loads(PLAN.to_json()) | values)


def test_the_plan_names_every_galaxy_once_at_multiples_of_the_batch(tmp_path):
    survey, weights = (
        make_survey(tmp_path / "survey", random_galaxies(5000), 2300),
        tiny_weights(tmp_path / "w.safetensors"),
    )
    plan = make_run(open_survey(survey.uri), weights, str(tmp_path / "run"), batch_size=300).plan()
    seen = np.zeros((3, 2300), int)
    for item in plan.items:
        assert item.start % 300 == 0
        seen[item.shard, item.start : item.stop] += 1
    assert seen.sum(axis=1).tolist() == [2300, 2300, 400] and seen.max() == 1
    assert Plan.from_json(plan.to_json(), "plan.json") == plan
    assert count_coverage(plan, set(plan.items[1:])).missing == plan.items[0].galaxies
    assert count_coverage(plan, {WorkItem(9, 0, 5)}).unplanned_parts == 1


def test_a_plan_of_an_earlier_version_is_read_and_keeps_its_digest():
    text = (
        '{"format": "cosmicai-plan/2", "survey": "/data/survey", "shards": [{"name": "000001.h5", "galaxies": 10, '
        '"bytes": 100, "sha256": "ab"}], "weights": "demo", "weights_sha256": "cd", "engine": "openvino", '
        '"precision": "bfloat16", "device": "cpu", "batch_size": 512, "inner_batch": 64, "precision_check": {"asked": '
        '"bfloat16", "used": "bfloat16", "reason": "checked", "galaxies": 10, "largest": 1e-05, "nmad": null, '
        '"nmad_float32": null}, "quantized": null, "items": [[0, 0, 10]]}'
    )
    plan = Plan.from_json(text, "plan.json")
    assert plan.shards == (ShardEntry("000001.h5", 10, 100, "ab"),) and plan.items == (WorkItem(0, 0, 10),)
    assert plan.precision_check == PrecisionCheck("bfloat16", "bfloat16", "checked", 10, 1e-5)
    assert plan.requested_precision == "bfloat16"
    assert plan.to_json().decode() == text
    assert plan.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("together", [1, 2, 3, 10_000])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shards": (), "items": ()},
        {"survey": 'Läufe für ζ, "quoted"\\\n\t\x01\x7f\u2028😀'},
        {"shards": (ShardEntry('é\x7f"\\/😀.h5', 10, 100, ""), *SHARDS[1:])},
        {"shards": tuple(structs.replace(own, name=f"{own.name}\x7f") for own in SHARDS)},
        {"precision_check": PrecisionCheck("int8", "int8", "accepted though it…", 7, 1e-05, 1e16, 0.1)},
        {"quantized": "int8-0123456789abcdef.zip"},
    ],
)
def test_the_text_is_what_json_dumps_writes(monkeypatch, together, changes):
    monkeypatch.setattr(plans, "_ENCODED_TOGETHER", together)
    plan = structs.replace(PLAN, **changes)
    text = write_by_hand(plan)
    assert plan.to_json().decode() == text
    assert plan.digest == hashlib.sha256(text.encode()).hexdigest()
    assert Plan.from_json(text, "plan.json") == plan


def test_fields_at_their_defaults_are_not_in_the_text():
    stated = {"views": 8, "quantiles": True, "calibrate_on_spectra": True}
    digests = {PLAN.inputs_digest}
    for name, value in stated.items():
        plan = structs.replace(PLAN, **{name: value})
        assert plan.to_json() == PLAN.to_json()[:-1] + f', "{name}": {json.dumps(value)}}}'.encode()
        assert Plan.from_json(plan.to_json(), "plan.json") == plan
        digests.add(plan.inputs_digest)
    assert len(digests) == 4
    every = structs.replace(PLAN, **stated)
    assert json.loads(every.to_json()) == json.loads(PLAN.to_json()) | stated


def test_the_digest_of_the_inputs_is_what_it_was_before_there_were_views():
    assert PLAN.inputs_digest == "79fb36c23d705d1e4a4c9b42749061268e261a9272fafa7965245868d158064f"


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "cosmicai-plan/2"}', '{"format": "cosmicai-plan/1"}'])
def test_a_damaged_plan_is_one_sentence(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json cannot be used: .*; choose another run folder$"):
        RunFolder(str(tmp_path)).plan()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"format": "cosmicai-plan/1"}, 'field format is "cosmicai-plan/1", expected "cosmicai-plan/2"'),
        ({"more": 1}, "object contains unknown field `more`"),
        ({"batch_size": 0}, "field batch_size: expected `int` >= 1"),
        ({"batch_size": True}, "field batch_size: expected `int`, got `bool`"),
        ({"inner_batch": 10**30}, "field inner_batch: expected `int` <= 9223372036854775807"),
        ({"batch_size": 65537}, "field batch_size: expected at most 65536, got 65537"),
        ({"inner_batch": 9}, "field inner_batch: expected at most the batch_size 8, got 9"),
        ({"views": 3}, "field views: expected 1 or 8, got 3"),
        ({"views": True}, "field views: expected `int`, got `bool`"),
        ({"quantiles": 1}, "field quantiles: expected `bool`, got `int`"),
        ({"calibrate_on_spectra": None}, "field calibrate_on_spectra: expected `bool`, got `null`"),
        ({"quantized": "../../x"}, "field quantized: expected `str` matching regex"),
        ({"shards": None}, "field shards: expected `array`, got `null`"),
        ({"items": [[0, -1, 10]]}, "field items[0][1]: expected `int` >= 0"),
        ({"items": [[0, 0, 10, 0]]}, "expected `array` of at most length 3"),
    ],
)
def test_a_plan_is_refused_by_the_name_of_the_field(values, problem):
    assert problem in refusal(changed(**values))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 200_000, "expected `object`, got `array`"),
        ('{"a":' * 200_000, "it is nested too deeply"),
        (b"\xff\xfe", ""),
        (PLAN.to_json().replace(b"/data/survey", b"/data/s\xfcrvey"), "UTF-8"),
        (PLAN.to_json().replace(b'"batch_size": 8', b'"batch_size": ' + b"9" * 5000), "field batch_size"),
        (PLAN.to_json().replace(b'"batch_size": 8', b'"batch_size": NaN'), "JSON is malformed"),
        (PLAN.to_json()[:-1], "truncated"),
    ],
)
def test_text_that_is_not_json_is_one_sentence(text, problem):
    message = refusal(text)
    assert message.startswith("plan.json cannot be used: ") and problem in message and "\n" not in message


@pytest.mark.parametrize(
    ("items", "problem"),
    [
        ([[0, 0, 8], [2, 0, 5]], "item 000002-00000000-00000005 does not continue with row 8 of shard 0"),
        ([[0, 0, 8], [0, 7, 10], [2, 0, 5]], "item 000000-00000007-00000010 does not continue with row 8 of shard 0"),
        ([[0, 0, 11], [2, 0, 5]], "item 000000-00000000-00000011 does not continue with row 0 of shard 0 and end"),
        ([[0, 0, 10], [1, 0, 1], [2, 0, 5]], "item 000001-00000000-00000001 does not continue with row 0 of shard 2"),
        ([[0, 0, 10], [2, 0, 0], [2, 0, 5]], "item 000002-00000000-00000000 does not continue with row 0 of shard 2"),
        ([[0, 0, 10], [2, 0, 5], [2, 0, 5]], "item 000002-00000000-00000005 comes after the last galaxy"),
        ([[0, 0, 10], [2, 0, 5], [3, 0, 5]], "item 000003-00000000-00000005 comes after the last galaxy"),
        ([[2, 0, 5], [0, 0, 10]], "item 000002-00000000-00000005 does not continue with row 0 of shard 0"),
        ([[0, 0, 10]], "no item continues with row 0 of shard 2"),
        ([[0, 0, 10], [2, 0, 4]], "no item continues with row 4 of shard 2"),
        ([], "no item continues with row 0 of shard 0"),
    ],
)
def test_items_hold_every_galaxy_of_every_shard_exactly_once(items, problem):
    assert problem in refusal(changed(items=items))


def test_a_plan_with_a_gap_ends_every_command_with_one_sentence(tmp_path):
    survey, weights = make_survey(tmp_path / "s", random_galaxies(30), 10), tiny_weights(tmp_path / "w.safetensors")
    folder = make_run(survey, weights, str(tmp_path / "run"), engine="reference")
    path = Path(folder.plan_path)
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"items": values["items"][:-1]}))
    for command in (("work",), ("summarize",)):
        done = run(*command, folder.uri)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr == (
            f"cosmicai: {path} cannot be used: field items: no item continues with row 0 of shard 2; "
            "choose another run folder\n"
        )


def test_a_name_that_is_not_utf8_is_refused_before_anything_is_written(tmp_path):
    survey, weights = make_survey(tmp_path / "s", random_galaxies(10), 10), tiny_weights(tmp_path / "w.safetensors")
    out = tmp_path / "caf\udce9"
    with pytest.raises(InputError, match=r"caf\\udce9 is not UTF-8, which a plan cannot hold; rename the folder$"):
        make_run(survey, weights, str(out), engine="reference")
    assert not out.exists()
