"""`cosmicai selftest`: its report on engines that pass, that fail, and that cannot run here."""

import json

import pytest
from click.testing import CliRunner, Result

from cosmicai.cli.main import cli
from cosmicai.errors import InputError
from cosmicai.verification import selftest


def invoke(*options: str) -> Result:
    return CliRunner().invoke(cli, ["selftest", "--json", *options], standalone_mode=False)


@pytest.fixture(autouse=True)
def few_galaxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "GALAXIES", 256)


def test_available_engines_pass_and_others_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "PRECISIONS", {"openvino": (), "reference": (), "cuda": ()})
    done = invoke()
    assert done.return_value == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.stdout)["rows"]}
    assert {"openvino float32", "reference float32"} <= rows.keys()
    assert all(row["passed"] and row["galaxies"] == 256 for row in rows.values())
    assert rows["openvino float32"]["largest_dz"] == 0 < rows["reference float32"]["largest_dz"] < 1e-5
    assert len(rows) + done.stderr.count(" is left out: ") == 7


@pytest.mark.parametrize(("limit", "value"), [("LARGEST_NMAD", 0.001), ("LARGEST_SHIFT", -1.0)])
def test_engines_with_wrong_redshifts_are_named(monkeypatch: pytest.MonkeyPatch, limit: str, value: float) -> None:
    monkeypatch.setattr(selftest, "PRECISIONS", {"reference": ()})
    monkeypatch.setattr(selftest, limit, value)
    done = invoke()
    assert done.return_value == 3
    assert done.stderr.endswith("the redshifts of reference float32 are wrong\n")
    assert [row["passed"] for row in json.loads(done.stdout)["rows"]] == [False]


def test_without_any_engine_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "create_engine_run", lambda *_: None)
    done = invoke()
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == "no engine can run here; the messages above say what each of them needs"
