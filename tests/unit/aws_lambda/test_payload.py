"""The published payload and the events made from it: every key, every refusal, and every file exactly once."""

import json
import re
from math import ceil
from typing import Any

import pytest

from cosmicai.aws_lambda.payload import Payload, assign_by_data_map, assign_files, make_events, read_payload
from cosmicai.errors import InputError

LEAST = {"bucket": "b", "result_path": "r", "data_bucket": "d", "data_prefix": "100MB"}
KNOWN = (
    "S3_object_name, accept_precision_loss, batch_size, bucket, calibrate_on_spectra, data_bucket, data_map, "
    "data_prefix, file_limit, fmi_enabled, max_concurrency, memory, object_type, order, precision, quantiles, "
    "rendezvous_endpoint, result_path, script, strict, tolerated_failure_percentage, views, weights, world_size"
)
REMEDY = "correct it and start the execution again"


def refusal(call, *arguments: Any) -> str:
    """Return the one line of the InputError that the call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused(**changes: Any) -> str:
    """Return why this payload, with these keys changed or added, is refused."""
    return refusal(read_payload, LEAST | changes)


def unusable(key: str, value: Any) -> str:
    """Return what is wrong with a value, from the message that names the key and shows the value."""
    text, begin, end = refused(**{key: value}), f"the payload's {key} {value!r} cannot be used: ", f"; {REMEDY}"
    assert text.startswith(begin) and text.endswith(end)
    return text.removeprefix(begin).removesuffix(end)


def test_the_published_payload_is_accepted_as_it_is(shared):
    payload = read_payload(json.loads((shared / "published/lambda/demo_input.json").read_text()))
    assert payload == Payload(
        bucket="cosmicai-data",
        result_path="result-partition-100MB/1GB/1",
        data_bucket="cosmicai-data",
        data_prefix="100MB",
        file_limit=11,
        batch_size=512,
        object_type="folder",
        S3_object_name="Anomaly Detection",
        script="/tmp/Anomaly Detection/Inference/inference.py",
    )
    assert payload.survey == "s3://cosmicai-data/100MB"


def test_the_course_teams_keys_are_accepted():
    course = {
        "world_size": "3", "data_map": {"0": "100MB/1.pt"}, "rendezvous_endpoint": "rendezvous.example:10000",
        "fmi_enabled": True, "data_size": "1GB", "unique_id": "perf-test-1-1753127926",
    }  # fmt: skip
    payload = read_payload(LEAST | course)
    assert (payload.world_size, payload.data_map) == (3, {"0": "100MB/1.pt"})
    for key in course:
        assert read_payload(LEAST | {key: course[key]}).bucket == "b"


def test_our_keys_are_accepted():
    ours: dict[str, Any] = {
        "weights": "s3://b/w.safetensors", "precision": "bfloat16", "accept_precision_loss": True, "memory": 1024,
        "max_concurrency": 300, "tolerated_failure_percentage": 2.5, "fmi_enabled": True,
        "rendezvous_endpoint": "rendezvous.example.org:10000", "views": 8, "quantiles": True,
        "calibrate_on_spectra": True, "order": "natural",
    }  # fmt: skip
    assert read_payload(LEAST | ours) == Payload("b", "r", "d", "100MB", **ours)


@pytest.mark.parametrize("views", [2, 3, "16"])
def test_other_numbers_of_views_are_refused(views):
    assert refused(views=views).startswith(f"the payload's views {int(views)} cannot be used; expected 1 (")


def test_missing_and_null_keys_have_defaults():
    payload = Payload("b", "r", "d", "100MB")
    assert read_payload(LEAST) == payload
    optional = set(KNOWN.split(", ")) - LEAST.keys()
    assert read_payload(LEAST | dict.fromkeys(optional)) == payload
    assert (payload.object_type, payload.tolerated_failure_percentage) == ("folder", 0.0)


@pytest.mark.parametrize("key", ["result_path", "data_prefix"])
def test_slashes_around_a_folder_are_ignored(key):
    assert getattr(read_payload(LEAST | {key: "/a/b c/"}), key) == "a/b c"


def test_an_unknown_key_is_named_with_the_known_keys():
    assert refused(worldsize=3) == f"the payload has the unknown key worldsize; expected {KNOWN}"
    assert refused(z=1, Batch_size=1) == f"the payload has the unknown key Batch_size; expected {KNOWN}"


@pytest.mark.parametrize("key", list(LEAST))
@pytest.mark.parametrize("value", ["missing", None, ""])
def test_a_missing_key_is_named(key, value):
    payload = {name: text for name, text in LEAST.items() if name != key}
    payload |= {} if value == "missing" else {key: value}
    expected = f"the payload has no {key}; expected it as in the published demo_input.json"
    assert refusal(read_payload, payload) == expected


@pytest.mark.parametrize("key", ["result_path", "data_prefix"])
def test_a_folder_of_slashes_is_missing(key):
    assert refused(**{key: "//"}) == f"the payload has no {key}; expected it as in the published demo_input.json"


@pytest.mark.parametrize(("event", "kind"), [([], "list"), ("text", "str"), (None, "NoneType"), (3, "int")])
def test_a_payload_that_is_not_an_object_is_refused(event, kind):
    assert refusal(read_payload, event) == f"the payload is {kind}; expected an object with bucket and result_path"


@pytest.mark.parametrize(
    "key",
    [
        "bucket",
        "result_path",
        "data_bucket",
        "data_prefix",
        "object_type",
        "S3_object_name",
        "script",
        "weights",
        "precision",
        "rendezvous_endpoint",
    ],
)
@pytest.mark.parametrize("value", [5, True, ["a"], {}])
def test_a_value_that_is_not_text_is_refused(key, value):
    kind = {int: "int", bool: "bool", list: "array", dict: "object"}[type(value)]
    assert unusable(key, value) in (f"expected `str`, got `{kind}`", f"expected `str | null`, got `{kind}`")


@pytest.mark.parametrize("key", ["file_limit", "batch_size", "world_size", "memory", "max_concurrency"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, False, "", "0", "-3", "1.0", " 7", "ten", "²", [5], {}])
def test_a_value_that_is_not_a_count_is_refused(key, value):
    assert re.fullmatch(r"expected `int` >= 1|expected `int \| null`, got `\w+`", unusable(key, value))


@pytest.mark.parametrize("key", ["file_limit", "batch_size", "world_size", "memory", "max_concurrency"])
@pytest.mark.parametrize(("value", "count"), [(1, 1), ("11", 11), ("007", 7), (10**6, 10**6)])
def test_a_count_may_be_text(key, value, count):
    assert getattr(read_payload(LEAST | {key: value}), key) == count


@pytest.mark.parametrize("value", [-0.1, 100.1, "5", True, [], float("nan"), float("inf")])
def test_a_value_that_is_not_a_percentage_is_refused(value):
    problem = unusable("tolerated_failure_percentage", value)
    assert re.fullmatch(r"expected `float` (>= 0\.0|<= 100\.0)|expected `float`, got `\w+`", problem)


@pytest.mark.parametrize("value", [0, 5, 33.3, 100])
def test_a_percentage_is_a_number_from_0_to_100(value):
    assert read_payload(LEAST | {"tolerated_failure_percentage": value}).tolerated_failure_percentage == value


@pytest.mark.parametrize("key", ["accept_precision_loss", "calibrate_on_spectra", "fmi_enabled", "quantiles"])
@pytest.mark.parametrize("value", ["true", 1, 0, "", []])
def test_a_value_that_is_not_a_flag_is_refused(key, value):
    assert unusable(key, value).startswith("expected `bool`, got `")


@pytest.mark.parametrize("value", [["100MB/1.pt"], "100MB/1.pt", 3, True])
def test_a_data_map_that_is_not_an_object_is_refused(value):
    assert unusable("data_map", value).startswith("expected `object | null`, got `")


def published_shares(files: int, ranks: int) -> list[int]:
    """Return the sizes of the published shares: the files left over the ranks left, rounded up."""
    sizes, left = [], files
    for rank in range(ranks):
        sizes.append(ceil(left / (ranks - rank)))
        left -= sizes[-1]
    return sizes


@pytest.mark.parametrize("files", range(41))
def test_files_are_assigned_by_the_published_rule(files):
    names = [f"{number}.pt" for number in range(files)]
    for world_size in range(1, 46):
        shares = assign_files(names, world_size)
        ranks = min(files, world_size)  # no rank without files is invoked
        assert [len(share) for share in shares] == published_shares(files, ranks)
        assert [name for share in shares for name in share] == names
        assert all(shares) and len(shares) == ranks
        paths = [event.data_path for event in make_events(Payload("b", "r", "d", "p"), shares, 512)]
        assert paths == [f"p/{share[0]}" if len(share) == 1 else [f"p/{name}" for name in share] for share in shares]


def test_shares_differ_by_at_most_one_file_and_the_first_are_larger():
    assert assign_files(["1", "2", "3", "4", "5", "6", "7"], 3) == [["1", "2", "3"], ["4", "5"], ["6", "7"]]


def test_an_event_has_exactly_the_published_keys_in_their_order_and_types():
    payload = read_payload(
        LEAST | {"S3_object_name": "Anomaly Detection", "script": "/tmp/i.py", "object_type": "file", "weights": "demo"}
    )
    events = make_events(payload, [["1.pt"], ["2.pt", "3.pt"]], 512)
    assert [list(event.to_dict().items()) for event in events] == [
        [
            ("S3_BUCKET", "b"),
            ("S3_OBJECT_NAME", "Anomaly Detection"),
            ("SCRIPT", "/tmp/i.py"),
            ("S3_OBJECT_TYPE", "file"),
            ("WORLD_SIZE", "2"),
            ("RANK", str(rank)),
            ("DATA_BUCKET", "d"),
            ("DATA_PREFIX", "100MB"),
            ("DATA_PATH", path),
            ("RESULT_PATH", "r"),
            ("BATCH_SIZE", 512),
        ]
        for rank, path in enumerate(["100MB/1.pt", ["100MB/2.pt", "100MB/3.pt"]])
    ]
    assert make_events(payload, iter([["1.pt"]]), 1)[0].world_size == "1"
    assert make_events(payload, [], 1) == []


def test_a_data_map_assigns_files_explicitly():
    data_map = {
        "10": ["p/e.pt"], "2": "p/10.pt", "0": ["p/b.pt", "p/a.pt"], "1": None, "3": [], "4": "p/below/c.pt",
    }  # fmt: skip
    assert assign_by_data_map(data_map, "p") == [["b.pt", "a.pt"], ["10.pt"], ["below/c.pt"], ["e.pt"]]
    assert assign_by_data_map({"0": None}, "p") == assign_by_data_map({}, "p") == []
    assert assign_by_data_map({"rank-2": "p/2", "rank-10": "p/10"}, "p") == [["2"], ["10"]]


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        ("q/1.pt", ["q/1.pt"]),
        ("1.pt", ["1.pt"]),
        ("p", ["p"]),
        ("pp/1.pt", ["pp/1.pt"]),
        (["p/1.pt", "q/1.pt"], ["p/1.pt", "q/1.pt"]),
        (["p/1.pt", None], ["p/1.pt", None]),
        (7, 7),
        ({"p/1.pt": 1}, {"p/1.pt": 1}),
        ("", [""]),
    ],
)
def test_a_data_map_of_anything_else_is_refused(paths, shown):
    expected = f"data_map gives rank 3 {shown!r}; expected paths of files in p/"
    assert refusal(assign_by_data_map, {"0": "p/0.pt", "3": paths}, "p") == expected


def test_a_file_that_is_assigned_to_two_ranks_is_refused():
    expected = "data_map has p/1.pt twice; expected each file once"
    assert refusal(assign_by_data_map, {"0": ["p/2.pt", "p/1.pt"], "1": ["p/1.pt", "p/2.pt"]}, "p") == expected


def test_a_file_that_is_assigned_to_one_rank_twice_is_refused():
    expected = "data_map has p/1.pt twice; expected each file once"
    assert refusal(assign_by_data_map, {"0": ["p/2.pt", "p/1.pt", "p/1.pt"]}, "p") == expected
